//! The authority's floor for the leaves of a revoked identity, which is a file beside the database.

use super::*;

fn automl() -> SpiffeId {
    "spiffe://tars.local/automl".parse().unwrap()
}

impl World {
    fn ledger(&self) -> std::path::PathBuf {
        self.dir.path().join("ca/ca.json")
    }

    fn has_floor(&self) -> bool {
        let text = std::fs::read_to_string(self.ledger()).unwrap();
        text.contains(automl().as_str())
    }

    /// The process stops, and another one starts over the same directory.
    async fn restart(self) -> Self {
        let Self { dir, auth, clock } = self;
        drop(auth);
        let place = tars_test_db::place(dir.path(), "auth");
        let opened = Auth::open(
            dir.path(),
            &place,
            Credentials::default(),
            clock.clone(),
            View::default(),
            certificates(dir.path(), &clock),
            Bus::local(),
        );
        let (auth, _) = opened.await.unwrap();
        Self { dir, auth, clock }
    }

    async fn revoke_automl(&self) -> usize {
        let target = Target::Identity {
            id: automl(),
            before: None,
        };
        let rows = self.auth.revoke(&ada(), &target, "stolen").await;
        rows.unwrap().len()
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let check = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(10);
    let checked = tokio::time::timeout(limit, check).await;
    checked.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[tokio::test]
async fn the_floor_is_durable_before_the_revocation_takes_the_database() {
    let w = world().await;
    w.join("/automl").await;
    let writer = w.auth.store.begin("test.writer").await.unwrap();
    let (revoking, ()) = tokio::join!(w.revoke_automl(), async {
        eventually("the floor is written", || w.has_floor()).await;
        drop(writer);
    });
    assert_eq!(revoking, 2, "the identity and its certificate");
}

#[tokio::test]
async fn a_crash_between_the_floor_and_the_revocation_revokes_nothing() {
    let w = world().await;
    let old = w.join("/automl").await;
    w.clock.advance(Duration::from_secs(10));
    let authority = w.auth.certificates().authority().unwrap();
    let floor = [(automl(), w.clock.now())];
    authority.raise_not_before(&floor).unwrap();
    let w = w.restart().await;
    assert!(!w.denied(&old));
    let renewed = w.renew(&old).await.unwrap();
    assert!(!w.denied(&renewed));
    assert_eq!(w.revoke_automl().await, 3, "the revocation can be repeated");
    assert!(w.denied(&old) && w.denied(&renewed));
}

#[tokio::test]
async fn an_acknowledged_revocation_survives_a_crash_with_its_floor() {
    let w = world().await;
    let old = w.join("/automl").await;
    w.clock.advance(Duration::from_secs(10));
    w.revoke_automl().await;
    let w = w.restart().await;
    assert!(w.denied(&old));
    let new = w.join("/automl").await;
    let start = w.verified(&new).certificate.not_before;
    assert_eq!(start, w.clock.now(), "not backdated past the revocation");
    assert!(!w.denied(&new));
}

#[tokio::test]
async fn a_lost_floor_is_restored_from_the_deny_list_at_start() {
    let w = world().await;
    let before = std::fs::read(w.ledger()).unwrap();
    w.join("/automl").await;
    w.clock.advance(Duration::from_secs(10));
    w.revoke_automl().await;
    assert!(w.has_floor());
    std::fs::write(w.ledger(), before).unwrap();
    assert!(!w.has_floor());
    let w = w.restart().await;
    assert!(w.has_floor());
    let new = w.join("/automl").await;
    assert!(!w.denied(&new), "it does not begin before the revocation");
}

#[tokio::test]
async fn a_refused_revocation_raises_no_floor() {
    let w = world().await;
    let target = Target::Identity {
        id: automl(),
        before: None,
    };
    let stranger = person(Permissions::default());
    let refused = w.auth.revoke(&stranger, &target, "x").await;
    assert!(matches!(refused, Err(AuthError::Grant(_))), "{refused:?}");
    assert!(!w.has_floor());
}
