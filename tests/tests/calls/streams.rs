//! Streams: how many one caller may hold, and what becomes of those that nobody reads.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_nothing_is_reset_after_a_while() {
    let mesh = TestMesh::with(settings(|c| c.connections.stream_stall_seconds = 1)).await;
    let slow = connect(&mesh, "auth", "/client/slow", 0).await;
    let good = connect(&mesh, "auth", "/client/good", 1 << 16).await;
    let mut kept = send(&good, WATCH, &[], message(b"")).await;
    kept.frame().await.unwrap().unwrap();
    let mut stalled = Vec::new();
    for _ in 0..10 {
        stalled.push(send(&slow, WATCH, &[], message(b"")).await);
    }
    eventually("the stalled streams are over", || async {
        cut(&mesh, "stalled").await == 10 && places(&mesh, "auth", "streams").await == 1
    })
    .await;
    let ended = ended(&mesh, "grpc.health.v1.Health/Watch", "UNAVAILABLE").await;
    assert_eq!(ended, 10, "and a quiet one goes on");
    for stream in stalled {
        assert!(stream.into_body().collect().await.is_err(), "it is reset");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_ends_with_the_credential_that_opened_it() {
    let mesh = TestMesh::with(settings(|c| c.connections.stream_stall_seconds = 3600)).await;
    let developer = mesh.user("dev", "developer").await;
    let study = study(&developer).await;
    let ask = format!("/api/v1/studies/{study}/ask");
    developer.post(&ask, json!({})).await.unwrap();
    let client = connect(&mesh, "automl", "/client/x", 0).await;
    let bearer = format!("Bearer {}", token(&mesh, "dev").await);
    let request = [&[0x0a, 36], study.as_bytes()].concat();
    let path = "/tars.automl.v1.StudyService/WatchStudy";
    let headers = [("authorization", bearer.as_str())];
    let open = send(&client, path, &headers, message(&request)).await;
    assert_eq!(
        (open.status(), fault::code_in(open.headers())),
        (StatusCode::OK, None)
    );
    assert_eq!(places(&mesh, "automl", "streams").await, 1);
    let admin = mesh.admin().await;
    let disable = admin.post("/admin/users/dev/disable", json!({})).await;
    disable.unwrap();
    eventually("the stream is reset", || async {
        places(&mesh, "automl", "streams").await == 0
    })
    .await;
    assert_eq!(cut(&mesh, "credential").await, 1);
    let method = "tars.automl.v1.StudyService/WatchStudy";
    assert_eq!(ended(&mesh, method, "UNAUTHENTICATED").await, 1);
    assert!(open.into_body().collect().await.is_err());
    mesh.mesh.stop().await;
}

fn quota(status: &tonic::Status) -> (Code, String, String) {
    use tonic_types::StatusExt;
    let details = status.get_details_quota_failure();
    let subject = details.map(|d| d.violations[0].subject.clone());
    let reason = fault::reason(status).unwrap_or_default();
    (status.code(), reason, subject.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_cannot_take_the_streams_of_others() {
    let mesh = TestMesh::with(settings(|c| {
        c.limits.streams_by_peer = 8;
        c.connections.max_open_streams = 16;
    }))
    .await;
    let watch = async |peer: &str| {
        let mut client = HealthClient::new(mesh.client("auth", peer));
        let request = HealthCheckRequest::default();
        client.watch(request).await.map(tonic::Response::into_inner)
    };
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(watch("/client/x").await.unwrap());
    }
    for _ in 0..20 {
        let refused = watch("/client/x").await.unwrap_err();
        let told = (Code::ResourceExhausted, "SHARE_FULL".into(), "peer".into());
        assert_eq!(quota(&refused), told, "{refused:?}");
    }
    for n in 0..8 {
        held.push(watch(&format!("/client/{n}")).await.unwrap());
    }
    let refused = watch("/client/late").await.unwrap_err();
    let told = (Code::Unavailable, "OVERLOADED".into(), String::new());
    assert_eq!(quota(&refused), told, "{refused:?}");
    // Calls have places of their own, and so have the workloads' streams: a new service still
    // follows the credentials.
    mesh.user("ada", "viewer").await;
    let mut workload = CredentialServiceClient::new(mesh.client("auth", "/automl"));
    let request = WatchCredentialsRequest { after_sequence: 0 };
    let mut pushed = workload
        .watch_credentials(request)
        .await
        .unwrap()
        .into_inner();
    assert!(pushed.message().await.unwrap().is_some());
    drop(held);
    eventually("the places are given back", || async {
        places(&mesh, "auth", "streams").await == 0
    })
    .await;
    assert!(watch("/client/x").await.is_ok());
    mesh.mesh.stop().await;
}

/// Opens a stream over REST and keeps it.
async fn follow(mesh: &TestMesh, token: &str, study: &str) -> (u16, String, TcpStream) {
    let host = mesh
        .mesh
        .ready
        .gateway
        .trim_start_matches("http://")
        .to_owned();
    let mut tcp = TcpStream::connect(&host).await.unwrap();
    let request = format!(
        "GET /api/v1/studies/{study}/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut text, mut buffer) = (String::new(), [0u8; 4096]);
    while !text.contains("\r\n\r\n") {
        let n = tcp.read(&mut buffer).await.unwrap();
        assert!(n > 0, "the gateway answers: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text, tcp)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_cannot_take_the_streams_of_others_behind_the_gateway() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_caller = 4)).await;
    let study = study(&mesh.user("dev", "developer").await).await;
    mesh.user("ada", "viewer").await;
    mesh.user("bob", "viewer").await;
    let (ada, bob) = (token(&mesh, "ada").await, token(&mesh, "bob").await);
    let mut held = Vec::new();
    for _ in 0..4 {
        let (status, text, stream) = follow(&mesh, &ada, &study).await;
        assert_eq!(status, 200, "{text}");
        held.push(stream);
    }
    let (status, text, _) = follow(&mesh, &ada, &study).await;
    assert!(status == 429 && text.contains("retry-after"), "{text}");
    let (status, text, _bob) = follow(&mesh, &bob, &study).await;
    assert_eq!(status, 200, "{text}");
    drop(held);
    eventually("who leaves gives the place back", || async {
        follow(&mesh, &ada, &study).await.0 == 200
    })
    .await;
    mesh.mesh.stop().await;
}

/// Opens so many streams through the gateway, each of which answers.
async fn follow_all(mesh: &TestMesh, token: &str, study: &str, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let (status, text, stream) = follow(mesh, token, study).await;
        assert_eq!(status, 200, "{text}");
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_201st_stream_through_the_gateway_does_not_wait_behind_200() {
    let mesh = TestMesh::with(settings(|c| {
        c.limits.streams_by_caller = 1000;
        c.gateway.max_connections_by_address = 1000;
    }))
    .await;
    let study = study(&mesh.user("dev", "developer").await).await;
    let dev = token(&mesh, "dev").await;
    let held = follow_all(&mesh, &dev, &study, 201).await;
    drop(held);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_finds_all_of_the_gateways_connections_full_is_told_at_once() {
    let narrow = settings(|c| {
        c.limits.streams_by_caller = 1000;
        c.connections.max_streams = 2;
    });
    let mesh = TestMesh::alone(narrow, Clock::system()).await;
    let study = study(&mesh.user("dev", "developer").await).await;
    let dev = token(&mesh, "dev").await;
    // Eight connections of two streams.
    let mut held = follow_all(&mesh, &dev, &study, 16).await;
    let (status, text, _) = follow(&mesh, &dev, &study).await;
    assert!(status == 503 && text.contains("retry-after"), "{text}");
    held.pop();
    eventually("a stream that ends makes room", || async {
        follow(&mesh, &dev, &study).await.0 == 200
    })
    .await;
    mesh.mesh.stop().await;
}
