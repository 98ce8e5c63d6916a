//! The attacks, each from an address of its own and with one identity.

use crate::{Failure, target::Target};
use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::Request;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tars_certs::Identity;
use tars_tests::test_ca::{client, connect_from};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::{Instant, Interval, interval, sleep, sleep_until, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

type Run = fn(Arc<Ground>) -> BoxFuture<'static, ()>;

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: Run,
}

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        name: "health_watches",
        what: "one certificate without a user opens every Health/Watch stream it can get",
        run: |g| Box::pin(health_watches(g)),
    },
    Attack {
        name: "study_watches",
        what: "one viewer opens every WatchStudy stream the mesh gives",
        run: |g| Box::pin(study_watches(g)),
    },
    Attack {
        name: "event_streams",
        what: "one viewer opens every event stream the gateway gives",
        run: |g| Box::pin(event_streams(g)),
    },
    Attack {
        name: "no_window",
        what: "unary calls of a client that opens no HTTP/2 window for the answers",
        run: |g| Box::pin(no_window(g)),
    },
    Attack {
        name: "pipelined_unread",
        what: "pipelined requests for /openapi.json that are never read",
        run: |g| Box::pin(pipelined_unread(g)),
    },
    Attack {
        name: "slow_headers",
        what: "requests whose headers come a byte at a time",
        run: |g| Box::pin(slow_headers(g)),
    },
    Attack {
        name: "slow_bodies",
        what: "requests whose body comes a byte at a time",
        run: |g| Box::pin(slow_bodies(g)),
    },
    Attack {
        name: "idle_keep_alive",
        what: "connections to the gateway that asked once and say nothing more",
        run: |g| Box::pin(idle_keep_alive(g)),
    },
    Attack {
        name: "half_requests",
        what: "half requests to the process's own port",
        run: |g| Box::pin(half_requests(g)),
    },
    Attack {
        name: "no_preface",
        what: "mesh connections that never send the HTTP/2 preface",
        run: |g| Box::pin(no_preface(g)),
    },
    Attack {
        name: "connections",
        what: "every mesh connection that one identity can hold",
        run: |g| Box::pin(connections(g)),
    },
    Attack {
        name: "half_handshakes",
        what: "half a TLS handshake each",
        run: |g| Box::pin(half_handshakes(g)),
    },
    Attack {
        name: "logins",
        what: "anonymous logins with wrong passwords",
        run: |g| Box::pin(logins(g)),
    },
];

/// Where all attacks come from.
const FROM: [u8; 4] = [127, 0, 0, 2];
/// Sockets of an attack over plain TCP.
const SOCKETS: usize = 1100;
/// Connections of an attack over TLS.
const TLS_CONNECTIONS: usize = 300;
const STREAMS: usize = 200;
const AGAIN: Duration = Duration::from_millis(500);
/// How many connections an attack may open in its first fifth, which is not measured; it goes on at
/// that pace, so that it is the bounds that are measured and not who has more processor time.
const OPENED_FIRST: u32 = 2000;
/// Turns that a TLS handshake takes.
const TURNS_OF_TLS: u32 = 4;

/// Both ends of every socket are on this machine.
pub(crate) fn raise_descriptor_limit() -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(())
}

/// What an attack has to work with, and what became of it.
pub(crate) struct Ground {
    end: Instant,
    auth: SocketAddr,
    automl: SocketAddr,
    gateway: SocketAddr,
    observe: SocketAddr,
    identity: Identity,
    token: String,
    study: String,
    pace: Mutex<Interval>,
    held: AtomicU64,
    pub(crate) tried: AtomicU64,
    pub(crate) most_held: AtomicU64,
}

/// A connection or stream that the attack has.
struct Holding<'a>(&'a Ground);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ground {
    /// An attack that lasts `length`, of which the first fifth is not measured.
    pub(crate) fn new(target: &Target, length: Duration) -> Result<Self, Failure> {
        let addr = |url: &str| -> Result<SocketAddr, Failure> {
            let host = url.split_once("://").map_or(url, |(_, host)| host);
            Ok(host.replace("localhost", "127.0.0.1").parse()?)
        };
        Ok(Self {
            end: Instant::now() + length,
            auth: addr(&target.ready.auth)?,
            automl: addr(&target.ready.automl)?,
            gateway: addr(&target.ready.gateway)?,
            observe: addr(&target.ready.observe)?,
            identity: target.identity("/client/attacker")?,
            token: target.attacker.clone(),
            study: target.study.clone(),
            pace: Mutex::new(interval(length / 5 / OPENED_FIRST)),
            held: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            most_held: AtomicU64::new(0),
        })
    }

