//! Certificates in a running mesh: rotated, revoked, expired, tampered with, and judged by policy.

#![allow(clippy::unwrap_used)]

#[path = "certificates/joining.rs"]
mod joining;
#[path = "certificates/rotation.rs"]
mod rotation;

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
