//! The real binary against peers that are slow, silent, greedy or not whom they say: an honest client
//! from another address is served meanwhile, and the others are told why they are not.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tars::{app::Ready, rest::Rest};
use tars_tests::{eventually, reason, refusal, test_ca::connect_from};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const PROXY: [u8; 4] = [127, 0, 0, 9];
/// Long for an answer, short for a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Only what this test started; ended with it.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Up {
    ready: Ready,
    log: PathBuf,
    _process: Started,
    _dir: TempDir,
}

/// `tars up` with so many descriptors, hard limit and all.
async fn up(descriptors: u32, env: &[(&str, &str)]) -> Up {
    // Both ends of every socket are on this machine.
    tars_runtime::descriptors::raise_limit();
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("ready.json"), dir.path().join("log"));
    let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_tars"), "up"]);
    command.arg("--data-dir").arg(dir.path());
    command.arg("--ready-file").arg(&file);
    for name in [
        "auth",
        "orchestration",
        "automl",
        "hypersync",
        "gateway",
        "admin",
        "observe",
    ] {
        command.args([&format!("--{name}-addr"), "127.0.0.1:0"]);
    }
    command.envs(env.iter().copied());
    let process = Started(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
    eventually("the mesh starts", || async { Ready::load(&file).is_ok() }).await;
    Up {
        ready: Ready::load(&file).unwrap(),
        log,
        _process: process,
        _dir: dir,
    }
}

fn addr(url: &str) -> SocketAddr {
    url.split_once("://").unwrap().1.parse().unwrap()
}

impl Up {
    async fn said(&self, url: &str, from: [u8; 4], text: &str) -> TcpStream {
        let mut tcp = connect_from(from, addr(url)).await.unwrap();
        // A peer that was refused may be gone already.
        tcp.write_all(text.as_bytes()).await.ok();
        tcp
    }

    async fn gateway(&self, from: [u8; 4], text: &str) -> Answer {
        let tcp = self.said(&self.ready.gateway, from, text).await;
        Answer::read(tcp).await
    }

    async fn count(&self, what: &str, listener: &str, reason: &str) -> u64 {
        let metrics = Rest::new(&self.ready.observe)
            .text("/metrics")
            .await
            .unwrap();
        let line = format!(
            "listener_connections_{what}_total{{listener=\"{listener}\",reason=\"{reason}\"}} "
        );
        let found = metrics.lines().find_map(|l| l.strip_prefix(&line));
        found.map_or(0, |n| n.parse().unwrap())
    }

    async fn counted(&self, what: &str, listener: &str, reason: &str) {
        let told = format!("{listener}: {what} for {reason}");
        eventually(&told, || async {
            self.count(what, listener, reason).await > 0
        })
        .await;
    }