    fn hold(&self) -> Holding<'_> {
        let held = self.held.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_held.fetch_max(held, Ordering::Relaxed);
        Holding(self)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Waits for its turn to open something.
    async fn turn(&self) {
        self.pace.lock().await.tick().await;
        self.tried.fetch_add(1, Ordering::Relaxed);
    }

    async fn tcp(&self, to: SocketAddr) -> Option<TcpStream> {
        self.turn().await;
        let connecting = timeout_at(self.end, connect_from(FROM, to)).await;
        connecting.ok()?.ok()
    }

    async fn tls(&self, to: SocketAddr) -> Option<TlsStream<TcpStream>> {
        for _ in 1..TURNS_OF_TLS {
            self.pace.lock().await.tick().await;
        }
        let tcp = self.tcp(to).await?;
        let leaf = (
            self.identity.chain().to_vec(),
            self.identity.key().clone_key(),
        );
        let name = rustls::pki_types::ServerName::try_from("localhost").ok()?;
        let connecting = TlsConnector::from(Arc::new(client(Some(leaf)))).connect(name, tcp);
        timeout_at(self.end, connecting).await.ok()?.ok()
    }
}

/// Does something over and over, as often at once as asked, until the attack is over.
async fn many<F: Future<Output = ()>>(ground: &Ground, at_once: usize, each: impl Fn() -> F) {
    let workers = (0..at_once).map(|_| async {
        while !ground.is_over() {
            // Whatever one round waits for, the attack ends in time.
            timeout_at(ground.end, each()).await.ok();
        }
    });
    join_all(workers).await;
}

/// Reads nothing and holds on until the server closes.
async fn until_closed(mut stream: impl AsyncReadExt + Unpin) {
    let mut bytes = [0u8; 4096];
    while matches!(stream.read(&mut bytes).await, Ok(n) if n > 0) {}
}

/// An HTTP/2 connection with `streams` calls on it, each with one message; `window` is what the
/// client lets the server send on a stream.
async fn calls(ground: &Ground, to: SocketAddr, path: &str, message: &[u8], window: u32) {
    let Some(tls) = ground.tls(to).await else {
        return;
    };
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let Ok((mut send, connection)) = builder.handshake::<_, Bytes>(tls).await else {
        return;
    };
    let mut framed = vec![0u8; 5];
    framed[1..5].copy_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(message);
    let framed = Bytes::from(framed);
    let opening = async {
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let request = Request::post(format!("https://localhost{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {}", ground.token))
                .body(());
            let Ok(request) = request else { break };
            let Ok(ready) = send.clone().ready().await else {
                break;
            };
            send = ready;
            ground.tried.fetch_add(1, Ordering::Relaxed);
            let Ok((answer, mut body)) = send.send_request(request, false) else {
                break;
            };
            if body.send_data(framed.clone(), true).is_err() {
                break;
            }
            open.push(async {
                let _holding = ground.hold();
                // An answer is held, unread; a refusal is over.
                if let Ok(answer) = answer.await
                    && !answer.headers().contains_key("grpc-status")
                {
                    let mut body = answer.into_body();
                    if window > 0 {
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).ok();
                        }
                    } else {
                        body.trailers().await.ok();
                    }
                }
            });
        }
        join_all(open).await;
    };
    tokio::select! {
        _ = connection => {}
        () = opening => {}
    }
    // Who is refused everything comes back, but does not spin.
    sleep(AGAIN).await;
}

async fn health_watches(ground: Arc<Ground>) {
    let path = "/grpc.health.v1.Health/Watch";
    many(&ground, 24, || {
        calls(&ground, ground.auth, path, b"", 65_535)
    })
    .await;
}

async fn study_watches(ground: Arc<Ground>) {
    let path = "/tars.automl.v1.StudyService/WatchStudy";
    let mut message = vec![0x0a, u8::try_from(ground.study.len()).unwrap_or(0)];
    message.extend_from_slice(ground.study.as_bytes());
    many(&ground, 24, || {
        calls(&ground, ground.automl, path, &message, 65_535)
    })
    .await;
}

