use super::*;
use crate::{PERMISSIONS, permission::of_roles};

fn caller(permissions: Permissions, credential: Credential) -> Caller {
    Caller {
        owner_id: "ada".into(),
        username: "ada".into(),
        roles: vec!["admin".into()],
        permissions,
        credential,
        label: "ada".into(),
        version: 1,
        expires_s: 100,
    }
}

fn session(permissions: Permissions) -> Caller {
    caller(permissions, Credential::Session { id: "s".into() })
}

fn key(permissions: Permissions) -> Caller {
    let credential = Credential::ApiKey {
        id: "k".into(),
        secret: [0; 32],
    };
    caller(permissions, credential)
}

fn stored(id: &str, owner_id: &str, scopes: Permissions) -> StoredKey {
    StoredKey {
        id: id.into(),
        owner_id: owner_id.into(),
        scopes,
        expires_s: 100,
    }
}

fn one(name: &'static str) -> Permissions {
    Permissions::of([name])
}

/// Every set of up to two permissions, the roles, nothing and everything.
fn sets() -> Vec<Permissions> {
    let roles = ["viewer", "developer", "admin"].map(|r| of_roles([r]));
    let pairs = PERMISSIONS
        .iter()
        .flat_map(|a| PERMISSIONS.iter().map(move |b| Permissions::of([*a, *b])));
    roles
        .into_iter()
        .chain([Permissions::default()])
        .chain(pairs)
        .collect()
}

#[test]
fn only_held_permissions_can_be_granted_or_taken_away() {
    for held in sets() {
        for what in sets() {
            let within = what.without(held).is_empty();
            for caller in [session(held), key(held)] {
                let made = new_key(&caller, Some(what));
                assert_eq!(made.is_ok(), within, "{held:?} makes {what:?}");
                let rotated = rotate_key(&caller, &stored("other", "ada", what));
                assert_eq!(rotated.is_ok(), within, "{held:?} rotates {what:?}");
                let user = change_user(&caller, Permissions::default(), what);
                assert_eq!(user.is_ok(), within, "{held:?} gives {what:?}");
                let weakened = change_user(&caller, what, Permissions::default());
                assert_eq!(weakened.is_ok(), within, "{held:?} takes {what:?}");
                let revoked = revoke_key(&caller, &stored("other", "ada", what)).is_ok();
                let any = held.includes(one("apikeys.revoke_any"));
                assert_eq!(revoked, within || any, "{held:?} revokes {what:?}");
            }
        }
    }
}

#[test]
fn without_scopes_a_key_gets_those_of_the_caller_not_of_its_owner() {
    for held in sets() {
        assert_eq!(new_key(&key(held), None), Ok(held));
    }
}

#[test]
fn a_refusal_names_the_missing_permissions() {
    let refused = new_key(&key(one("apikeys.write")), Some(of_roles(["viewer"]))).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("agents.read") && text.contains("session.self"),
        "{text}"
    );
    assert!(!text.contains("apikeys.write"), "{text}");
}

#[test]
fn the_secret_of_another_owners_key_is_never_handed_out() {
    for caller in [session(Permissions::ALL), key(Permissions::ALL)] {
        let theirs = stored("x", "bob", Permissions::default());
        assert_eq!(rotate_key(&caller, &theirs), Err(GrantError::NotOwn));
        assert_eq!(
            revoke_key(&caller, &theirs),
            Ok(()),
            "revoking it is allowed"
        );
    }
    let theirs = stored("x", "bob", Permissions::default());
    let without = Permissions::ALL.without(one("apikeys.revoke_any"));
    assert_eq!(
        revoke_key(&session(without), &theirs),
        Err(GrantError::Permissions(vec!["apikeys.revoke_any"]))
    );
}

#[test]
fn a_key_may_always_rotate_and_revoke_itself() {
    let narrow = key(one("apikeys.write"));
    assert_eq!(
        rotate_key(&narrow, &stored("k", "ada", Permissions::ALL)),
        Ok(())
    );
    assert_eq!(
        revoke_key(&narrow, &stored("k", "ada", Permissions::ALL)),
        Ok(())
    );
    let namesake = stored("k", "bob", Permissions::default());
    assert_eq!(rotate_key(&narrow, &namesake), Err(GrantError::NotOwn));
}

#[test]
fn an_outgoing_secret_may_revoke_its_key_but_not_rotate_it() {
    let outgoing = key(Permissions::ALL);
    let itself = StoredKey {
        expires_s: 101,
        ..stored("k", "ada", Permissions::ALL)
    };
    assert_eq!(rotate_key(&outgoing, &itself), Err(GrantError::Outgoing));
    assert_eq!(revoke_key(&outgoing, &itself), Ok(()));
}

#[test]
fn a_key_cannot_create_or_rotate_a_key_that_outlives_it() {
    let maker = key(Permissions::ALL);
    assert_eq!(new_key_end(&maker, Some(101), 50), Err(GrantError::Life));
    assert_eq!(new_key_end(&maker, Some(100), 50), Ok(100));
    assert_eq!(new_key_end(&maker, None, 101), Ok(100));
    assert_eq!(new_key_end(&maker, None, 99), Ok(99));
    let longer = StoredKey {
        expires_s: 101,
        ..stored("other", "ada", Permissions::default())
    };
    assert_eq!(rotate_key(&maker, &longer), Err(GrantError::OutlivedBy));
    let person = session(Permissions::ALL);
    assert_eq!(new_key_end(&person, Some(10_000), 50), Ok(10_000));
    assert_eq!(rotate_key(&person, &longer), Ok(()));
}

#[test]
fn only_a_session_may_change_a_password_or_log_out() {
    assert_eq!(require_session(&session(Permissions::default())), Ok(()));
    let refused = require_session(&key(Permissions::ALL));
    assert_eq!(refused, Err(GrantError::NeedsSession));
}

#[test]
fn each_kind_of_identity_requires_its_own_permission() {
    for class in PeerClass::ALL {
        let own = match class {
            PeerClass::Client => "certificates.issue",
            PeerClass::Operator => "certificates.issue_operator",
            _ => "certificates.issue_workload",
        };
        let all_but = Permissions::ALL.without(one(own));
        for caller in [session(all_but), key(all_but)] {
            let refused = issue_identity(&caller, class, false);
            assert_eq!(refused, Err(GrantError::Permissions(vec![own])), "{class}");
        }
        let enough = Permissions::of(["certificates.issue", own]);
        assert_eq!(
            issue_identity(&key(enough), class, false),
            Ok(()),
            "{class}"
        );
    }
    let client = one("certificates.issue");
    assert!(
        issue_identity(&key(client), PeerClass::Client, true).is_err(),
        "host names make it a server"
    );
}

#[test]
fn revoking_a_workload_or_an_unknown_identity_requires_more_than_revoking_a_person() {
    let narrow = key(one("certificates.revoke"));
    for class in PeerClass::ALL {
        let people = matches!(class, PeerClass::Client | PeerClass::Operator);
        assert_eq!(
            revoke_identity(&narrow, Some(class)).is_ok(),
            people,
            "{class}"
        );
    }
    assert!(revoke_identity(&narrow, None).is_err());
    assert!(revoke_identity(&key(one("certificates.revoke_workload")), None).is_err());
    assert!(revoke_identity(&key(Permissions::ALL), None).is_ok());
}
