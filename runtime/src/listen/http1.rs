//! HTTP/1.1 listeners: the gateway's, and the admin and observe ports.

use super::{
    Acceptor, Gate, HoldingBody, PacedBody, PacedStream, PortMetrics,
    final_response::{FinalResponse, FinalResponses},
    gate::Seat,
    phase::{Overdue, PhasedStream, Phases},
    request::Unreadable,
};
use crate::{
    config::Timeouts,
    network::Networks,
    trace::{TRACE_ID, fresh_trace_id, id_header},
};
use axum::{body::Body, response::Response};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;

/// The address at the other end of the connection; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// The responses that are sent without a handler.
#[derive(Debug, Clone)]
pub struct Answers {
    /// To a newcomer for whom there is no place, or whose place was given to another.
    pub full: FinalResponse,
    /// To a peer whose request head did not arrive in time.
    pub late: FinalResponse,
    /// To a request that cannot be parsed, or in two ways.
    pub malformed: FinalResponse,
    /// To a request whose head is too large.
    pub too_large: FinalResponse,
}

/// An HTTP/1.1 listener, with its limits on peers.
#[derive(Debug, Clone)]
pub struct Http1 {
    /// The metrics of this listener.
    pub metrics: PortMetrics,
    /// How long peers are waited for.
    pub times: Timeouts,
    /// Maximum size of a request head in bytes.
    pub max_head_bytes: usize,
    /// Maximum number of connections.
    pub max: usize,
    /// Maximum number of connections of one address.
    pub by_address: usize,
    /// The addresses that many people share, which have a share of their own.
    pub proxies: Networks,
    /// Maximum number of connections of one such address.
    pub by_proxy: usize,
    /// The responses that are sent without a handler.
    pub answers: Answers,
    /// How long requests in progress may take to finish after a stop.
    pub drain: Duration,
}

/// A service that answers requests.
pub trait Handler:
    Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

impl Http1 {
    /// Serves until `stop` is cancelled, then lets requests in progress finish for a while.
    pub async fn serve(
        self,
        listener: TcpListener,
        handler: impl Handler,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let (gate, final_responses) = (Gate::new(self.max), self.final_responses(&tasks));
        let (name, metrics) = (self.metrics.listener(), self.metrics.clone());
        let refuse = move |reason| metrics.refuse(reason);
        let mut acceptor = Acceptor::new(listener, name, refuse, stop.clone());
        let options = Arc::new(self);
        while let Some((tcp, addr)) = acceptor.next().await {
            match gate.enter(addr.ip(), options.share(addr.ip())) {
                Ok(seat) => {
                    let connection = Connection {
                        options: Arc::clone(&options),
                        final_responses: final_responses.clone(),
                        stop: stop.clone(),
                        addr,
                    };
                    tasks.spawn(connection.run(tcp, seat, handler.clone()));
                }
                Err(full) => {
                    options.metrics.refuse(full.reason());
                    final_responses.send(tcp, addr.ip(), &options.answers.full);
                }
            }
        }
        drop(acceptor);
        tasks.close();
        tasks.wait().await;
    }

    fn final_responses(&self, tasks: &TaskTracker) -> FinalResponses {
        FinalResponses::new(self.proxies.clone(), tasks.clone())
    }

    fn share(&self, addr: IpAddr) -> usize {
        if self.proxies.contains(addr) {
            self.by_proxy
        } else {
            self.by_address
        }
    }

    fn builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The phases have a timer for this, which distinguishes an idle connection from a slow head.
            .header_read_timeout(None)
            // No head that hyper sees reaches it. hyper requires at least 8 KiB.
            .max_buf_size(self.max_head_bytes.saturating_add(8192));
        builder
    }
}

struct Connection {
    options: Arc<Http1>,
    final_responses: FinalResponses,
    stop: CancellationToken,
    addr: SocketAddr,
}

/// Why a connection ended.
enum End {
    Closed,
    Overdue(Overdue),
    Displaced,
    Stopped,
}

