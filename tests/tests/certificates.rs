//! Certificates in a running mesh: rotated, revoked, expired, tampered with, and judged by policy.

#![allow(clippy::unwrap_used)]

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tars::rest::Rest;
use tars_certs::{
    Identity, IdentityHandle, KeyId, PeerCertificate, Revocations, SpiffeId, ca::csr,
    join::JoinToken,
};
use tars_interceptors::client::{Credentials, outgoing};
use tars_mesh::{Channel, bootstrap::Bootstrap};
use tars_proto::auth::v1::{
    GetMeRequest, IssueWithTokenRequest, IssueWithTokenResponse, LoginRequest,
    RenewCertificateRequest, auth_service_client::AuthServiceClient,
    bootstrap_service_client::BootstrapServiceClient,
    certificate_service_client::CertificateServiceClient,
};
use tars_proto::grpc::health::v1::{HealthCheckRequest, health_client::HealthClient};
use tars_runtime::clock::Clock;
use tars_tests::{
    TestMesh, eventually,
    fleet::services_over_tls,
    issue_for, reason, refusal,
    test_ca::{HOUR, TestCa, client, is_let_in, now},
    test_listener::TestListener,
    time,
};
use tonic::{Code, Request, Status};

/// Calls as fast as it may until told to stop; any failure is kept.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    workers: tokio::task::JoinSet<Result<(), Status>>,
}

impl Load {
    fn of_health(channel: &Channel, workers: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            calls: Arc::default(),
            workers: tokio::task::JoinSet::new(),
        };
        for _ in 0..workers {
            let mut client = HealthClient::new(channel.clone());
            let (stop, calls) = (Arc::clone(&load.stop), Arc::clone(&load.calls));
            load.workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.check(HealthCheckRequest::default()).await?;
                    calls.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        load
    }

    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.workers.join_next().await {
            done.unwrap().expect("no call fails");
        }
        self.calls.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_rotations_of_leaves_under_load_lose_no_call() {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let fresh =
        |path: &str| Identity::new(issuer.parts(path, vec![root.der.clone()]), &time()).unwrap();
    let listener = TestListener::open(issuer.parts("/door", vec![root.der.clone()])).await;
    let own = IdentityHandle::new(fresh("/client/load"));
    let channel = listener.channel(own.clone(), Revocations::default());
    let load = Load::of_health(&channel, 4);
    // A stream that is open all the while.
    let mut watch = HealthClient::new(channel.separate())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let before = load.calls.load(Ordering::Relaxed);
        // The client's last: it is what makes the client connect anew.
        listener.identity.publish(fresh("/door"));
        own.publish(fresh("/client/load"));
        eventually("calls go on", || async {
            load.calls.load(Ordering::Relaxed) > before + 20
        })
        .await;
        let server = channel.server().await.unwrap();
        let leaf = server.peer.verified.as_ref().unwrap().certificate.clone();
        serials.insert(leaf.serial);
        let mine = own.current().leaf().serial.to_string();
        // In TLS 1.3 the client is connected before the server knows of it.
        eventually("the server sees the client's new serial", || async {
            listener.table.report().to_string().contains(&mine)
        })
        .await;
    }
    assert!(load.end().await > 1000);
    assert_eq!(
        serials.len(),
        50,
        "the client sees each of the server's new serials"
    );
    listener.health.stop();
    let last = watch.message().await.unwrap().unwrap();
    assert_eq!(last.status, 2, "the stream lived through all of them");
}

