//! The replicas of one service, and a channel to all of them.

use crate::{
    Failure,
    replica::{Fault, Replica},
};
use bytes::Bytes;
use http::uri::PathAndQuery;
use std::time::Duration;
use tars_certs::{Identity, SpiffeId};
use tars_gateway::Raw;
use tars_mesh::{Channel, ChannelMetrics, ChannelOptions};
use tars_runtime::{clock::Clock, metrics::Metrics};
use tars_tests::{fleet::free_addr, test_ca::TestCa};
use tokio::time::Instant;
use tonic::{Request, Status, client::Grpc};

/// A method that the contract declares idempotent.
const METHOD: PathAndQuery = PathAndQuery::from_static("/tars.auth.v1.AuthService/GetMe");
/// How long a caller waits.
const DEADLINE: Duration = Duration::from_secs(1);
/// How many callers there are, each with one call at a time.
const CALLERS: usize = 8;
/// How often load is repeated until an address is ejected that should be.
const PATIENCE: usize = 100;

/// What a slice of load was like.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// How long each good call took, in microseconds.
    pub(crate) times: Vec<f64>,
    pub(crate) errors: u64,
}

pub(crate) struct Cast {
    pub(crate) name: &'static str,
    replicas: Vec<Replica>,
    faults: Vec<Fault>,
    channel: Channel,
    metrics: Metrics,
}

impl Cast {
    pub(crate) async fn start(name: &'static str, faults: &[Fault]) -> Result<Self, Failure> {
        let root = TestCa::root("root");
        let (mut replicas, mut targets) = (Vec::new(), Vec::new());
        for fault in faults {
            if *fault == Fault::Dead {
                targets.push(free_addr().to_string());
                continue;
            }
            let replica = Replica::start(&root, *fault).await;
            targets.push(replica.listener.addr.to_string());
            replicas.push(replica);
        }
        let parts = root.parts("/gateway", vec![root.der.clone()]);
        let identity = Identity::new(parts, &tars_tests::time())?;
        let expected = SpiffeId::new("tars.local", "/door")?;
        let metrics = Metrics::default();
        let options = ChannelOptions {
            metrics: ChannelMetrics::new(&metrics),
            ..ChannelOptions::alone(&targets.join(","), expected, identity, Clock::system())
        };
        let faults = faults.iter().copied().filter(|f| *f != Fault::Dead);
        Ok(Self {
            name,
            replicas,
            faults: faults.collect(),
            channel: Channel::new(options)?,
            metrics,
        })
    }

    /// Loads the service for a while.
    pub(crate) async fn load(&self, length: Duration) -> Result<Slice, Failure> {
        let end = Instant::now() + length;
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| tokio::spawn(call_until(self.channel.clone(), end)))
            .collect();
        let mut all = Slice::default();
        for caller in callers {
            let slice = caller.await?;
            all.times.extend(slice.times);
            all.errors += slice.errors;
        }
        Ok(all)
    }

    /// Loads the service until the channel has noticed what is wrong, or for a while where nothing is to
    /// be noticed; returns how many calls failed until then.
    pub(crate) async fn warm(&self, length: Duration) -> Result<u64, Failure> {
        let mut errors = self.load(length).await?.errors;
        let ejects = |fault: &Fault| matches!(fault, Fault::Hung | Fault::Flapping);
        if !self.faults.iter().any(ejects) {
            return Ok(errors);
        }
        for _ in 0..PATIENCE {
            if self.ejections()? > 0 {
                return Ok(errors);
            }
            errors += self.load(length).await?.errors;
        }
        Err(format!("{:?}: no address was ejected", self.faults).into())
    }

    /// How often an address was ejected.
    pub(crate) fn ejections(&self) -> Result<u64, Failure> {
        let labels = "{peer=\"spiffe://tars.local/door\",from=\"closed\",to=\"open\"}";
        self.sample(&format!("mesh_client_breaker_transitions_total{labels} "))
    }

    /// How often a call was sent again.
    pub(crate) fn retries(&self) -> Result<u64, Failure> {
        self.sample("rpc_client_retries_total{peer=\"spiffe://tars.local/door\"} ")
    }

    /// A counter whose family must be there; one that has not counted yet has no line.
    fn sample(&self, line: &str) -> Result<u64, Failure> {
        let text = self.metrics.open_metrics()?;
        let family = line.split("_total").next().unwrap_or(line);
        if !text.contains(&format!("# TYPE {family} counter")) {
            return Err(format!("there is no metric {family}").into());
        }
        match text.lines().find_map(|l| l.strip_prefix(line)) {
            Some(value) => Ok(value.parse()?),
            None => Ok(0),
        }
    }

    /// The share of the calls that replicas with a fault have had.
    pub(crate) fn drawn(&self) -> f64 {
        let seen = |wanted: fn(Fault) -> bool| {
            let both = self.faults.iter().zip(&self.replicas);
            let of = both.filter(|(fault, _)| wanted(**fault));
            of.map(|(_, replica)| replica.seen()).sum::<u64>()
        };
        seen(|fault| fault != Fault::None) as f64 / seen(|_| true) as f64
    }
}

async fn call_until(channel: Channel, end: Instant) -> Slice {
    let mut slice = Slice::default();
    while Instant::now() < end {
        let began = Instant::now();
        match call(&channel).await {
            Ok(()) => slice.times.push(began.elapsed().as_secs_f64() * 1e6),
            Err(_) => slice.errors += 1,
        }
    }
    slice
}

async fn call(channel: &Channel) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let mut request = Request::new(Bytes::new());
    request.set_timeout(DEADLINE);
    client.unary(request, METHOD, Raw).await?;
    Ok(())
}