impl Connection {
    async fn run(self, tcp: TcpStream, seat: Seat, handler: impl Handler) {
        let metrics = &self.options.metrics;
        let (_counted, phases) = (metrics.connected(), Phases::new(seat));
        let stream = PacedStream::new(tcp, self.options.times.write_pace());
        let unread = stream.unread();
        let most = self.options.max_head_bytes;
        let io = TokioIo::new(PhasedStream::new(stream, phases.clone(), most));
        let service = service_fn(|request| self.handle(request, &phases, handler.clone()));
        let mut connection = self.options.builder().serve_connection(io, service);
        let end = tokio::select! {
            biased;
            _ = &mut connection => End::Closed,
            late = phases.overdue(&self.options.times) => End::Overdue(late),
            () = phases.displaced() => End::Displaced,
            () = self.stop.cancelled() => End::Stopped,
        };
        match end {
            End::Closed if unread.is_set() => metrics.cut("write"),
            End::Closed => self.closed(connection.into_parts()),
            End::Displaced => {
                metrics.cut("displaced");
                if phases.is_head() {
                    self.cut(connection.into_parts(), &self.options.answers.full);
                }
            }
            End::Overdue(late) => {
                metrics.cut(late.reason());
                if late == Overdue::Head {
                    self.cut(connection.into_parts(), &self.options.answers.late);
                }
            }
            End::Stopped if phases.is_busy() => {
                Pin::new(&mut connection).graceful_shutdown();
                // Streams do not end by themselves; they are cut after the drain.
                if timeout(self.options.drain, connection).await.is_err() {
                    metrics.cut("drain");
                }
                if unread.is_set() {
                    metrics.cut("write");
                }
            }
            End::Stopped => {}
        }
    }

    /// Answers a peer whose head is incomplete, unless a previous response is still in transit.
    fn cut<S>(
        &self,
        parts: http1::Parts<TokioIo<PhasedStream>, S>,
        final_response: &FinalResponse,
    ) {
        let stream = parts.io.into_inner();
        if !stream.has_unsent() {
            let (tcp, _) = stream.into_inner();
            self.final_responses
                .send(tcp, self.addr.ip(), final_response);
        }
    }

    /// After hyper is done with the connection: answers the request that hyper was not shown, or lets
    /// the peer read its response.
    fn closed<S>(&self, parts: http1::Parts<TokioIo<PhasedStream>, S>) {
        let stream = parts.io.into_inner();
        let more = stream.is_within_request() || !parts.read_buf.is_empty();
        let (tcp, unreadable) = stream.into_inner();
        let Some(why) = unreadable else {
            if more {
                self.final_responses.linger(tcp, self.addr.ip());
            }
            return;
        };
        self.options.metrics.refuse(why.reason());
        let answers = &self.options.answers;
        let final_response = match why {
            Unreadable::Malformed => &answers.malformed,
            Unreadable::TooLarge => &answers.too_large,
        };
        self.final_responses
            .send(tcp, self.addr.ip(), final_response);
    }

    fn handle<H: Handler>(
        &self,
        request: Request<Incoming>,
        phases: &Phases,
        mut handler: H,
    ) -> impl Future<Output = Result<http::Response<HoldingBody<Body, Answering>>, Infallible>> + use<H>
    {
        phases.busy();
        let (pace, cut) = (self.options.times.body_pace(), &self.options.metrics);
        let mut request =
            request.map(|body| Body::new(PacedBody::new(body, pace, cut.cut_counter("body"))));
        request.extensions_mut().insert(Peer(self.addr));
        let answering = handler.call(request);
        let phases = phases.clone();
        async move {
            let mut response = answering.await?;
            let id = response.headers_mut().entry(TRACE_ID);
            id.or_insert_with(|| id_header(fresh_trace_id()));
            Ok(response.map(|body| HoldingBody::new(body, Answering(phases))))
        }
    }
}

/// Held by the body of a response; when hyper is done with that, the connection is idle.
struct Answering(Phases);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.idle();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{http1, router};
    use super::*;
    use crate::metrics::Metrics;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// All input is there when the connection is first polled, and the handler never waits: nothing but
    /// the end of the response can wake the connection.
    #[tokio::test]
    async fn a_refused_head_behind_a_good_one_is_answered_without_another_event() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).await.unwrap();
        let both = b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\nhost: x\n\n";
        client.write_all(both).await.unwrap();
        let (tcp, addr) = listener.accept().await.unwrap();
        tcp.readable().await.unwrap();

        let (metrics, tasks) = (Metrics::default(), TaskTracker::new());
        let times = Timeouts {
            idle_seconds: 3600,
            ..Timeouts::default()
        };
        let seat = Gate::new(1).enter(addr.ip(), 1).unwrap();
        let options = Arc::new(http1(&metrics, times, 1, 1));
        let connection = Connection {
            final_responses: options.final_responses(&tasks),
            options,
            stop: CancellationToken::new(),
            addr,
        };
        tasks.spawn(connection.run(tcp, seat, router()));
        let mut answers = String::new();
        let reading = timeout(Duration::from_secs(20), client.read_to_string(&mut answers));
        let read = reading.await.expect("not only after the idle time");
        read.unwrap();
        let (good, bad) = (answers.find(" 200 "), answers.find(" 400 "));
        assert!(good.is_some() && good < bad, "{answers}");
    }
}
