use super::*;
use crate::{
    keys::NewKey,
    testing::{PASSWORD, World, here, open, open_on},
};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use tars_certs::TrustFeed;
use tars_credentials::{Caller, View};
use tars_runtime::db::Query;

const ROUNDS: usize = 100;
const FOLLOWERS: usize = 3;

struct Other {
    view: View,
    position: watch::Receiver<u64>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Other {
    fn follow(w: &World, after: u64) -> Self {
        let (view, auth) = (View::default(), Arc::clone(&w.auth));
        let (moved, position) = watch::channel(0);
        let mut follower = Follower::new(view.clone(), TrustFeed::default());
        let task = tokio::spawn(async move {
            let items = crate::api::watch_stream(&auth, after).await.unwrap();
            let mut items = Box::pin(items);
            while let Some(item) = items.next().await {
                follower.apply(&item.unwrap(), 0).unwrap();
                moved.send_replace(follower.position().unwrap());
            }
        });
        Self {
            view,
            position,
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    async fn reached(&mut self, sequence: u64) {
        let there = self.position.wait_for(|at| *at >= sequence);
        timeout(Duration::from_secs(20), there)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn last(w: &World) -> u64 {
    store::last_change(&mut w.auth.store.read("test.last"))
        .await
        .unwrap()
}

/// What the database says of each key's secret: whether it works.
async fn stored(w: &World, secrets: &[NewKey]) -> BTreeMap<String, bool> {
    let mut db = w.auth.store.read("test.keys");
    let now_us = w.clock.now_us();
    let live = store::live_keys(&mut db, now_us).await.unwrap();
    let users = store::all_users(&mut db).await.unwrap();
    let works = |text: &str| {
        let (id, hash) = tars_credentials::apikey::parse(text).unwrap();
        let key = live.iter().find(|k| k.id == id);
        key.is_some_and(|key| {
            let enabled = users.iter().any(|u| u.id == key.owner_id && !u.disabled);
            let hash = crate::snapshot::hex(&hash);
            enabled && key.secrets.iter().any(|s| s.sha256 == hash)
        })
    };
    secrets
        .iter()
        .map(|k| (k.text.to_string(), works(&k.text)))
        .collect()
}

async fn all_agree(w: &World, others: &mut [Other], secrets: &[NewKey]) {
    let (sequence, expected) = (last(w).await, stored(w, secrets).await);
    let now_s = w.clock.now_s();
    let seen = |view: &View| -> BTreeMap<String, bool> {
        let works = |k: &NewKey| view.check_api_key(&k.text, now_s).is_some();
        secrets
            .iter()
            .map(|k| (k.text.to_string(), works(k)))
            .collect()
    };
    assert_eq!(seen(&w.view), expected, "Auth itself");
    for other in others {
        other.reached(sequence).await;
        assert_eq!(seen(&other.view), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_concurrent_changes_every_process_agrees_with_the_database() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let eve = w.user("eve", "admin").await;
    let mut others: Vec<Other> = (0..FOLLOWERS).map(|_| Other::follow(&w, 0)).collect();
    let mut outcomes = BTreeMap::<&str, usize>::new();
    for _ in 0..ROUNDS {
        let key = auth.create_key(&eve, "svc", &[], None).await.unwrap();
        let (disable, enable, roles, rotate, revoke) = tokio::join!(
            race(auth, async |a| a
                .set_disabled(&admin, "eve", true)
                .await
                .map(drop)),
            race(auth, async |a| a
                .set_disabled(&admin, "eve", false)
                .await
                .map(drop)),
            race(auth, async |a| {
                let roles = vec!["admin".to_owned(), "viewer".to_owned()];
                a.set_roles(&admin, "eve", roles).await.map(drop)
            }),
            auth.rotate_key(&eve, &key.id, Duration::ZERO),
            auth.revoke_key(&eve, &key.id, "race"),
        );
        for done in [disable, enable, roles, revoke] {
            done.unwrap();
        }
        let mut secrets = vec![key];
        *outcomes
            .entry(if rotate.is_ok() { "rotated" } else { "refused" })
            .or_default() += 1;
        secrets.extend(rotate.ok());
        all_agree(&w, &mut others, &secrets).await;
        let back = vec!["admin".to_owned()];
        auth.set_roles(&admin, "eve", back).await.unwrap();
        auth.set_disabled(&admin, "eve", false).await.unwrap();
    }
    assert_eq!(outcomes.values().sum::<usize>(), ROUNDS, "{outcomes:?}");
}

async fn race<T>(
    auth: &Arc<crate::Auth>,
    act: impl AsyncFnOnce(&crate::Auth) -> Result<T, AuthError>,
) -> Result<T, AuthError> {
    tokio::task::yield_now().await;
    act(auth).await
}

#[tokio::test]
async fn a_change_of_a_cancelled_call_is_announced() {
    let w = World::new().await;
    let admin = w.admin().await;
    let dev = w.user("dev", "developer").await;
    let mut tx = w.auth.change("test.change").await.unwrap();
    let mut user = store::user_by_name(&mut *tx, "dev").await.unwrap().unwrap();
    user.disabled = true;
    user.version += 1;
    store::update_user(&mut tx, &user).await.unwrap();
    tx.announce(&crate::snapshot::user_changed(&user))
        .await
        .unwrap();
    // Committed but never waited for, as when the call is cancelled at that moment.
    let Change { tx, .. } = tx;
    tx.commit().await.unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while w.holds(&dev) {
        assert!(Instant::now() < end, "never announced");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(w.holds(&admin));
}

#[tokio::test]
async fn numbering_continues_after_a_restart_and_a_follower_ahead_gets_a_snapshot() {
    let w = World::new().await;
    let admin = w.admin().await;
    w.user("dev", "developer").await;
    w.auth.set_disabled(&admin, "dev", true).await.unwrap();
    let before = last(&w).await;
    assert!(before >= 3, "{before}");
    w.auth.store.db().close().await;
    let (auth, view, _) = open(w.dir.path(), &w.clock).await;
    let w = World { auth, view, ..w };
    assert_eq!(last(&w).await, before);
    w.auth.set_disabled(&admin, "dev", false).await.unwrap();
    assert_eq!(last(&w).await, before + 1);

    let first = async |after| {
        let items = crate::api::watch_stream(&w.auth, after).await.unwrap();
        Box::pin(items).next().await.unwrap().unwrap()
    };
    let resumed = first(before).await;
    assert_eq!((resumed.reset, resumed.sequence), (false, before + 1));
    for after in [0, 1, before - 1, before + 2, u64::MAX] {
        let whole = first(after).await;
        assert_eq!(
            (whole.reset, whole.sequence),
            (true, before + 1),
            "after {after}"
        );
        assert_eq!(whole.users.len(), 2);
    }
}

#[tokio::test]
async fn when_the_log_was_trimmed_past_the_publisher_everybody_gets_a_snapshot() {
    let w = World::new().await;
    let dev = w.user("dev", "developer").await;
    let mut other = Other::follow(&w, 0);
    other.reached(last(&w).await).await;
    let mut tx = w.auth.store.begin("test.gap").await.unwrap();
    for query in [
        "UPDATE users SET disabled = TRUE, version = 9, token_version = 9 WHERE username = 'dev'",
        "UPDATE credential_position SET last = last + 7",
    ] {
        tx.execute(Query::new(query)).await.unwrap().one().unwrap();
    }
    let change =
        "INSERT INTO credential_changes (seq, item) SELECT last, $1 FROM credential_position";
    let change = Query::new(change).bind(Vec::new());
    tx.execute(change).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let sequence = last(&w).await;
    w.auth.publisher.bus.publish(TOPIC, sequence);
    other.reached(sequence).await;
    assert!(!w.holds(&dev));
    assert!(!other.view.still_valid(
        &Caller {
            expires_s: u64::MAX,
            ..dev
        },
        0
    ));
    let again = w.auth.login("admin", &w.password, &here()).await;
    assert!(again.is_ok() && w.auth.add_user("t", "x", PASSWORD, vec![]).await.is_ok());
    other.reached(sequence + 1).await;
}

#[tokio::test]
async fn a_durable_change_succeeds_although_it_is_announced_late() {
    let w = World::new().await;
    let admin = w.admin().await;
    let old = w.auth.create_key(&admin, "old", &[], None).await.unwrap();
    let mut other = Box::pin(
        crate::api::watch_stream(&w.auth, last(&w).await)
            .await
            .unwrap(),
    );
    w.auth._publishing.abort();
    let (made, rotated) = tokio::join!(
        w.auth.create_key(&admin, "new", &[], None),
        w.auth.rotate_key(&admin, &old.id, Duration::ZERO),
    );
    let secrets = [made.unwrap(), rotated.unwrap()];
    assert!(w.by_key(&secrets[0].text).is_none(), "not announced yet");
    let blind = timeout(Duration::from_secs(2), other.next()).await;
    assert!(blind.is_err(), "no heartbeat without a successful poll");
    let announcing = tokio::spawn(Arc::clone(&w.auth.publisher).run());
    w.auth.publisher.reached(last(&w).await).await.unwrap();
    for secret in &secrets {
        assert!(w.by_key(&secret.text).is_some());
    }
    assert!(w.by_key(&old.text).is_none());
    announcing.abort();
}

/// Waits until a view refuses a caller.
async fn until_refused(view: &View, caller: &Caller, clock: &tars_runtime::clock::Clock) {
    let end = Instant::now() + Duration::from_secs(10);
    while view.still_valid(caller, clock.now_s()) {
        assert!(Instant::now() < end, "never announced");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_change_made_at_one_replica_is_announced_by_every_other() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (dir, bus) = (w.dir.path(), Bus::local());
    let (one, _, _) = open_on(dir, &w.clock, bus.clone()).await;
    let (_other, hinted, _) = open_on(dir, &w.clock, bus).await;
    // Has a bus of its own, as when hints are lost.
    let unhinted = &w.view;
    for name in ["ada", "bob", "eve"] {
        let caller = w.user(name, "developer").await;
        one.set_disabled(&admin, name, true).await.unwrap();
        for view in [&hinted, unhinted] {
            until_refused(view, &caller, &w.clock).await;
        }
    }
    let sequence = last(&w).await;
    assert_eq!(one.publisher.log.last(), sequence);
}

#[tokio::test]
async fn a_change_is_announced_at_the_hint_of_another_replica() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (dir, bus) = (w.dir.path(), Bus::local());
    let (one, _, _) = open_on(dir, &w.clock, bus.clone()).await;
    let (other, _, _) = open_on(dir, &w.clock, bus.clone()).await;
    // Its own publisher is gone; one without the periodic read takes its place.
    other._publishing.abort();
    let publisher = Arc::clone(&other.publisher);
    let _hinted = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let mut table = publisher.bus.follow(TOPIC);
        loop {
            if table.wait(publisher.log.last()).await == tars_runtime::bus::Wake::Hint {
                publisher.catch_up().await.unwrap();
            }
        }
    }));
    for name in ["ada", "bob"] {
        w.user(name, "developer").await;
        one.set_disabled(&admin, name, true).await.unwrap();
        other.publisher.reached(last(&w).await).await.unwrap();
    }
}

/// As after a failover to a standby that lacks the last changes.
async fn fall_back(tx: &mut Transaction, by: i64) {
    const POSITION: &str = "UPDATE credential_position SET last = last - $1";
    const CHANGES: &str =
        "DELETE FROM credential_changes WHERE seq > (SELECT last FROM credential_position)";
    let position = tx.execute(Query::new(POSITION).bind(by)).await;
    position.unwrap().one().unwrap();
    let lost = tx.execute(Query::new(CHANGES)).await.unwrap();
    assert_eq!(lost.rows(), u64::try_from(by).unwrap());
}

#[tokio::test]
async fn a_change_takes_effect_although_its_number_was_announced_before() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (ada, bob) = (
        w.user("ada", "developer").await,
        w.user("bob", "developer").await,
    );
    w.user("eve", "developer").await;
    for role in ["viewer", "developer"] {
        let roles = vec![role.to_owned()];
        w.auth.set_roles(&admin, "eve", roles).await.unwrap();
    }
    let mut other = Other::follow(&w, 0);
    other.reached(last(&w).await).await;
    let mut tx = w.auth.store.begin("test.fall_back").await.unwrap();
    fall_back(&mut tx, 2).await;
    tx.commit().await.unwrap();
    w.auth.set_disabled(&admin, "ada", true).await.unwrap();
    for view in [&w.view, &other.view] {
        until_refused(view, &ada, &w.clock).await;
    }

    // Between two reads the numbers come to where they were.
    let before = last(&w).await;
    assert!(other.view.still_valid(&bob, w.clock.now_s()));
    let mut tx = w.auth.change("test.change").await.unwrap();
    fall_back(&mut tx, 1).await;
    let mut user = store::user_by_name(&mut *tx, "bob").await.unwrap().unwrap();
    (user.disabled, user.version) = (true, user.version + 1);
    store::update_user(&mut tx, &user).await.unwrap();
    let changed = crate::snapshot::user_changed(&user);
    tx.announce(&changed).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(last(&w).await, before);
    for view in [&w.view, &other.view] {
        until_refused(view, &bob, &w.clock).await;
    }
}
