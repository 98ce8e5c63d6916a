//! The client: tonic's own channel for every variant.

use crate::{Failure, credentials::Credentials, echo};
use futures_util::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use http::uri::PathAndQuery;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tars_proto::{
    codec::ValidatingCodec,
    orchestration::v1::{GetTrainingSummaryRequest, GetTrainingSummaryResponse},
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tonic::{
    Request, Status,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

/// Calls of one connection at a time.
const BY_CONNECTION: usize = 64;

const UNARY: PathAndQuery = PathAndQuery::from_static(echo::UNARY);
const STREAM: PathAndQuery = PathAndQuery::from_static(echo::STREAM);

/// How a variant is reached.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    endpoint: Endpoint,
    /// Of an encrypted one.
    tls: Option<ClientTlsConfig>,
    bearer: MetadataValue<Ascii>,
}

/// What was done in a slice of time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slice {
    /// Calls, or messages of streams, or connections.
    pub(crate) done: u64,
    pub(crate) wall: Duration,
    /// How long each took, where that was measured.
    pub(crate) times: Vec<Duration>,
}

type Codec = ValidatingCodec<GetTrainingSummaryRequest, GetTrainingSummaryResponse>;

impl Target {
    pub(crate) fn new(
        address: &str,
        encrypted: bool,
        credentials: &Credentials,
    ) -> Result<Self, Failure> {
        let scheme = if encrypted { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?;
        let bearer = format!("Bearer {}", credentials.read("token")?).parse()?;
        let target = Self {
            endpoint: endpoint.tcp_nodelay(true),
            tls: encrypted.then(|| credentials.client()).transpose()?,
            bearer,
        };
        target.anew()
    }

    /// The same, without the sessions of earlier connections: its next handshake is a whole one. The mesh resumes none.
    fn anew(&self) -> Result<Self, Failure> {
        let mut other = self.clone();
        if let Some(tls) = other.tls.clone() {
            other.endpoint = other.endpoint.tls_config(tls)?;
        }
        Ok(other)
    }

    fn request(&self) -> Request<GetTrainingSummaryRequest> {
        let mut request = Request::new(GetTrainingSummaryRequest {
            agent_id: echo::AGENT.to_owned(),
            window: 0,
        });
        let bearer = self.bearer.clone();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        Ok(self.endpoint.connect().await?)
    }

    /// As many connections as a number of callers needs, after one call of each at once: a proxy opens connections
    /// of its own for them.
    async fn warm(&self, callers: usize) -> Result<Vec<Channel>, Failure> {
        let mut open = Vec::new();
        for _ in 0..callers.div_ceil(BY_CONNECTION) {
            open.push(self.connect().await?);
        }
        let first = (0..callers).map(|at| self.call(&open[at % open.len()]));
        try_join_all(first).await?;
        Ok(open)
    }

    /// One call.
    pub(crate) async fn call(
        &self,
        channel: &Channel,
    ) -> Result<GetTrainingSummaryResponse, Status> {
        let mut client = Grpc::new(channel.clone());
        let ready = client.ready().await;
        ready.map_err(|e| Status::unavailable(e.to_string()))?;
        let answer = client.unary(self.request(), UNARY, Codec::default()).await;
        Ok(answer?.into_inner())
    }

    /// Reads one stream to its end, and returns its number of messages.
    async fn read_stream(&self, channel: &Channel) -> Result<u64, Status> {
        let mut client = Grpc::new(channel.clone());
        let ready = client.ready().await;
        ready.map_err(|e| Status::unavailable(e.to_string()))?;
        let opened = client.server_streaming(self.request(), STREAM, Codec::default());
        let mut stream = opened.await?.into_inner();
        let mut messages = 0;
        while let Some(message) = stream.next().await {
            let _: GetTrainingSummaryResponse = message?;
            messages += 1;
        }
        Ok(messages)
    }

    /// Callers that each make one call after the other.
    pub(crate) async fn closed(&self, callers: usize, length: Duration) -> Result<Slice, Failure> {
        let open = self.warm(callers).await?;
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for at in 0..callers {
            let (target, channel) = (self.clone(), open[at % open.len()].clone());
            workers.spawn(async move {
                let mut times = Vec::new();
                while started.elapsed() < length {
                    let begun = Instant::now();
                    target.call(&channel).await?;
                    times.push(begun.elapsed());
                }
                Ok::<_, Status>(times)
            });
        }
        let mut slice = Slice::default();
        while let Some(times) = workers.join_next().await {
            slice.times.append(&mut times??);
        }
        slice.wall = started.elapsed();
        slice.done = slice.times.len() as u64;
        Ok(slice)
    }

    /// Calls that begin at random moments of a given mean rate, whether earlier ones have been answered or not. A call
    /// takes from the moment at which it should have begun.
    pub(crate) async fn open(
        &self,
        rate: f64,
        length: Duration,
        seed: u64,
    ) -> Result<Slice, Failure> {
        let open = self.warm(2 * BY_CONNECTION).await?;
        let (sender, mut due) = mpsc::unbounded_channel();
        let started = Instant::now();
        let clock = std::thread::spawn(move || arrivals(started, (rate, length, seed), &sender));
        let mut calls = FuturesUnordered::new();
        let mut slice = Slice::default();
        let mut at = 0;
        while let Some(moment) = due.recv().await {
            at += 1;
            let (target, channel) = (self.clone(), open[at % open.len()].clone());
            calls.push(tokio::spawn(async move {
                target.call(&channel).await?;
                Ok::<_, Status>(Instant::now() - moment)
            }));
        }
        while let Some(time) = calls.next().await {
            slice.times.push(time??);
        }
        clock.join().map_err(|_| "the clock failed")?;
        slice.wall = started.elapsed();
        slice.done = slice.times.len() as u64;
        Ok(slice)
    }

    /// Callers that each read one stream after the other.
    pub(crate) async fn streams(&self, callers: usize, length: Duration) -> Result<Slice, Failure> {
        let channel = self.connect().await?;
        let messages = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..callers {
            let (target, channel, messages) = (self.clone(), channel.clone(), messages.clone());
            workers.spawn(async move {
                while started.elapsed() < length {
                    let read = target.read_stream(&channel).await?;
                    messages.fetch_add(read, Ordering::Relaxed);
                }
                Ok::<_, Status>(())
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(Slice {
            done: messages.load(Ordering::Relaxed),
            wall: started.elapsed(),
            times: Vec::new(),
        })
    }

    /// Callers that each open one connection after the other by a whole handshake, and make one call by it.
    pub(crate) async fn handshakes(
        &self,
        callers: usize,
        length: Duration,
    ) -> Result<Slice, Failure> {
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..callers {
            let target = self.clone();
            workers.spawn(async move {
                let mut opened = 0;
                while started.elapsed() < length {
                    let fresh = target.anew().map_err(|e| e.to_string())?;
                    let channel = fresh.connect().await.map_err(|e| e.to_string())?;
                    target.call(&channel).await.map_err(|e| e.to_string())?;
                    opened += 1;
                }
                Ok::<u64, String>(opened)
            });
        }
        let mut slice = Slice::default();
        while let Some(opened) = workers.join_next().await {
            slice.done += opened??;
        }
        slice.wall = started.elapsed();
        Ok(slice)
    }
}

/// Sends each moment when it has come, by a thread of its own that sleeps between them.
fn arrivals(
    started: Instant,
    (rate, length, seed): (f64, Duration, u64),
    due: &mpsc::UnboundedSender<Instant>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut next = Duration::ZERO;
    while next < length {
        let pause = next.saturating_sub(started.elapsed());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        if due.send(started + next).is_err() {
            return;
        }
        let uniform: f64 = random.random_range(f64::EPSILON..1.0);
        next += Duration::from_secs_f64(-uniform.ln() / rate);
    }
}
