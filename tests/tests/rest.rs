//! The REST bridge as an outside client meets it: HTTP semantics, streams, and bad input.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tars_interceptors::contract;
use tars_tests::{TestMesh, reason};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[path = "rest/calibration.rs"]
mod calibration;
#[path = "rest/curves.rs"]
mod curves;
#[path = "rest/numbers.rs"]
mod numbers;
#[path = "rest/semantics.rs"]
mod semantics;
#[path = "rest/strict.rs"]
mod strict;
#[path = "rest/unsent.rs"]
mod unsent;

struct Http {
    host: String,
    token: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Http {
    async fn new(mesh: &TestMesh) -> Self {
        let ready = &mesh.mesh.ready;
        let password = std::fs::read_to_string(&ready.admin_password_file).unwrap();
        let body = json!({ "username": "admin", "password": password });
        let login = mesh.rest().post("/auth/login", body).await.unwrap();
        let token = login["access_token"].as_str().unwrap().to_owned();
        Self {
            host: ready.gateway.trim_start_matches("http://").to_owned(),
            token,
        }
    }

    /// Sends just these headers, and the body as it is.
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let tcp = TcpStream::connect(&self.host).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .unwrap();
        tokio::spawn(connection);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    /// Sends these bytes, and reads what comes until the gateway ends the connection.
    async fn bytes(&self, bytes: &[u8]) -> String {
        let mut tcp = TcpStream::connect(&self.host).await.unwrap();
        // Whoever is refused in the middle may be gone before the end.
        tcp.write_all(bytes).await.ok();
        let mut answers = Vec::new();
        let reading = tcp.read_to_end(&mut answers);
        let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
        read.expect("the connection ends").ok();
        String::from_utf8(answers).unwrap()
    }

    async fn json(&self, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        self.raw(method, path, &headers, body.to_owned()).await
    }

    async fn get(&self, path: &str) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        self.raw("GET", path, &[("authorization", &bearer)], "")
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_says_what_http_says() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bearer = format!("Bearer {}", http.token);

    let me = http.get("/auth/me").await;
    assert_eq!(me.status, StatusCode::OK);
    assert_eq!(me.json()["username"], "admin");
    assert_eq!(me.header("x-content-type-options"), "nosniff");
    assert_eq!(me.header("x-trace-id").len(), 32);
    assert!(
        !me.header("x-ratelimit-limit").is_empty() && !me.header("x-ratelimit-reset").is_empty()
    );
    let said = |name: &str| me.header(name).parse::<u32>().unwrap();
    // Of one unit: what is left now, of what there may be at once.
    let (limit, left) = (said("x-ratelimit-limit"), said("x-ratelimit-remaining"));
    assert!(left < limit && limit - left < 100, "{left} of {limit}");
    let policy = "\"user\";q=250000;w=15, \"identity\";q=100000;w=60";
    assert_eq!(me.header("ratelimit-policy"), policy);
    let state = me.header("ratelimit");
    assert!(
        state.contains(&format!("\"identity\";r={left};t=")),
        "{state}"
    );

    let anonymous = http.raw("GET", "/auth/me", &[], "").await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    assert!(anonymous.header("www-authenticate").starts_with("Bearer"));
    assert_eq!(reason(&anonymous.json()), "INVALID_CREDENTIALS");

    let wrong_method = http.json("DELETE", "/auth/login", "").await;
    assert_eq!(
        (wrong_method.status, wrong_method.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "POST, OPTIONS")
    );
    let overridden = http
        .raw(
            "POST",
            "/auth/me",
            &[
                ("x-http-method-override", "GET"),
                ("authorization", &bearer),
            ],
            "",
        )
        .await;
    assert_eq!(overridden.status, StatusCode::METHOD_NOT_ALLOWED);
    for path in [
        "/nothing",
        "/auth/me/",
        "//auth/me",
        "/AUTH/me",
        "/auth/%6de",
        "/tars.auth.v1.AuthService/GetMe",
    ] {
        assert_eq!(http.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(
        http.get("/api/v1/studies/%zz").await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        http.get("/api/v1/studies/a%2Fb").await.status,
        StatusCode::BAD_REQUEST,
        "no UUID"
    );
    // What a client says of itself is not passed on.
    let spoofed = [
        ("x-tars-client-addr", "10.0.0.1"),
        ("grpc-metadata-authorization", bearer.as_str()),
        ("x-user-id", "1"),
    ];
    assert_eq!(
        http.raw("GET", "/auth/me", &spoofed, "").await.status,
        StatusCode::UNAUTHORIZED
    );
    let key = [
        ("x-api-key", "tars_live_svc_x"),
        ("authorization", bearer.as_str()),
    ];
    assert_eq!(
        http.raw("GET", "/auth/me", &key, "").await.status,
        StatusCode::BAD_REQUEST
    );

    let huge_header = "a".repeat(20_000);
    let refused = http
        .raw("GET", "/auth/me", &[("x-padding", &huge_header)], "")
        .await;
    assert_eq!(refused.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let plain = http
        .raw(
            "POST",
            "/auth/login",
            &[("content-type", "text/plain")],
            "{}",
        )
        .await;
    assert_eq!(plain.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let huge = http
        .json(
            "POST",
            "/auth/login",
            &format!("{{\"username\":\"{}\"}}", "a".repeat(2 << 20)),
        )
        .await;
    assert_eq!(huge.status, StatusCode::PAYLOAD_TOO_LARGE);

    assert_eq!(
        http.raw("GET", "/health", &[], "").await.json()["status"],
        "ok"
    );
    assert_eq!(
        http.raw("GET", "/ready", &[], "").await.json()["ready"],
        true
    );
    let openapi = http.raw("GET", "/openapi.json", &[], "").await.json();
    assert_eq!(openapi["openapi"], "3.1.0");
    let jwks = http
        .raw("GET", "/.well-known/jwks.json", &[], "")
        .await
        .json();
    assert_eq!(jwks["keys"][0]["crv"], "Ed25519");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_bad_input() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bodies = [
        "",
        "{",
        "[]",
        "null",
        "\"x\"",
        "{}",
        "{\"unknown_field\":1}",
        "{\"username\":7}",
        "{\"roles\":{}}",
        "{\"username\":\"a\\u0000b\",\"password\":\"x\"}",
        "{\"n_trials\":-1}",
        "{\"n_trials\":1e400}",
        "{\"steps\":\"NaN\"}",
        "{\"seed\":1.5}",
        "{\"page_size\":\"abc\"}",
        "{\"hyperparameters\":{\"gamma\":1e999}}",
        "{\"players\":[{\"name\":\"a\",\"actions\":[\"x\"],\"payoffs\":[\"Infinity\"]}]}",
        "\u{feff}{}",
        "{\"username\":\"a\",\"username\":\"b\"}",
        "{\"update_id\":\"not-a-uuid\",\"reason\":\"x\"}",
    ];
    let deep = format!(
        "{{\"hyperparameters\":{}1{}}}",
        "{\"a\":".repeat(500),
        "}".repeat(500)
    );
    let mut checked = 0;
    for method in contract().unwrap().iter().filter(|m| m.name != "Logout") {
        for route in &method.routes {
            let path = route.template.to_string();
            for id in [
                "x",
                "../../etc/passwd",
                "%00",
                "%2e%2e",
                "018f0000-0000-7000-8000-000000000000",
                "Ünï",
            ] {
                let escaped: String = id
                    .bytes()
                    .map(|b| {
                        if b.is_ascii_graphic() && b != b'/' {
                            char::from(b).to_string()
                        } else {
                            format!("%{b:02X}")
                        }
                    })
                    .collect();
                let concrete: String = path
                    .split('/')
                    .map(|s| {
                        if s.starts_with('{') {
                            if s == "{number}" { "0" } else { &escaped }
                        } else {
                            s
                        }
                    })
                    .collect::<Vec<_>>()
                    .join("/");
                let bodies: Vec<&str> = if route.method == "POST" || route.method == "PUT" {
                    bodies.iter().copied().chain([deep.as_str()]).collect()
                } else {
                    vec!["", "{}"]
                };
                for body in bodies {
                    let answer = http.json(&route.method, &concrete, body).await;
                    let known =
                        answer.status.is_success() || (400..=501).contains(&answer.status.as_u16());
                    assert!(
                        known && answer.status != StatusCode::INTERNAL_SERVER_ERROR,
                        "{} {concrete} {body}: {} {}",
                        route.method,
                        answer.status,
                        String::from_utf8_lossy(&answer.body)
                    );
                    if !method.server_streaming {
                        answer.json();
                    }
                    checked += 1;
                }
                if !path.contains('{') {
                    break;
                }
            }
        }
    }
    assert!(checked > 1000, "{checked}");
    for query in [
        "page_size=-1",
        "page_size=x",
        "nothing=1",
        "page_token=%00",
        "page_size=1&page_size=2",
        "a=%zz",
    ] {
        let answer = http.get(&format!("/admin/users?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(
        http.get("/auth/me").await.status,
        StatusCode::OK,
        "the mesh still serves"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_events_or_lines_and_resume() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let run = http
        .json(
            "POST",
            "/api/v1/orchestration/agents/policy/train",
            r#"{"steps":"1000"}"#,
        )
        .await
        .json();
    let path = format!(
        "/api/v1/orchestration/training/{}/events",
        run["run"]["run_id"].as_str().unwrap()
    );
    let lines = http.get(&path).await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let items: Vec<Value> = lines
        .body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(
        items.last().unwrap()["result"]["ended"]["state"],
        "TRAINING_STATE_COMPLETED"
    );

    let bearer = format!("Bearer {}", http.token);
    let last = (items.len() - 1).to_string();
    let headers = [
        ("authorization", bearer.as_str()),
        ("accept", "text/event-stream"),
        ("last-event-id", &last),
    ];
    let events = http.raw("GET", &path, &headers, "").await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    let text = String::from_utf8(events.body.to_vec()).unwrap();
    assert!(
        text.starts_with(&format!("id: {}\ndata: ", items.len())),
        "{text}"
    );
    assert_eq!(text.matches("data: ").count(), 1, "only what came after");
    let headers = [
        ("authorization", bearer.as_str()),
        ("last-event-id", "99999"),
    ];
    let gone = http.raw("GET", &path, &headers, "").await;
    assert_eq!(
        (gone.status, reason(&gone.json()).as_str()),
        (StatusCode::BAD_REQUEST, "TRIMMED")
    );
    mesh.mesh.stop().await;
}
