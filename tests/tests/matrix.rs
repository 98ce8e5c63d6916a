//! Every method of the contract against every kind of caller, generated from the descriptors: a
//! method that is added is tested the moment it exists.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::uri::PathAndQuery;
use std::collections::BTreeMap;
use tars_interceptors::{client::OutgoingService, contract};
use tars_mesh::Channel;
use tars_proto::table::{Method, Principal};
use tars_tests::{PASSWORD, TestMesh};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(dst, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let n = bytes::Buf::remaining(src);
        Ok(Some(bytes::Buf::copy_to_bytes(src, n)))
    }
}

/// The code that a call gets; a stream counts by its first item.
async fn call(
    channel: OutgoingService<Channel>,
    method: &Method,
    header: Option<(&'static str, &str)>,
    body: Bytes,
) -> Code {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = Request::new(body);
    request.set_timeout(std::time::Duration::from_secs(5));
    if let Some((name, value)) = header {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let path: PathAndQuery = method.path.parse().unwrap();
    let status = if method.server_streaming {
        match client.server_streaming(request, path, Raw).await {
            Ok(response) => response.into_inner().message().await.err(),
            Err(status) => Some(status),
        }
    } else {
        client.unary(request, path, Raw).await.err()
    };
    status.map_or(Code::Ok, |s| s.code())
}

/// Past every check of who calls: what remains is about the message or the state.
fn passed(code: Code) -> bool {
    !matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Internal
            | Code::Unknown
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Which of the default roles holds a permission, written out by hand: the second opinion.
fn holders(permission: &str) -> &'static [&'static str] {
    match permission {
        "session.self" | "agents.read" | "agents.step" | "training.read" | "studies.read"
        | "proposals.read" => &["viewer", "developer", "admin"],
        "games.solve" | "agents.reload" | "training.write" | "studies.write"
        | "proposals.write" => &["developer", "admin"],
        _ => &["admin"],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s8_8_every_method_against_every_caller() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let mut tokens = BTreeMap::new();
    for role in ["viewer", "developer", "admin"] {
        let name = format!("{role}-user");
        mesh.user(&name, role).await;
        let body = serde_json::json!({ "username": name, "password": PASSWORD });
        let login = mesh.rest().post("/auth/login", body).await.unwrap();
        tokens.insert(
            role,
            format!("Bearer {}", login["access_token"].as_str().unwrap()),
        );
    }
    // A key with one scope only.
    let body = serde_json::json!({ "service_name": "narrow", "scopes": ["studies.read"] });
    let key = admin.post("/auth/service-token", body).await.unwrap()["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    tars_tests::eventually("the key is known everywhere", || async {
        let method = contract()
            .unwrap()
            .get("/tars.automl.v1.StudyService/ListStudies")
            .unwrap();
        call(
            mesh.client("automl", "/client/k"),
            method,
            Some(("x-api-key", &key)),
            Bytes::new(),
        )
        .await
            == Code::Ok
    })
    .await;

    let garbage = Bytes::from_static(b"\xff\xff\xff\xff");
    let mut checked = 0;
    for method in contract()
        .unwrap()
        .iter()
        .filter(|m| m.workload().is_some())
    {
        let service = method.workload().unwrap();
        let client = || mesh.client(service, "/client/m");
        let ends_session = method.name == "Logout";
        for peer in [
            "/client/m",
            "/user/m",
            "/gateway",
            "/orchestration",
            "/automl",
            "/hypersync",
            "/worker",
            "/nobody",
        ] {
            let class = match peer {
                "/client/m" => "client",
                "/user/m" => "operator",
                other => &other[1..],
            };
            let allowed = method.rule.peers.iter().any(|p| p == class);
            let admin_header = if ends_session {
                None
            } else {
                Some(("authorization", tokens["admin"].as_str()))
            };
            // A message that cannot be read: the call must get as far as that, and change nothing.
            let code = call(
                mesh.client(service, peer),
                method,
                admin_header,
                garbage.clone(),
            )
            .await;
            if !allowed {
                assert_eq!(code, Code::PermissionDenied, "{} from {peer}", method.path);
            } else if !ends_session {
                assert!(passed(code), "{} from {peer}: {code:?}", method.path);
            }
            checked += 1;
        }
        match &method.rule.principal {
            Principal::Workload => {
                let code = call(
                    client(),
                    method,
                    Some(("authorization", &tokens["admin"])),
                    garbage.clone(),
                )
                .await;
                assert_eq!(
                    code,
                    Code::PermissionDenied,
                    "{}: no token makes a workload",
                    method.path
                );
            }
            Principal::Public | Principal::Peer => {
                // Only the bootstrap listener makes joiners; `certificates.rs` speaks to that.
                let code = call(client(), method, None, garbage.clone()).await;
                let open = method.rule.peers.iter().any(|p| p == "client");
                assert_eq!(passed(code), open, "{}: {code:?}", method.path);
            }
            Principal::Permission(permission) => {
                let code = call(client(), method, None, garbage.clone()).await;
                assert_eq!(
                    code,
                    Code::Unauthenticated,
                    "{} without a credential",
                    method.path
                );
                for (role, token) in tokens.iter().filter(|_| !ends_session) {
                    let code = call(
                        client(),
                        method,
                        Some(("authorization", token)),
                        garbage.clone(),
                    )
                    .await;
                    if holders(permission).contains(role) {
                        assert!(passed(code), "{} as {role}: {code:?}", method.path);
                    } else {
                        assert_eq!(code, Code::PermissionDenied, "{} as {role}", method.path);
                    }
                    checked += 1;
                }
                let code = call(client(), method, Some(("x-api-key", &key)), garbage.clone()).await;
                if permission == "studies.read" {
                    assert!(passed(code), "{} by key: {code:?}", method.path);
                } else {
                    assert_eq!(
                        code,
                        Code::PermissionDenied,
                        "{} by a narrow key",
                        method.path
                    );
                }
            }
        }
    }
    assert!(checked > 300, "{checked}");

    let unknown = Method {
        path: "/tars.auth.v1.AuthService/Nothing".into(),
        ..contract()
            .unwrap()
            .get("/tars.auth.v1.AuthService/Login")
            .unwrap()
            .clone()
    };
    assert_eq!(
        call(
            mesh.client("auth", "/client/m"),
            &unknown,
            None,
            Bytes::new()
        )
        .await,
        Code::Unimplemented
    );
    mesh.mesh.stop().await;
}

/// Empty, wrong-typed, huge and strange messages: a typed refusal, never INTERNAL, never a panic.
#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_bad_messages() {
    let mesh = TestMesh::start().await;
    let body = serde_json::json!({ "username": "admin", "password": std::fs::read_to_string(&mesh.mesh.ready.admin_password_file).unwrap() });
    let login = mesh.rest().post("/auth/login", body).await.unwrap();
    let token = format!("Bearer {}", login["access_token"].as_str().unwrap());
    let huge: Vec<u8> = [&[0x0a, 0x80, 0x80, 0x80, 0x01][..], &vec![b'a'; 2 << 20]].concat();
    let deep: Vec<u8> = (0..5000).flat_map(|_| [0x0a, 0xff, 0xff, 0x7f]).collect();
    let nan: Vec<u8> = [&[0x21][..], &f64::NAN.to_le_bytes()].concat();
    let messages: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("garbage", b"\xff\xff\xff\xff".to_vec()),
        ("truncated", vec![0x0a, 0x05, b'a']),
        (
            "a NUL and a control character",
            vec![0x0a, 0x03, b'a', 0, 0x1b],
        ),
        ("invalid UTF-8", vec![0x0a, 0x02, 0xc3, 0x28]),
        (
            "a long name",
            [&[0x0a, 0xd0, 0x0f][..], &vec![b'a'; 2000]].concat(),
        ),
        ("a bad id", [&[0x0a, 0x0b][..], b"../../x' OR"].concat()),
        ("another type", vec![0x08, 0x01]),
        ("not a number", nan),
        ("deep", deep),
        ("huge", huge),
        ("unknown fields", vec![0xfa, 0x3f, 0x01, 0x41]),
    ];
    let services: BTreeMap<&str, OutgoingService<Channel>> =
        ["auth", "orchestration", "automl", "hypersync"]
            .map(|s| (s, mesh.client(s, "/client/bad")))
            .into();
    for method in contract()
        .unwrap()
        .iter()
        .filter(|m| m.workload().is_some() && m.name != "Logout")
        .filter(|m| m.rule.peers != ["joiner"])
    {
        let (service, peer) = (method.workload().unwrap(), &method.rule.peers[0]);
        for (what, message) in &messages {
            let channel = if method.rule.principal == Principal::Workload {
                mesh.client(service, &format!("/{peer}"))
            } else {
                services[service].clone()
            };
            let header = Some(("authorization", token.as_str()));
            let code = call(channel, method, header, Bytes::from(message.clone())).await;
            let refused_login =
                method.rule.principal == Principal::Public && code == Code::Unauthenticated;
            assert!(
                passed(code) || refused_login,
                "{} with {what}: {code:?}",
                method.path
            );
        }
    }
    assert!(
        mesh.admin().await.get("/auth/me").await.is_ok(),
        "the mesh still serves"
    );
    mesh.mesh.stop().await;
}
