use super::*;
use crate::testing::{PASSWORD, World, elsewhere, here, person};
use tars_credentials::GrantError;

const NEW: &str = "another long password";

impl World {
    async fn version(&self, name: &str) -> i64 {
        let mut db = self.auth.store.read("test.user");
        let user = store::user_by_name(&mut db, name).await.unwrap();
        user.unwrap().version
    }
}

fn lacks(result: Result<UserSummary, AuthError>) -> Vec<&'static str> {
    match result {
        Err(AuthError::Grant(GrantError::Permissions(names))) => names,
        other => panic!("not refused for what it exceeds: {other:?}"),
    }
}

#[tokio::test]
async fn a_narrow_key_neither_creates_nor_changes_a_stronger_user() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    w.user("eve", "admin").await;
    w.user("vic", "viewer").await;
    let (narrow, from) = (person(Permissions::of(["users.write"])), here());
    for role in ["viewer", "developer", "admin"] {
        let made = auth.create_user(&narrow, &from, "new", PASSWORD, vec![role.into()]);
        assert!(!lacks(made.await).is_empty());
        let given = auth.set_roles(&narrow, "vic", vec![role.into()]).await;
        assert!(lacks(given).contains(&"agents.read"));
    }
    for name in ["admin", "eve", "vic"] {
        assert!(!lacks(auth.set_disabled(&narrow, name, true).await).is_empty());
        assert!(!lacks(auth.set_disabled(&narrow, name, false).await).is_empty());
    }
    auth.set_disabled(&admin, "eve", true).await.unwrap();
    lacks(auth.set_disabled(&narrow, "eve", false).await);
    let (users, _) = auth.list_users("", 10).await.unwrap();
    let disabled: Vec<_> = users
        .iter()
        .filter(|u| u.disabled)
        .map(|u| u.username.as_str())
        .collect();
    assert_eq!((users.len(), disabled), (3, vec!["eve"]));

    let keeper = Caller {
        permissions: permission::of_roles(["viewer"]).union(narrow.permissions),
        ..admin.clone()
    };
    let made = auth.create_user(&keeper, &from, "new", PASSWORD, vec!["viewer".into()]);
    made.await.unwrap();
    auth.set_disabled(&keeper, "vic", true).await.unwrap();
    let raised = auth
        .set_roles(&keeper, "new", vec!["developer".into()])
        .await;
    assert!(lacks(raised).contains(&"studies.write"));
    let demoted = auth
        .set_roles(&keeper, "admin", vec!["viewer".into()])
        .await;
    assert!(
        !lacks(demoted).is_empty(),
        "nor does it take from a stronger user"
    );
}

#[tokio::test]
async fn a_change_without_effect_ends_no_session() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let dev = w.user("dev", "developer").await;
    let before = w.version("dev").await;
    auth.set_disabled(&admin, "dev", false).await.unwrap();
    let roles = vec!["developer".to_owned(), "developer".to_owned()];
    auth.set_roles(&admin, "dev", roles).await.unwrap();
    assert!(w.holds(&dev));
    assert_eq!(w.version("dev").await, before);
    auth.set_disabled(&admin, "dev", true).await.unwrap();
    auth.set_disabled(&admin, "dev", true).await.unwrap();
    assert_eq!(w.version("dev").await, before + 1);
    assert!(!w.holds(&dev));
    auth.set_disabled(&admin, "dev", false).await.unwrap();
    assert!(!w.holds(&dev), "old sessions stay ended");
    let again = w.login("dev", PASSWORD).await;
    auth.set_disabled(&admin, "dev", false).await.unwrap();
    assert!(w.holds(&again));
    auth.set_roles(&admin, "dev", vec!["viewer".into()])
        .await
        .unwrap();
    assert!(!w.holds(&again), "other roles end it");
}

