use super::*;
use crate::testing::{World, person};
use tars_credentials::{Credential, GrantError, permission::of_roles};

impl World {
    /// A key with these scopes, and the caller that it authenticates.
    async fn key(&self, maker: &Caller, scopes: &[&str]) -> (NewKey, Caller) {
        let scopes: Vec<String> = scopes.iter().map(|s| (*s).to_owned()).collect();
        let made = self.auth.create_key(maker, "svc", &scopes, None).await;
        let key = made.unwrap();
        let holder = self.by_key(&key.text).unwrap();
        (key, holder)
    }
}

fn exceeds<T>(result: Result<T, AuthError>) -> GrantError {
    match result {
        Err(AuthError::Grant(why)) => why,
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn a_revoked_key_is_never_valid_again() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let (key, holder) = w.key(&admin, &[]).await;
    auth.revoke_key(&admin, &key.id, "lost").await.unwrap();
    assert!(w.by_key(&key.text).is_none() && !w.holds(&holder));
    auth.create_key(&admin, "svc", &[], None).await.unwrap();
    assert!(w.by_key(&key.text).is_none(), "a new key of the same name");
    assert!(matches!(
        auth.rotate_key(&admin, &key.id, Duration::ZERO).await,
        Err(AuthError::KeyRevoked)
    ));
    let whole = w.auth.snapshots.take().await.unwrap();
    w.view.apply(&whole, w.clock.now_s());
    assert!(w.by_key(&key.text).is_none(), "after a snapshot");
}

#[tokio::test]
async fn revoking_a_revoked_key_changes_nothing() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let (key, _) = w.key(&admin, &[]).await;
    auth.revoke_key(&admin, &key.id, "lost").await.unwrap();
    let position = async || {
        let mut db = auth.store.read("test.position");
        store::last_change(&mut db).await.unwrap()
    };
    let before = position().await;
    auth.revoke_key(&admin, &key.id, "again").await.unwrap();
    assert_eq!(position().await, before);
}

#[tokio::test]
async fn rotation_replaces_the_secret() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let (old, _) = w.key(&admin, &[]).await;
    let minute = Duration::from_secs(60);
    let new = auth.rotate_key(&admin, &old.id, minute).await.unwrap();
    assert!(w.by_key(&old.text).is_some());
    let holder = w.by_key(&new.text).unwrap();
    w.clock.advance(minute);
    assert!(w.by_key(&old.text).is_none());
    let last = auth.rotate_key(&admin, &old.id, Duration::ZERO).await;
    assert!(w.by_key(&new.text).is_none());
    assert!(!w.holds(&holder), "nor do its open streams continue");
    assert!(w.by_key(&last.unwrap().text).is_some());
}

#[tokio::test]
async fn an_outgoing_secret_cannot_rotate_its_key() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (old, holder) = w.key(&admin, &[]).await;
    let overlap = Duration::from_secs(5);
    let new = w.auth.rotate_key(&holder, &old.id, overlap).await.unwrap();
    let outgoing = w.by_key(&old.text).unwrap();
    let back = w.auth.rotate_key(&outgoing, &old.id, overlap * 1000).await;
    assert_eq!(exceeds(back), GrantError::Outgoing);
    w.clock.advance(overlap);
    assert!(w.by_key(&old.text).is_none());
    let incoming = w.by_key(&new.text).unwrap();
    let next = w.auth.rotate_key(&incoming, &old.id, overlap).await;
    assert!(w.by_key(&next.unwrap().text).is_some());
}

#[tokio::test]
async fn a_narrow_key_cannot_create_a_wider_one() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (_, narrow) = w.key(&admin, &["apikeys.write", "studies.read"]).await;
    for scope in ["users.write", "studies.write", "apikeys.revoke_any"] {
        let asked = [scope.to_owned()];
        let made = w.auth.create_key(&narrow, "svc", &asked, None);
        assert_eq!(exceeds(made.await), GrantError::Permissions(vec![scope]));
    }
    for scope in ["nothing", "", "ADMIN"] {
        let asked = [scope.to_owned()];
        let made = w.auth.create_key(&narrow, "svc", &asked, None);
        assert!(
            matches!(made.await, Err(AuthError::UnknownScope(_))),
            "{scope}"
        );
    }
    let (key, holder) = w.key(&narrow, &[]).await;
    assert_eq!(
        holder.permissions.names(),
        ["studies.read", "apikeys.write"]
    );
    let (listed, _) = w.auth.list_keys("", 10).await.unwrap();
    let stored = listed.iter().find(|k| k.id == key.id).unwrap();
    assert_eq!(
        stored.scopes,
        ["studies.read", "apikeys.write"],
        "the scopes are stored"
    );
}

