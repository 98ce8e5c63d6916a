use super::*;
use crate::PERMISSIONS;
use tars_proto::auth::v1::SecretView;

const NOW: u64 = 1_000_000;

fn user(disabled: bool) -> UserView {
    UserView {
        user_id: "u".into(),
        username: "ada".into(),
        roles: vec!["viewer".into()],
        disabled,
        version: 1,
        ..Default::default()
    }
}

fn at(seconds: u64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: i64::try_from(seconds).unwrap(),
        nanos: 0,
    })
}

fn key_view(key: &apikey::ApiKey, expires: Option<u64>) -> KeyView {
    KeyView {
        key_id: key.id.clone(),
        secrets: vec![SecretView {
            sha256: key.hash.to_vec(),
            expires_at: expires.and_then(at),
        }],
        owner_id: "u".into(),
        scopes: vec!["agents.read".into(), "users.write".into()],
        expires_at: at(NOW + 100),
        revoked: false,
        revision: 1,
    }
}

fn push(view: &View, item: WatchCredentialsResponse) {
    view.apply(&item, NOW);
}

fn session(id: &str, version: u64) -> Caller {
    Caller {
        owner_id: "u".into(),
        username: "ada".into(),
        roles: vec!["viewer".into()],
        permissions: Permissions::default(),
        credential: Credential::Session { id: id.into() },
        label: "user:ada".into(),
        version,
        expires_s: NOW + 100,
    }
}

#[test]
fn an_older_revision_never_replaces_a_newer_one() {
    let key = apikey::ApiKey::generate();
    let v = view(&key);
    let users = |revision, disabled| WatchCredentialsResponse {
        users: vec![UserView {
            revision,
            ..user(disabled)
        }],
        ..Default::default()
    };
    push(&v, users(3, true));
    push(&v, users(2, false));
    assert!(
        v.check_api_key(&key.text, NOW).is_none(),
        "disabled stays disabled"
    );
    push(&v, users(4, false));
    assert!(v.check_api_key(&key.text, NOW).is_some());
    let keys = |revision, revoked| WatchCredentialsResponse {
        api_keys: vec![KeyView {
            revision,
            revoked,
            ..key_view(&key, None)
        }],
        ..Default::default()
    };
    push(&v, keys(3, true));
    push(&v, keys(2, false));
    assert!(
        v.check_api_key(&key.text, NOW).is_none(),
        "revoked stays revoked"
    );
    let session = |until| WatchCredentialsResponse {
        revoked_sessions: vec![SessionView {
            session_id: "s".into(),
            expires_at: at(until),
        }],
        ..Default::default()
    };
    push(&v, session(NOW + 50));
    push(&v, session(NOW + 10));
    let later = WatchCredentialsResponse {
        users: vec![UserView {
            revision: 5,
            ..user(false)
        }],
        ..Default::default()
    };
    v.apply(&later, NOW + 49);
    assert!(!v.still_valid(&self::session("s", 1), NOW));
}

#[test]
fn only_the_session_that_changed_the_password_survives_the_change() {
    let v = view(&apikey::ApiKey::generate());
    let changed = UserView {
        version: 2,
        revision: 2,
        kept_session: "mine".into(),
        ..user(false)
    };
    push(
        &v,
        WatchCredentialsResponse {
            users: vec![changed.clone()],
            ..Default::default()
        },
    );
    assert!(v.still_valid(&session("mine", 1), NOW));
    assert!(!v.still_valid(&session("other", 1), NOW));
    assert!(!v.still_valid(&session("", 1), NOW));
    assert!(v.still_valid(&session("other", 2), NOW), "a login since");
    let roles = UserView {
        version: 3,
        revision: 3,
        kept_session: String::new(),
        ..changed
    };
    push(
        &v,
        WatchCredentialsResponse {
            users: vec![roles],
            ..Default::default()
        },
    );
    assert!(!v.still_valid(&session("mine", 1), NOW));
    assert!(
        !v.still_valid(&session("", 1), NOW),
        "no session is no kept session"
    );
}

#[test]
fn a_call_by_key_ends_with_its_secret_and_with_its_permissions() {
    let old = apikey::ApiKey::generate();
    let v = view(&old);
    let caller = v.check_api_key(&old.text, NOW).unwrap();
    let sessions_ended = UserView {
        version: 2,
        revision: 2,
        ..user(false)
    };
    push(
        &v,
        WatchCredentialsResponse {
            users: vec![sessions_ended],
            ..Default::default()
        },
    );
    assert!(v.still_valid(&caller, NOW), "a key is no session");
    let demoted = UserView {
        revision: 3,
        roles: vec![],
        ..user(false)
    };
    push(
        &v,
        WatchCredentialsResponse {
            users: vec![demoted],
            ..Default::default()
        },
    );
    assert!(!v.still_valid(&caller, NOW));

    let v = view(&old);
    let new = KeyView {
        revision: 2,
        ..key_view(&apikey::ApiKey::with_id(&old.id), None)
    };
    push(
        &v,
        WatchCredentialsResponse {
            api_keys: vec![new],
            ..Default::default()
        },
    );
    assert!(!v.still_valid(&caller, NOW), "its secret was replaced");
}

