use super::*;
use crate::{
    Vault,
    testing::{open_over, person},
};
use rcgen::KeyPair;
use rustls::time_provider::TimeProvider;
use std::path::Path;
use tars_certs::{
    CertName, Identity, KeyId, Revocations,
    ca::{Lifetimes, Request, csr, rotation::RotationStep},
    identity::Parts,
    join::JoinToken,
    peer::Verified,
    trust::{Side, Trust},
};
use tars_credentials::{Caller, GrantError, Permissions};
use tars_runtime::{bus::Bus, clock::Clock, db::Place};
use uuid::Uuid;

mod clock_steps;
mod floors;
mod managed;
mod replicas;
mod revocations;
mod tokens;

const NOW: Duration = Duration::from_secs(1_800_000_000);

/// The authority in `dir`, with Auth's own identity below it.
pub(crate) async fn certificates(
    vault: &Vault,
    dir: &Path,
    clock: &Clock,
) -> Result<Certificates, AuthError> {
    let config = config::Config::default();
    let (lives, now) = (Lifetimes::default(), clock.now());
    let ca = dir.join("ca");
    let authority = vault.authority(&ca, "tars.local", lives, now).await?;
    let request = Request::new(
        "spiffe://tars.local/auth".parse().unwrap(),
        Duration::from_secs(3600),
    );
    let time: Arc<dyn TimeProvider> = Arc::new(clock.clone());
    let issued = authority.issue(&request, clock.now()).unwrap();
    let own = Identity::new(issued.into_parts(authority.roots()), &time).unwrap();
    let classes = config.certificates.class_table().unwrap();
    Ok(Certificates {
        authority: Some(Arc::new(authority)),
        own: IdentityHandle::new(own),
        classes: Arc::new(classes),
        feed: TrustFeed::default(),
        trust_domain: "tars.local".to_owned(),
        settings: config.certificates,
    })
}

struct World {
    dir: tempfile::TempDir,
    place: Place,
    auth: Arc<Auth>,
    clock: Clock,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let place = tars_test_db::place(dir.path(), "auth");
    world_in(dir, place).await
}

/// A world whose authority is a folder, whichever engine other tests run on.
async fn world_of_files() -> World {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::File(dir.path().join("auth.db"));
    world_in(dir, place).await
}

async fn world_in(dir: tempfile::TempDir, place: Place) -> World {
    let clock = Clock::manual(NOW);
    let vault = Vault::open(dir.path(), &place, None).await.unwrap();
    let opened = open_over(vault, dir.path(), &clock, Bus::local()).await;
    let (auth, _, _) = opened.unwrap();
    enroll_ada(&auth).await;
    World {
        dir,
        place,
        auth,
        clock,
    }
}

/// The creator of a join token must exist when the token is presented.
async fn enroll_ada(auth: &Auth) {
    let ada = crate::store::UserRow {
        id: Uuid::nil(),
        username: "ada".to_owned(),
        password: String::new(),
        roles: vec!["admin".to_owned()],
        disabled: false,
        version: 1,
        created_us: 0,
        token_version: 1,
        kept_session: None,
    };
    let mut tx = auth.store.begin("test.users").await.unwrap();
    crate::store::insert_user(&mut tx, &ada).await.unwrap();
    tx.commit().await.unwrap();
}

fn ada() -> Caller {
    person(Permissions::ALL)
}

fn key_and_csr() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let csr = csr::create(&key).unwrap();
    (key, csr)
}

impl World {
    /// The process stops, and another one starts over the same directory.
    async fn restart(self) -> Self {
        let Self {
            dir,
            place,
            auth,
            clock,
        } = self;
        drop(auth);
        let vault = Vault::open(dir.path(), &place, None).await.unwrap();
        let opened = open_over(vault, dir.path(), &clock, Bus::local()).await;
        let (auth, _, _) = opened.unwrap();
        Self {
            dir,
            place,
            auth,
            clock,
        }
    }

