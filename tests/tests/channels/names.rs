//! Names of servers: what a channel makes of the addresses that they have now.

use super::*;
use futures_util::future::{BoxFuture, join_all};
use std::{collections::BTreeMap, io};
use tars_mesh::channel::Resolve;
use tars_runtime::targets::{MAX_TARGETS, Target};

/// A resolver whose records a test changes.
#[derive(Debug, Clone, Default)]
struct Records {
    addrs: Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>,
    lookups: Arc<AtomicUsize>,
}

impl Records {
    fn set(&self, addrs: Option<&[SocketAddr]>) {
        self.set_of("door.example", addrs);
    }

    fn set_of(&self, host: &str, addrs: Option<&[SocketAddr]>) {
        let mut all = self.addrs.lock();
        all.remove(host);
        if let Some(addrs) = addrs {
            all.insert(host.to_owned(), addrs.to_vec());
        }
    }
}

impl Resolve for Records {
    fn resolve(&self, target: &Target) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let found = self.addrs.lock().get(target.host()).cloned();
        let away = || io::Error::other("failed to lookup address information: no server");
        Box::pin(async move { found.ok_or_else(away) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_counts_as_all_addresses_that_it_has_now() {
    let mut replicas = Replicas::start(3).await;
    let records = Records::default();
    let options = replicas.options("door.example:8093");
    let channel = Channel::with_resolver(options, Arc::new(records.clone())).unwrap();
    let refused = answered(&channel).await.unwrap_err();
    assert!(
        refused.message().contains("door.example:8093"),
        "{refused:?}"
    );
    assert!(
        refused.message().contains("failed to lookup"),
        "{refused:?}"
    );

    let [first, second, third] = replicas.addrs[..] else {
        unreachable!()
    };
    records.set(Some(&[second, first, second]));
    eventually("it is looked up again", || async {
        answered(&channel).await.is_ok()
    })
    .await;
    replicas.all_answer(&channel, &[0, 1]).await;
    assert_eq!(counted(&channel, 50, 3).await[2], 0);

    // One moves: it is looked up after the first failure.
    records.set(Some(&[first, third]));
    replicas.close(1).await;
    replicas.all_answer(&channel, &[0, 2]).await;

    // Without DNS, the addresses stay.
    records.set(None);
    replicas.close(0).await;
    let before = records.lookups.load(Ordering::Relaxed);
    eventually("it was looked up again", || async {
        assert_eq!(answered(&channel).await.unwrap(), 2);
        records.lookups.load(Ordering::Relaxed) > before + 1
    })
    .await;
    assert_eq!(counted(&channel, 50, 3).await, [0, 0, 50]);

    // All of them down: the error names the name and the address.
    replicas.close(2).await;
    let refused = answered(&channel).await.unwrap_err();
    let expected = format!("door.example:8093 ({third})");
    assert!(refused.message().contains(&expected), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_be_looked_up_keeps_its_addresses_while_others_change() {
    let mut replicas = Replicas::start(3).await;
    let [first, second, third] = replicas.addrs[..] else {
        unreachable!()
    };
    let records = Records::default();
    records.set_of("a.example", Some(&[first]));
    records.set_of("b.example", Some(&[second]));
    let options = replicas.options("a.example:8093,b.example:8093");
    let channel = Channel::with_resolver(options, Arc::new(records.clone())).unwrap();
    replicas.all_answer(&channel, &[0, 1]).await;
    records.set_of("a.example", None);
    records.set_of("b.example", Some(&[third]));
    replicas.close(1).await;
    replicas.all_answer(&channel, &[2]).await;
    replicas.all_answer(&channel, &[0, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_a_name_are_bounded() {
    let replicas = Replicas::start(1).await;
    let own = replicas.addrs[0];
    // Nothing listens at the others.
    let refused = (1..).map(|port| SocketAddr::new([127, 0, 0, 1].into(), port));
    let channel = |others| {
        let records = Records::default();
        let addrs: Vec<_> = refused.clone().take(others).chain([own]).collect();
        records.set(Some(&addrs));
        let options = replicas.options("door.example:8093");
        Channel::with_resolver(options, Arc::new(records)).unwrap()
    };
    let whole = channel(MAX_TARGETS - 1);
    assert_eq!(answered(&whole).await.unwrap(), 0);
    // Each client has a subset of its own, so that the one that listens is in some of them.
    let seen = Mutex::new(BTreeSet::new());
    eventually("it is in some subsets, and not in all", || {
        let (channel, seen) = (channel(2 * MAX_TARGETS), &seen);
        async move {
            let is_used = answered(&channel).await.is_ok();
            seen.lock().insert(is_used);
            seen.lock().len() == 2
        }
    })
    .await;
}

/// A resolver that never answers.
#[derive(Debug, Default)]
struct Hanging(AtomicUsize);

impl Resolve for Hanging {
    fn resolve(&self, _: &Target) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_share_a_lookup_that_hangs() {
    let replicas = Replicas {
        root: TestCa::root("root"),
        listeners: Vec::new(),
        addrs: Vec::new(),
    };
    let resolver = Arc::new(Hanging::default());
    let options = replicas.options("door.example:8093");
    let channel = Channel::with_resolver(options, resolver.clone()).unwrap();
    let lookups = || resolver.0.load(Ordering::Relaxed);
    let answers = join_all((0..8).map(|_| answered(&channel))).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(lookups(), 1);
}
