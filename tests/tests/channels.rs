//! A channel over several addresses of one service: real listeners, real TLS.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tars_certs::{CertName, Identity, SpiffeId, trust::key_id};
use tars_mesh::{Channel, ChannelOptions, channel::Audience};
use tars_proto::{
    fault,
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest,
        health_check_response::ServingStatus, health_client::HealthClient,
    },
    reason,
};
use tars_runtime::{
    clock::Clock,
    config::{Connections, Timeouts},
};
use tars_tests::{eventually, fleet::free_addr, test_ca::TestCa, test_listener::TestListener};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, Status, Streaming};

#[path = "channels/cast.rs"]
mod cast;
#[path = "channels/chain.rs"]
mod chain;
#[path = "channels/counted.rs"]
mod counted;
#[path = "channels/faulty.rs"]
mod faulty;
#[path = "channels/names.rs"]
mod names;
#[path = "channels/probes.rs"]
mod probes;

/// The listeners of one service, each of which a health service of its own name tells apart.
struct Replicas {
    root: TestCa,
    listeners: Vec<Option<TestListener>>,
    addrs: Vec<SocketAddr>,
}

/// The name that one listener alone serves.
fn name(at: usize) -> String {
    format!("replica-{at}")
}

impl Replicas {
    async fn start(count: usize) -> Self {
        let mut this = Self {
            root: TestCa::root("root"),
            listeners: (0..count).map(|_| None).collect(),
            addrs: (0..count).map(|_| free_addr()).collect(),
        };
        for at in 0..count {
            this.open(at, "/door").await;
        }
        this
    }

    /// Opens a listener, with the identity of a path, at the address that it always has.
    async fn open(&mut self, at: usize, path: &str) {
        let parts = self.root.parts(path, vec![self.root.der.clone()]);
        let listener = TestListener::open_at(self.addrs[at], parts).await;
        listener.health.set(&name(at), ServingStatus::Serving);
        self.listeners[at] = Some(listener);
    }

    /// Ends a listener; returns once its connections are closed and nothing listens at its address.
    async fn close(&mut self, at: usize) {
        let table = self.listener(at).table.clone();
        self.listeners[at] = None;
        let addr = self.addrs[at];
        eventually("the address is free", || async {
            table.is_empty() && TcpListener::bind(addr).await.is_ok()
        })
        .await;
    }

    fn listener(&self, at: usize) -> &TestListener {
        self.listeners[at].as_ref().unwrap()
    }

    fn target(&self) -> String {
        let addrs: Vec<_> = self.addrs.iter().map(ToString::to_string).collect();
        addrs.join(",")
    }

    fn options(&self, target: &str) -> ChannelOptions {
        let parts = self.root.parts("/gateway", vec![self.root.der.clone()]);
        let identity = Identity::new(parts, &tars_tests::time()).unwrap();
        let expected = SpiffeId::new("tars.local", "/door").unwrap();
        ChannelOptions::alone(target, expected, identity, Clock::system())
    }

    fn channel(&self) -> Channel {
        Channel::new(self.options(&self.target())).unwrap()
    }

    /// Calls until every one of `expected` has answered.
    async fn all_answer(&self, channel: &Channel, expected: &[usize]) {
        let seen = Mutex::new(BTreeSet::new());
        eventually("all of them answer", || async {
            let at = answered(channel).await.unwrap();
            seen.lock().insert(at);
            expected.iter().all(|at| seen.lock().contains(at))
        })
        .await;
    }
}

/// Calls once; returns which replica answered.
async fn answered(channel: &Channel) -> Result<usize, Status> {
    let listed = HealthClient::new(channel.clone())
        .list(HealthListRequest {})
        .await?;
    let mut names = listed.get_ref().statuses.keys();
    let own = names.find_map(|name| name.strip_prefix("replica-"));
    Ok(own.unwrap().parse().unwrap())
}