    /// The verified peer that this chain makes.
    fn verified(&self, new: &NewIdentity) -> Verified {
        let chain: Vec<_> = new.chain.iter().map(|c| c.clone().into()).collect();
        let roots = self.auth.certificates().authority().unwrap().roots();
        let now = self.clock.now();
        let trust = Trust::new("tars.local", roots, Vec::new(), now).unwrap();
        let at = rustls::pki_types::UnixTime::since_unix_epoch(now);
        trust
            .verify(
                &chain[0],
                &chain[1..],
                at,
                Side::Client,
                &Revocations::default(),
            )
            .unwrap()
    }

    async fn token(&self, path: &str) -> JoinToken {
        let made = self.auth.create_join_token(&ada(), path, None).await;
        made.unwrap().0
    }

    async fn join(&self, path: &str) -> NewIdentity {
        let token = self.token(path).await;
        self.auth
            .issue_with_token(token.as_str(), &key_and_csr().1, "127.0.0.1")
            .await
            .unwrap()
    }

    async fn renew(&self, of: &NewIdentity) -> Result<NewIdentity, AuthError> {
        let peer = self.verified(of);
        self.auth.renew_certificate(&peer, &key_and_csr().1).await
    }

    /// Replaces Auth's own identity by one below the current roots.
    fn refresh_own(&self) {
        let certificates = self.auth.certificates();
        let time: Arc<dyn TimeProvider> = Arc::new(self.clock.clone());
        let id = "spiffe://tars.local/auth".parse().unwrap();
        let authority = certificates.authority().unwrap();
        let request = Request::new(id, Duration::from_secs(3600));
        let issued = authority.issue(&request, self.clock.now()).unwrap();
        let own = Identity::new(issued.into_parts(authority.roots()), &time).unwrap();
        certificates.own.publish(own);
    }

    fn denied(&self, new: &NewIdentity) -> bool {
        self.auth
            .certificates()
            .feed
            .revocations
            .denies(&self.verified(new))
    }
}

#[tokio::test]
async fn a_token_yields_one_certificate_of_its_identity() {
    let w = world().await;
    let token = w.token("/automl").await;
    let (key, csr) = key_and_csr();
    let new = w
        .auth
        .issue_with_token(token.as_str(), &csr, "x")
        .await
        .unwrap();
    assert_eq!(new.spiffe_id.as_str(), "spiffe://tars.local/automl");
    let time: Arc<dyn TimeProvider> = Arc::new(w.clock.clone());
    let parts = Parts {
        chain: new.chain.iter().map(|c| c.clone().into()).collect(),
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: new.bundle.roots.iter().map(|r| r.clone().into()).collect(),
        crls: Vec::new(),
    };
    let identity = Identity::new(parts, &time).unwrap();
    assert_eq!(identity.id().path(), "/automl");
    let again = w
        .auth
        .issue_with_token(token.as_str(), &key_and_csr().1, "x")
        .await;
    assert!(matches!(again, Err(AuthError::JoinToken)), "{again:?}");
    w.clock.advance(Duration::from_secs(3600));
    let late = w.auth.issue_with_token(token.as_str(), &csr, "x").await;
    assert!(matches!(late, Err(AuthError::JoinToken)));
    let nobody = w.auth.create_join_token(&ada(), "/nobody", None).await;
    assert!(matches!(nobody, Err(AuthError::Field("path", _))));
}

