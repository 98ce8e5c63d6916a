//! Slow, silent and greedy peers of an HTTP/1 listener, over real sockets. Times are short; no test
//! asserts how long something took.

use super::{Answers, FinalResponse, Http1, ListenerMetrics, Peer};
use crate::{config::Timeouts, metrics::Metrics, network::Networks};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Extension,
    routing::{get, post},
};
use futures_util::stream;
use http::StatusCode;
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

mod endings;
mod heads;

const BIG: usize = 8 << 20;
const SECOND: Duration = Duration::from_secs(1);

struct Listening {
    addr: SocketAddr,
    metrics: Metrics,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

fn quick() -> Timeouts {
    Timeouts {
        head_seconds: 1,
        idle_seconds: 1,
        body_stall_seconds: 1,
        write_stall_seconds: 1,
        ..Timeouts::default()
    }
}

/// Two chunks, with a silence between them that is longer than every timeout of `quick`.
fn quiet() -> Body {
    let chunks = stream::unfold(0, |n| async move {
        if n == 1 {
            sleep(Duration::from_millis(2500)).await;
        }
        (n < 2).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"event\n")), n + 1))
    });
    Body::from_stream(chunks)
}

pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(async || "ok"))
        .route("/big", get(async || vec![b'x'; BIG]))
        .route("/quiet", get(async || quiet()))
        .route("/echo", post(async |body: String| body))
        .route(
            "/peer",
            get(async |Extension(Peer(addr)): Extension<Peer>| addr.to_string()),
        )
}

fn plain(status: StatusCode, retry: Option<Duration>, text: &str) -> FinalResponse {
    FinalResponse::new(status, "text/plain", retry, text.to_owned())
}

async fn listening(times: Timeouts, max: usize, by_address: usize) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, metrics) = (listener.local_addr().unwrap(), Metrics::default());
    let http = http1(&metrics, times, max, by_address);
    let stop = CancellationToken::new();
    let served = tokio::spawn(http.serve(listener, router(), stop.clone()));
    Listening {
        addr,
        metrics,
        stop,
        served,
    }
}

pub(super) fn http1(metrics: &Metrics, times: Timeouts, max: usize, by_address: usize) -> Http1 {
    Http1 {
        metrics: ListenerMetrics::new(metrics).of("test"),
        times,
        max_head_bytes: 8192,
        max,
        by_address,
        proxies: Networks::parse(&["127.0.0.9".to_owned()]).unwrap(),
        by_proxy: max,
        answers: Answers {
            full: plain(StatusCode::SERVICE_UNAVAILABLE, Some(SECOND), "full"),
            late: plain(StatusCode::REQUEST_TIMEOUT, None, "late"),
            malformed: plain(StatusCode::BAD_REQUEST, None, "malformed"),
            too_large: plain(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None, "large"),
        },
        drain: Duration::from_millis(200),
    }
}

impl Listening {
    async fn from(&self, host: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, host], 0).into()).unwrap();
        socket.connect(self.addr).await.unwrap()
    }

    /// A connection on which `text` has been sent.
    async fn sent(&self, host: u8, text: &str) -> TcpStream {
        let mut tcp = self.from(host).await;
        tcp.write_all(text.as_bytes()).await.unwrap();
        tcp
    }

    fn count(&self, what: &str, reason: &str) -> u64 {
        let line =
            format!("listener_connections_{what}_total{{listener=\"test\",reason=\"{reason}\"}} ");
        let text = self.metrics.render("").unwrap().1;
        let mut lines = text.lines();
        lines
            .find_map(|l| l.strip_prefix(&line))
            .map_or(0, |n| n.parse().unwrap())
    }

    async fn counted(&self, what: &str, reason: &str, at_least: u64) {
        eventually(&format!("{at_least} {what} for {reason}"), || {
            self.count(what, reason) >= at_least
        })
        .await;
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(Duration::from_secs(30), waiting).await;
    assert!(waited.is_ok(), "never happened: {what}");
}

/// Reads until the server closes the connection.
async fn rest(tcp: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let reading = timeout(Duration::from_secs(30), tcp.read_to_end(&mut out)).await;
    // A reset is an end as well.
    reading.expect("the connection ends").ok();
    String::from_utf8_lossy(&out).into_owned()
}

