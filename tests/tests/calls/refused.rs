//! What a client is told that sends no good call, and when it is cut.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_no_grpc_call_is_refused_in_http() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    for path in [CHECK, "/no.Such/Method", "/"] {
        for kind in ["application/json", "application/grpc-web", "text/plain"] {
            let answer = send(&client, path, &[("content-type", kind)], message(b"")).await;
            assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        for method in [Method::GET, Method::PUT, Method::OPTIONS] {
            let request = Request::builder().method(method);
            let request = request.uri(format!("https://localhost{path}"));
            let request = request.body(Body::empty()).unwrap();
            let answer = client.clone().send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(answer.headers()["allow"], "POST");
        }
    }
    let headers = [
        ("content-type", "application/grpc+proto"),
        ("te", "trailers"),
    ];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(end(answer).await, Code::Ok);
    // The length alone is enough; nothing of the message has to come.
    let huge = Body::new(Full::new(Bytes::from_static(&[0, 0, 0x20, 0, 0])));
    let answer = send(&client, CHECK, &[], huge).await;
    assert_eq!(end(answer).await, Code::ResourceExhausted);
    mesh.mesh.stop().await;
}

/// A request of an HTTP/2 client that sees how its stream ends.
async fn h2_client(mesh: &TestMesh, peer: &str) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(tls_to(mesh, "auth", peer).await)
        .await
        .unwrap();
    tokio::spawn(async move { connection.await.ok() });
    sender
}

/// Whether a body ends well, without a byte.
async fn is_empty(mut body: h2::RecvStream) -> bool {
    while let Some(data) = body.data().await {
        if !data.is_ok_and(|data| data.is_empty()) {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let mesh = TestMesh::start().await;
    let client = h2_client(&mesh, "/client/x").await;
    for size in [1, 100, 60_000, 2_000_000] {
        let request = Request::post(format!("https://localhost{CHECK}"));
        let request = request.header("content-type", "application/json");
        let request = request.header("content-length", size).body(()).unwrap();
        let mut ready = client.clone().ready().await.unwrap();
        let (answer, mut body) = ready.send_request(request, false).unwrap();
        // It comes behind the end of the body, or a client would stop in the middle.
        let sending = async {
            tokio::task::yield_now().await;
            body.send_data(Bytes::from(vec![b'x'; size]), true).unwrap();
        };
        let (answer, ()) = tokio::join!(answer, sending);
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(is_empty(answer.into_body()).await, "no error of the stream");
    }
    // A refusal of gRPC's own ends the stream by itself; what then is reset is no error either.
    let path = "/tars.auth.v1.AuthService/GetMe";
    let request = Request::post(format!("https://localhost{path}"));
    let request = request.header("content-type", "application/grpc");
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut body) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(
        fault::code_in(answer.headers()),
        Some(Code::Unauthenticated)
    );
    assert!(answer.body().is_end_stream());
    let reset = futures_util::future::poll_fn(|cx| body.poll_reset(cx)).await;
    assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
    // A body that never ends is waited for a while, and then is no error.
    let request = Request::post(format!("https://localhost{CHECK}"));
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut body) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let answer = answer.await.unwrap().into_body();
    assert!(is_empty(answer).await, "ended, without an error");
    let reset = futures_util::future::poll_fn(|cx| body.poll_reset(cx)).await;
    assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_large_are_refused_in_grpcs_words() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let large = "a".repeat(17_000);
    let headers = [("x-large", large.as_str())];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        fault::code_in(answer.headers()),
        Some(Code::ResourceExhausted)
    );
    assert_eq!(answer.headers()["x-trace-id"].len(), 32);
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(fault::reason(&status).as_deref(), Some("HEADERS_TOO_LARGE"));
    let fits = "a".repeat(15_000);
    let headers = [("x-large", fits.as_str())];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(end(answer).await, Code::Ok);
    mesh.mesh.stop().await;
}

/// How often a new connection of `peer` is refused until it is cut.
async fn refused_until_cut(mesh: &TestMesh, peer: &str) -> Option<u32> {
    let client = connect(mesh, "auth", peer, 1 << 16).await;
    let _held = send(&client, WATCH, &[], message(b"")).await;
    until_cut(&client, (WATCH, None), Code::ResourceExhausted).await
}

/// The same, where every call of a method, with this timeout, is refused with a code.
async fn until_cut(
    client: &SendRequest<Body>,
    (path, timeout): (&str, Option<&str>),
    code: Code,
) -> Option<u32> {
    for refused in 0..2000 {
        let request = Request::post(format!("https://localhost{path}"));
        let request = request.header("content-type", "application/grpc");
        let request = match timeout {
            Some(timeout) => request.header("grpc-timeout", timeout),
            None => request,
        };
        let request = request.body(message(b"")).unwrap();
        match client.clone().send_request(request).await {
            Ok(answer) => assert_eq!(fault::code_in(answer.headers()), Some(code)),
            Err(_) => return Some(refused),
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_calls_have_no_time_is_cut_as_well() {
    let mesh = TestMesh::start().await;
    for (peer, timeout, code) in [
        ("/client/none", "0n", Code::DeadlineExceeded),
        ("/client/junk", "soon", Code::InvalidArgument),
    ] {
        let client = connect(&mesh, "auth", peer, 1 << 16).await;
        let refused = until_cut(&client, (CHECK, Some(timeout)), code).await;
        assert!(refused.is_some_and(|n| n >= 200), "{timeout}: {refused:?}");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_refused_repeatedly_is_cut_with_enhance_your_calm() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_peer = 1)).await;
    let first = refused_until_cut(&mesh, "/client/greedy").await.unwrap();
    assert!((200..2000).contains(&first), "{first}");
    // A new connection is no new budget, and nobody else is concerned.
    let again = refused_until_cut(&mesh, "/client/greedy").await.unwrap();
    assert!(again < first, "{again} of {first}");
    let other = refused_until_cut(&mesh, "/client/other").await.unwrap();
    assert!(other >= 200, "{other}");
    let line = "mesh_connections_cut_total{reason=\"refusals\"}";
    eventually("it is counted", || async { metric(&mesh, line).await == 3 }).await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_refusals_of_others_with_its_identity() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_peer = 1)).await;
    let quiet = connect(&mesh, "auth", "/client/shared", 1 << 16).await;
    let _held = send(&quiet, WATCH, &[], message(b"")).await;
    for _ in 0..2 {
        let greedy = refused_until_cut(&mesh, "/client/shared").await;
        assert!(greedy.is_some());
        for _ in 0..8 {
            let answer = send(&quiet, WATCH, &[], message(b"")).await;
            assert_eq!(
                fault::code_in(answer.headers()),
                Some(Code::ResourceExhausted)
            );
        }
        let answer = send(&quiet, CHECK, &[], message(b"")).await;
        assert_eq!(end(answer).await, Code::Ok);
    }
    let line = "mesh_connections_cut_total{reason=\"refusals\"}";
    eventually("it is counted", || async { metric(&mesh, line).await == 2 }).await;
    mesh.mesh.stop().await;
}