async fn step(admin: &Rest, step: &str) -> Result<Value, tars::rest::RestError> {
    let body = json!({ "step": format!("ROOT_STEP_{step}") });
    admin.post("/admin/roots/step", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_rotate_under_load_and_in_one_order_only() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (admin, stop) = (admin.clone(), Arc::clone(&stop));
        async move {
            let mut calls = 0u32;
            while !stop.load(Ordering::Relaxed) {
                for path in ["/auth/me", "/api/v1/studies", "/api/v1/sync/pending"] {
                    admin.get(path).await.expect("no call fails");
                    calls += 1;
                }
            }
            calls
        }
    });
    let first = admin.get("/admin/roots").await.unwrap()["roots"][0]["key_id"].clone();
    let order = ["PREPARE", "ACTIVATE", "TAINT", "REMOVE"];
    for (at, wanted) in order.into_iter().enumerate() {
        for wrong in order.into_iter().filter(|o| *o != wanted) {
            let (status, body) = refusal(step(&admin, wrong).await);
            assert_eq!(
                (status, reason(&body).as_str()),
                (400, "ROOT_ORDER"),
                "{wrong} at {at}"
            );
        }
        eventually(&format!("everybody is ready to {wanted}"), || async {
            let status = admin.get("/admin/roots").await.unwrap();
            assert_eq!(status["next"], format!("ROOT_STEP_{wanted}"));
            status["waiting_for"].as_array().unwrap().is_empty()
        })
        .await;
        step(&admin, wanted).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 20);
    let roots = admin.get("/admin/roots").await.unwrap()["roots"].clone();
    assert_eq!(roots.as_array().unwrap().len(), 1);
    assert_ne!(roots[0]["key_id"], first);
    eventually("the operator's files went along", || async {
        let now = std::fs::read_to_string(&mesh.mesh.ready.ca).unwrap();
        now.matches("BEGIN").count() == 1
    })
    .await;
    eventually("init and four steps are in the audit list", || async {
        let path = "/admin/audit/logs?event_type=root.stepped";
        let events = admin.get(path).await.unwrap();
        events["events"].as_array().unwrap().len() == 5
    })
    .await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_names_nobody_of_another_trust_domain() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    for path in [".evil/client/bot", "x/auth", "/client/bot/", "/Client/bot"] {
        let body = json!({ "path": path, "csr": "AAAA" });
        for method in ["/admin/certificates", "/admin/join-tokens"] {
            let mut body = body.clone();
            if method.ends_with("tokens") {
                body.as_object_mut().unwrap().remove("csr");
            }
            let (status, refused) = refusal(admin.post(method, body).await);
            assert_eq!(status, 400, "{method} {path}: {refused}");
            assert!(
                refused.to_string().contains("path"),
                "{method} {path}: {refused}"
            );
        }
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_rotate_at_once_after_a_clean_stop() {
    let mesh = TestMesh::start().await.restart().await;
    let admin = mesh.admin().await;
    step(&admin, "PREPARE").await.unwrap();
    // Far sooner than a process that was killed counts as gone.
    eventually("nobody of before is waited for", || async {
        let status = admin.get("/admin/roots").await.unwrap();
        status["waiting_for"].as_array().unwrap().is_empty()
    })
    .await;
    let status = admin.get("/admin/roots").await.unwrap();
    assert_eq!(status["departed"], json!([]), "{status}");
    mesh.mesh.stop().await;
}

fn login() -> LoginRequest {
    LoginRequest {
        username: "nobody".into(),
        password: "wrong password".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_is_cut_off_everywhere_and_others_are_not() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let victim = issue_for(
        &mesh.authority(),
        "/client/victim",
        Duration::from_secs(600),
    );
    let name = victim.verified().name().clone();
    let victim = IdentityHandle::new(victim);
    let channels: Vec<Channel> = services_over_tls()
        .map(|s| {
            let expected = SpiffeId::new("tars.local", &format!("/{s}")).unwrap();
            Channel::new(tars_mesh::ChannelOptions {
                identity: victim.clone(),
                ..tars_mesh::ChannelOptions::alone(
                    &mesh.target(s),
                    expected,
                    mesh.identity("/client/x"),
                    Clock::system(),
                )
            })
            .unwrap()
        })
        .collect();
    let other = mesh.channel("auth", "/client/other");
    let health = |channel: &Channel| {
        let mut client = HealthClient::new(channel.clone());
        async move { client.check(HealthCheckRequest::default()).await }
    };
    let mut open = Vec::new();
    for channel in &channels {
        health(channel).await.unwrap();
        open.push(channel.server().await.unwrap());
    }
    health(&other).await.unwrap();
    let listed = || {
        let table = mesh.mesh.process().connections().to_string();
        table.matches(name.serial.as_str()).count()
    };
    assert_eq!(listed(), 4, "a connection to each service");
    let body = json!({ "serial": name.serial.as_str(), "issuer": name.issuer.to_string(), "reason": "test" });
    let done = admin
        .post("/admin/certificates/revoke", body.clone())
        .await
        .unwrap();
    assert_eq!(done["revocations"][0]["serial"], name.serial.as_str());
    eventually("its connections are closed", || async { listed() == 0 }).await;
    for channel in &channels {
        let refused = health(channel).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    health(&other).await.unwrap();
    let again = admin
        .post("/admin/certificates/revoke", body)
        .await
        .unwrap();
    assert!(
        again["revocations"].as_array().unwrap().is_empty(),
        "{again}"
    );
    // The other direction: a workload that is revoked answers nobody any more.
    let id = "spiffe://tars.local/automl";
    let body = json!({ "spiffe_id": id, "reason": "test" });
    admin
        .post("/admin/certificates/revoke", body)
        .await
        .unwrap();
    eventually("the gateway reaches it no more", || async {
        admin.get("/api/v1/studies").await.is_err()
    })
    .await;
    let (status, body) = refusal(admin.get("/api/v1/studies").await);
    assert_eq!(status, 503, "{body}");
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("automl cannot be trusted"),
        "{body}"
    );
    assert!(admin.get("/api/v1/sync/pending").await.is_ok());
    let listed = admin.get("/admin/certificates/revoked").await.unwrap();
    let listed = listed["revocations"].as_array().unwrap();
    assert_eq!(
        listed.len(),
        3,
        "with the certificate that the identity held"
    );
    // What is revoked stays revoked; an identity that starts anew is let in.
    let mesh = mesh.restart().await;
    let admin = mesh.admin().await;
    eventually("the new certificate counts", || async {
        admin.get("/api/v1/studies").await.is_ok()
    })
    .await;
    let expected = SpiffeId::new("tars.local", "/auth").unwrap();
    let back = Channel::new(tars_mesh::ChannelOptions {
        identity: victim,
        ..tars_mesh::ChannelOptions::alone(
            &mesh.target("auth"),
            expected,
            mesh.identity("/client/x"),
            Clock::system(),
        )
    });
    assert!(
        health(&back.unwrap()).await.is_err(),
        "revoked keys do not come back"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_their_certificate_and_readiness_with_that_of_the_process() {
    let root = TestCa::root("root");
    let listener = TestListener::open(root.parts("/door", vec![root.der.clone()])).await;
    let short = root.leaf(|p| {
        p.not_after = now() + HOUR / 900;
    });
    let key = short.1.clone_key();
    let parts = tars_certs::identity::Parts {
        chain: short.0,
        key,
        roots: vec![root.der.clone()],
        crls: vec![],
    };
    let own = IdentityHandle::new(Identity::new(parts, &time()).unwrap());
    let channel = listener.channel(own.clone(), Revocations::default());
    let mut watch = HealthClient::new(channel.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();
    let end = own.current().leaf().not_after;
    // Quiet for as long as the certificate lasts, and then over.
    let ended = tokio::time::timeout(Duration::from_secs(60), watch.message())
        .await
        .unwrap();
    assert!(ended.is_err() || ended.unwrap().is_none());
    let now = Clock::system().now();
    assert!(
        now + Duration::from_millis(500) >= end,
        "not before its time"
    );
    eventually("the connection is gone", || async {
        listener.table.is_empty()
    })
    .await;
    let problem = own
        .problem(Clock::system().now() + Duration::from_secs(1))
        .unwrap();
    assert!(problem.contains("expired"), "{problem}");
    let refused = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused.message().contains("has expired or is revoked"),
        "{refused:?}"
    );
}

async fn joining(config: impl FnOnce(&mut tars_runtime::config::Config)) -> (TestMesh, Rest) {
    let mut settings = tars_tests::config();
    settings.listen.bootstrap = Some(([127, 0, 0, 1], 0).into());
    config(&mut settings);
    let mesh = TestMesh::with(settings).await;
    let admin = mesh.admin().await;
    (mesh, admin)
}

impl Joiner {
    async fn shows(&self, token: &str, csr: &[u8]) -> Result<IssueWithTokenResponse, Status> {
        let auth = SpiffeId::new("tars.local", "/auth").unwrap();
        let connection = Bootstrap::connect(&self.target, self.root, auth, &Clock::system())
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let request = IssueWithTokenRequest {
            token: token.to_owned(),
            csr: csr.to_vec(),
        };
        let mut client = BootstrapServiceClient::new(connection);
        Ok(client.issue_with_token(request).await?.into_inner())
    }
}

struct Joiner {
    target: String,
    root: KeyId,
}

async fn token(admin: &Rest, path: &str) -> String {
    let made = admin
        .post("/admin/join-tokens", json!({ "path": path }))
        .await
        .unwrap();
    made["token"].as_str().unwrap().to_owned()
}

fn joiner(mesh: &TestMesh, token: &str) -> Joiner {
    let url = mesh.mesh.ready.bootstrap.clone().unwrap();
    Joiner {
        target: url.trim_start_matches("https://").to_owned(),
        root: JoinToken::new(token).unverified_claims().unwrap().root,
    }
}

/// A request that asks for far more than a key.
fn greedy_csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["evil.local".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "auth");
    params
        .subject_alt_names
        .push(tars_tests::test_ca::uri("spiffe://tars.local/auth"));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    params.serialize_request(key).unwrap().der().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_extensions_of_a_signing_request_are_ignored() {
    let (mesh, admin) = joining(|_| {}).await;
    let first = token(&admin, "/automl").await;
    let joiner = joiner(&mesh, &first);
    let key = KeyPair::generate().unwrap();

    // Proof of possession, broken: refused, and the token is not used up.
    let mut forged = csr::create(&key).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let refused = joiner.shows(&first, &forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");

    // Anybody may send here, and not much.
    let refused = joiner.shows(&first, &[0; 60_000]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(
        tars_proto::fault::reason(&refused).as_deref(),
        Some(tars_proto::reason::MESSAGE_TOO_LARGE)
    );

    // Another id, more names, another use: only the key counts.
    let issued = joiner
        .shows(&first, &greedy_csr(&key))
        .await
        .unwrap()
        .identity
        .unwrap();
    let leaf = PeerCertificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(leaf.id.as_str(), "spiffe://tars.local/automl");
    assert!(
        leaf.lifetime() <= Duration::from_secs(3700),
        "as long as we say"
    );
    let summary = tars_certs::inspect::summarise(&issued.chain[0]).unwrap();
    assert!(!summary.is_ca && summary.subject.contains("automl"));
    let text = format!("{:?}", issued.chain[0]);
    assert!(!text.contains("evil"), "nothing of the request's names");

    // A token is good for one use, for one identity.
    let again = joiner
        .shows(&first, &csr::create(&key).unwrap())
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated, "replayed: {again:?}");
    assert_eq!(again.message(), "the join token is not valid");
    let other = token(&admin, "/client/bot").await;
    let issued = joiner
        .shows(&other, &greedy_csr(&key))
        .await
        .unwrap()
        .identity
        .unwrap();
    assert_eq!(issued.spiffe_id, "spiffe://tars.local/client/bot");
    let good = token(&admin, "/automl").await;
    for bad in [
        String::new(),
        "tars_join_00".to_owned(),
        good.replace("tars_join_02", "tars_join_01"),
        good[..good.len() - 2].to_owned(),
        format!("{good}00"),
    ] {
        let refused = joiner
            .shows(&bad, &csr::create(&key).unwrap())
            .await
            .unwrap_err();
        let code = refused.code();
        assert!(
            matches!(code, Code::Unauthenticated | Code::InvalidArgument),
            "{bad}: {refused:?}"
        );
    }
    let (status, body) = refusal(
        admin
            .post("/admin/join-tokens", json!({ "path": "/king" }))
            .await,
    );
    assert_eq!(status, 400, "an identity that could do nothing: {body}");

    // A joiner that means another root does not talk to this one.
    let misled = Joiner {
        root: KeyId::of_spki(b"another"),
        ..joiner
    };
    let refused = misled
        .shows(&good, &csr::create(&key).unwrap())
        .await
        .unwrap_err();
    assert!(
        refused
            .message()
            .contains("not the server that the join token names"),
        "{refused:?}"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_listener_serves_one_method() {
    let (mesh, admin) = joining(|_| {}).await;
    let token = token(&admin, "/automl").await;
    let joiner = joiner(&mesh, &token);
    let auth = SpiffeId::new("tars.local", "/auth").unwrap();
    let connection = Bootstrap::connect(&joiner.target, joiner.root, auth, &Clock::system())
        .await
        .unwrap();
    let denied = AuthServiceClient::new(connection.clone())
        .login(login())
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = CertificateServiceClient::new(connection.clone())
        .renew_certificate(RenewCertificateRequest { csr: vec![1] })
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = HealthClient::new(connection)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_ne!(denied.code(), Code::Ok);
    // Nor does the ordinary listener take a token: a peer has a certificate there.
    let mut ordinary = BootstrapServiceClient::new(mesh.client("auth", "/client/x"));
    let request = IssueWithTokenRequest {
        token,
        csr: vec![1],
    };
    let denied = ordinary.issue_with_token(request).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_renews_by_the_own_certificate_and_keeps_the_own_id() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let ada = mesh.identity("/user/ada");
    let channel = mesh.channel_as("auth", ada);
    let key = KeyPair::generate().unwrap();
    let mut client = CertificateServiceClient::new(outgoing(channel, Credentials::Own));
    let renewed = client
        .renew_certificate(RenewCertificateRequest {
            csr: greedy_csr(&key),
        })
        .await
        .unwrap()
        .into_inner()
        .identity
        .unwrap();
    assert_eq!(renewed.spiffe_id, "spiffe://tars.local/user/ada");
    let listed = admin
        .get("/admin/certificates?spiffe_id=spiffe://tars.local/user/ada")
        .await
        .unwrap();
    let rows = listed["certificates"].as_array().unwrap();
    assert_eq!(
        rows.len(),
        2,
        "the one that came, and the new one: {listed}"
    );
    assert_eq!(rows[0]["lineage"], rows[1]["lineage"]);
    // Signed lists are there for whoever is not pushed to.
    let serial = rows[0]["serial"].as_str().unwrap();
    let body = json!({ "serial": serial, "reason": "test" });
    let gone = admin
        .post("/admin/certificates/revoke", body)
        .await
        .unwrap();
    assert_eq!(
        gone["revocations"].as_array().unwrap().len(),
        2,
        "the lineage"
    );
    let lists = mesh.rest().get("/api/v1/certificates/crl").await.unwrap();
    assert_eq!(lists["lists"].as_array().unwrap().len(), 1);
    let bundle = mesh
        .rest()
        .get("/api/v1/certificates/bundle")
        .await
        .unwrap();
    assert_eq!(bundle["bundle"]["roots"].as_array().unwrap().len(), 1);
    for (what, body) in [
        ("nothing", json!({ "reason": "x" })),
        (
            "both",
            json!({ "serial": "11", "spiffe_id": "spiffe://tars.local/a", "reason": "x" }),
        ),
        ("no reason", json!({ "serial": "11" })),
        ("no serial", json!({ "serial": "zz", "reason": "x" })),
        (
            "another domain",
            json!({ "spiffe_id": "spiffe://x/a", "reason": "x" }),
        ),
        ("no id", json!({ "spiffe_id": "automl", "reason": "x" })),
        (
            "a bad issuer",
            json!({ "serial": "11", "issuer": "ff", "reason": "x" }),
        ),
    ] {
        let (status, answer) = refusal(admin.post("/admin/certificates/revoke", body).await);
        assert_eq!(status, 400, "{what}: {answer}");
    }
    let unknown = json!({ "serial": "1122", "reason": "x" });
    assert_eq!(
        refusal(admin.post("/admin/certificates/revoke", unknown).await).0,
        404
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_narrows_is_replaced_live_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let rule = |methods: &str, rest: &str| {
        format!("[[rule]]\nname = \"r\"\nmethods = [{methods}]\n{rest}\n")
    };
    let nothing_here = rule("\"tars.automl.v1.StudyService/CancelStudy\"", "deny = true");
    std::fs::write(&file, nothing_here).unwrap();
    let mut settings = tars_tests::config();
    settings.policy.file = Some(file.clone());
    let mesh = TestMesh::with(settings).await;
    let admin = mesh.admin().await;
    let developer = mesh.user("dev", "developer").await;
    let me = async |peer: &str| {
        let mut client = AuthServiceClient::new(mesh.client("auth", peer));
        client
            .get_me(Request::new(GetMeRequest {}))
            .await
            .unwrap_err()
            .code()
    };
    assert_eq!(
        me("/client/bot").await,
        Code::Unauthenticated,
        "let in by the peer policy"
    );
    let space = json!({ "search_space": [{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }] });
    let study =
        developer.post("/api/v1/studies", space).await.unwrap()["study"]["study_id"].clone();
    let stream = tokio::spawn(async move {
        let path = format!("/api/v1/studies/{}/events", study.as_str().unwrap());
        developer.follow(&path, |_| true).await
    });
    std::fs::write(
        &file,
        rule(
            "\"tars.auth.v1.AuthService/GetMe\"",
            "ids = [\"/gateway\", \"/client/good\"]",
        ),
    )
    .unwrap();
    eventually("the policy is in force", || async {
        me("/client/bot").await == Code::PermissionDenied
    })
    .await;
    assert_eq!(me("/client/good").await, Code::Unauthenticated);
    assert!(admin.get("/auth/me").await.is_ok(), "the gateway is let in");
    let page = || mesh.mesh.process().admin_page("policy").unwrap();
    // As an editor leaves it for a moment: it lifts nothing.
    std::fs::write(&file, "").unwrap();
    eventually("the emptied file is told", || async {
        page()["error"]
            .as_str()
            .is_some_and(|e| e.contains("no rule"))
    })
    .await;
    assert_eq!(me("/client/bot").await, Code::PermissionDenied);
    // A mistake: the policy before it stays, and the admin port says why.
    std::fs::write(
        &file,
        rule("\"tars.auth.v1.AuthService/GetMee\"", "deny = true"),
    )
    .unwrap();
    eventually("the mistake is told", || async {
        page()["error"]
            .as_str()
            .is_some_and(|e| e.contains("GetMee"))
    })
    .await;
    assert_eq!(
        me("/client/bot").await,
        Code::PermissionDenied,
        "the old policy"
    );
    // A new one ends streams that it does not allow.
    std::fs::write(
        &file,
        rule("\"tars.automl.v1.StudyService/*\"", "deny = true"),
    )
    .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream)
        .await
        .unwrap()
        .unwrap();
    assert!(ended.unwrap_err().to_string().contains("may not call"));
    assert_eq!(me("/client/bot").await, Code::Unauthenticated);
    assert_eq!(refusal(admin.get("/api/v1/studies").await).0, 403);
    mesh.mesh.stop().await;

    let mut settings = tars_tests::config();
    settings.policy.file = Some(file.clone());
    let data = tempfile::tempdir().unwrap();
    settings.data.dir = data.path().to_owned();
    std::fs::write(&file, "nonsense").unwrap();
    settings.limits.file = Some(data.path().join("none.toml"));
    let refused = tars::app::Mesh::start(settings).await.map(drop);
    let refused = refused.unwrap_err().to_string();
    for mistake in ["policy.file: ", "limits.file: "] {
        assert!(refused.contains(mistake), "{mistake}in {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_told_before_their_connection_ends() {
    let mut settings = tars_tests::config();
    settings.connections.max_age_grace_seconds = 2;
    let mesh = TestMesh::with(settings).await;
    let admin = mesh.admin().await;
    let space = json!({ "search_space": [{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }] });
    let study = admin.post("/api/v1/studies", space).await.unwrap()["study"]["study_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = json!({ "username": "admin", "password": std::fs::read_to_string(&mesh.mesh.ready.admin_password_file).unwrap() });
    let login = mesh.rest().post("/auth/login", body).await.unwrap();
    let bearer = format!("Bearer {}", login["access_token"].as_str().unwrap());
    // A certificate of eight seconds: GOAWAY after six, told shortly before the end.
    let short = issue_for(&mesh.authority(), "/client/short", Duration::from_secs(8));
    let end = short.leaf().not_after;
    let channel = mesh.channel_as("automl", short);
    let mut client = tars_proto::automl::v1::study_service_client::StudyServiceClient::new(
        outgoing(channel.clone(), Credentials::Own),
    );
    let mut request = Request::new(tars_proto::automl::v1::WatchStudyRequest {
        study_id: study,
        after_sequence: 0,
    });
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().unwrap());
    let mut events = client.watch_study(request).await.unwrap().into_inner();
    let status = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an end without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().contains("resume after the last sequence"),
        "{status:?}"
    );
    assert!(Clock::system().now() < end, "before the certificate's end");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_trusted_no_more_ends_its_connections() {
    let (old, new) = (TestCa::root("old"), TestCa::root("new"));
    let both = || vec![old.der.clone(), new.der.clone()];
    let listener = TestListener::open(new.parts("/door", both())).await;
    let own = IdentityHandle::new(Identity::new(old.parts("/client/x", both()), &time()).unwrap());
    let channel = listener.channel(own, Revocations::default());
    channel.server().await.unwrap();
    eventually("it is connected", || async { listener.table.len() == 1 }).await;
    let next = Identity::new(new.parts("/door", vec![new.der.clone()]), &time()).unwrap();
    listener.identity.publish(next);
    eventually("the connection ends", || async {
        listener.table.is_empty()
    })
    .await;
    let leaf = old.leaf(|_| {});
    assert!(!is_let_in(listener.addr, client(Some(leaf))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_of_a_revoked_server_is_cut() {
    let root = TestCa::root("root");
    let listener = TestListener::open(root.parts("/door", vec![root.der.clone()])).await;
    let parts = root.parts("/client/x", vec![root.der.clone()]);
    let own = IdentityHandle::new(Identity::new(parts, &time()).unwrap());
    let list = Revocations::default();
    let channel = listener.channel(own, list.clone());
    let watching = HealthClient::new(channel.clone());
    let mut watch = watching
        .clone()
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();
    let server = channel.server().await.unwrap();
    list.update(|set| {
        let name = server.peer.verified.as_ref().unwrap().name().clone();
        set.certificates.insert(name);
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), watch.message()).await;
    assert!(ended.unwrap().is_err(), "the stream is cut");
    eventually("the connection is gone", || async {
        listener.table.is_empty()
    })
    .await;
    let refused = watching.clone().check(HealthCheckRequest::default()).await;
    // Which service it is, and no more: the log has the reason.
    assert!(refused.unwrap_err().message().contains("cannot be trusted"));
}
