//! What two replicas of Auth do together. Each has a directory of its own; they share a database on
//! PostgreSQL, and the key that seals the secrets in it.

use crate::{
    Auth, AuthError, Vault,
    periodic::LEASE,
    store,
    testing::{PASSWORD, elsewhere, here, open_over},
};
use futures_util::{Stream, StreamExt, future::join_all};
use std::{path::Path, pin::Pin, sync::Arc, time::Duration};
use tars_certs::TrustFeed;
use tars_credentials::{Caller, Follower, View};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::{
    audit::{self, Record},
    bus::Bus,
    clock::Clock,
    db::{Place, Server},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// What the replicas share.
pub(crate) struct Shared {
    dir: TempDir,
    pub(crate) place: Place,
}

/// A replica, with a clock of its own that stands still.
pub(crate) struct Replica {
    pub(crate) dir: TempDir,
    pub(crate) auth: Arc<Auth>,
    pub(crate) clock: Clock,
    view: View,
    password: Option<String>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::of(&tars_test_db::on_postgres(dir.path())).unwrap();
        let place = Place::Server {
            server: server.expect("the settings name a server"),
            service: "auth".to_owned(),
        };
        Self { dir, place }
    }

    pub(crate) async fn vault(&self, dir: &Path) -> Result<Vault, AuthError> {
        let seal = self.dir.path().join("seal.key");
        Vault::open(dir, &self.place, Some(&seal)).await
    }

    /// A replica whose hints reach no other one, and that receives none.
    pub(crate) async fn replica(&self) -> Replica {
        self.replica_on(Bus::local()).await
    }

    pub(crate) async fn replica_on(&self, bus: Bus) -> Replica {
        let dir = tempfile::tempdir().unwrap();
        self.replica_in(dir, bus).await.unwrap()
    }

    pub(crate) async fn replica_in(&self, dir: TempDir, bus: Bus) -> Result<Replica, AuthError> {
        let clock = Clock::manual(Duration::from_secs(1_800_000_000));
        let vault = self.vault(dir.path()).await?;
        let (auth, view, password) = open_over(vault, dir.path(), &clock, bus).await?;
        Ok(Replica {
            dir,
            auth,
            clock,
            view,
            password,
        })
    }
}

impl Replica {
    async fn login(&self, name: &str, password: &str) -> crate::sessions::Tokens {
        let opened = self.auth.login(name, password, &here()).await;
        opened.unwrap().1
    }

    /// The caller of an access token, as this replica sees it.
    fn caller(&self, access: &str) -> Option<Caller> {
        let checked = self.view.check_token(access, self.clock.now_s());
        checked.ok().map(|caller| Caller::clone(&caller))
    }

    async fn admin(&self, password: &str) -> Caller {
        let tokens = self.login("admin", password).await;
        self.caller(&tokens.access).unwrap()
    }

    async fn last(&self) -> u64 {
        let mut db = self.auth.store.read("test.last");
        store::last_change(&mut db).await.unwrap()
    }

    async fn records(&self, kind: &str) -> usize {
        let filter = crate::audit::Filter {
            event_type: kind.to_owned(),
            ..Default::default()
        };
        let (records, _) = self.auth.list_audit(&filter, "", 100).await.unwrap();
        records.len()
    }
}

/// Two replicas, the password of the administrator, and what the replicas share.
async fn pair() -> (Replica, Replica, String, Shared) {
    let shared = Shared::new();
    let (mut one, two) = (shared.replica().await, shared.replica().await);
    let password = one.password.take().expect("it was the first");
    (one, two, password, shared)
}

pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn tokens_of_each_replica_are_accepted_by_the_other() {
    let (one, two, password, _shared) = pair().await;
    for (from, to) in [(&one, &two), (&two, &one)] {
        let access = from.login("admin", &password).await.access;
        assert_eq!(to.caller(&access).unwrap().username, "admin");
    }
    assert!(two.caller("not a token").is_none());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_session_is_refreshed_at_either_replica() {
    let (one, two, password, _shared) = pair().await;
    let first = one.login("admin", &password).await;
    let second = two.auth.refresh(&first.refresh, &here()).await.unwrap();
    // The reply was lost, and the client asks the other one, whose clock is a little behind.
    one.clock.step_back(Duration::from_secs(1));
    let repeated = one.auth.refresh(&first.refresh, &here()).await.unwrap();
    assert_eq!(*repeated.refresh, *second.refresh);
    let third = one.auth.refresh(&second.refresh, &here()).await.unwrap();
    assert!(two.caller(&third.access).is_some());
    // The token is used by somebody else: the session ends at both.
    let stolen = two.auth.refresh(&second.refresh, &elsewhere()).await;
    assert!(matches!(stolen, Err(AuthError::InvalidCredentials)));
    for replica in [&one, &two] {
        let refused = || replica.caller(&third.access).is_none();
        eventually("the session has ended", refused).await;
        let refreshed = replica.auth.refresh(&third.refresh, &here()).await;
        assert!(matches!(refreshed, Err(AuthError::InvalidCredentials)));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn what_one_replica_revokes_the_other_refuses() {
    let (one, two, password, _shared) = pair().await;
    let admin = one.admin(&password).await;
    for name in ["ada", "bob"] {
        let roles = vec!["developer".to_owned()];
        one.auth.add_user("t", name, PASSWORD, roles).await.unwrap();
    }
    let (ada, bob) = (
        two.login("ada", PASSWORD).await.access,
        two.login("bob", PASSWORD).await.access,
    );
    eventually("both users are known", || {
        [&ada, &bob].iter().all(|token| two.caller(token).is_some())
    })
    .await;
    let bob = two.caller(&bob).unwrap();
    let keys = [
        one.auth.create_key(&admin, "a", &[], None).await.unwrap(),
        one.auth.create_key(&admin, "b", &[], None).await.unwrap(),
    ];
    let works = |replica: &Replica, text: &str| {
        let checked = replica.view.check_api_key(text, replica.clock.now_s());
        checked.is_some()
    };
    eventually("the keys are known", || {
        keys.iter().all(|key| works(&two, &key.text))
    })
    .await;
    one.auth.set_disabled(&admin, "ada", true).await.unwrap();
    one.auth.logout(&bob).await.unwrap();
    let revoked = one.auth.revoke_key(&admin, &keys[0].id, "lost").await;
    revoked.unwrap();
    let rotated = one.auth.rotate_key(&admin, &keys[1].id, Duration::ZERO);
    let rotated = rotated.await.unwrap();
    eventually("all of it is refused", || {
        two.caller(&ada).is_none()
            && !two.view.still_valid(&bob, two.clock.now_s())
            && keys.iter().all(|key| !works(&two, &key.text))
    })
    .await;
    assert!(works(&two, &rotated.text));
    let again = two.auth.login("ada", PASSWORD, &here()).await;
    assert!(matches!(again, Err(AuthError::InvalidCredentials)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn keys_that_both_replicas_make_at_once_are_known_to_both() {
    let (one, two, password, _shared) = pair().await;
    let admin = one.admin(&password).await;
    let make = async |replica: &Replica| {
        let made = replica.auth.create_key(&admin, "svc", &[], None).await;
        made.unwrap()
    };
    let making = (0..8).flat_map(|_| [make(&one), make(&two)]);
    let keys = join_all(making).await;
    for replica in [&one, &two] {
        let now_s = replica.clock.now_s();
        let known = || {
            let mut all = keys.iter();
            all.all(|key| replica.view.check_api_key(&key.text, now_s).is_some())
        };
        eventually("every key is known", known).await;
    }
    let (listed, _) = two.auth.list_keys("", 100).await.unwrap();
    assert_eq!(listed.len(), keys.len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn two_first_starters_have_one_administrator_and_one_signing_key() {
    let shared = Shared::new();
    let (one, two) = tokio::join!(shared.replica(), shared.replica());
    assert_ne!(one.password.is_some(), two.password.is_some());
    assert_eq!(one.auth.signer.kid(), two.auth.signer.kid());
    let password = one.password.as_ref().or(two.password.as_ref()).unwrap();
    for (from, to) in [(&one, &two), (&two, &one)] {
        let access = from.login("admin", password).await.access;
        eventually("the administrator is known", || {
            to.caller(&access).is_some()
        })
        .await;
    }
    assert_eq!(one.auth.signing_keys().await.unwrap().len(), 1);
    assert_eq!(two.auth.list_users("", 10).await.unwrap().0.len(), 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn the_last_administrator_is_not_disabled_at_two_replicas_at_once() {
    let (one, two, password, _shared) = pair().await;
    let admin = one.admin(&password).await;
    let roles = vec!["admin".to_owned()];
    one.auth
        .add_user("t", "eve", PASSWORD, roles)
        .await
        .unwrap();
    let (first, second) = tokio::join!(
        one.auth.set_disabled(&admin, "eve", true),
        two.auth.set_disabled(&admin, "admin", true),
    );
    let refused = [first, second].into_iter().filter_map(Result::err);
    let refused: Vec<AuthError> = refused.collect();
    assert!(
        matches!(&refused[..], [AuthError::LastAdmin]),
        "{refused:?}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn one_replica_does_the_periodic_work_and_the_other_follows_it() {
    let (one, two, _password, _shared) = pair().await;
    let record = async |replica: &Replica, kind: &str| {
        let mut tx = replica.auth.store.begin("test.record").await.unwrap();
        let record = Record::new(&replica.clock, "auth", kind);
        audit::insert(&mut tx, &record).await.unwrap();
        tx.commit().await.unwrap();
    };
    let (mut first, mut second) = (None, None);
    for kind in ["test.first", "test.second"] {
        record(&one, kind).await;
        record(&two, kind).await;
        one.auth.do_shared_work(&mut first).await.unwrap();
        two.auth.do_shared_work(&mut second).await.unwrap();
        assert!(first.is_some() && second.is_none());
        assert_eq!(two.records(kind).await, 2, "each is listed once");
    }
    first.take().unwrap().release().await.unwrap();
    record(&one, "test.third").await;
    two.auth.do_shared_work(&mut second).await.unwrap();
    one.auth.do_shared_work(&mut first).await.unwrap();
    assert!(first.is_none() && second.is_some());
    assert_eq!(one.records("test.third").await, 1);
    assert!(one.auth.leases().acquire(LEASE).await.unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn another_sealing_key_is_refused_at_a_second_replica() {
    let (_one, _two, _password, shared) = pair().await;
    let dir = tempfile::tempdir().unwrap();
    let missing = Vault::open(dir.path(), &shared.place, None).await;
    assert!(matches!(missing, Err(AuthError::SealKeyMissing(_))));
    crate::seal::Seal::create(&dir.path().join("seal.key")).unwrap();
    let other = Vault::open(dir.path(), &shared.place, None).await;
    assert!(matches!(other, Err(AuthError::SealedOtherwise(_))));
    assert!(!dir.path().join("ca").exists());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn guesses_are_slowed_down_at_each_replica() {
    let (one, two, password, _shared) = pair().await;
    for replica in [&one, &two] {
        for _ in 0..5 {
            let guess = replica.auth.login("admin", "guess", &here()).await;
            assert!(matches!(guess, Err(AuthError::InvalidCredentials)));
        }
        let held = replica.auth.login("admin", &password, &here()).await;
        assert!(matches!(held, Err(AuthError::Throttled(_))));
    }
}

type Items = Pin<Box<dyn Stream<Item = Result<WatchCredentialsResponse, tonic::Status>>>>;

async fn watch(replica: &Replica, after: u64) -> Items {
    let items = crate::api::watch_stream(&replica.auth, after).await;
    Box::pin(items.unwrap())
}

/// Applies items until a change; each must follow what was applied before.
async fn until(items: &mut Items, follower: &mut Follower, sequence: u64) {
    let applied = async {
        while follower.position() != Some(sequence) {
            let item = items.next().await.unwrap().unwrap();
            let before = follower.position().unwrap_or_default();
            assert!(item.sequence >= before, "went back to {}", item.sequence);
            follower.apply(&item, 0).unwrap();
        }
    };
    timeout(Duration::from_secs(20), applied).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_follower_that_changes_replica_misses_nothing_and_never_goes_back() {
    let (one, two, password, _shared) = pair().await;
    let admin = one.admin(&password).await;
    let view = View::default();
    let mut follower = Follower::new(view.clone(), TrustFeed::default());
    let mut keys = Vec::new();
    for round in 0..6 {
        // The changes are made at one replica, and the follower goes to and fro.
        let key = one.auth.create_key(&admin, "svc", &[], None).await;
        keys.push(key.unwrap());
        let replica = [&one, &two][round % 2];
        let after = follower.position().unwrap_or_default();
        let mut items = watch(replica, after).await;
        until(&mut items, &mut follower, one.last().await).await;
        let mut known = keys.iter();
        assert!(known.all(|key| view.check_api_key(&key.text, 1_800_000_000).is_some()));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_replica_that_is_behind_sends_nothing_older_than_the_follower_has() {
    let (one, two, password, _shared) = pair().await;
    let admin = one.admin(&password).await;
    let behind = two.last().await;
    eventually("all before is announced", || {
        two.auth.publisher.is_at(behind)
    })
    .await;
    // It reads no changes any more, as when it is suspended.
    two.auth._publishing.abort();
    let key = one.auth.create_key(&admin, "svc", &[], None).await.unwrap();
    let ahead = one.last().await;
    assert!(ahead > behind && two.auth.publisher.is_at(behind));
    let watch = |after| crate::api::watch_stream(&two.auth, after);
    let (whole, resumed) = tokio::join!(watch(0), watch(ahead));
    for refused in [whole.err(), resumed.err()] {
        assert!(
            matches!(refused, Some(AuthError::Unannounced)),
            "{refused:?}"
        );
    }
    let waiting = tokio::spawn({
        let auth = Arc::clone(&two.auth);
        async move {
            let items = crate::api::watch_stream(&auth, ahead).await.unwrap();
            Box::pin(items).next().await.unwrap().unwrap()
        }
    });
    let publisher = Arc::clone(&two.auth.publisher);
    let _continued = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(publisher.run()));
    let first = waiting.await.unwrap();
    assert!(first.sequence >= ahead, "{}", first.sequence);
    let checked = || two.view.check_api_key(&key.text, two.clock.now_s());
    eventually("it has caught up", || checked().is_some()).await;
}