/// Calls many times, none of which may fail; returns how often each replica answered.
async fn counted(channel: &Channel, calls: usize, replicas: usize) -> Vec<usize> {
    let mut counts = vec![0; replicas];
    for _ in 0..calls {
        counts[answered(channel).await.unwrap()] += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_spread_over_all_addresses() {
    let replicas = Replicas::start(3).await;
    let channel = replicas.channel();
    replicas.all_answer(&channel, &[0, 1, 2]).await;
    let counts = Mutex::new(vec![0; 3]);
    eventually("each has a share", || async {
        let more = counted(&channel, 50, 3).await;
        for (all, more) in counts.lock().iter_mut().zip(more) {
            *all += more;
        }
        counts.lock().iter().all(|count| *count >= 50)
    })
    .await;
    for at in 0..3 {
        assert_eq!(replicas.listener(at).table.len(), 1, "one connection each");
    }
}

/// Watches the health of one replica, on whichever server answers. Returns whether that is the replica.
async fn watched(channel: &Channel, at: usize) -> (bool, Streaming<HealthCheckResponse>) {
    let request = HealthCheckRequest { service: name(at) };
    let mut client = HealthClient::new(channel.clone());
    let mut stream = client.watch(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    (first.status() == ServingStatus::Serving, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_to_the_address_with_fewer_of_them() {
    let replicas = Replicas::start(2).await;
    let streams = replicas.channel().separate();
    replicas.all_answer(&streams, &[0, 1]).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(watched(&streams, 0).await);
    }
    let first = open.iter().filter(|(is_first, _)| *is_first).count();
    assert_eq!(first, 10, "half of the streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_beyond_those_of_a_connection_opens_a_further_one() {
    let replicas = Replicas::start(1).await;
    let streams = replicas.channel().separate();
    let mut open = Vec::new();
    for _ in 0..201 {
        // It has its first message: it does not wait for another one to end.
        open.push(watched(&streams, 0).await);
    }
    assert_eq!(replicas.listener(0).table.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_calls_is_spread_over_as_many_connections_as_it_needs() {
    let (root, stuck) = (TestCa::root("root"), Stuck::default());
    let parts = root.parts("/door", vec![root.der.clone()]);
    let listener = TestListener::serving(parts, Timeouts::default(), stuck.clone()).await;
    let replicas = Replicas {
        addrs: vec![listener.addr],
        listeners: Vec::new(),
        root,
    };
    let channel = replicas.channel();
    let crowd: Vec<_> = (0..401)
        .map(|_| {
            let channel = channel.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { answered(&channel).await }))
        })
        .collect();
    eventually("none waits behind another", || async {
        stuck.0.load(Ordering::Relaxed) == 401
    })
    .await;
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_to_one_address_are_bounded() {
    let root = TestCa::root("root");
    let parts = root.parts("/door", vec![root.der.clone()]);
    let narrow = Connections {
        max_streams: 2,
        ..Connections::default()
    };
    let listener = TestListener::with(parts, narrow).await;
    listener.health.set(&name(0), ServingStatus::Serving);
    let replicas = Replicas {
        addrs: vec![listener.addr],
        listeners: Vec::new(),
        root,
    };
    let streams = replicas.channel().separate();
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(watched(&streams, 0).await);
    }
    let request = HealthCheckRequest { service: name(0) };
    let refused = HealthClient::new(streams.clone()).watch(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(fault::reason(&refused).as_deref(), Some(reason::OVERLOADED));
    assert_eq!(listener.table.len(), 8);
    open.pop();
    eventually("a stream that ends makes room", || async {
        let request = HealthCheckRequest { service: name(0) };
        HealthClient::new(streams.clone())
            .watch(request)
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_gets_no_new_calls_and_keeps_its_streams() {
    let replicas = Replicas::start(2).await;
    let channel = replicas.channel();
    replicas.all_answer(&channel, &[0, 1]).await;
    let mut old = loop {
        if let (true, stream) = watched(&channel, 0).await {
            break stream;
        }
    };
    let stop = CancellationToken::new();
    let load = tokio::spawn({
        let (channel, stop) = (channel.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                answered(&channel).await.expect("no call fails");
            }
        }
    });
    replicas.listener(0).stop();
    eventually("nothing listens there any more", || async {
        TcpListener::bind(replicas.addrs[0]).await.is_ok()
    })
    .await;
    assert_eq!(counted(&channel, 50, 2).await, [0, 50]);
    stop.cancel();
    load.await.unwrap();
    let health = &replicas.listener(0).health;
    health.set(&name(0), ServingStatus::NotServing);
    let next = old.message().await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_without_one_address_and_return_to_it() {
    let mut replicas = Replicas::start(3).await;
    let channel = replicas.channel();
    replicas.all_answer(&channel, &[0, 1, 2]).await;
    replicas.close(1).await;
    assert_eq!(counted(&channel, 100, 3).await[1], 0);
    replicas.open(1, "/door").await;
    replicas.all_answer(&channel, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_accepts_and_never_responds_is_passed_over() {
    let replicas = Replicas::start(1).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("{},{}", silent.local_addr().unwrap(), replicas.target());
    let channel = Channel::new(replicas.options(&target)).unwrap();
    assert_eq!(counted(&channel, 100, 1).await, [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_addresses_are_down_the_error_names_each_and_strangers_see_none() {
    let mut replicas = Replicas::start(2).await;
    let channel = replicas.channel();
    replicas.all_answer(&channel, &[0, 1]).await;
    for at in [0, 1] {
        replicas.close(at).await;
    }
    let refused = answered(&channel).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        fault::reason(&refused).as_deref(),
        Some(reason::UNREACHABLE)
    );
    for addr in &replicas.addrs {
        assert!(refused.message().contains(&addr.to_string()), "{refused:?}");
    }
    let stranger = Channel::new(ChannelOptions {
        audience: Audience::Strangers,
        ..replicas.options(&replicas.target())
    });
    let refused = answered(&stranger.unwrap()).await.unwrap_err();
    assert_eq!(refused.message(), "door cannot be reached");
    // Nothing waits for a pause to end while no address works.
    replicas.open(1, "/door").await;
    assert_eq!(answered(&channel).await.unwrap(), 1);
    replicas.open(0, "/door").await;
    replicas.all_answer(&channel, &[0, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_trusted_does_not_keep_calls_from_the_others() {
    let mut replicas = Replicas::start(2).await;
    replicas.close(0).await;
    replicas.open(0, "/another").await;
    assert_eq!(counted(&replicas.channel(), 100, 2).await, [0, 100]);
    replicas.close(1).await;
    let refused = answered(&replicas.channel()).await.unwrap_err();
    let message = refused.message();
    assert!(message.contains("cannot trust"), "{message}");
    assert!(message.contains("cannot reach"), "{message}");
}

/// Revokes the certificate that a listener shows.
fn revoke(root: &TestCa, revocations: &tars_certs::Revocations, listener: &TestListener) {
    let issuer = key_id(&root.der).unwrap();
    let serial = listener.identity.current().leaf().serial.clone();
    revocations.update(|set| {
        let serial = serial.clone();
        set.certificates.insert(CertName { issuer, serial });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_server_among_good_ones_is_left_at_once() {
    let replicas = Replicas::start(3).await;
    let options = replicas.options(&replicas.target());
    let (revocations, table) = (options.revocations.clone(), options.table.clone());
    let channel = Channel::new(options).unwrap();
    replicas.all_answer(&channel, &[0, 1, 2]).await;
    revoke(&replicas.root, &revocations, replicas.listener(2));
    eventually("its connection is cut", || async { table.len() == 2 }).await;
    assert_eq!(counted(&channel, 100, 3).await[2], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_one_server_refuses_as_revoked_is_served_by_the_others() {
    let replicas = Replicas::start(2).await;
    let options = replicas.options(&replicas.target());
    let issuer = key_id(&replicas.root.der).unwrap();
    let serial = options.identity.current().leaf().serial.clone();
    let channel = Channel::new(options).unwrap();
    let revoke_at = |at: usize| {
        let own = CertName {
            issuer,
            serial: serial.clone(),
        };
        let revocations = &replicas.listener(at).revocations;
        revocations.update(|set| {
            set.certificates.insert(own.clone());
        });
    };
    revoke_at(0);
    assert_eq!(counted(&channel, 100, 2).await, [0, 100]);
    revoke_at(1);
    eventually("the client learns why it is refused", || async {
        let refused = answered(&channel).await;
        refused
            .is_err_and(|e| fault::reason(&e).as_deref() == Some(reason::OWN_CERTIFICATE_REVOKED))
    })
    .await;
}

/// Counts the calls in flight of a service.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes every request, and never responds.
#[derive(Clone, Default)]
struct Stuck(Arc<AtomicUsize>);

impl tonic::codegen::Service<Request<tonic::body::Body>> for Stuck {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::pending()
    }
}