    /// Everything an honest client does, at once.
    async fn serves_honest_clients(&self) {
        let honest = async {
            let password = std::fs::read_to_string(&self.ready.admin_password_file).unwrap();
            let rest = Rest::new(&self.ready.gateway);
            let admin = rest.login("admin", &password).await.unwrap();
            admin
                .get("/api/v1/orchestration/agents/state")
                .await
                .unwrap();
            rest.get("/health").await.unwrap();
            let observe = Rest::new(&self.ready.observe);
            observe.text("/livez").await.unwrap();
            observe.get("/readyz").await.unwrap();
            Rest::new(&self.ready.admin).get("/config").await.unwrap()
        };
        timeout(PATIENCE, honest).await.unwrap();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    /// Reads until the server ends the connection.
    async fn read(mut tcp: TcpStream) -> Self {
        let mut bytes = Vec::new();
        timeout(PATIENCE, tcp.read_to_end(&mut bytes))
            .await
            .expect("the server ends the connection")
            .ok();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Self {
            status: head.get(9..12).map_or(0, |s| s.parse().unwrap()),
            head: head.to_lowercase(),
            body: serde_json::from_str(body).unwrap_or_default(),
        }
    }
}

const QUICK: [(&str, &str); 7] = [
    ("TARS__TIMEOUTS__HEAD_SECONDS", "1"),
    ("TARS__TIMEOUTS__IDLE_SECONDS", "1"),
    ("TARS__TIMEOUTS__BODY_STALL_SECONDS", "1"),
    ("TARS__TIMEOUTS__WRITE_STALL_SECONDS", "1"),
    ("TARS__CONNECTIONS__HANDSHAKE_TIMEOUT_SECONDS", "1"),
    ("TARS__LIMITS__AUTH_PER_MINUTE", "1000"),
    ("TARS__LIMITS__FLOOD_PER_SECOND", "1000000"),
];

#[tokio::test(flavor = "multi_thread")]
async fn few_descriptors_are_shared_and_probes_answer_under_attack() {
    let up = up(1024, &[("TARS__LIMITS__AUTH_PER_MINUTE", "1000")]).await;
    let log = std::fs::read_to_string(&up.log).unwrap();
    assert_eq!(log.matches("1024 open files").count(), 1, "{log}");
    let config = Rest::new(&up.ready.admin).get("/config").await.unwrap();
    let places = config["connections"]["max"].as_u64().unwrap();
    assert!((8..256).contains(&places), "{places}");
    let mut held = Vec::new();
    for url in [
        &up.ready.observe,
        &up.ready.admin,
        &up.ready.gateway,
        &up.ready.auth,
        &up.ready.automl,
    ] {
        for _ in 0..1095 {
            held.push(
                up.said(url, ATTACKER, "GET /livez HTTP/1.1\r\nhost: ")
                    .await,
            );
        }
        up.serves_honest_clients().await;
    }
    for listener in ["observe", "admin", "gateway"] {
        // The share of one address is full: each newcomer takes the place of one that waits.
        let displaced = up.count("cut", listener, "displaced").await;
        assert!(displaced > 0, "{listener}");
    }
    let log = std::fs::read_to_string(&up.log).unwrap();
    assert!(
        !log.contains("cannot accept"),
        "descriptors never ran out: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_of_the_gateway_are_told_and_cut() {
    let up = up(20_000, &QUICK).await;
    // Pipelined and never read.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut unread = Vec::new();
    for _ in 0..60 {
        unread.push(up.said(&up.ready.gateway, ATTACKER, &requests).await);
    }
    up.serves_honest_clients().await;
    up.counted("cut", "gateway", "write").await;
    drop(unread);

    let half = "GET /health HTTP/1.1\r\nhost: x\r\nx-a: ";
    let half = up.gateway(ATTACKER, half).await;
    assert_eq!(
        (half.status, reason(&half.body).as_str()),
        (408, "REQUEST_TOO_SLOW")
    );
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let slow = format!("{head}content-length: 1000\r\n\r\n{{");
    let slow = up.gateway(ATTACKER, &slow).await;
    assert_eq!(
        (slow.status, reason(&slow.body).as_str()),
        (408, "REQUEST_TOO_SLOW")
    );
    assert!(slow.head.contains("connection: close"), "{}", slow.head);
    let idle = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(up.gateway(ATTACKER, idle).await.status, 200);
    assert_eq!(up.gateway(ATTACKER, "").await.status, 0, "not a word");
    for cause in ["head", "body", "idle", "silent"] {
        up.counted("cut", "gateway", cause).await;
    }
    // The own ports have the same times.
    let half = up.said(&up.ready.observe, ATTACKER, "GET /livez HTTP/1.1\r\n");
    assert_eq!(Answer::read(half.await).await.status, 408);
    up.counted("cut", "observe", "head").await;
    up.serves_honest_clients().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_a_share_of_the_gateway_and_is_told_so() {
    let env = [
        ("TARS__GATEWAY__MAX_CONNECTIONS", "64"),
        ("TARS__GATEWAY__MAX_CONNECTIONS_BY_ADDRESS", "8"),
        ("TARS__GATEWAY__MAX_CONNECTIONS_BY_PROXY", "32"),
        ("TARS__LIMITS__FLOOD_PER_SECOND", "4"),
        ("TARS__GATEWAY__TRUSTED_PROXIES", r#"["127.0.0.9"]"#),
    ];
    let up = up(20_000, &env).await;
    let mut many = Vec::new();
    for _ in 0..12 {
        many.push(up.said(&up.ready.gateway, ATTACKER, "GET /he").await);
    }
    up.counted("cut", "gateway", "displaced").await;
    let mut refused = Vec::new();
    for connection in many {
        let answer = Answer::read(connection).await;
        refused.extend((answer.status == 503).then_some(answer));
    }
    assert_eq!(refused.len(), 4, "as many as came past the share");
    for refused in refused {
        assert_eq!(reason(&refused.body), "TOO_MANY_CONNECTIONS");
        for header in ["retry-after: 1", "x-trace-id: "] {
            assert!(refused.head.contains(header), "{}", refused.head);
        }
    }
    // What the gateway answers by itself is limited by address as well.
    let text = flood(&up, [127, 0, 0, 3], "").await;
    assert!(text.matches("HTTP/1.1 200").count() >= 4, "a burst passes");
    // Each refusal of a flood costs the connection: what was pipelined behind it is not looked at.
    assert_eq!(text.matches("HTTP/1.1 429").count(), 1, "{text}");
    assert!(text.contains("FLOOD") && text.contains("connection: close"));
    // A proxy keeps its connection: the next request on it may be another client's.
    let text = flood(&up, PROXY, "forwarded: for=203.0.113.7\r\n").await;
    assert!(text.matches("HTTP/1.1 429").count() > 1, "{text}");
    let answered = ["HTTP/1.1 200", "HTTP/1.1 429"].map(|status| text.matches(status).count());
    assert_eq!(answered.iter().sum::<usize>(), 21, "{text}");
    Rest::new(&up.ready.gateway).get("/health").await.unwrap();
}

/// Twenty pipelined requests with these headers and a last one, and what is answered to them.
async fn flood(up: &Up, from: [u8; 4], headers: &str) -> String {
    let one = format!("GET /openapi.json HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let last = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let text = one.repeat(20) + last;
    let mut tcp = up.said(&up.ready.gateway, from, &text).await;
    let mut bytes = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A login that fails, through a connection from `from`; each of another user, whose own delays are
/// not what is looked at.
async fn login(up: &Up, from: [u8; 4], headers: &str) -> u16 {
    static USERS: AtomicU32 = AtomicU32::new(0);
    let username = format!("nobody{}", USERS.fetch_add(1, Ordering::Relaxed));
    let body = json!({ "username": username, "password": "a wrong password" }).to_string();
    let text = format!(
        "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    up.gateway(from, &text).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_follow_the_client_behind_a_proxy_that_is_trusted_and_no_other() {
    let env = [
        ("TARS__LIMITS__AUTH_PER_MINUTE", "3"),
        (
            "TARS__GATEWAY__TRUSTED_PROXIES",
            r#"["127.0.0.9", "10.0.0.0/8"]"#,
        ),
    ];
    let up = up(20_000, &env).await;
    // Whatever a client of the proxy writes itself, it has three attempts.
    for n in 0..3 {
        let forged = format!("x-forwarded-for: 6.6.6.{n}, 203.0.113.7, 10.1.1.1\r\n");
        assert_eq!(login(&up, PROXY, &forged).await, 401);
    }
    let forged = "x-forwarded-for: 6.6.6.9\r\nx-forwarded-for: 203.0.113.7\r\n";
    assert_eq!(login(&up, PROXY, forged).await, 429);
    assert_eq!(
        login(&up, PROXY, "forwarded: for=203.0.113.7\r\n").await,
        429
    );
    // Another client of the same proxy is not concerned.
    let other = "forwarded: for=6.6.6.6, for=\"203.0.113.8:4711\";proto=https\r\n";
    assert_eq!(login(&up, PROXY, other).await, 401);
    // Nobody else is believed.
    for n in 0..3 {
        let forged = format!("x-forwarded-for: 203.0.113.{n}\r\n");
        assert_eq!(login(&up, ATTACKER, &forged).await, 401);
    }
    for forged in [
        "x-forwarded-for: 203.0.113.99\r\n",
        "forwarded: for=203.0.113.99\r\n",
        "x-real-ip: 203.0.113.99\r\n",
        "x-tars-client-addr: 203.0.113.99\r\n",
    ] {
        assert_eq!(login(&up, ATTACKER, forged).await, 429, "{forged}");
    }
    // Headers that disagree, or say nothing that can be read, share the proxy's own attempts.
    for headers in [
        "x-forwarded-for: unknown\r\n",
        "forwarded: for=203.0.113.50\r\nx-forwarded-for: 203.0.113.51\r\n",
        "forwarded: for=\"203.0.113.52\r\n",
    ] {
        assert_eq!(login(&up, PROXY, headers).await, 401, "{headers}");
    }
    assert_eq!(login(&up, PROXY, "").await, 429);
    let password = std::fs::read_to_string(&up.ready.admin_password_file).unwrap();
    let admin = Rest::new(&up.ready.gateway)
        .login("admin", &password)
        .await
        .unwrap();
    eventually("the audit list names the client", || async {
        let events = admin.get("/admin/audit/logs?page_size=100").await.unwrap();
        events.to_string().contains("203.0.113.8")
    })
    .await;
    let (status, _) = refusal(admin.get("/no/such/path").await);
    assert_eq!(status, 404);
}