#[test]
fn a_key_without_scopes_permits_nothing_and_a_growing_role_does_not_widen_a_key() {
    let key = apikey::ApiKey::generate();
    let v = view(&key);
    let none = KeyView {
        scopes: vec![],
        revision: 2,
        ..key_view(&key, None)
    };
    push(
        &v,
        WatchCredentialsResponse {
            api_keys: vec![none],
            ..Default::default()
        },
    );
    let caller = v.check_api_key(&key.text, NOW).unwrap();
    assert_eq!(caller.permissions, Permissions::default());

    let v = view(&key);
    let grown = RoleView {
        name: "viewer".into(),
        permissions: PERMISSIONS.iter().map(|p| (*p).to_owned()).collect(),
    };
    push(
        &v,
        WatchCredentialsResponse {
            roles: vec![grown],
            ..Default::default()
        },
    );
    let caller = v.check_api_key(&key.text, NOW).unwrap();
    assert_eq!(
        caller.permissions.names(),
        ["agents.read", "users.write"],
        "its scopes"
    );
}

fn view(key: &apikey::ApiKey) -> View {
    let view = View::default();
    let item = WatchCredentialsResponse {
        sequence: 1,
        reset: true,
        users: vec![user(false)],
        api_keys: vec![key_view(key, None)],
        roles: vec![RoleView {
            name: "viewer".into(),
            permissions: vec!["agents.read".into(), "session.self".into()],
        }],
        ..Default::default()
    };
    view.apply(&item, NOW);
    view
}

#[test]
fn scopes_restrict_and_never_extend_permissions() {
    let key = apikey::ApiKey::generate();
    let caller = view(&key).check_api_key(&key.text, NOW).unwrap();
    assert_eq!(caller.permissions.names(), ["agents.read"]);
    assert_eq!(
        (caller.owner_id.as_str(), caller.username.as_str()),
        ("u", "ada")
    );
}

#[test]
fn a_key_is_refused_after_expiry_revocation_or_disabling_of_its_owner() {
    let key = apikey::ApiKey::generate();
    let v = view(&key);
    assert!(v.check_api_key(&key.text, NOW + 100).is_none());
    assert!(
        v.check_api_key(&apikey::ApiKey::with_id(&key.id).text, NOW)
            .is_none()
    );
    assert!(
        v.check_api_key(&apikey::ApiKey::generate().text, NOW)
            .is_none()
    );
    v.apply(
        &WatchCredentialsResponse {
            users: vec![user(true)],
            ..Default::default()
        },
        NOW,
    );
    assert!(v.check_api_key(&key.text, NOW).is_none());

    let v = view(&key);
    let caller = v.check_api_key(&key.text, NOW).unwrap();
    assert!(v.still_valid(&caller, NOW));
    assert!(!v.still_valid(&caller, NOW + 100), "expired");
    let revoked = KeyView {
        revoked: true,
        ..key_view(&key, None)
    };
    v.apply(
        &WatchCredentialsResponse {
            api_keys: vec![revoked],
            ..Default::default()
        },
        NOW,
    );
    assert!(v.check_api_key(&key.text, NOW).is_none());
    assert!(!v.still_valid(&caller, NOW));
}

#[test]
fn an_old_secret_works_until_its_overlap_ends() {
    let (old, v) = (apikey::ApiKey::generate(), View::default());
    let new = apikey::ApiKey::with_id(&old.id);
    let mut both = key_view(&new, None);
    both.secrets.push(SecretView {
        sha256: old.hash.to_vec(),
        expires_at: at(NOW + 10),
    });
    v.apply(
        &WatchCredentialsResponse {
            reset: true,
            users: vec![user(false)],
            api_keys: vec![both],
            ..Default::default()
        },
        NOW,
    );
    assert!(v.check_api_key(&old.text, NOW + 9).is_some());
    assert!(v.check_api_key(&old.text, NOW + 10).is_none());
    assert!(v.check_api_key(&new.text, NOW + 10).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_forward_temporarily_revives_no_session() {
    let v = view(&apikey::ApiKey::generate());
    let revoked = WatchCredentialsResponse {
        revoked_sessions: vec![SessionView {
            session_id: "s".into(),
            expires_at: at(NOW + 900),
        }],
        ..Default::default()
    };
    v.apply(&revoked, NOW);
    let something = || WatchCredentialsResponse {
        removed_kids: vec!["k".into()],
        ..Default::default()
    };
    tokio::time::advance(SWEEP_EVERY).await;
    v.apply(&something(), NOW + 7200);
    assert!(
        !v.still_valid(&session("s", 1), NOW),
        "after the clock was set back"
    );
    tokio::time::advance(Duration::from_secs(1000)).await;
    v.apply(&something(), NOW);
    assert!(
        !v.still_valid(&session("s", 1), NOW),
        "not over by the wall clock"
    );
    tokio::time::advance(SWEEP_EVERY).await;
    v.apply(&something(), NOW + 1000);
    assert!(v.0.snapshot.load().revoked_sessions.is_empty(), "forgotten");
}

#[tokio::test(start_paused = true)]
async fn age_is_measured_from_the_last_item_after_a_snapshot() {
    let v = View::default();
    assert_eq!(v.age(), None);
    v.apply(&WatchCredentialsResponse::default(), NOW);
    assert_eq!(
        v.age(),
        None,
        "a change before the first snapshot does not count"
    );
    v.apply(
        &WatchCredentialsResponse {
            reset: true,
            ..Default::default()
        },
        NOW,
    );
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(v.age(), Some(Duration::from_secs(3)));
}
