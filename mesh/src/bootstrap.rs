//! A connection to a bootstrap listener: to obtain the first certificate, or another one when the last
//! has expired. The server is trusted by the one root that the join token names.

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{KeyId, SpiffeId, peer::observe_handshake, tls};
use tars_proto::{fault, unavailable::Unavailable};
use tars_runtime::{clock::Clock, seeds::Seeds};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{Status, body::Body};
use tower_service::Service;

/// The time to connect, TLS and HTTP/2 included.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a bootstrap listener could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It cannot be reached; trying again may help.
    #[error("{0}")]
    Away(String),
    /// Another server answered.
    #[error("{target} is not the server that the join token names: {why}")]
    NotMeant {
        /// The address.
        target: String,
        /// What is wrong with the certificate that was shown.
        why: String,
    },
}

/// A connection to a bootstrap listener. Clones share it.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    sender: SendRequest<Body>,
    target: String,
}

impl Bootstrap {
    /// Connects to one of `targets` (a `host:port`, or several separated by commas), which must answer as
    /// `expected` with a certificate that the root with the key `root` has issued. Which of them is tried
    /// first is random, so that repeated attempts do not meet the same server.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::NotMeant`] when another server answers, and [`BootstrapError::Away`] when none
    /// answers within 10 seconds.
    pub async fn connect(
        targets: &str,
        root: KeyId,
        expected: SpiffeId,
        clock: &Clock,
    ) -> Result<Self, BootstrapError> {
        let mut listed: Vec<&str> = targets.split(',').map(str::trim).collect();
        let first = Seeds::system().draw() % listed.len().max(1) as u64;
        listed.rotate_left(first as usize);
        let mut failures = Vec::new();
        for target in listed {
            match Self::connect_to(target, root, expected.clone(), clock).await {
                Err(BootstrapError::Away(why)) => failures.push(why),
                decided => return decided,
            }
        }
        Err(BootstrapError::Away(failures.join("; ")))
    }

    async fn connect_to(
        target: &str,
        root: KeyId,
        expected: SpiffeId,
        clock: &Clock,
    ) -> Result<Self, BootstrapError> {
        let connecting = Self::open(target, root, expected, clock);
        let late = |_| BootstrapError::Away(format!("{target}: no answer in {LIMIT:?}"));
        timeout(LIMIT, connecting).await.map_err(late)?
    }

    async fn open(
        target: &str,
        root: KeyId,
        expected: SpiffeId,
        clock: &Clock,
    ) -> Result<Self, BootstrapError> {
        let failed = |e: &dyn std::fmt::Display| BootstrapError::Away(format!("{target}: {e}"));
        let config =
            tls::pinned_client(root, expected, Arc::new(clock.clone())).map_err(|e| failed(&e))?;
        let tcp = TcpStream::connect(target).await.map_err(|e| failed(&e))?;
        tcp.set_nodelay(true).map_err(|e| failed(&e))?;
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let (stream, seen) = observe_handshake(handshake).await;
        let stream = stream.map_err(|e| match seen.refusal {
            Some(reason) => BootstrapError::NotMeant {
                target: target.to_owned(),
                why: format!("{e} ({reason})"),
            },
            None => failed(&e),
        })?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| failed(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "the bootstrap connection ended");
            }
        });
        Ok(Self {
            sender,
            target: target.to_owned(),
        })
    }
}

impl Service<Request<Body>> for Bootstrap {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Incoming>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (mut sender, target) = (self.sender.clone(), self.target.clone());
        Box::pin(async move {
            let failed = |e: &dyn std::fmt::Display| {
                let text = format!("{target}: {e}");
                fault::unavailable(Unavailable::Unreachable, &text, Duration::from_secs(1))
            };
            let path = request.uri().path().to_owned();
            let uri = Uri::builder()
                .scheme("https")
                .authority(target.as_str())
                .path_and_query(path)
                .build();
            *request.uri_mut() = uri.map_err(|e| failed(&e))?;
            sender.send_request(request).await.map_err(|e| failed(&e))
        })
    }
}