#[tokio::test]
async fn changing_the_password_ends_all_other_sessions() {
    let w = World::new().await;
    w.user("dev", "developer").await;
    let (_, mine) = w.auth.login("dev", PASSWORD, &here()).await.unwrap();
    let (_, other) = w.auth.login("dev", PASSWORD, &elsewhere()).await.unwrap();
    let now = w.clock.now_s();
    let me = w.view.check_token(&mine.access, now).unwrap();
    let they = w.view.check_token(&other.access, now).unwrap();
    let key = w
        .auth
        .create_key(&me, "svc", &["agents.read".into()], None)
        .await
        .unwrap();
    let holder = w.by_key(&key.text).unwrap();

    w.auth
        .change_password(&me, &here(), PASSWORD, NEW)
        .await
        .unwrap();
    assert!(w.holds(&me) && w.view.check_token(&mine.access, now).is_ok());
    assert!(!w.holds(&they) && w.view.check_token(&other.access, now).is_err());
    assert!(w.holds(&holder), "a key is no session");
    assert!(w.auth.refresh(&other.refresh, &elsewhere()).await.is_err());
    let next = w.auth.refresh(&mine.refresh, &here()).await.unwrap();
    assert!(w.view.check_token(&next.access, now).is_ok());
    assert!(w.auth.login("dev", PASSWORD, &here()).await.is_err());
    let newer = w.login("dev", NEW).await;

    // From another session, the first one ends as well; and a change of roles ends them all.
    w.auth
        .change_password(&newer, &here(), NEW, PASSWORD)
        .await
        .unwrap();
    assert!(!w.holds(&me) && w.view.check_token(&next.access, now).is_err());
    assert!(w.holds(&newer));
    let admin = w.admin().await;
    w.auth
        .set_roles(&admin, "dev", vec!["viewer".into()])
        .await
        .unwrap();
    assert!(!w.holds(&newer));
}

#[tokio::test]
async fn a_key_never_changes_its_owners_password_and_a_token_cannot_guess_it() {
    let w = World::new().await;
    let admin = w.admin().await;
    let key = w.auth.create_key(&admin, "svc", &[], None).await.unwrap();
    let by_key = w.by_key(&key.text).unwrap();
    let refused = w
        .auth
        .change_password(&by_key, &here(), &w.password, NEW)
        .await;
    assert!(matches!(
        refused,
        Err(AuthError::Grant(GrantError::NeedsSession))
    ));
    for _ in 0..5 {
        let guess = w.auth.change_password(&admin, &here(), "guess", NEW).await;
        assert!(matches!(guess, Err(AuthError::InvalidCredentials)));
    }
    let waits = w
        .auth
        .change_password(&admin, &here(), &w.password, NEW)
        .await;
    assert!(matches!(waits, Err(AuthError::Throttled(_))));
    let away = elsewhere();
    let changed = w.auth.change_password(&admin, &away, &w.password, NEW);
    changed.await.unwrap();
}

#[tokio::test]
async fn the_last_administrator_cannot_be_removed() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let disabled = auth.set_disabled(&admin, "admin", true).await;
    assert!(matches!(disabled, Err(AuthError::LastAdmin)));
    let demoted = auth.set_roles(&admin, "admin", vec!["viewer".into()]).await;
    assert!(matches!(demoted, Err(AuthError::LastAdmin)));
    assert!(w.holds(&admin), "a refused change changes nothing");
}

#[tokio::test]
async fn a_caller_disabled_or_demoted_meanwhile_creates_no_user() {
    let w = World::new().await;
    let (auth, admin, eve) = (&w.auth, w.admin().await, w.user("eve", "admin").await);
    let roles = |role: &str| vec![role.to_owned()];
    // As they were authenticated, while they wait for the password to be hashed.
    let make = async |name: &str| {
        let from = here();
        auth.create_user(&eve, &from, name, PASSWORD, roles("admin"))
            .await
    };
    make("before").await.unwrap();
    auth.set_roles(&admin, "eve", roles("developer"))
        .await
        .unwrap();
    // This ends her sessions as well.
    let demoted = make("demoted").await;
    assert!(matches!(demoted, Err(AuthError::InvalidCredentials)));
    auth.set_roles(&admin, "eve", roles("admin")).await.unwrap();
    auth.set_disabled(&admin, "eve", true).await.unwrap();
    let late = make("disabled").await;
    assert!(
        matches!(late, Err(AuthError::InvalidCredentials)),
        "{late:?}"
    );
    let names: Vec<_> = auth.list_users("", 10).await.unwrap().0;
    let names: Vec<_> = names.iter().map(|u| u.username.as_str()).collect();
    assert_eq!(names, ["admin", "before", "eve"]);
}

#[tokio::test]
async fn a_session_ended_meanwhile_creates_no_user() {
    let w = World::new().await;
    let (auth, from) = (&w.auth, here());
    let eve = w.user("eve", "admin").await;
    let roles = vec!["admin".to_owned()];
    auth.logout(&eve).await.unwrap();
    let made = auth.create_user(&eve, &from, "late", PASSWORD, roles).await;
    assert!(
        matches!(made, Err(AuthError::InvalidCredentials)),
        "{made:?}"
    );
}
