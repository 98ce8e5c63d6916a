//! The real binary against peers that are slow, silent, greedy or not whom they say: an honest client
//! from another address is served meanwhile, and the others are told why they are not.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tars::rest::Rest;
use tars_tests::{
    eventually,
    process::{Running, Up},
    reason, refusal,
    test_ca::connect_from,
};
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

struct Mesh {
    running: Running,
    _dir: TempDir,
}

/// `tars up` with a hard limit on open files.
fn up(descriptors: u32, env: &[(&str, &str)]) -> Mesh {
    start(descriptors, env, tars_tests::replicas())
}

fn start(descriptors: u32, env: &[(&str, &str)], replicas: usize) -> Mesh {
    // Both ends of every socket are on this machine.
    tars_runtime::descriptors::raise_limit();
    let dir = tempfile::tempdir().unwrap();
    let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let mut tars = Command::new("sh");
    tars.args(["-c", &limited, env!("CARGO_BIN_EXE_tars")]);
    tars.envs(env.iter().copied());
    Mesh {
        running: Up::new(tars, dir.path()).replicas(replicas).start(),
        _dir: dir,
    }
}

fn addr(url: &str) -> SocketAddr {
    url.split_once("://").unwrap().1.parse().unwrap()
}

impl Mesh {
    async fn said(&self, url: &str, from: [u8; 4], text: &str) -> TcpStream {
        let mut tcp = connect_from(from, addr(url)).await.unwrap();
        // A peer that was refused may be gone already.
        tcp.write_all(text.as_bytes()).await.ok();
        tcp
    }

    async fn gateway(&self, from: [u8; 4], text: &str) -> Answer {
        let tcp = self.said(&self.running.ready.gateway, from, text).await;
        Answer::read(tcp).await
    }

