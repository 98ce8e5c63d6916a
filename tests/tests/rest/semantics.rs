//! What HTTP says of methods, refusals and challenges.

use super::*;

/// Method, path, headers and body; the status and the reason.
type Case<'a> = (
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
);

#[tokio::test(flavor = "multi_thread")]
async fn head_says_what_get_says_and_options_what_there_is() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bearer = format!("Bearer {}", http.token);
    let headers = [("authorization", bearer.as_str())];
    for path in [
        "/auth/me",
        "/admin/users",
        "/health",
        "/ready",
        "/openapi.json",
        "/nothing",
        "/auth/me?x=1",
    ] {
        let get = http.raw("GET", path, &headers, "").await;
        let head = http.raw("HEAD", path, &headers, "").await;
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        for name in ["content-type", "content-length", "x-content-type-options"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
        assert_eq!(head.header("x-trace-id").len(), 32, "{path}");
    }
    let post_only = http.raw("HEAD", "/auth/login", &headers, "").await;
    assert_eq!(post_only.status, StatusCode::METHOD_NOT_ALLOWED);
    for (path, allowed) in [
        ("/auth/me", "GET, HEAD, OPTIONS"),
        ("/auth/login", "POST, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/admin/users", "GET, HEAD, POST, OPTIONS"),
    ] {
        let options = http.raw("OPTIONS", path, &[], "").await;
        assert_eq!(options.status, StatusCode::NO_CONTENT, "{path}");
        assert_eq!(options.header("allow"), allowed);
        let wrong = http.raw("PATCH", path, &[], "").await;
        assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(wrong.header("allow"), allowed);
        assert_eq!(reason(&wrong.json()), "METHOD_NOT_ALLOWED");
    }
    let unknown = http.raw("OPTIONS", "/nothing", &[], "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_a_trace_id_and_every_error_a_reason() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let json = ("content-type", "application/json");
    let long = format!("/auth/me?{}", "x".repeat(9000));
    let (padding, huge) = ("a".repeat(20_000), "x".repeat(2 << 20));
    let wide = [("x-padding", padding.as_str())];
    let packed = [json, ("content-encoding", "gzip")];
    let charset = [("content-type", "application/json; charset=utf-16")];
    let plain = [("content-type", "text/plain")];
    let cases: [Case<'_>; 12] = [
        ("GET", "/nothing", &[], "", 404, "NO_SUCH_PATH"),
        ("DELETE", "/health", &[], "", 405, "METHOD_NOT_ALLOWED"),
        (
            "POST",
            "/auth/login",
            &plain,
            "{}",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            "/auth/login",
            &charset,
            "{}",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            "/auth/login",
            &packed,
            "{}",
            415,
            "UNSUPPORTED_ENCODING",
        ),
        ("POST", "/auth/login", &[json], &huge, 413, "BODY_TOO_LARGE"),
        ("POST", "/auth/login", &[json], "{", 400, "MALFORMED_JSON"),
        (
            "POST",
            "/auth/login",
            &[json],
            "\u{feff}{}",
            400,
            "MALFORMED_JSON",
        ),
        ("GET", "/api/v1/studies/%zz", &[], "", 400, "INVALID_FIELD"),
        ("GET", &long, &[], "", 414, "PATH_TOO_LONG"),
        ("GET", "/auth/me", &wide, "", 431, "HEADERS_TOO_LARGE"),
        ("GET", "/auth/me", &[], "", 401, "INVALID_CREDENTIALS"),
    ];
    for (method, path, headers, body, status, why) in cases {
        let answer = http.raw(method, path, headers, body.to_owned()).await;
        assert_eq!(
            (answer.status.as_u16(), reason(&answer.json()).as_str()),
            (status, why)
        );
        assert_eq!(answer.header("x-trace-id").len(), 32, "{method} {status}");
        assert_eq!(answer.header("content-type"), "application/json");
        match why {
            "UNSUPPORTED_MEDIA_TYPE" => assert_eq!(answer.header("accept"), "application/json"),
            "UNSUPPORTED_ENCODING" => assert_eq!(answer.header("accept-encoding"), "identity"),
            _ => {}
        }
    }
    let given = [(
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )];
    for path in [
        "/health",
        "/ready",
        "/openapi.json",
        "/nothing",
        "/.well-known/jwks.json",
    ] {
        let answer = http.raw("GET", path, &given, "").await;
        assert_eq!(
            answer.header("x-trace-id"),
            "0af7651916cd43dd8448eb211c80319c",
            "{path}"
        );
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_names_an_error_to_who_sent_a_token() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let challenge = async |headers: &[(&str, &str)]| {
        let answer = http.raw("GET", "/auth/me", headers, "").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        answer.header("www-authenticate").to_owned()
    };
    assert_eq!(challenge(&[]).await, "Bearer realm=\"tars\"");
    assert_eq!(
        challenge(&[("authorization", "Basic eDp5")]).await,
        "Bearer realm=\"tars\""
    );
    let bad = "Bearer realm=\"tars\", error=\"invalid_token\"";
    assert_eq!(challenge(&[("authorization", "Bearer x")]).await, bad);
    let key = challenge(&[("x-api-key", "tars_live_svc_x")]).await;
    assert!(
        key.starts_with("ApiKey ") && !key.contains("error"),
        "{key}"
    );

    let login = http
        .json(
            "POST",
            "/auth/login",
            r#"{"username":"admin","password":"no"}"#,
        )
        .await;
    assert_eq!(login.status, StatusCode::UNAUTHORIZED);
    for spaced in ["Bearer   ", "bEARER "] {
        let value = format!("{spaced}{}", http.token);
        let me = http
            .raw("GET", "/auth/me", &[("authorization", &value)], "")
            .await;
        assert_eq!(me.status, StatusCode::OK, "{spaced:?}");
    }
    mesh.mesh.stop().await;
}