#[tokio::test]
async fn a_malformed_request_does_not_use_up_the_token() {
    let w = world().await;
    let token = w.token("/automl").await;
    let bad = w
        .auth
        .issue_with_token(token.as_str(), b"nonsense", "x")
        .await;
    assert!(matches!(bad, Err(AuthError::Csr(_))));
    assert!(
        w.auth
            .issue_with_token(token.as_str(), &key_and_csr().1, "x")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn renewals_end_with_their_lineage() {
    let w = world().await;
    let mut new = w.join("/client/bot").await;
    let mut renewals = 0;
    let ended = loop {
        let peer = w.verified(&new);
        w.clock.advance(Duration::from_secs(20 * 86_400));
        match w.auth.renew_certificate(&peer, &key_and_csr().1).await {
            Ok(next) => new = next,
            Err(e) => break e,
        }
        renewals += 1;
        assert!(renewals < 10, "renewed without end");
    };
    assert!(matches!(ended, AuthError::LineageEnded), "{ended:?}");
    assert_eq!(renewals, 4, "90 days");
    assert_eq!(new.not_after, NOW + Duration::from_secs(90 * 86_400));
}

#[tokio::test]
async fn revoking_a_certificate_revokes_its_lineage() {
    let w = world().await;
    let (first, other) = (w.join("/automl").await, w.join("/hypersync").await);
    let second = w.renew(&first).await.unwrap();
    let serial = w.verified(&first).certificate.serial;
    let target = Target::Certificate {
        issuer: None,
        serial,
    };
    let rows = w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert_eq!(rows.len(), 2);
    assert!(w.denied(&first) && w.denied(&second) && !w.denied(&other));
    let renewed = w.renew(&second).await;
    assert!(matches!(renewed, Err(AuthError::LineageEnded)));
    let (_, csr) = key_and_csr();
    let rejoined = w
        .auth
        .issue_with_token(second.rejoin.as_str(), &csr, "x")
        .await;
    assert!(
        matches!(rejoined, Err(AuthError::LineageEnded)),
        "{rejoined:?}"
    );
    let again = w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert!(again.is_empty(), "nothing new");
    let lists = w.auth.signed_lists().await.unwrap();
    assert_eq!(lists.len(), 1);
}

#[tokio::test]
async fn a_revoked_identity_may_join_again() {
    let w = world().await;
    let old = w.join("/automl").await;
    w.clock.advance(Duration::from_secs(10));
    let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
    let target = Target::Identity { id, before: None };
    w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert!(w.denied(&old));
    let new = w.join("/automl").await;
    assert!(
        !w.denied(&new),
        "issued after the revocation, though backdated"
    );
    let foreign = Target::Identity {
        id: "spiffe://other.local/automl".parse().unwrap(),
        before: None,
    };
    assert!(matches!(
        w.auth.revoke(&ada(), &foreign, "x").await,
        Err(AuthError::Field("spiffe_id", _))
    ));
}

#[tokio::test]
async fn certificates_of_other_issuers_are_revoked_by_name() {
    let w = world().await;
    let issuer = KeyId::of_spki(b"cert-manager");
    let serial: tars_certs::Serial = "0A:BC".parse().unwrap();
    let target = Target::Certificate {
        issuer: Some(issuer),
        serial: serial.clone(),
    };
    w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    let list = w.auth.certificates().feed.revocations.current();
    assert!(list.certificates.contains(&CertName { issuer, serial }));
    let unknown = Target::Certificate {
        issuer: None,
        serial: "77".parse().unwrap(),
    };
    assert!(matches!(
        w.auth.revoke(&ada(), &unknown, "x").await,
        Err(AuthError::NotFound(..))
    ));
}

#[tokio::test]
async fn a_suspended_process_returns_once_by_its_rejoin_token() {
    let w = world().await;
    let first = w.join("/automl").await;
    let second = w.renew(&first).await.unwrap();
    w.clock.advance(Duration::from_secs(86_400));
    let (_, csr) = key_and_csr();
    // The reply to the last renewal may have been lost, so the token before it is accepted too.
    let back = w
        .auth
        .issue_with_token(first.rejoin.as_str(), &csr, "x")
        .await
        .unwrap();
    for used in [&first.rejoin, &second.rejoin] {
        let again = w.auth.issue_with_token(used.as_str(), &csr, "x").await;
        assert!(matches!(again, Err(AuthError::JoinToken)));
    }
    assert!(
        w.auth
            .issue_with_token(back.rejoin.as_str(), &csr, "x")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn no_rotation_step_is_taken_before_its_peers_are_ready() {
    let w = world().await;
    let auth = &w.auth;
    let peer = w.join("/automl").await;
    let (instance, before) = (
        Uuid::now_v7(),
        auth.certificates().authority().unwrap().root_infos(),
    );
    let known: Vec<KeyId> = before.iter().map(|r| r.key).collect();
    auth.report_trust(&w.verified(&peer), instance, &known)
        .await
        .unwrap();
    let order = auth
        .step_roots("ada", RotationStep::Activate, false)
        .await
        .unwrap_err();
    assert!(
        matches!(&order, AuthError::Ca(tars_certs::CaError::Order(_))),
        "{order}"
    );

    auth.step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    let early = auth
        .step_roots("ada", RotationStep::Activate, false)
        .await
        .unwrap_err();
    let AuthError::PeersNotReady(names) = early else {
        panic!("{early}");
    };
    assert_eq!(names.len(), 2, "the peer and Auth itself: {names:?}");
    w.refresh_own();
    let all = auth.certificates().authority().unwrap().root_infos();
    let both: Vec<KeyId> = all.iter().map(|r| r.key).collect();
    auth.report_trust(&w.verified(&peer), instance, &both)
        .await
        .unwrap();
    auth.step_roots("ada", RotationStep::Activate, false)
        .await
        .unwrap();
    auth.step_roots("ada", RotationStep::Taint, false)
        .await
        .unwrap();
    w.refresh_own();
    let early = auth
        .step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap_err();
    assert!(
        matches!(&early, AuthError::PeersNotReady(n) if n.len() == 1),
        "{early}"
    );

    let moved = w.renew(&peer).await.unwrap();
    auth.report_trust(&w.verified(&moved), instance, &both)
        .await
        .unwrap();
    assert!(auth.roots().await.unwrap().cut_off.is_empty());
    auth.step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap();
    let recorded = auth.sequence_once().await;
    recorded.unwrap();
    let filter = crate::audit::Filter {
        event_type: "root.stepped".to_owned(),
        ..Default::default()
    };
    let (records, _) = auth.list_audit(&filter, "", 50).await.unwrap();
    assert_eq!(records.len(), 5, "init and four steps, each once");
}

#[tokio::test]
async fn removing_a_root_requires_consent_to_invalidate_peoples_certificates() {
    let w = world().await;
    let auth = &w.auth;
    let person = auth
        .issue_certificate(
            &ada(),
            "/user/bob",
            &key_and_csr().1,
            (vec![], vec![]),
            None,
        )
        .await
        .unwrap();
    for step in [
        RotationStep::Prepare,
        RotationStep::Activate,
        RotationStep::Taint,
    ] {
        auth.step_roots("ada", step, false).await.unwrap();
        w.refresh_own();
    }
    let refused = auth
        .step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, AuthError::WouldCutOff(_)), "{refused}");
    let serial = w.verified(&person).certificate.serial;
    let (refused, serial) = (refused.to_string(), format!("(serial {serial})"));
    for said in [
        "spiffe://tars.local/user/bob",
        &serial,
        "become invalid with it",
        "`tars certs renew DIR`",
        "`tars certs issue /user/bob --out DIR --force`",
        "--cut-off",
    ] {
        assert!(refused.contains(said), "{said}: {refused}");
    }
    w.renew(&person).await.unwrap();
    auth.step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap();
}

#[tokio::test]
async fn issuing_an_identity_requires_the_permission_of_its_class() {
    let w = world().await;
    let narrow = |names: &[&'static str]| person(Permissions::of(names.iter().copied()));
    let issue = async |by: &Caller, path: &str, dns: &[&str]| {
        let names = (dns.iter().map(|d| (*d).to_owned()).collect(), vec![]);
        let csr = key_and_csr().1;
        w.auth.issue_certificate(by, path, &csr, names, None).await
    };
    let client = narrow(&["certificates.issue"]);
    let mut paths = vec!["/user/ada".to_owned(), "/user/bob".to_owned()];
    for workload in [
        "auth",
        "orchestration",
        "automl",
        "hypersync",
        "gateway",
        "worker",
    ] {
        paths.extend([format!("/{workload}"), format!("/ns/prod/sa/{workload}")]);
    }
    for path in &paths {
        let refused = issue(&client, path, &[]).await;
        assert!(
            matches!(refused, Err(AuthError::Grant(_))),
            "{path}: {refused:?}"
        );
        let token = w.auth.create_join_token(&client, path, None).await;
        assert!(
            matches!(token, Err(AuthError::Grant(_))),
            "{path}: {token:?}"
        );
        assert!(issue(&ada(), path, &[]).await.is_ok(), "{path}");
    }
    let operator = narrow(&["certificates.issue", "certificates.issue_operator"]);
    assert!(issue(&operator, "/user/bob", &[]).await.is_ok());
    assert!(issue(&operator, "/auth", &[]).await.is_err());
    assert!(
        w.auth
            .create_join_token(&client, "/client/bot", None)
            .await
            .is_ok()
    );
    let named = issue(&client, "/client/bot", &["auth.tars.svc"]).await;
    assert!(
        matches!(&named, Err(AuthError::Grant(GrantError::Permissions(p))) if p == &["certificates.issue_workload"]),
        "{named:?}"
    );
}

#[tokio::test]
async fn an_outside_client_gets_no_host_names() {
    let w = world().await;
    // The tag and the bytes of an IP address in subjectAltName.
    let local = [0x87, 4, 127, 0, 0, 1];
    let is_local = |new: &NewIdentity| new.chain[0].windows(6).any(|w| w == local);
    for path in ["/client/auth", "/user/localhost"] {
        let new = w
            .auth
            .issue_certificate(&ada(), path, &key_and_csr().1, (vec![], vec![]), None)
            .await
            .unwrap();
        let (joined, renewed) = (w.join(path).await, w.renew(&new).await.unwrap());
        for new in [&new, &joined, &renewed] {
            assert!(!is_local(new), "{path}");
        }
    }
    assert!(is_local(&w.join("/automl").await));
}

#[tokio::test]
async fn a_narrow_key_revokes_neither_a_workload_nor_an_unknown_certificate() {
    let w = world().await;
    let narrow = person(Permissions::of(["certificates.revoke"]));
    let (service, client) = (w.join("/automl").await, w.join("/client/bot").await);
    let by_serial = |new: &NewIdentity, issuer| Target::Certificate {
        issuer,
        serial: w.verified(new).certificate.serial,
    };
    let issuer = w.verified(&client).name().issuer;
    let of = |path: &str| Target::Identity {
        id: SpiffeId::new("tars.local", path).unwrap(),
        before: None,
    };
    let unknown = Target::Certificate {
        issuer: Some(issuer),
        serial: "0A:BC".parse().unwrap(),
    };
    for target in [
        of("/auth"),
        of("/ns/prod/sa/gateway"),
        of("/nobody/knows"),
        by_serial(&service, None),
        by_serial(&service, Some(issuer)),
        unknown,
    ] {
        let refused = w.auth.revoke(&narrow, &target, "x").await;
        assert!(
            matches!(refused, Err(AuthError::Grant(_))),
            "{target:?}: {refused:?}"
        );
    }
    assert!(w.auth.certificates().feed.revocations.current().is_empty());
    let gone = w.auth.revoke(&narrow, &by_serial(&client, None), "x").await;
    assert_eq!(gone.unwrap().len(), 1);
    assert!(w.auth.revoke(&narrow, &of("/user/bob"), "x").await.is_ok());
}

#[tokio::test]
async fn no_identity_is_issued_in_another_trust_domain_or_spelling() {
    let w = world().await;
    let csr = key_and_csr().1;
    for path in [
        ".evil/client/bot",
        "x/client/bot",
        "client/bot",
        "/Client/bot",
        "/client/bot/",
        "//client/bot",
        "/client/%62ot",
        "/client/../auth",
        "/client/b\u{f6}t",
        "/client/",
        "",
    ] {
        let issued = auth_issue(&w, path, &csr).await;
        assert!(
            matches!(issued, Err(AuthError::Field("path", _))),
            "{path:?}"
        );
        let token = w.auth.create_join_token(&ada(), path, None).await;
        assert!(
            matches!(token, Err(AuthError::Field("path", _))),
            "{path:?}"
        );
    }
    assert!(auth_issue(&w, "/client/bot", &csr).await.is_ok());
}

async fn auth_issue(w: &World, path: &str, csr: &[u8]) -> Result<NewIdentity, AuthError> {
    let none = (vec![], vec![]);
    w.auth
        .issue_certificate(&ada(), path, csr, none, None)
        .await
}
