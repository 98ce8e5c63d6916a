//! Every method of the contract against every kind of caller, generated from the descriptors: a
//! method that is added is tested the moment it exists.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tars::rest::Rest;
use tars_certs::PeerClass;
use tars_interceptors::{client::OutgoingService, contract};
use tars_mesh::Channel;
use tars_proto::table::{Grants, Method, Principal};
use tars_tests::{PASSWORD, TestMesh, fleet::services_over_tls, raw::RawCall, reason, refusal};
use tonic::Code;

/// The code that a call gets; a stream counts by its first item.
async fn call(
    channel: OutgoingService<Channel>,
    method: &Method,
    header: Option<(&'static str, &str)>,
    body: Bytes,
) -> Code {
    let call = RawCall {
        method,
        header,
        message: body,
        timeout: Duration::from_secs(5),
    };
    call.send(channel)
        .await
        .err()
        .map_or(Code::Ok, |s| s.code())
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

/// A SPIFFE path of each class that a certificate can have, and one of none.
fn peers() -> Vec<(String, &'static str)> {
    let classes = PeerClass::ALL.into_iter();
    let certified = classes.filter(|class| *class != PeerClass::Joiner);
    let paths = certified.map(|class| {
        let path = match class {
            PeerClass::Client => "/client/m".to_owned(),
            PeerClass::Operator => "/user/m".to_owned(),
            workload => format!("/{workload}"),
        };
        (path, class.as_str())
    });
    paths.chain([("/nobody".to_owned(), "")]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_each_caller_as_the_contract_says() {
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

    let peers = peers();
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
        for (peer, class) in &peers {
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
            Principal::Permission(needed) => {
                let permission = needed.as_str();
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
    let services: BTreeMap<&str, OutgoingService<Channel>> = services_over_tls()
        .map(|s| (s, mesh.client(s, "/client/bad")))
        .collect();
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

/// A message for each method that grants something, with which a caller who holds the method's own
/// permission and nothing else reaches for more. Whoever adds such a method adds its message here.
fn greedy(method: &str, target: &Target) -> Vec<Vec<u8>> {
    use tars_proto::{Message, auth::v1::*};
    let victim = || target.user.clone();
    let workloads = [
        "/auth",
        "/gateway",
        "/ns/prod/sa/orchestration",
        "/worker",
        "/user/victim",
    ];
    match method {
        "CreateUser" => ["viewer", "admin"]
            .map(|role| CreateUserRequest {
                username: "greedy".into(),
                password: PASSWORD.into(),
                roles: vec![role.into()],
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "SetUserRoles" => ["viewer", "admin"]
            .map(|role| SetUserRolesRequest {
                username: victim(),
                roles: vec![role.into()],
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "DisableUser" => vec![DisableUserRequest { username: victim() }.encode_to_vec()],
        "EnableUser" => vec![EnableUserRequest { username: victim() }.encode_to_vec()],
        "CreateApiKey" => ["users.write", "session.self"]
            .map(|scope| CreateApiKeyRequest {
                service_name: "greedy".into(),
                scopes: vec![scope.into()],
                expires_in_days: None,
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "RotateApiKey" => [&target.own_key, &target.other_key]
            .map(|key_id| RotateApiKeyRequest {
                key_id: key_id.clone(),
                overlap_seconds: 60,
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "RevokeApiKey" => [&target.own_key, &target.other_key]
            .map(|key_id| RevokeApiKeyRequest {
                key_id: key_id.clone(),
                reason: String::new(),
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "ChangePassword" => vec![
            ChangePasswordRequest {
                current_password: target.password.clone(),
                new_password: "a greedy password".into(),
            }
            .encode_to_vec(),
        ],
        "IssueCertificate" => workloads
            .map(|path| IssueCertificateRequest {
                csr: target.csr.clone(),
                path: path.into(),
                ..Default::default()
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "CreateJoinToken" => workloads
            .map(|path| CreateJoinTokenRequest {
                path: path.into(),
                ttl_seconds: None,
            })
            .map(|m| m.encode_to_vec())
            .into(),
        "RevokeCertificate" => ["/auth", "/gateway", "/ns/prod/sa/orchestration", "/nobody"]
            .map(|path| RevokeCertificateRequest {
                spiffe_id: format!("spiffe://tars.local{path}"),
                reason: "greed".into(),
                ..Default::default()
            })
            .map(|m| m.encode_to_vec())
            .into(),
        other => panic!("{other} grants something, and nobody has said how to reach for more"),
    }
}

struct Target {
    /// Another administrator.
    user: String,
    /// The password of the narrow keys' owner.
    password: String,
    /// An unscoped key of the same owner.
    own_key: String,
    /// A key of another owner, with one scope.
    other_key: String,
    csr: Vec<u8>,
}

async fn new_key(by: &Rest, scopes: &[&str]) -> Value {
    let body = json!({ "service_name": "matrix", "scopes": scopes });
    by.post("/auth/service-token", body).await.unwrap()
}

fn field(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

/// All that could be taken: it must be the same before and after.
async fn holdings(admin: &Rest) -> [Value; 4] {
    [
        admin.get("/admin/users?page_size=500").await.unwrap(),
        admin.get("/admin/api-keys?page_size=500").await.unwrap(),
        admin
            .get("/admin/certificates?page_size=500")
            .await
            .unwrap(),
        admin
            .get("/admin/certificates/revoked?page_size=500")
            .await
            .unwrap(),
    ]
}

/// Every method that gives or takes a credential, by a key that has the method's own permission and no
/// other, and by one that has every permission but the ones that are needed besides.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_more_than_a_narrow_key_holds() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let owner = mesh.user("owner", "admin").await;
    let victim = mesh.user("victim", "admin").await;
    let (own, other) = (
        new_key(&owner, &[]).await,
        new_key(&victim, &["studies.read"]).await,
    );
    let signing = rcgen::KeyPair::generate().unwrap();
    let target = Target {
        user: "victim".into(),
        password: PASSWORD.into(),
        own_key: field(&own, "key_id"),
        other_key: field(&other, "key_id"),
        csr: tars_certs::ca::csr::create(&signing).unwrap(),
    };
    let mut attacks = Vec::new();
    for method in contract()
        .unwrap()
        .iter()
        .filter(|m| m.rule.grants == Some(Grants::Capped))
    {
        let Principal::Permission(permission) = &method.rule.principal else {
            panic!("{}: what is capped by the caller has a caller", method.path);
        };
        let narrow = new_key(&owner, &[permission.as_str()]).await;
        attacks.push((method, field(&narrow, "api_key")));
    }
    assert!(attacks.len() >= 11, "{}", attacks.len());
    // Made before, as what an authority issues is listed.
    let client = mesh.client("auth", "/client/m");
    let before = holdings(&admin).await;
    for (method, key) in &attacks {
        for (at, message) in greedy(&method.name, &target).into_iter().enumerate() {
            let header = Some(("x-api-key", key.as_str()));
            let code = call(client.clone(), method, header, Bytes::from(message)).await;
            assert_eq!(code, Code::PermissionDenied, "{} #{at}", method.path);
        }
    }
    assert_eq!(holdings(&admin).await, before, "nothing was given or taken");
    for key in [&own, &other] {
        let text = field(key, "api_key");
        let method = contract()
            .unwrap()
            .get("/tars.automl.v1.StudyService/ListStudies")
            .unwrap();
        let client = mesh.client("automl", "/client/k");
        let code = call(client, method, Some(("x-api-key", &text)), Bytes::new()).await;
        assert_eq!(code, Code::Ok, "the keys that were reached for still work");
    }
    mesh.rest().login("owner", PASSWORD).await.unwrap();

    // Without scopes a key is as narrow as the key that makes it, over REST as well.
    let maker = new_key(&owner, &["apikeys.write", "studies.read"]).await;
    let by_key = mesh.rest().with_key(&field(&maker, "api_key"));
    let made = new_key(&by_key, &[]).await;
    let listed = admin.get("/admin/api-keys?page_size=500").await.unwrap();
    let keys = listed["keys"].as_array().unwrap();
    let found = keys.iter().find(|k| k["key_id"] == made["key_id"]).unwrap();
    assert_eq!(found["scopes"], json!(["studies.read", "apikeys.write"]));
    let (status, refused) = refusal(
        by_key
            .post(
                "/auth/service-token",
                json!({ "service_name": "x", "scopes": ["users.write"] }),
            )
            .await,
    );
    assert_eq!((status, reason(&refused).as_str()), (403, "EXCEEDS_CALLER"));
    assert!(
        refused["message"].as_str().unwrap().contains("users.write"),
        "{refused}"
    );
    for days in [0, 366] {
        let body = json!({ "service_name": "x", "expires_in_days": days });
        assert_eq!(
            refusal(owner.post("/auth/service-token", body).await).0,
            400,
            "{days} days"
        );
    }
    mesh.mesh.stop().await;
}
