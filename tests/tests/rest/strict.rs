//! One request, one reading; and refusals that every client can carry.

use super::*;
use tars_proto::{
    auth::v1::{
        CreateUserRequest, GetMeRequest, auth_service_client::AuthServiceClient,
        user_service_client::UserServiceClient,
    },
    fault::MAX_DETAILS,
};
use tars_runtime::clock::Clock;
use tonic::Code;

const KEYS: &str = "/admin/api-keys";
const RELOAD: &str = "/api/v1/orchestration/agents/policy/reload";

fn fields(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let details = body["details"].as_array().unwrap().clone();
    let violations = details
        .iter()
        .filter_map(|d| d["field_violations"].as_array());
    let fields = violations
        .flatten()
        .map(|v| v["field"].as_str().unwrap().to_owned());
    fields.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_readings_of_one_body_make_no_credential() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    for (path, body, field) in [
        (
            KEYS,
            r#"{"service_name":"x","scopes":["agents.read"],"scopes":[]}"#,
            "scopes",
        ),
        (
            KEYS,
            r#"{"service_name":"x","scopes":["agents.read"],"sc\u006fpes":[]}"#,
            "scopes",
        ),
        (
            KEYS,
            r#"{"service_name":"x","serviceName":"y"}"#,
            "service_name",
        ),
        (
            KEYS,
            r#"{"service_name":"x","scopes":null,"scopes":["agents.read"]}"#,
            "scopes",
        ),
        (
            "/admin/users",
            r#"{"username":"eve","password":"a password of tests","roles":["viewer"],"roles":["admin"]}"#,
            "roles",
        ),
        (
            RELOAD,
            r#"{"agent_id":"policy","agentId":"other","hyperparameters":{}}"#,
            "agent_id",
        ),
        (
            RELOAD,
            r#"{"hyperparameters":{"gamma":0.95,"gamma":0.99}}"#,
            "hyperparameters[gamma]",
        ),
        (
            RELOAD,
            r#"{"hyperparameters":{"gamma":9007199254740993}}"#,
            "hyperparameters[gamma]",
        ),
        (RELOAD, r#"{"agentId":"other"}"#, "agent_id"),
    ] {
        let refused = http.json("POST", path, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(fields(&refused), [field], "{body}");
    }
    assert_eq!(http.get(KEYS).await.json()["keys"], json!([]));
    let users = http.get("/admin/users").await.json();
    assert_eq!(users["users"].as_array().unwrap().len(), 1, "{users}");
    for query in [
        "page_size=1&pageSize=2",
        "page_size=1&page_size=1",
        "page%5Fsize=1&page_size=1",
    ] {
        let refused = http.get(&format!("/admin/users?{query}")).await;
        assert_eq!(fields(&refused), ["page_size"], "{query}");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_could_be_read_in_two_ways_are_refused() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bearer = format!("Bearer {}", http.token);
    let good = ("authorization", bearer.as_str());
    for (twice, status) in [
        ([good, good], StatusCode::UNAUTHORIZED),
        (
            [good, ("authorization", "Bearer x")],
            StatusCode::UNAUTHORIZED,
        ),
        ([good, ("x-api-key", "k")], StatusCode::BAD_REQUEST),
        (
            [("x-api-key", "k"), ("x-api-key", "l")],
            StatusCode::UNAUTHORIZED,
        ),
    ] {
        let refused = http.raw("GET", "/auth/me", &twice, "").await;
        assert_eq!(refused.status, status, "{twice:?}");
    }
    let limits = [good, ("x-request-timeout", "1"), ("x-request-timeout", "9")];
    let refused = http.raw("GET", "/auth/me", &limits, "").await;
    assert_eq!(fields(&refused), ["x-request-timeout"]);
    let kinds = [
        ("content-type", "application/json"),
        ("content-type", "text/plain"),
    ];
    let refused = http.raw("POST", "/auth/login", &kinds, "{}").await;
    assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let mut client = AuthServiceClient::new(mesh.client("auth", "/client/test"));
    let mut request = tonic::Request::new(GetMeRequest {});
    for timeout in ["1S", "9S"] {
        request
            .metadata_mut()
            .append("grpc-timeout", timeout.parse().unwrap());
    }
    let refused = client.get_me(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_repeat_its_path_and_not_contradict_it() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let space = r#"{"search_space":[{"name":"a","int":{"low":1,"high":9}}],"n_trials":9}"#;
    let study = http.json("POST", "/api/v1/studies", space).await.json();
    let study = study["study"]["study_id"].as_str().unwrap().to_owned();
    let trials = format!("/api/v1/studies/{study}/trials");
    for (number, same) in ["0", "1.0", "\"2\"", "null"].iter().enumerate() {
        http.json("POST", &format!("/api/v1/studies/{study}/ask"), "{}")
            .await;
        let body = format!(r#"{{"number":{same},"studyId":"{study}","step":"1","value":0.5}}"#);
        let report = format!("{trials}/{number}/report");
        let reported = http.json("POST", &report, &body).await;
        assert_eq!(
            reported.status,
            StatusCode::OK,
            "{same}: {:?}",
            reported.body
        );
        let other = http
            .json("POST", &report, r#"{"number":7,"value":0.5}"#)
            .await;
        assert_eq!(fields(&other), ["number"]);
    }
    let other = format!("{trials}/1/tell");
    let zero = http
        .json(
            "POST",
            &other,
            r#"{"number":0,"state":"TRIAL_STATE_FAILED"}"#,
        )
        .await;
    assert_eq!(
        fields(&zero),
        ["number"],
        "a default that is given is a value"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_small_enough_for_every_client() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let letters = "ä".repeat(130);
    let long: Vec<String> = (0..20).map(|i| format!("\"{i}{letters}\":1")).collect();
    let bad: Vec<String> = (0..40)
        .map(|i| format!("\"{} {i}\"", "B".repeat(200)))
        .collect();
    for (path, body) in [
        (
            RELOAD,
            format!("{{\"hyperparameters\":{{{}}}}}", long.join(",")),
        ),
        (RELOAD, format!("{{{}}}", long.join(","))),
        (
            KEYS,
            format!("{{\"service_name\":\"x\",\"scopes\":[{}]}}", bad.join(",")),
        ),
        (
            "/api/v1/studies",
            format!(
                "{{\"search_space\":[{}]}}",
                vec!["{\"name\":\"A B\"}"; 64].join(",")
            ),
        ),
        (
            "/auth/login",
            format!(
                "{{\"username\":\"{letters}\",\"password\":\"\",{}}}",
                long.join(",")
            ),
        ),
    ] {
        let refused = http.json("POST", path, &body).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{path}: {:?}",
            refused.body
        );
        assert!(
            refused.body.len() < 2 * MAX_DETAILS,
            "{}",
            refused.body.len()
        );
        assert!(!reason(&refused.json()).is_empty());
    }

    let mut client = UserServiceClient::new(mesh.client("auth", "/client/test"));
    let mut request = tonic::Request::new(CreateUserRequest {
        username: letters.repeat(100),
        password: String::new(),
        roles: bad,
    });
    let bearer = format!("Bearer {}", http.token);
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().unwrap());
    let refused = client.create_user(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.details().len() < MAX_DETAILS,
        "{}",
        refused.details().len()
    );
    let trailers = refused.clone().into_http::<()>().into_parts().0.headers;
    let size: usize = trailers
        .iter()
        .map(|(n, v)| n.as_str().len() + v.len() + 32)
        .sum();
    assert!(size < 7 << 10, "grpcio takes 8 KiB: {size}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_could_be_read_in_two_ways_is_never_read() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let post = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let smuggled = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (chunked, length) = ("transfer-encoding: chunked\r\n", "content-length: 2\r\n");
    let wide = format!("x-wide: {}\r\n", "w".repeat(100_000));
    for (headers, status, why) in [
        (
            "transfer-encoding: chunked, chunked\r\n",
            400,
            "MALFORMED_REQUEST",
        ),
        (
            "transfer-encoding: gzip, chunked\r\n",
            400,
            "MALFORMED_REQUEST",
        ),
        (
            "transfer-encoding: chunked, identity\r\n",
            400,
            "MALFORMED_REQUEST",
        ),
        (
            "transfer-encoding: \tCHUNKED ,\r\n",
            400,
            "MALFORMED_REQUEST",
        ),
        (&chunked.repeat(2), 400, "MALFORMED_REQUEST"),
        (&format!("{chunked}{length}"), 400, "MALFORMED_REQUEST"),
        (&format!("{length}{chunked}"), 400, "MALFORMED_REQUEST"),
        (
            &format!("{length}content-length: 3\r\n"),
            400,
            "MALFORMED_REQUEST",
        ),
        ("content-length: 2, 2\r\n", 400, "MALFORMED_REQUEST"),
        ("content-length: 0x2\r\n", 400, "MALFORMED_REQUEST"),
        ("x-a: b\r\n c\r\n", 400, "MALFORMED_REQUEST"),
        ("x-a : b\r\n", 400, "MALFORMED_REQUEST"),
        ("x-a\0: b\r\n", 400, "MALFORMED_REQUEST"),
        (&"x-a: b\r\n".repeat(200), 431, "HEADERS_TOO_LARGE"),
        (&wide, 431, "HEADERS_TOO_LARGE"),
    ] {
        let answer = http
            .bytes(format!("{post}{headers}\r\n{{}}{smuggled}").as_bytes())
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let what = &headers[..headers.len().min(60)];
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what:?}: {head}"
        );
        // One answer, with a trace and a reason, and nothing to what may have been smuggled.
        assert_eq!(
            answer.matches("x-trace-id").count(),
            1,
            "{what:?}: {answer}"
        );
        assert!(
            head.contains("x-trace-id: ") && head.contains("connection: close"),
            "{head}"
        );
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(reason(&body), why, "{what:?}");
    }
    // What can be read in one way only is read.
    let whole = format!("{post}{chunked}\r\n2;a=b\r\n{{}}\r\n0\r\nx-t: u\r\n\r\n{smuggled}");
    let answers = http.bytes(whole.as_bytes()).await;
    assert!(
        answers.starts_with("HTTP/1.1 400 ") && answers.contains("INVALID_FIELD"),
        "{answers}"
    );
    assert!(answers.ends_with(r#"{"status":"ok"}"#), "{answers}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_no_route_reaches_nothing_whoever_asks() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bearer = format!("Bearer {}", http.token);
    let known = [("authorization", bearer.as_str())];
    for path in [
        "//auth/me",
        "/auth//me",
        "/auth/me/",
        "/auth/me//",
        "/AUTH/me",
        "/auth/Me",
        "/auth/%6de",
        "/auth%2Fme",
        "/%61uth/me",
        "/x/../auth/me",
        "/auth/./me",
        "/%2e%2e/auth/me",
        "/auth/%2e/me",
        "/auth/me/nothing",
        "/auth/nothing",
        "/tars.auth.v1.AuthService/GetMe",
        "/auth/me%00",
        "/auth/me;x=y",
    ] {
        for headers in [&[][..], &known] {
            let answer = http.raw("GET", path, headers, "").await;
            let told = (answer.status.as_u16(), reason(&answer.json()));
            assert_eq!(told, (404, "NO_SUCH_PATH".to_owned()), "{path}");
        }
    }
    // What is behind a question mark is no part of the path.
    let answer = http.raw("GET", "/auth/me?", &known, "").await;
    assert_eq!(answer.status.as_u16(), 200);
    for method in ["DELETE", "TRACE", "PROPFIND", "get"] {
        let answer = http.raw(method, "/auth/me", &known, "").await;
        assert_eq!(answer.status.as_u16(), 405, "{method}");
    }
    mesh.mesh.stop().await;
}

/// How many of 500 requests of one address are refused as a flood, where two a second are none.
async fn floods(path: &str, headers: &[(&str, &str)], body: &'static str) -> usize {
    let mut settings = tars_tests::config();
    settings.limits.flood_per_second = 2;
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let http = Http {
        host: mesh.mesh.ready.gateway.replace("http://", ""),
        token: String::new(),
    };
    let mut floods = 0;
    for _ in 0..500 {
        let answer = http.raw("POST", path, headers, body).await;
        let is_flood = answer.status == StatusCode::TOO_MANY_REQUESTS;
        floods += usize::from(is_flood && reason(&answer.json()) == "FLOOD");
    }
    mesh.mesh.stop().await;
    floods
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_refused_for_free() {
    let json = ("content-type", "application/json");
    let login = r#"{"username":"nobody","password":"guess"}"#;
    for (path, headers, body) in [
        (
            "/auth/login",
            &[json, ("x-request-timeout", "0")][..],
            login,
        ),
        ("/auth/login", &[json, ("x-request-timeout", "soon")], login),
        ("/auth/login", &[json], "{broken"),
        ("/auth/login", &[], login),
        ("/no/such/path", &[json], "{}"),
    ] {
        let floods = floods(path, headers, body).await;
        assert!((250..500).contains(&floods), "{path} {headers:?}: {floods}");
    }
}