#[tokio::test]
async fn the_secret_of_a_wider_or_foreign_key_is_never_handed_out() {
    let w = World::new().await;
    let admin = w.admin().await;
    let other = w.user("eve", "admin").await;
    let (unscoped, _) = w.key(&admin, &[]).await;
    let (theirs, _) = w.key(&other, &["studies.read"]).await;
    let (own, narrow) = w.key(&admin, &["apikeys.write"]).await;
    let rotate = async |by: &Caller, id: &str| w.auth.rotate_key(by, id, Duration::ZERO).await;
    let lacking = exceeds(rotate(&narrow, &unscoped.id).await);
    assert!(matches!(lacking, GrantError::Permissions(p) if p.contains(&"users.write")));
    assert_eq!(
        exceeds(rotate(&narrow, &theirs.id).await),
        GrantError::NotOwn
    );
    assert_eq!(
        exceeds(rotate(&admin, &theirs.id).await),
        GrantError::NotOwn
    );
    assert!(w.by_key(&unscoped.text).is_some() && w.by_key(&theirs.text).is_some());
    assert!(rotate(&narrow, &own.id).await.is_ok(), "itself");
    assert!(rotate(&admin, &unscoped.id).await.is_ok());
}

#[tokio::test]
async fn a_narrow_key_cannot_revoke_a_wider_one() {
    let w = World::new().await;
    let (admin, other) = (w.admin().await, w.user("eve", "admin").await);
    let (unscoped, _) = w.key(&admin, &[]).await;
    let (theirs, _) = w.key(&other, &["studies.read"]).await;
    let (own, narrow) = w.key(&admin, &["apikeys.write"]).await;
    for key in [&unscoped, &theirs] {
        exceeds(w.auth.revoke_key(&narrow, &key.id, "x").await);
        assert!(w.by_key(&key.text).is_some());
    }
    w.auth.revoke_key(&admin, &theirs.id, "x").await.unwrap();
    w.auth.revoke_key(&narrow, &own.id, "leaked").await.unwrap();
    assert!(w.by_key(&theirs.text).is_none() && w.by_key(&own.text).is_none());
}

#[tokio::test]
async fn promoting_its_owner_does_not_widen_a_key() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let owner = w.user("dev", "viewer").await;
    let maker = Caller {
        permissions: Permissions::of(["agents.read", "apikeys.write", "studies.write"]),
        ..owner
    };
    let (key, holder) = w.key(&maker, &[]).await;
    assert_eq!(
        holder.permissions.names(),
        ["agents.read"],
        "what its role holds of it"
    );
    auth.set_roles(&admin, "dev", vec!["admin".into()])
        .await
        .unwrap();
    let risen = w.by_key(&key.text).unwrap();
    assert_eq!(
        risen.permissions, maker.permissions,
        "never more than was stored"
    );
    assert_ne!(risen.permissions, of_roles(["admin"]));
}

#[tokio::test]
async fn a_key_cannot_create_a_key_that_outlives_it() {
    let w = World::new().await;
    let admin = w.admin().await;
    let day = |n: u64| Duration::from_secs(n * 86_400);
    let made = w
        .auth
        .create_key(&admin, "svc", &[], Some(10))
        .await
        .unwrap();
    let maker = w.by_key(&made.text).unwrap();
    assert!(matches!(maker.credential, Credential::ApiKey { .. }));
    let longer = w.auth.create_key(&maker, "svc", &[], Some(11)).await;
    assert_eq!(exceeds(longer), GrantError::Life);
    let usual = w.auth.create_key(&maker, "svc", &[], None).await.unwrap();
    assert_eq!(usual.expires_us, made.expires_us);
    let long = w
        .auth
        .create_key(&admin, "svc", &[], Some(90))
        .await
        .unwrap();
    let rotated = w.auth.rotate_key(&maker, &long.id, Duration::ZERO).await;
    assert_eq!(exceeds(rotated), GrantError::OutlivedBy);
    w.clock.advance(day(10));
    assert!(w.by_key(&usual.text).is_none() && w.by_key(&long.text).is_some());
}

#[tokio::test]
async fn a_key_ends_with_its_owner() {
    let w = World::new().await;
    let admin = w.admin().await;
    let eve = w.user("eve", "admin").await;
    let (key, _) = w.key(&eve, &[]).await;
    w.auth.set_disabled(&admin, "eve", true).await.unwrap();
    assert!(w.by_key(&key.text).is_none());
    let stranger = person(Permissions::ALL);
    assert_eq!(
        exceeds(w.auth.rotate_key(&stranger, &key.id, Duration::ZERO).await),
        GrantError::NotOwn
    );
}
