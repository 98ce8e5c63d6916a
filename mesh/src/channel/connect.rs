//! How a channel opens a connection, and what runs it until it ends.

use super::{
    connected::{Connected, Server},
    endpoint::Endpoint,
    error::ChannelError,
    greeting::{Greeted, greeted},
    metrics::Open,
    options::ChannelOptions,
    slots::StreamSlots,
};
use crate::{connections::Listed, serve::key_exchange};
use hyper::{
    client::conn::http2::{Builder, Connection, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tars_certs::{
    Identity,
    peer::{PeerInfo, Verified, observe_handshake},
    tls,
    trust::{Side, VerifyError},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

/// The number of streams assumed until the server has sent its limit.
const INITIAL_STREAMS: usize = 200;

type Stream = TlsStream<TcpStream>;
type Dispatch = Pin<Box<Connection<TokioIo<Greeted<Stream>>, Body, AbortableExecutor>>>;

impl Endpoint {
    pub(super) async fn connect(&self) -> Result<Connected, ChannelError> {
        let options = &self.dialer.options;
        if let Some(problem) = options.identity.problem(options.clock.now()) {
            return Err(ChannelError::Own(problem));
        }
        let identity = options.identity.current();
        let (stream, server) = self.handshake(&identity).await?;
        let tasks = AbortableExecutor::default();
        let aborting = tasks.cut.clone().drop_guard();
        let (sender, dispatch) = self.greeted(stream, &tasks).await?;
        aborting.disarm();
        let slots = StreamSlots::new(dispatch.current_max_send_streams());
        tasks.execute(run(dispatch, Arc::clone(&slots), self.name()));
        tokio::spawn(tasks.watch(
            certificates_end(&identity, &server.peer),
            options.clone(),
            (Arc::clone(&identity), Arc::clone(&server.peer)),
            (
                options.table.enter(options.service, "out", &server.peer),
                self.dialer.metrics.open(),
            ),
        ));
        Ok(Connected {
            sender,
            identity,
            server,
            slots,
            name: Arc::clone(&self.name),
            authority: self.authority.clone(),
            proven: AtomicBool::new(false),
        })
    }

    /// Begins HTTP/2, and waits until the server has begun, too.
    async fn greeted(
        &self,
        stream: Stream,
        tasks: &AbortableExecutor,
    ) -> Result<(SendRequest<Body>, Dispatch), ChannelError> {
        let (stream, greeting) = greeted(stream);
        let failed = |source| ChannelError::http(self.name(), source);
        let handshake = self.builder(tasks.clone()).handshake(TokioIo::new(stream));
        let (sender, dispatch) = handshake.await.map_err(failed)?;
        let mut dispatch = Box::pin(dispatch);
        tokio::select! {
            biased;
            Ok(()) = greeting => Ok((sender, dispatch)),
            ended = dispatch.as_mut() => Err(ended.map_or_else(failed, |()| {
                ChannelError::Closed { target: self.name() }
            })),
        }
    }

    fn builder(&self, tasks: AbortableExecutor) -> Builder<AbortableExecutor> {
        let mut builder = Builder::new(tasks);
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(self.traffic().stream_window())
            .initial_connection_window_size(self.traffic().connection_window())
            .initial_max_send_streams(INITIAL_STREAMS);
        builder
    }

    async fn handshake(&self, identity: &Identity) -> Result<(Stream, Server), ChannelError> {
        let options = &self.dialer.options;
        let config = tls::client(
            identity,
            options.expected.clone(),
            &options.revocations,
            Arc::new(options.clock.clone()),
        )?;
        let failed = |source| self.failed_to_connect(source);
        let tcp = open(self.addr).await.map_err(failed)?;
        // The verifier checks the SPIFFE id, never a host name.
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let (connected, seen) = observe_handshake(connecting).await;
        let stream = connected.map_err(|e| match seen.refusal {
            Some(reason) => ChannelError::Refused {
                target: self.name(),
                why: format!("{e} ({reason})"),
            },
            None => failed(e),
        })?;
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(tls::ALPN) {
            return Err(ChannelError::NoH2 {
                target: self.name(),
            });
        }
        let key_exchange = key_exchange(session.negotiated_key_exchange_group());
        let peer = server_info(seen.peer, self.addr);
        Ok((stream, Server { peer, key_exchange }))
    }

    fn failed_to_connect(&self, source: io::Error) -> ChannelError {
        ChannelError::connect(self.name(), source)
    }
}

async fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Runs a connection to its end, and passes on how many streams its server allows.
async fn run(mut dispatch: Dispatch, slots: Arc<StreamSlots>, target: String) {
    let ended = poll_fn(|cx| {
        let polled = dispatch.as_mut().poll(cx);
        slots.set_limit(dispatch.current_max_send_streams());
        polled
    });
    if let Err(e) = ended.await {
        tracing::debug!(target, error = %e, "connection ended");
    }
}

/// The wall-clock time at which one of the two certificates expires.
fn certificates_end(own: &Identity, peer: &PeerInfo) -> Duration {
    let own = own.leaf().not_after;
    let theirs = peer.verified.as_ref().map(|v| v.certificate.not_after);
    theirs.map_or(own, |t| t.min(own))
}

fn server_info(verified: Option<Verified>, addr: SocketAddr) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        verified,
        class: None,
        addr,
        closing: CancellationToken::new(),
    })
}

/// Runs the tasks that hyper spawns for a connection until it is aborted: dropping the futures that hyper
/// returns would leave the socket to the streams that are still open.
#[derive(Debug, Clone, Default)]
struct AbortableExecutor {
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl<F> Executor<F> for AbortableExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

impl AbortableExecutor {
    /// Aborts the connection when its server is revoked, or when a certificate of it has expired. When a
    /// root is no longer trusted, the server ends it gracefully.
    async fn watch(
        self,
        end: Duration,
        options: ChannelOptions,
        (own, server): (Arc<Identity>, Arc<PeerInfo>),
        _while_open: (Listed, Open),
    ) {
        let revoked = async {
            let Some(verified) = &server.verified else {
                return std::future::pending().await;
            };
            let (current, clock) = (&options.identity, &options.clock);
            let by_list = VerifyError::is_revocation;
            tokio::select! {
                () = options.revocations.until_denied(verified) => {}
                _ = current.until_refused(&own, verified, Side::Server, clock, by_list) => {}
            }
        };
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return,
            () = revoked => tracing::warn!(server = server.name(), "the server is revoked; connection cut"),
            () = options.clock.sleep_until(end) => tracing::debug!(server = server.name(), "a certificate of the connection has ended"),
        }
        self.cut.cancel();
    }
}