async fn no_window(ground: Arc<Ground>) {
    let path = "/tars.auth.v1.AuthService/GetMe";
    many(&ground, 24, || calls(&ground, ground.auth, path, b"", 0)).await;
}

async fn event_streams(ground: Arc<Ground>) {
    let request = format!(
        "GET /api/v1/studies/{}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer {}\r\n\r\n",
        ground.study, ground.token
    );
    let one = || async {
        let Some(mut tcp) = ground.tcp(ground.gateway).await else {
            return;
        };
        if tcp.write_all(request.as_bytes()).await.is_ok() {
            let _holding = ground.hold();
            until_closed(tcp).await;
        }
    };
    many(&ground, SOCKETS, one).await;
}

async fn pipelined_unread(ground: Arc<Ground>) {
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    let one = || async {
        let Some(mut tcp) = ground.tcp(ground.gateway).await else {
            return;
        };
        let _holding = ground.hold();
        // Writes until the server takes no more, then finds out when it is cut.
        while tcp.write_all(requests.as_bytes()).await.is_ok() {}
    };
    many(&ground, SOCKETS, one).await;
}

/// Sends a beginning, then a byte every half second.
async fn drip(ground: &Ground, to: SocketAddr, beginning: &str) {
    let Some(mut tcp) = ground.tcp(to).await else {
        return;
    };
    if tcp.write_all(beginning.as_bytes()).await.is_err() {
        return;
    }
    let _holding = ground.hold();
    let (mut read, mut write) = tcp.into_split();
    let dripping = async {
        let mut pace = interval(Duration::from_millis(500));
        loop {
            pace.tick().await;
            if write.write_all(b"a").await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = dripping => {}
        () = until_closed(&mut read) => {}
    }
}

async fn slow_headers(ground: Arc<Ground>) {
    let beginning = "GET /auth/me HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    many(&ground, SOCKETS, || {
        drip(&ground, ground.gateway, beginning)
    })
    .await;
}

async fn slow_bodies(ground: Arc<Ground>) {
    let beginning = "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{";
    many(&ground, SOCKETS, || {
        drip(&ground, ground.gateway, beginning)
    })
    .await;
}

/// Says something once, then nothing until it is cut.
async fn once(ground: &Ground, to: SocketAddr, what: &[u8]) {
    let Some(mut tcp) = ground.tcp(to).await else {
        return;
    };
    if tcp.write_all(what).await.is_ok() {
        let _holding = ground.hold();
        until_closed(tcp).await;
    }
}

async fn idle_keep_alive(ground: Arc<Ground>) {
    let what = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    many(&ground, SOCKETS, || once(&ground, ground.gateway, what)).await;
}

async fn half_requests(ground: Arc<Ground>) {
    let what = b"GET /metrics HTTP/1.1\r\nHost: x\r\n";
    many(&ground, SOCKETS, || once(&ground, ground.observe, what)).await;
}

async fn half_handshakes(ground: Arc<Ground>) {
    // A record header that promises a hello, and the first of its bytes.
    let what = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01];
    many(&ground, SOCKETS, || once(&ground, ground.auth, &what)).await;
}

async fn no_preface(ground: Arc<Ground>) {
    let one = || async {
        let Some(tls) = ground.tls(ground.auth).await else {
            return;
        };
        let _holding = ground.hold();
        until_closed(tls).await;
    };
    many(&ground, TLS_CONNECTIONS, one).await;
}

async fn connections(ground: Arc<Ground>) {
    let one = || async {
        let Some(tls) = ground.tls(ground.auth).await else {
            return;
        };
        let Ok((_send, connection)) = h2::client::handshake(tls).await else {
            return;
        };
        let _holding = ground.hold();
        connection.await.ok();
    };
    many(&ground, TLS_CONNECTIONS, one).await;
}

async fn logins(ground: Arc<Ground>) {
    let body = r#"{"username":"nobody","password":"wrong wrong wrong"}"#;
    let request = format!(
        "POST /auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    many(&ground, 64, || {
        once(&ground, ground.gateway, request.as_bytes())
    })
    .await;
    sleep_until(ground.end).await;
}
