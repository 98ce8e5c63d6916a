//! Messages in gzip, over real connections.

use super::*;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use prost::Message as _;
use std::io::{Read, Write};
use tars_proto::automl::v1::{CreateStudyRequest, ListStudiesResponse};

const LIST: &str = "/tars.automl.v1.StudyService/ListStudies";
const CREATE: &str = "/tars.automl.v1.StudyService/CreateStudy";
const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
const GZIP: (&str, &str) = ("grpc-encoding", "gzip");
const ACCEPTS: (&str, &str) = ("grpc-accept-encoding", "identity, deflate, gzip");

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn flagged(flags: u8, payload: &[u8]) -> Body {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let framed = [&[flags], length.as_slice(), payload].concat();
    Body::new(Full::new(Bytes::from(framed)))
}

/// The code and the reason of a refusal, in headers alone or in trailers.
async fn refused(response: Response<Incoming>) -> (Code, String) {
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned();
    let status = tonic::Status::from_header_map(&head.headers)
        .or_else(|| tonic::Status::from_header_map(&trailers?))
        .unwrap();
    let reason = fault::reason(&status).unwrap_or_default();
    (status.code(), reason)
}

/// The flags of the only message of an answer, and its payload.
async fn answered(response: Response<Incoming>) -> (u8, Vec<u8>) {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let (header, payload) = body.split_at(5);
    (header[0], payload.to_vec())
}

fn unpacked(payload: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut decoder = GzDecoder::new(payload);
    decoder.read_to_end(&mut content).unwrap();
    content
}

/// A request that is understood, and lacks a required field.
fn create(sampler: &str) -> Vec<u8> {
    let request = CreateStudyRequest {
        sampler_type: Some(sampler.to_owned()),
        ..CreateStudyRequest::default()
    };
    request.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_is_accepted_within_the_limit_and_other_encodings_are_refused() {
    let mesh = TestMesh::start().await;
    mesh.user("ada", "developer").await;
    let token = format!("Bearer {}", token(&mesh, "ada").await);
    let bearer = ("authorization", token.as_str());
    let automl = connect(&mesh, "automl", "/client/x", 1 << 20).await;
    let limit = mesh.config.connections.max_message_bytes;
    let bomb = gzip(&vec![0; 1000 * limit]);
    assert!(bomb.len() < limit, "the bomb itself is small enough");
    for (payload, code, reason) in [
        (
            gzip(&create("random")),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (bomb, Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (
            gzip(&vec![0; limit + 1]),
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
        (create("random"), Code::Internal, "MALFORMED_MESSAGE"),
        (
            gzip(&create("random"))[..20].to_vec(),
            Code::Internal,
            "MALFORMED_MESSAGE",
        ),
    ] {
        let sent = send(&automl, CREATE, &[bearer, GZIP], flagged(1, &payload)).await;
        assert_eq!(refused(sent).await, (code, reason.to_owned()));
    }
    // A packed message that was not announced, and an encoding that nobody knows.
    let unannounced = flagged(1, &gzip(&create("random")));
    let sent = send(&automl, CREATE, &[bearer], unannounced).await;
    assert_eq!(refused(sent).await.0, Code::Internal);
    for encoding in ["deflate", "zstd", "br"] {
        let headers = [bearer, ("grpc-encoding", encoding)];
        let sent = send(&automl, CREATE, &headers, flagged(1, b"x")).await;
        assert_eq!(sent.headers()["grpc-accept-encoding"], "identity,gzip");
        let refusal = (Code::Unimplemented, "UNKNOWN_ENCODING".to_owned());
        assert_eq!(refused(sent).await, refusal, "{encoding}");
    }
    // Nobody without a credential has anything unpacked.
    let sent = send(&automl, CREATE, &[GZIP], flagged(1, &gzip(b""))).await;
    assert_eq!(refused(sent).await.0, Code::Unauthenticated);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_packed_for_who_accepts_it_and_never_with_a_secret_in_them() {
    let mesh = TestMesh::start().await;
    let rest = mesh.user("ada", "developer").await;
    for _ in 0..60 {
        study(&rest).await;
    }
    let token = format!("Bearer {}", token(&mesh, "ada").await);
    let bearer = ("authorization", token.as_str());
    let automl = connect(&mesh, "automl", "/client/x", 1 << 20).await;
    let (flags, plain) = answered(send(&automl, LIST, &[bearer], message(b"")).await).await;
    assert!(flags == 0 && plain.len() > 4096, "{}", plain.len());
    let sent = send(&automl, LIST, &[bearer, ACCEPTS], message(b"")).await;
    assert_eq!(sent.headers()["grpc-encoding"], "gzip");
    let (flags, packed) = answered(sent).await;
    assert!(flags == 1 && packed.len() < plain.len() / 2);
    let listed = ListStudiesResponse::decode(&unpacked(&packed)[..]).unwrap();
    assert_eq!(listed, ListStudiesResponse::decode(&plain[..]).unwrap());

    let auth = connect(&mesh, "auth", "/client/x", 1 << 20).await;
    let login = LoginRequest {
        username: "ada".into(),
        password: PASSWORD.into(),
    };
    let login = login.encode_to_vec();
    let sent = send(&auth, LOGIN, &[ACCEPTS], message(&login)).await;
    assert!(!sent.headers().contains_key("grpc-encoding"));
    let (flags, plain) = answered(sent).await;
    assert_eq!(flags, 0);
    tars_proto::auth::v1::LoginResponse::decode(&plain[..]).unwrap();
    let sent = send(&auth, LOGIN, &[GZIP], flagged(1, &gzip(&login))).await;
    assert_eq!(sent.headers()["grpc-accept-encoding"], "identity");
    assert_eq!(refused(sent).await.0, Code::Unimplemented);
    mesh.mesh.stop().await;
}