    async fn count(&self, what: &str, listener: &str, reason: &str) -> u64 {
        let metrics = Rest::new(&self.running.ready.observe)
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
            let password =
                std::fs::read_to_string(&self.running.ready.admin_password_file).unwrap();
            let rest = Rest::new(&self.running.ready.gateway);
            let admin = rest.login("admin", &password).await.unwrap();
            admin
                .get("/api/v1/orchestration/agents/state")
                .await
                .unwrap();
            rest.get("/health").await.unwrap();
            let observe = Rest::new(&self.running.ready.observe);
            observe.text("/livez").await.unwrap();
            observe.get("/readyz").await.unwrap();
            Rest::new(&self.running.ready.admin)
                .get("/config")
                .await
                .unwrap()
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
    let mesh = up(1024, &[("TARS__LIMITS__AUTH_PER_MINUTE", "1000")]);
    let log = mesh.running.logged();
    let warnings = log.matches("1024 open files").count();
    assert_eq!(warnings, tars_tests::replicas(), "{log}");
    let config = Rest::new(&mesh.running.ready.admin)
        .get("/config")
        .await
        .unwrap();
    let places = config["connections"]["max"].as_u64().unwrap();
    assert!((8..256).contains(&places), "{places}");
    let mut held = Vec::new();
    for url in [
        &mesh.running.ready.observe,
        &mesh.running.ready.admin,
        &mesh.running.ready.gateway,
        &mesh.running.ready.auth,
        &mesh.running.ready.automl,
    ] {
        for _ in 0..1095 {
            held.push(
                mesh.said(url, ATTACKER, "GET /livez HTTP/1.1\r\nhost: ")
                    .await,
            );
        }
        mesh.serves_honest_clients().await;
    }
    for listener in ["observe", "admin", "gateway"] {
        // The share of one address is full: each newcomer takes the place of one that waits.
        let displaced = mesh.count("cut", listener, "displaced").await;
        assert!(displaced > 0, "{listener}");
    }
    let log = mesh.running.logged();
    assert!(
        !log.contains("cannot accept"),
        "descriptors never ran out: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_of_the_gateway_are_told_and_cut() {
    let mesh = up(20_000, &QUICK);
    // Pipelined and never read.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut unread = Vec::new();
    for _ in 0..60 {
        unread.push(
            mesh.said(&mesh.running.ready.gateway, ATTACKER, &requests)
                .await,
        );
    }
    mesh.serves_honest_clients().await;
    mesh.counted("cut", "gateway", "write").await;
    drop(unread);

    let half = "GET /health HTTP/1.1\r\nhost: x\r\nx-a: ";
    let half = mesh.gateway(ATTACKER, half).await;
    assert_eq!(
        (half.status, reason(&half.body).as_str()),
        (408, "REQUEST_TOO_SLOW")
    );
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let slow = format!("{head}content-length: 1000\r\n\r\n{{");
    let slow = mesh.gateway(ATTACKER, &slow).await;
    assert_eq!(
        (slow.status, reason(&slow.body).as_str()),
        (408, "REQUEST_TOO_SLOW")
    );
    assert!(slow.head.contains("connection: close"), "{}", slow.head);
    let idle = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(mesh.gateway(ATTACKER, idle).await.status, 200);
    assert_eq!(mesh.gateway(ATTACKER, "").await.status, 0, "not a word");
    for cause in ["head", "body", "idle", "silent"] {
        mesh.counted("cut", "gateway", cause).await;
    }
    // The own ports have the same times.
    let half = mesh.said(
        &mesh.running.ready.observe,
        ATTACKER,
        "GET /livez HTTP/1.1\r\n",
    );
    assert_eq!(Answer::read(half.await).await.status, 408);
    mesh.counted("cut", "observe", "head").await;
    mesh.serves_honest_clients().await;
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
    let mesh = up(20_000, &env);
    let mut many = Vec::new();
    for _ in 0..12 {
        many.push(
            mesh.said(&mesh.running.ready.gateway, ATTACKER, "GET /he")
                .await,
        );
    }
    mesh.counted("cut", "gateway", "displaced").await;
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
    let text = flood(&mesh, [127, 0, 0, 3], "").await;
    assert!(text.matches("HTTP/1.1 200").count() >= 4, "a burst passes");
    // Each refusal of a flood costs the connection: what was pipelined behind it is not looked at.
    assert_eq!(text.matches("HTTP/1.1 429").count(), 1, "{text}");
    assert!(text.contains("FLOOD") && text.contains("connection: close"));
    // A proxy keeps its connection: the next request on it may be another client's.
    let text = flood(&mesh, PROXY, "forwarded: for=203.0.113.7\r\n").await;
    assert!(text.matches("HTTP/1.1 429").count() > 1, "{text}");
    let answered = ["HTTP/1.1 200", "HTTP/1.1 429"].map(|status| text.matches(status).count());
    assert_eq!(answered.iter().sum::<usize>(), 21, "{text}");
    Rest::new(&mesh.running.ready.gateway)
        .get("/health")
        .await
        .unwrap();
}

/// Twenty pipelined requests with these headers and a last one, and what is answered to them.
async fn flood(mesh: &Mesh, from: [u8; 4], headers: &str) -> String {
    let one = format!("GET /openapi.json HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let last = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let text = one.repeat(20) + last;
    let mut tcp = mesh.said(&mesh.running.ready.gateway, from, &text).await;
    let mut bytes = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A login that fails, through a connection from `from`; each of another user, whose own delays are
/// not what is looked at.
async fn login(mesh: &Mesh, from: [u8; 4], headers: &str) -> u16 {
    static USERS: AtomicU32 = AtomicU32::new(0);
    let username = format!("nobody{}", USERS.fetch_add(1, Ordering::Relaxed));
    let body = json!({ "username": username, "password": "a wrong password" }).to_string();
    let text = format!(
        "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    mesh.gateway(from, &text).await.status
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
    // Each replica of Auth counts for itself.
    let mesh = start(20_000, &env, 1);
    // Whatever a client of the proxy writes itself, it has three attempts.
    for n in 0..3 {
        let forged = format!("x-forwarded-for: 6.6.6.{n}, 203.0.113.7, 10.1.1.1\r\n");
        assert_eq!(login(&mesh, PROXY, &forged).await, 401);
    }
    let forged = "x-forwarded-for: 6.6.6.9\r\nx-forwarded-for: 203.0.113.7\r\n";
    assert_eq!(login(&mesh, PROXY, forged).await, 429);
    assert_eq!(
        login(&mesh, PROXY, "forwarded: for=203.0.113.7\r\n").await,
        429
    );
    // Another client of the same proxy is not concerned.
    let other = "forwarded: for=6.6.6.6, for=\"203.0.113.8:4711\";proto=https\r\n";
    assert_eq!(login(&mesh, PROXY, other).await, 401);
    // Nobody else is believed.
    for n in 0..3 {
        let forged = format!("x-forwarded-for: 203.0.113.{n}\r\n");
        assert_eq!(login(&mesh, ATTACKER, &forged).await, 401);
    }
    for forged in [
        "x-forwarded-for: 203.0.113.99\r\n",
        "forwarded: for=203.0.113.99\r\n",
        "x-real-ip: 203.0.113.99\r\n",
        "x-tars-client-addr: 203.0.113.99\r\n",
    ] {
        assert_eq!(login(&mesh, ATTACKER, forged).await, 429, "{forged}");
    }
    // Headers that disagree, or say nothing that can be read, share the proxy's own attempts.
    for headers in [
        "x-forwarded-for: unknown\r\n",
        "forwarded: for=203.0.113.50\r\nx-forwarded-for: 203.0.113.51\r\n",
        "forwarded: for=\"203.0.113.52\r\n",
    ] {
        assert_eq!(login(&mesh, PROXY, headers).await, 401, "{headers}");
    }
    assert_eq!(login(&mesh, PROXY, "").await, 429);
    let password = std::fs::read_to_string(&mesh.running.ready.admin_password_file).unwrap();
    let admin = Rest::new(&mesh.running.ready.gateway)
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