async fn is_served(listening: &Listening, host: u8) -> bool {
    let text = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut tcp = listening.sent(host, text).await;
    rest(&mut tcp).await.starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn a_silent_peer_is_closed_without_a_response() {
    let l = listening(quick(), 10, 10).await;
    let mut silent = l.from(2).await;
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(l.count("cut", "silent"), 1);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_answered_with_408() {
    let l = listening(quick(), 10, 10).await;
    let mut half = l.sent(2, "GET / HTTP/1.1\r\nhost: x\r\nx-a: ").await;
    let answered = rest(&mut half).await;
    assert!(answered.starts_with("HTTP/1.1 408 "), "{answered}");
    assert!(answered.contains("connection: close") && answered.ends_with("late"));
    // An occasional byte does not extend the timeout.
    let mut slow = l.sent(2, "GET / HTTP/1.1\r\n").await;
    let trickle = async {
        while slow.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), trickle).await.unwrap();
    assert_eq!(l.count("cut", "head"), 2);
    // The same on a kept-alive connection.
    let mut later = l.sent(2, "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT").await;
    let answered = rest(&mut later).await;
    assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
    assert!(is_served(&l, 2).await);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let l = listening(quick(), 10, 10).await;
    let mut idle = l.sent(2, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answered = rest(&mut idle).await;
    assert!(answered.starts_with("HTTP/1.1 200 ") && answered.ends_with("ok"));
    assert_eq!(l.count("cut", "idle"), 1);
}

#[tokio::test]
async fn a_body_below_the_minimum_rate_is_cut_and_one_above_it_is_not() {
    let l = listening(quick(), 10, 10).await;
    let head = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let mut none = l
        .sent(2, &format!("{head}content-length: 100000\r\n\r\nx"))
        .await;
    assert!(!rest(&mut none).await.contains(" 200 "));
    let mut trickle = l
        .sent(2, &format!("{head}content-length: 100000\r\n\r\n"))
        .await;
    let sending = async {
        while trickle.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), sending).await.unwrap();
    assert_eq!(l.count("cut", "body"), 2);
    let mut steady = l
        .sent(2, &format!("{head}content-length: 16000\r\n\r\n"))
        .await;
    for _ in 0..16 {
        sleep(Duration::from_millis(100)).await;
        steady.write_all(&[b'y'; 1000]).await.unwrap();
    }
    assert!(rest(&mut steady).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(l.count("cut", "body"), 2);
}

#[tokio::test]
async fn pipelined_requests_whose_answers_are_never_read_end() {
    let l = listening(quick(), 10, 10).await;
    let requests = "GET /big HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20);
    let mut unread = l.sent(2, &requests).await;
    l.counted("cut", "write", 1).await;
    let got = rest(&mut unread).await;
    assert!(got.len() < 20 * BIG, "{}", got.len());
}

#[tokio::test]
async fn a_slow_reader_above_the_minimum_rate_gets_everything() {
    let l = listening(quick(), 10, 10).await;
    let text = "GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut slow = l.sent(2, text).await;
    let (mut got, mut buf) = (0, vec![0; 256 << 10]);
    loop {
        let n = slow.read(&mut buf).await.unwrap();
        if n == 0 {
            break;
        }
        got += n;
        sleep(Duration::from_millis(40)).await;
    }
    assert!(got > BIG, "{got}");
    assert_eq!(l.count("cut", "write") + l.count("cut", "idle"), 0);
}

#[tokio::test]
async fn a_quiet_response_stays_open() {
    let l = listening(quick(), 10, 10).await;
    let text = "GET /quiet HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut quiet = l.sent(2, text).await;
    let answered = rest(&mut quiet).await;
    assert_eq!(answered.matches("event").count(), 2, "{answered}");
    // A request sent meanwhile waits, and is answered.
    let mut both = l
        .sent(2, "GET /quiet HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    let answered = rest(&mut both).await;
    assert_eq!(answered.matches("HTTP/1.1 200 ").count(), 2, "{answered}");
}

#[tokio::test]
async fn an_address_beyond_its_share_is_refused_with_503() {
    let l = listening(Timeouts::default(), 64, 4).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(l.sent(2, "GET /quiet HTTP/1.1\r\nhost: x\r\n\r\n").await);
        let mut byte = [0; 1];
        held.last_mut()
            .unwrap()
            .read_exact(&mut byte)
            .await
            .unwrap();
    }
    let mut more = l.sent(2, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let refused = rest(&mut more).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"));
    assert_eq!(l.count("refused", "share"), 1);
    assert!(is_served(&l, 3).await, "another address");
    for _ in 0..8 {
        held.push(l.sent(9, "GET /quiet HTTP/1.1\r\nhost: x\r\n\r\n").await);
    }
    assert!(is_served(&l, 9).await, "a proxy has a larger share");
}

#[tokio::test]
async fn half_requests_make_way_for_whole_ones_of_the_same_address() {
    let l = listening(Timeouts::default(), 64, 4).await;
    let mut half = Vec::new();
    for _ in 0..4 {
        half.push(l.sent(2, "GET / HT").await);
    }
    assert!(is_served(&l, 2).await, "at once");
    assert_eq!(
        (l.count("cut", "displaced"), l.count("cut", "head")),
        (1, 0)
    );
    l.stop.cancel();
    let mut refused_halves = Vec::new();
    for mut tcp in half {
        refused_halves.push(rest(&mut tcp).await);
    }
    refused_halves.retain(|answer| !answer.is_empty());
    assert_eq!(refused_halves.len(), 1, "{refused_halves:?}");
    assert!(
        refused_halves[0].starts_with("HTTP/1.1 503 ")
            && refused_halves[0].contains("x-trace-id: ")
    );
}

#[tokio::test]
async fn busy_crowds_leave_room_for_a_newcomer() {
    let l = listening(Timeouts::default(), 64, 8).await;
    let mut held = Vec::new();
    for host in 10..20 {
        for _ in 0..8 {
            let text = "GET /quiet HTTP/1.1\r\nhost: x\r\n\r\n";
            held.push(l.sent(host, text).await);
        }
    }
    assert!(is_served(&l, 200).await);
}

#[tokio::test]
async fn silent_crowds_make_way_for_a_newcomer() {
    let l = listening(Timeouts::default(), 64, 8).await;
    let mut held = Vec::new();
    for host in 10..110 {
        held.push(l.sent(host, "GET / HT").await);
    }
    assert!(is_served(&l, 200).await, "at once");
    l.counted("cut", "displaced", 1).await;
    assert_eq!(l.count("cut", "head"), 0);
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_way() {
    let l = listening(Timeouts::default(), 64, 2).await;
    let requests = "GET /big HTTP/1.1\r\nhost: x\r\n\r\n".repeat(4);
    let _unread = [l.sent(2, &requests).await, l.sent(2, &requests).await];
    let served = async {
        while !is_served(&l, 2).await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), served).await.unwrap();
    assert_eq!(
        (l.count("cut", "displaced"), l.count("cut", "write")),
        (1, 0)
    );
}

#[tokio::test]
async fn a_stop_ends_idle_connections_at_once_and_lets_requests_finish() {
    let mut l = listening(Timeouts::default(), 10, 10).await;
    let mut idle = l.sent(2, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut half = l.sent(2, "GET / HT").await;
    let mut byte = [0; 1];
    idle.read_exact(&mut byte).await.unwrap();
    let mut endless = l.sent(2, "GET /quiet HTTP/1.1\r\nhost: x\r\n\r\n").await;
    endless.read_exact(&mut byte).await.unwrap();
    l.stop.cancel();
    rest(&mut idle).await;
    rest(&mut half).await;
    rest(&mut endless).await;
    timeout(Duration::from_secs(30), &mut l.served)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(l.count("cut", "drain"), 1);
}

#[tokio::test]
async fn a_handler_sees_the_address_of_its_peer() {
    let l = listening(quick(), 10, 10).await;
    let mut tcp = l
        .sent(
            7,
            "GET /peer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
    let own = tcp.local_addr().unwrap().to_string();
    assert!(rest(&mut tcp).await.ends_with(&own));
}

#[tokio::test]
async fn an_early_response_reaches_a_client_that_is_still_sending() {
    let l = listening(Timeouts::default(), 10, 10).await;
    for _ in 0..20 {
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 600000\r\n\r\n";
        let mut tcp = l.sent(2, head).await;
        // Like a client that sends its whole body before it reads.
        for _ in 0..60 {
            tcp.write_all(&[b'x'; 10_000]).await.unwrap();
        }
        let mut answer = String::new();
        let reading = timeout(Duration::from_secs(30), tcp.read_to_string(&mut answer)).await;
        assert!(reading.unwrap().is_ok(), "not reset");
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }
}
