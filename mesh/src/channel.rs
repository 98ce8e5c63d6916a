//! A client channel to one workload: it verifies the server's SPIFFE id, reconnects by itself, and
//! moves to a new connection when the own certificate was renewed, leaving the old one to finish
//! the calls it carries.

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{Identity, IdentityHandle, SpiffeId, tls};
use tars_proto::fault;
use tars_runtime::clock::Clock;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{Status, body::Body};
use tower_service::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// `host:port`.
    pub target: String,
    /// The only identity that may answer.
    pub expected: SpiffeId,
    pub identity: IdentityHandle,
    pub clock: Clock,
}

/// Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ChannelOptions,
    authority: http::uri::Authority,
    live: ArcSwapOption<Live>,
    connecting: Mutex<()>,
}

#[derive(Debug)]
struct Live {
    sender: SendRequest<Body>,
    /// The identity that opened it.
    identity: Arc<Identity>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot reach {target}: {source}")]
    Connect {
        target: String,
        source: std::io::Error,
    },
    #[error("cannot reach {target}: no answer in {CONNECT_TIMEOUT:?}")]
    Timeout { target: String },
    #[error("{target} does not speak HTTP/2")]
    NoH2 { target: String },
    #[error("the own identity is not usable: {0}")]
    Identity(#[from] tls::TlsError),
    #[error("{target}: {source}")]
    Http {
        target: String,
        source: hyper::Error,
    },
    #[error("{0:?} is not a host and port")]
    Target(String),
}

impl Channel {
    pub fn new(options: ChannelOptions) -> Result<Self, ChannelError> {
        let authority = options
            .target
            .parse()
            .map_err(|_| ChannelError::Target(options.target.clone()))?;
        let shared = Shared {
            options,
            authority,
            live: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Another channel to the same workload, with a connection of its own: streams that nobody
    /// reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let shared = Shared {
            options: self.shared.options.clone(),
            authority: self.shared.authority.clone(),
            live: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    fn usable(&self) -> Option<Arc<Live>> {
        let live = self.live.load_full()?;
        let current = Arc::ptr_eq(&live.identity, &self.options.identity.current());
        (current && !live.sender.is_closed()).then_some(live)
    }

    /// One connection attempt at a time; who waited uses its result.
    async fn connection(&self) -> Result<Arc<Live>, ChannelError> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let _one = self.connecting.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let attempt = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let live = Arc::new(attempt.map_err(|_| ChannelError::Timeout {
            target: self.target(),
        })??);
        self.live.store(Some(Arc::clone(&live)));
        Ok(live)
    }

    fn target(&self) -> String {
        self.options.target.clone()
    }

    async fn connect(&self) -> Result<Live, ChannelError> {
        let failed = |source| ChannelError::Connect {
            target: self.target(),
            source,
        };
        let identity = self.options.identity.current();
        let config = tls::client(
            &identity,
            self.options.expected.clone(),
            Arc::new(self.options.clock.clone()),
        )?;
        let tcp = TcpStream::connect(&self.options.target)
            .await
            .map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        // The verifier looks at the SPIFFE id, never at a host name.
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
            return Err(ChannelError::NoH2 {
                target: self.target(),
            });
        }
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ChannelError::Http {
                target: self.target(),
                source,
            })?;
        let target = self.target();
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(target, error = %e, "connection ended");
            }
        });
        Ok(Live { sender, identity })
    }

    /// tonic's generated clients give a path; HTTP/2 wants scheme and authority as well.
    fn absolute(&self, path: &Uri) -> Result<Uri, http::Error> {
        let path = path
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Status> {
        let uri = self
            .absolute(request.uri())
            .map_err(|e| Status::internal(e.to_string()))?;
        *request.uri_mut() = uri;
        let mut live = self
            .connection()
            .await
            .map_err(|e| unreachable_status(&e))?;
        let mut again = true;
        loop {
            let mut sender = live.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut e) => match e.take_message() {
                    // It never left: the connection was going away. Once more on a new one.
                    Some(unsent) if again => {
                        again = false;
                        request = unsent;
                        self.live.store(None);
                        live = self
                            .connection()
                            .await
                            .map_err(|e| unreachable_status(&e))?;
                    }
                    _ => {
                        let source = e.into_error();
                        return Err(unreachable_status(&ChannelError::Http {
                            target: self.target(),
                            source,
                        }));
                    }
                },
            }
        }
    }
}

fn unreachable_status(error: &ChannelError) -> Status {
    fault::unavailable("UNREACHABLE", &error.to_string(), Duration::from_secs(1))
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Incoming>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.send(request).await })
    }
}
