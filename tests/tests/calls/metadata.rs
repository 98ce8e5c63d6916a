//! What headers say, and what they do not.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};

const ME: &str = "/tars.auth.v1.AuthService/GetMe";

async fn told(response: Response<Incoming>) -> (Code, String) {
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    (status.code(), fault::reason(&status).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_no_method_reaches_nothing_whoever_asks() {
    let mesh = TestMesh::start().await;
    mesh.user("ada", "viewer").await;
    let bearer = format!("Bearer {}", token(&mesh, "ada").await);
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    for path in [
        "/",
        "//tars.auth.v1.AuthService/GetMe",
        "/tars.auth.v1.AuthService//GetMe",
        "/tars.auth.v1.AuthService/GetMe/",
        "/tars.auth.v1.AuthService/getme",
        "/TARS.auth.v1.AuthService/GetMe",
        "/tars.auth.v1.AuthService/%47etMe",
        "/tars.auth.v1.AuthService%2FGetMe",
        "/x/../tars.auth.v1.AuthService/GetMe",
        "/%2e%2e/tars.auth.v1.AuthService/GetMe",
        "/tars.auth.v1.AuthService/Nothing",
        "/tars.auth.v1.Nothing/GetMe",
        "/tars.auth.v1.AuthService",
    ] {
        for headers in [&[][..], &[("authorization", bearer.as_str())]] {
            let answer = send(&client, path, headers, message(b"")).await;
            let unknown = (Code::Unimplemented, "UNKNOWN_METHOD".to_owned());
            assert_eq!(told(answer).await, unknown, "{path}");
        }
    }
    // What is behind a question mark is no part of a method's name.
    let answer = send(&client, &format!("{ME}?a=b"), &[], message(b"")).await;
    assert_eq!(told(answer).await.0, Code::Unauthenticated);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_headers_are_no_credentials() {
    let mesh = TestMesh::start().await;
    mesh.user("ada", "viewer").await;
    let token = token(&mesh, "ada").await;
    let bearer = format!("Bearer {token}");
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let encoded = STANDARD.encode(&bearer);
    for (name, value) in [
        ("authorization-bin", encoded.as_str()),
        ("authorization-bin", "dGFycw=="),
        ("x-api-key-bin", "dGFycw"),
    ] {
        let answer = send(&client, ME, &[(name, value)], message(b"")).await;
        assert_eq!(told(answer).await.0, Code::Unauthenticated, "{name}");
    }
    // Beside a good credential they are nobody's: no method reads binary headers. One that nobody could read
    // is refused all the same, also with no credential.
    let good = ("authorization", bearer.as_str());
    let told =
        async |headers: &[(&str, &str)]| told(send(&client, ME, headers, message(b"")).await).await;
    for value in ["AAECAw==", "AAECAw", "AAEC,Aw"] {
        let answer = send(
            &client,
            ME,
            &[good, ("x-anything-bin", value)],
            message(b""),
        )
        .await;
        assert_eq!(end(answer).await, Code::Ok, "{value}");
    }
    let malformed = (Code::InvalidArgument, "MALFORMED_HEADER".to_owned());
    for name in [
        "x-anything-bin",
        "authorization-bin",
        "grpc-trace-bin",
        "grpc-status-details-bin",
    ] {
        for value in ["!not base64!", "A", "AAEC,!", "AAE_Aw"] {
            assert_eq!(
                told(&[good, (name, value)]).await,
                malformed,
                "{name}: {value}"
            );
            assert_eq!(told(&[(name, value)]).await, malformed, "{name}: {value}");
        }
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_capped_and_one_that_is_no_time_is_refused() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    for junk in [
        "-1S",
        "1",
        "S",
        "1s",
        "1.5S",
        "",
        "999999999S",
        "1S1S",
        " 1S",
    ] {
        let headers = [("grpc-timeout", junk)];
        let answer = send(&client, CHECK, &headers, message(b"")).await;
        let refused = (Code::InvalidArgument, "INVALID_TIMEOUT".to_owned());
        assert_eq!(told(answer).await, refused, "{junk:?}");
    }
    let twice = [("grpc-timeout", "1S"), ("grpc-timeout", "2S")];
    let answer = send(&client, CHECK, &twice, message(b"")).await;
    assert_eq!(told(answer).await.0, Code::InvalidArgument);
    for none in ["0S", "0n", "00000000m"] {
        let answer = send(&client, CHECK, &[("grpc-timeout", none)], message(b"")).await;
        assert_eq!(told(answer).await.0, Code::DeadlineExceeded, "{none}");
    }
    // A century is as long as the rule allows: a request that does not come ends with it.
    let headers = [("grpc-timeout", "99999999H")];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(end(answer).await, Code::Ok);
    let answer = send(&client, CHECK, &headers, Body::new(Never)).await;
    assert_eq!(told(answer).await.0, Code::DeadlineExceeded);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_have_no_time_are_a_flood_as_others_are() {
    let mesh = TestMesh::with(settings(|c| c.limits.flood_per_second = 2)).await;
    for (peer, timeout, code) in [
        ("/client/none", "0n", Code::DeadlineExceeded),
        ("/client/junk", "soon", Code::InvalidArgument),
    ] {
        let client = connect(&mesh, "auth", peer, 1 << 16).await;
        let mut floods = 0;
        for n in 0..100 {
            let headers = [("grpc-timeout", timeout)];
            let (refused, why) = told(send(&client, CHECK, &headers, message(b"")).await).await;
            floods += usize::from(why == "FLOOD");
            assert!(why == "FLOOD" || refused == code, "{n}: {refused:?} {why}");
        }
        assert!((50..=98).contains(&floods), "{timeout}: {floods}");
    }
    mesh.mesh.stop().await;
}
