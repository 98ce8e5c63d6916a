//! The authority's floor for the leaves of a revoked identity. Where the authority is a folder, the floor
//! is a file beside the database, and the revocation a row in it.

use super::*;
use tars_certs::CaError;

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

    /// A certificate of automl that the authority's own process manages, and its next renewal.
    fn managed_automl(&self) -> (Verified, impl Fn() -> Result<Verified, CaError>) {
        let authority = Arc::clone(self.auth.certificates().authority().unwrap());
        let list = self.auth.certificates().feed.revocations.clone();
        authority.enforce(list);
        let request = Request::new(automl(), Duration::from_secs(3600)).managed_by_authority();
        let (clock, time) = (self.clock.clone(), Arc::new(self.clock.clone()));
        let roots = authority.roots();
        let verified = move |issued: tars_certs::ca::Issued| {
            let time: Arc<dyn TimeProvider> = time.clone();
            let identity = Identity::new(issued.into_parts(roots.clone()), &time);
            identity.unwrap().verified().clone()
        };
        let held = verified(authority.issue(&request, clock.now()).unwrap());
        let current = held.clone();
        let renew = move || {
            let renewed = authority.renew(&current, &request, clock.now());
            renewed.map(&verified)
        };
        (held, renew)
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
    let w = world_of_files().await;
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
    let w = world_of_files().await;
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

/// Checks that an attempt to revoke automl which came no further than the floor has no effect on a
/// certificate that the authority's own process renews.
async fn nothing_is_revoked(
    w: &World,
    held: &Verified,
    renew: impl Fn() -> Result<Verified, CaError>,
) {
    assert!(w.has_floor(), "the attempt came as far as the floor");
    let revocations = &w.auth.certificates().feed.revocations;
    assert!(!revocations.denies(held));
    let renewed = renew().expect("an identity that is not revoked is renewed");
    assert!(!revocations.denies(&renewed));
    let start = renewed.certificate.not_before;
    assert_eq!(start, w.clock.now(), "not backdated past the attempt");
    assert!(w.revoke_automl().await > 0, "it can be repeated");
    let revocations = &w.auth.certificates().feed.revocations;
    assert!(revocations.denies(held));
    assert!(matches!(renew(), Err(CaError::Revoked(_))));
}

#[tokio::test]
async fn a_revocation_that_the_database_refuses_does_not_end_renewals() {
    let w = world_of_files().await;
    let (held, renew) = w.managed_automl();
    w.auth.import_journal().await.unwrap();
    w.clock.advance(Duration::from_secs(60));
    w.auth.store.db().cut_off(true);
    let target = Target::Identity {
        id: automl(),
        before: None,
    };
    let refused = w.auth.revoke(&ada(), &target, "stolen").await;
    assert!(matches!(refused, Err(AuthError::Store(_))), "{refused:?}");
    w.auth.store.db().cut_off(false);
    nothing_is_revoked(&w, &held, renew).await;
}

#[tokio::test]
async fn a_revocation_that_is_cancelled_does_not_end_renewals() {
    let w = world_of_files().await;
    let (held, renew) = w.managed_automl();
    w.auth.import_journal().await.unwrap();
    w.clock.advance(Duration::from_secs(60));
    let writer = w.auth.store.begin("test.writer").await.unwrap();
    tokio::select! {
        _ = w.revoke_automl() => panic!("the database is taken"),
        () = eventually("the floor is written", || w.has_floor()) => {}
    }
    drop(writer);
    nothing_is_revoked(&w, &held, renew).await;
}
