//! The first certificate, by a join token, and its renewal.

use super::*;

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
