//! Peers that are refused at the handshake, each with a reason of its own.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, NameConstraints, SanType,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{
    Identity, IdentityHandle, Revocations, SpiffeId,
    crypto::provider,
    peer::Verified,
    trust::{Side, Trust},
};
use tars_mesh::{Channel, ChannelOptions, channel::Audience};
use tars_proto::{
    fault,
    grpc::health::v1::{HealthCheckRequest, health_client::HealthClient},
};
use tars_runtime::{
    clock::Clock,
    config::{Config, Connections, Timeouts},
};
use tars_tests::{
    eventually,
    test_ca::{
        AnyServer, HOUR, Leaf, TestCa, client, client_without_key, connect, connect_from,
        is_let_in, now, uri,
    },
    test_listener::TestListener,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

struct World {
    root: TestCa,
    issuer: TestCa,
    listener: TestListener,
}

async fn world() -> World {
    world_with(Config::default().connections).await
}

async fn world_with(limits: Connections) -> World {
    world_with_times(limits, Timeouts::default()).await
}

async fn world_with_times(limits: Connections, times: Timeouts) -> World {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let parts = issuer.parts("/door", vec![root.der.clone()]);
    let listener = TestListener::with_times(parts, limits, times).await;
    World {
        root,
        issuer,
        listener,
    }
}

impl World {
    async fn lets_in(&self, config: ClientConfig) -> bool {
        is_let_in(self.listener.addr, config).await
    }

    async fn refuses(&self, what: &str, reason: &str, leaf: Option<Leaf>) {
        refuses(&self.listener, what, reason, client(leaf)).await;
    }
}

async fn refuses(listener: &TestListener, what: &str, reason: &str, config: ClientConfig) {
    let before = listener.refused(reason);
    assert!(!is_let_in(listener.addr, config).await, "{what} was let in");
    eventually(
        &format!("{what} is counted as {reason}: {}", listener.metrics()),
        || async { listener.refused(reason) > before },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nine_refused_handshakes_are_counted_each_by_its_reason() {
    let w = world().await;
    assert!(w.lets_in(client(Some(w.issuer.leaf(|_| {})))).await);
    let other = TestCa::root("another");
    let mut tls12 = TcpStream::connect(w.listener.addr).await.unwrap();
    tls12
        .write_all(&hello(0x0303, &[0xc0, 0x2b]))
        .await
        .unwrap();
    let mut alert = [0u8; 7];
    tls12.read_exact(&mut alert).await.unwrap();
    eventually("TLS 1.2 is counted", || async {
        w.listener.refused("incompatible") == 1
    })
    .await;
    let cases: Vec<(&str, &str, Option<Leaf>)> = vec![
        ("no certificate", "no_certificate", None),
        (
            "a wrong authority",
            "unknown_issuer",
            Some(other.below("x", |_| {}).leaf(|_| {})),
        ),
        (
            "a wrong trust domain",
            "trust_domain",
            Some(
                w.issuer
                    .leaf(|p| p.subject_alt_names = vec![uri("spiffe://evil.local/client/x")]),
            ),
        ),
        (
            "two ids",
            "several_ids",
            Some(
                w.issuer
                    .leaf(|p| p.subject_alt_names.push(uri("spiffe://tars.local/auth"))),
            ),
        ),
        (
            "no client usage",
            "purpose",
            Some(
                w.issuer
                    .leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            ),
        ),
        (
            "expired",
            "expired",
            Some(w.issuer.leaf(|p| p.not_after = now() - HOUR)),
        ),
        (
            "not yet valid",
            "not_yet_valid",
            Some(w.issuer.leaf(|p| p.not_before = now() + HOUR / 2)),
        ),
    ];
    for (what, reason, leaf) in cases {
        w.refuses(what, reason, leaf).await;
    }
    // Right trust domain, wrong id: the client is who looks.
    let identity = || {
        let parts = w.issuer.parts("/client/x", vec![w.root.der.clone()]);
        let time: Arc<dyn rustls::time_provider::TimeProvider> =
            Arc::new(rustls::time_provider::DefaultTimeProvider);
        Identity::new(parts, &time).unwrap()
    };
    let misled = tars_mesh::Channel::new(tars_mesh::ChannelOptions::alone(
        &w.listener.addr.to_string(),
        "spiffe://tars.local/automl".parse().unwrap(),
        identity(),
        tars_runtime::clock::Clock::system(),
    ));
    let refused = misled.unwrap().server().await.unwrap_err().to_string();
    assert!(refused.contains("other_id"), "{refused}");
    let own = IdentityHandle::new(identity());
    let good = w.listener.channel(own, Revocations::default());
    assert!(good.server().await.is_ok());
}

/// Its own side of the handshake is done, and the first requests are on their way, before the server
/// has looked at the certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_peer_reads_the_alert_however_much_it_has_sent() {
    let w = world().await;
    let stranger = TestCa::root("another").below("x", |_| {});
    for n in 0..50 {
        let config = client(Some(stranger.leaf(|_| {})));
        let mut stream = connect(w.listener.addr, config).await.unwrap();
        for _ in 0..8 {
            let written = stream.write_all(&[b'P'; 1024]).await;
            written.unwrap_or_else(|e| panic!("{n}: {e}"));
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        let error = stream.read(&mut [0]).await.unwrap_err();
        let cause = error.get_ref().and_then(|e| e.downcast_ref());
        let alert = rustls::AlertDescription::UnknownCA;
        assert_eq!(
            cause,
            Some(&rustls::Error::AlertReceived(alert)),
            "{n}: {error}"
        );
    }
    assert_eq!(w.listener.refused("unknown_issuer"), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_refused() {
    let w = world().await;
    w.refuses("nobody", "no_certificate", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_of_other_authorities_are_refused() {
    let w = world().await;
    let own = TestCa::root_with("self", |p| {
        p.is_ca = IsCa::NoCa;
        p.subject_alt_names = vec![uri("spiffe://tars.local/client/x")];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let self_signed = (
        vec![own.der.clone()],
        PrivateKeyDer::try_from(own.key.serialize_der()).unwrap(),
    );
    w.refuses(
        "a self-signed certificate",
        "unknown_issuer",
        Some(self_signed),
    )
    .await;
    // The same names and the same key identifiers, another key.
    let same = |p: &mut CertificateParams| {
        p.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    };
    let (ours, theirs) = (
        TestCa::root_with("root", same),
        TestCa::root_with("root", same),
    );
    let listener = TestListener::open(ours.parts("/door", vec![ours.der.clone()])).await;
    assert!(is_let_in(listener.addr, client(Some(ours.leaf(|_| {})))).await);
    refuses(
        &listener,
        "a namesake",
        "signature",
        client(Some(theirs.leaf(|_| {}))),
    )
    .await;
    // A leaf that a server's certificate signed.
    let server = w.issuer.below("server", |p| {
        p.is_ca = IsCa::NoCa;
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let leaf = server.leaf(|_| {});
    w.refuses(
        "a leaf below a server's leaf",
        "issuer_is_no_ca",
        Some(leaf),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_outside_of_their_validity_are_refused() {
    let w = world().await;
    let late = w.issuer.leaf(|p| p.not_after = now() - HOUR);
    w.refuses("expired", "expired", Some(late)).await;
    let early = w.issuer.leaf(|p| p.not_before = now() + HOUR / 2);
    w.refuses("not yet valid", "not_yet_valid", Some(early))
        .await;
    let ended = w.root.below("ended", |p| p.not_after = now() - HOUR);
    w.refuses(
        "an expired intermediate",
        "expired",
        Some(ended.leaf(|_| {})),
    )
    .await;
}

/// Judges a client's chain at a second of its own.
fn judge(trust: &Trust, leaf: &Leaf, at: time::OffsetDateTime) -> Result<Verified, &'static str> {
    let seconds = Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap());
    let at = rustls::pki_types::UnixTime::since_unix_epoch(seconds);
    let (first, rest) = leaf.0.split_first().unwrap();
    trust
        .verify(first, rest, at, Side::Client, &Revocations::default())
        .map_err(|refusal| refusal.reason())
}

fn trust(roots: Vec<CertificateDer<'static>>, at: time::OffsetDateTime) -> Trust {
    let now = Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap());
    Trust::new("tars.local", roots, Vec::new(), now).unwrap()
}

#[test]
fn validity_includes_its_first_and_last_second_also_for_roots() {
    let second = time::Duration::SECOND;
    let (start, end) = (
        now().replace_nanosecond(0).unwrap(),
        now().replace_nanosecond(0).unwrap() + HOUR,
    );
    let root = TestCa::root("root");
    let leaf = root.leaf(|p| {
        p.not_before = start;
        p.not_after = end;
    });
    let all = trust(vec![root.der.clone()], start);
    assert_eq!(judge(&all, &leaf, start - second), Err("not_yet_valid"));
    assert!(judge(&all, &leaf, start).is_ok());
    assert!(judge(&all, &leaf, end).is_ok());
    assert_eq!(judge(&all, &leaf, end + second), Err("expired"));
    // Path building does not look at a root's end.
    let short = TestCa::root_with("short", |p| p.not_after = start + HOUR / 2);
    let leaf = short.leaf(|p| p.not_after = end);
    let all = trust(vec![root.der.clone(), short.der.clone()], start);
    assert!(judge(&all, &leaf, start + HOUR / 4).is_ok());
    assert_eq!(judge(&all, &leaf, start + HOUR / 2), Err("expired_root"));
    let pruned = trust(vec![root.der, short.der], start + HOUR / 2);
    assert_eq!(pruned.roots().len(), 1, "left out at load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_not_for_clients_is_refused() {
    let w = world().await;
    let usages =
        |usages: Vec<ExtendedKeyUsagePurpose>| w.issuer.leaf(|p| p.extended_key_usages = usages);
    let server = usages(vec![ExtendedKeyUsagePurpose::ServerAuth]);
    w.refuses("for servers only", "purpose", Some(server)).await;
    let any = usages(vec![ExtendedKeyUsagePurpose::Any]);
    w.refuses("for anything", "purpose", Some(any)).await;
    w.refuses("for nothing in particular", "no_eku", Some(usages(vec![])))
        .await;
    let empty = w.issuer.leaf(|p| {
        p.extended_key_usages.clear();
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 37], vec![0x30, 0x00]);
        p.custom_extensions.push(extension);
    });
    w.refuses("for an empty list", "purpose", Some(empty)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_without_exactly_one_spiffe_id_is_refused() {
    let w = world().await;
    let named = |names: Vec<SanType>| w.issuer.leaf(|p| p.subject_alt_names = names);
    let good_name = w.issuer.leaf(|p| {
        p.subject_alt_names.clear();
        p.distinguished_name
            .push(rcgen::DnType::CommonName, "spiffe://tars.local/auth");
    });
    w.refuses("no name but a good common name", "no_id", Some(good_name))
        .await;
    let dns = named(vec![SanType::DnsName("auth".try_into().unwrap())]);
    w.refuses("a DNS name alone", "no_id", Some(dns)).await;
    for (what, reason, text) in [
        ("a wildcard", "bad_id", "spiffe://tars.local/*"),
        ("a NUL", "bad_id", "spiffe://tars.local/auth\0evil"),
        ("a web address", "bad_id", "https://tars.local/auth"),
        ("upper case", "bad_id", "spiffe://TARS.local/auth"),
        ("a port", "bad_id", "spiffe://tars.local:443/auth"),
        ("a query", "bad_id", "spiffe://tars.local/auth?admin"),
        ("dots", "bad_id", "spiffe://tars.local/a/../auth"),
        ("no path", "bad_id", "spiffe://tars.local"),
        (
            "another trust domain",
            "trust_domain",
            "spiffe://tars.local.evil/auth",
        ),
    ] {
        w.refuses(what, reason, Some(named(vec![uri(text)]))).await;
    }
    let two = named(vec![uri("spiffe://tars.local/auth"), uri("https://x")]);
    w.refuses("two URI names", "several_ids", Some(two)).await;
    // An id that no class knows is let in, and may do nothing: `refusals.rs` shows the denial.
    let unknown: SpiffeId = "spiffe://tars.local/nobody".parse().unwrap();
    assert!(
        w.lets_in(client(Some(named(vec![uri(unknown.as_str())]))))
            .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_current_list_of_the_issuer_says_what_is_revoked() {
    let serial = [0x0a, 0xbc];
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let other = root.below("other", |_| {});
    let with_serial = |of: &TestCa, serial: &[u8]| {
        let serial = rcgen::SerialNumber::from_slice(serial);
        of.leaf(|p| p.serial_number = Some(serial))
    };
    let open = async |list| {
        // The door's own leaf comes from the root, which has a list of its own.
        let mut parts = root.parts("/door", vec![root.der.clone()]);
        parts.crls = vec![root.revocation_list(&[], now() + HOUR), list];
        TestListener::open(parts).await
    };
    let listener = open(issuer.revocation_list(&[&serial], now() + HOUR)).await;
    assert!(is_let_in(listener.addr, client(Some(with_serial(&issuer, &[0x0d])))).await);
    let revoked = client(Some(with_serial(&issuer, &serial)));
    refuses(&listener, "a listed serial", "revoked", revoked).await;
    let unlisted = client(Some(with_serial(&other, &[0x0d])));
    refuses(
        &listener,
        "an issuer without a list",
        "crl_missing",
        unlisted,
    )
    .await;

    let listener = open(issuer.revocation_list(&[], now() - HOUR)).await;
    let good = || client(Some(with_serial(&issuer, &[0x0d])));
    refuses(&listener, "an expired list", "crl_expired", good()).await;

    // A list in the issuer's name, signed by another key.
    let impostor = TestCa::root("intermediate");
    let listener = open(impostor.revocation_list(&[], now() + HOUR)).await;
    refuses(&listener, "a forged list", "crl_signature", good()).await;
}

fn fixture(name: &str) -> Vec<CertificateDer<'static>> {
    let path = format!("{}/fixtures/weak/{name}.crt", env!("CARGO_MANIFEST_DIR"));
    vec![CertificateDer::from_pem_file(path).unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_keys_and_signatures_are_refused() {
    let own = TestCa::root("own");
    let mut parts = own.parts("/door", vec![own.der.clone()]);
    parts.roots.extend(fixture("ca"));
    let listener = TestListener::open(parts).await;
    for (name, reason) in [
        ("rsa1024", "weak_key"),
        ("p192", "weak_key"),
        ("dsa", "weak_key"),
        ("sha1", "weak_signature"),
    ] {
        refuses(&listener, name, reason, client_without_key(fixture(name))).await;
    }
    let path = format!("{}/fixtures/weak/good.key", env!("CARGO_MANIFEST_DIR"));
    let key = PrivateKeyDer::from_pem_file(path).unwrap();
    assert!(is_let_in(listener.addr, client(Some((fixture("good"), key)))).await);
    let other_key = client_without_key(fixture("good"));
    refuses(&listener, "a chain without its key", "proof", other_key).await;
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(
        is_let_in(listener.addr, client(Some(own.leaf_of(ed, |_| {})))).await,
        "Ed25519"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_unconnected_chains_are_refused() {
    let w = world().await;
    let as_ca = w
        .issuer
        .leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    w.refuses("an authority as a leaf", "leaf_is_ca", Some(as_ca))
        .await;
    let no_ca = w
        .root
        .below("no authority", |p| p.is_ca = IsCa::ExplicitNoCa);
    w.refuses(
        "an issuer that is none",
        "issuer_is_no_ca",
        Some(no_ca.leaf(|_| {})),
    )
    .await;
    let short = w.root.below("short", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let long = short.below("below", |_| {}).leaf(|_| {});
    w.refuses("a path too long", "path_length", Some(long))
        .await;
    let bound = w.root.below("bound", |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("good.local".into())],
            excluded_subtrees: vec![],
        });
    });
    let outside = bound.leaf(|p| {
        let name = SanType::DnsName("evil.local".try_into().unwrap());
        p.subject_alt_names.push(name);
    });
    w.refuses("a name out of bounds", "name_constraint", Some(outside))
        .await;
    let strange = w.issuer.leaf(|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    let strange = client_without_key(strange.0);
    refuses(
        &w.listener,
        "an unknown critical extension",
        "critical_extension",
        strange,
    )
    .await;
    let (leaf, key) = w.issuer.leaf(|_| {});
    let hundred: Vec<_> = std::iter::once(leaf[0].clone())
        .chain((0..100).map(|_| w.issuer.der.clone()))
        .collect();
    let hundred = (hundred, key.clone_key());
    w.refuses("a hundred intermediates", "chain_too_long", Some(hundred))
        .await;
    // Two authorities that sign each other, and no way out: a search must end.
    let (a, b) = (TestCa::root("a"), TestCa::root("b"));
    let (a_by_b, b_by_a) = (cross(&a, &b), cross(&b, &a));
    let (mut chain, key) = a.leaf(|_| {});
    for _ in 0..3 {
        chain.extend([a_by_b.clone(), b_by_a.clone()]);
    }
    w.refuses("a circle", "unknown_issuer", Some((chain, key)))
        .await;
    let cut = (
        vec![leaf[0].clone(), leaf[0].clone()],
        w.issuer.leaf(|_| {}).1,
    );
    let config = client_without_key(cut.0);
    refuses(
        &w.listener,
        "a chain without its middle",
        "unknown_issuer",
        config,
    )
    .await;
}

/// `subject` signed by `issuer`.
fn cross(subject: &TestCa, issuer: &TestCa) -> CertificateDer<'static> {
    let by = rcgen::Issuer::from_params(&issuer.params, &issuer.key);
    subject
        .params
        .signed_by(&subject.key, &by)
        .unwrap()
        .der()
        .clone()
}

/// A ClientHello of one version and suite, byte by byte: no library here speaks the old ones.
fn hello(version: u16, suite: &[u8; 2]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7u8; 32]);
    body.push(0);
    body.extend([0x00, 0x02]);
    body.extend(suite);
    body.extend([0x01, 0x00]);
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, // groups: P-256
        0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03, // signatures: ECDSA with SHA-256
    ];
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![0x01, 0x00];
    handshake.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    handshake.extend(body);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(handshake.len()).unwrap().to_be_bytes());
    record.extend(handshake);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_tls_1_3_and_http_2_is_spoken() {
    let w = world().await;
    for (what, version, suite) in [
        ("TLS 1.2", 0x0303, [0xc0, 0x2b]),
        ("TLS 1.1", 0x0302, [0xc0, 0x09]),
        ("TLS 1.0", 0x0301, [0xc0, 0x09]),
        ("SSL 3", 0x0300, [0x00, 0x0a]),
        ("NULL", 0x0303, [0x00, 0x02]),
        ("an anonymous suite", 0x0303, [0x00, 0x6d]),
    ] {
        let mut tcp = TcpStream::connect(w.listener.addr).await.unwrap();
        tcp.write_all(&hello(version, &suite)).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), tcp.read_to_end(&mut answer));
        read.await.expect("an answer").ok();
        // A fatal alert and nothing else: protocol_version, or handshake_failure.
        assert_eq!(answer[..2], [0x15, 0x03], "{what}: {answer:?}");
        assert_eq!(answer[5], 2, "{what}: {answer:?}");
        assert!(matches!(answer[6], 70 | 40 | 47), "{what}: {answer:?}");
    }
    let config = |protocols: Vec<Vec<u8>>| {
        let mut config = client(Some(w.issuer.leaf(|_| {})));
        config.alpn_protocols = protocols;
        config
    };
    refuses(&w.listener, "no protocol", "no_h2", config(vec![])).await;
    refuses(
        &w.listener,
        "HTTP/1.1",
        "no_h2",
        config(vec![b"http/1.1".to_vec()]),
    )
    .await;
    let mut garbage = TcpStream::connect(w.listener.addr).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    garbage.read_to_end(&mut rest).await.ok();
    assert!(
        rest.is_empty() || rest[0] == 0x15,
        "no HTTP answer: {rest:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_cannot_resume_a_session() {
    let w = world().await;
    let leaf = w
        .issuer
        .leaf(|p| p.serial_number = Some(rcgen::SerialNumber::from_slice(&[9])));
    let mut config = client(Some(leaf));
    // As eager a client as there is.
    config.resumption = rustls::client::Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    for _ in 0..3 {
        let mut stream = connect(w.listener.addr, config.clone()).await.unwrap();
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0, "no tickets");
        assert!(!session.is_early_data_accepted());
    }
    w.listener.revocations.update(|set| {
        let issuer = tars_certs::trust::key_id(&w.issuer.der).unwrap();
        let serial = "09".parse().unwrap();
        set.certificates
            .insert(tars_certs::CertName { issuer, serial });
    });
    refuses(
        &w.listener,
        "a revoked client with its old session",
        "revoked",
        config,
    )
    .await;
    assert!(
        w.lets_in(client(Some(w.issuer.leaf(|_| {})))).await,
        "others are untouched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_stalls_or_takes_too_much_is_ended() {
    let limits = Connections {
        handshake_timeout_seconds: 1,
        max_handshakes: 64,
        max_handshakes_by_address: 8,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    // One byte now and then keeps no handshake alive.
    let mut slow = connect_from([127, 0, 0, 2], w.listener.addr).await.unwrap();
    let dropped = async {
        for byte in hello(0x0303, &[0x13, 0x01]) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if slow.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), dropped)
        .await
        .unwrap();
    eventually("the slow one is counted", || async {
        w.listener.refused("timeout") > 0
    })
    .await;
    // 64 KiB of certificates.
    let (chain, key) = w.issuer.leaf(|_| {});
    let filler = w.issuer.leaf(|p| {
        let content = vec![0u8; 12_000];
        p.custom_extensions
            .push(CustomExtension::from_oid_content(&[1, 2, 3, 4], content));
    });
    let mut fat = vec![chain[0].clone()];
    fat.extend((0..5).map(|_| filler.0[0].clone()));
    w.refuses("64 KiB of certificates", "unknown_issuer", Some((fat, key)))
        .await;
    // One address holds no more than its share of handshakes; another still gets in.
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(connect_from([127, 0, 0, 3], w.listener.addr).await.unwrap());
    }
    eventually("the rest makes way", || async {
        w.listener.refused("displaced") >= 12
    })
    .await;
    assert!(w.lets_in(client(Some(w.issuer.leaf(|_| {})))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_peers_delay_nobody() {
    let w = world().await;
    let mut silent = Vec::new();
    for at in 0..1000u16 {
        let from = [
            127,
            0,
            1 + u8::try_from(at / 250).unwrap(),
            1 + u8::try_from(at % 250).unwrap(),
        ];
        silent.push(connect_from(from, w.listener.addr).await.unwrap());
        if at % 100 == 0 {
            assert!(
                w.lets_in(client(Some(w.issuer.leaf(|_| {})))).await,
                "after {at}"
            );
        }
    }
}

/// A TLS connection from another address, with the server's first byte: it was let in, or not.
async fn open_from(w: &World, from: [u8; 4], leaf: Leaf) -> Option<TlsStream<TcpStream>> {
    let tcp = connect_from(from, w.listener.addr).await.ok()?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(client(Some(leaf))));
    let mut stream = connector.connect(name, tcp).await.ok()?;
    stream.read_u8().await.ok().map(|_| stream)
}

fn named(w: &World, path: &str) -> Leaf {
    let id = format!("spiffe://tars.local{path}");
    w.issuer.leaf(|p| p.subject_alt_names = vec![uri(&id)])
}

/// The client's preface with its settings, and nothing after it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn ends(stream: &mut TlsStream<TcpStream>) {
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    // A reset, or an end without a word, is an end as well.
    tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .expect("the server ends the connection")
        .ok();
}

fn cut(reason: &str) -> String {
    format!("mesh_connections_cut_total{{reason=\"{reason}\"}} ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_speak_http2_is_cut_in_seconds() {
    let limits = Connections {
        handshake_timeout_seconds: 1,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let leaf = || named(&w, "/client/x");
    let mut silent = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    let mut half = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    half.write_all(&PREFACE[..23]).await.unwrap();
    let mut honest = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    honest.write_all(PREFACE).await.unwrap();
    ends(&mut silent).await;
    ends(&mut half).await;
    eventually("both are counted", || async {
        w.listener.count(&cut("silent")) == 2
    })
    .await;
    assert_eq!(w.listener.table.len(), 1, "whoever spoke is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_lives_on_and_a_dead_one_does_not() {
    let times = Timeouts {
        ping_seconds: 1,
        ping_timeout_seconds: 1,
        ..Timeouts::default()
    };
    let w = world_with_times(Config::default().connections, times).await;
    let parts = w.issuer.parts("/client/quiet", vec![w.root.der.clone()]);
    let own = IdentityHandle::new(Identity::new(parts, &tars_tests::time()).unwrap());
    let quiet = w.listener.channel(own, Revocations::default());
    quiet.server().await.unwrap();
    let mut dead = open_from(&w, [127, 0, 0, 2], named(&w, "/client/dead"))
        .await
        .unwrap();
    dead.write_all(PREFACE).await.unwrap();
    ends(&mut dead).await;
    eventually("only the quiet one is left", || async {
        let open = w.listener.table.report().to_string();
        w.listener.table.len() == 1 && open.contains("/client/quiet")
    })
    .await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a call, in HPACK without a table.
fn call_headers(path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [name, &[length], value.as_bytes()].concat()
    };
    [
        // Method and scheme; authority, path, content type.
        vec![0x83, 0x87],
        literal(&[0x01], "localhost"),
        literal(&[0x04], path),
        literal(&[0x0f, 0x10], "application/grpc"),
    ]
    .concat()
}

/// What is sent until the server says GOAWAY, its code, and its debug data.
async fn goaway(
    stream: TlsStream<TcpStream>,
    mut what: impl FnMut() -> Vec<u8>,
) -> Option<(u32, String)> {
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async { while write.write_all(&what()).await.is_ok() {} };
    let reading = async {
        // Of the first frame, a byte was read when the connection was opened.
        let mut had = 1;
        loop {
            let mut head = [0; 9];
            read.read_exact(&mut head[had..]).await.ok()?;
            had = 0;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            read.read_exact(&mut payload).await.ok()?;
            if head[3] == 7 {
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                return Some((code, String::from_utf8(payload[8..].to_vec()).unwrap()));
            }
        }
    };
    let both = async { tokio::join!(sending, reading).1 };
    tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("the server ends the connection")
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_control_frames_is_cut_with_enhance_your_calm() {
    let w = world().await;
    let floods = [
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", frame(2, 0, 5, &[0, 0, 0, 1, 7])),
        ("an unknown kind", frame(0xfa, 0, 0, b"grease")),
        ("PRIORITY_UPDATE", frame(0x10, 0, 0, b"\0\0\0\x05u=1")),
        ("PING", frame(6, 0, 0, b"pingping")),
        ("PING that nobody asked for", frame(6, 1, 0, b"pingping")),
        ("SETTINGS", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("empty SETTINGS", frame(4, 0, 0, &[])),
    ];
    for (n, (what, flood)) in floods.iter().enumerate() {
        let mut stream = open_from(&w, [127, 0, 0, 2], named(&w, "/client/loud"))
            .await
            .unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let many = flood.repeat(64);
        let before = w.listener.count(&cut("control_frames"));
        assert_eq!(before, n as u64, "{what}");
        let told = goaway(stream, || many.clone()).await;
        let why = "too many control frames".to_owned();
        assert_eq!(told, Some((ENHANCE_YOUR_CALM, why)), "{what}");
        eventually(&format!("{what} is counted"), || async {
            w.listener.count(&cut("control_frames")) == before + 1
        })
        .await;
    }
}

/// Reads a frame, of whose header `had` bytes were read before.
async fn next_frame(stream: &mut TlsStream<TcpStream>, had: usize) -> ([u8; 9], Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head[had..]).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (head, payload)
}

/// Lets the server end the connection gracefully, which it does in two steps.
async fn goes_away(stream: &mut TlsStream<TcpStream>) {
    let mut had = 1;
    loop {
        let (head, payload) = next_frame(stream, had).await;
        had = 0;
        match (head[3], head[4]) {
            (6, 0) => stream.write_all(&frame(6, 1, 0, &payload)).await.unwrap(),
            (7, _) if payload[..4] == [0, 0, 0, 1] => return,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_after_goaway_is_cut_with_enhance_your_calm() {
    let w = world_with(Connections {
        max_age_seconds: 1,
        ..Config::default().connections
    })
    .await;
    let opened = open_from(&w, [127, 0, 0, 2], named(&w, "/client/loud")).await;
    let mut stream = opened.unwrap();
    // A call that does not end keeps the connection, for as long as the grace.
    let headers = call_headers("/grpc.health.v1.Health/Check");
    let begin = [PREFACE, &frame(1, 4, 1, &headers)].concat();
    stream.write_all(&begin).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), goes_away(&mut stream))
        .await
        .expect("the connection is old");
    let before = w.listener.count(&cut("control_frames"));
    let mut streams = (3..).step_by(2);
    let mut flood = || -> Vec<u8> {
        let calls = streams.by_ref().take(64);
        calls.flat_map(|id| frame(1, 5, id, &headers)).collect()
    };
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async { while write.write_all(&flood()).await.is_ok() {} };
    let mut sink = tokio::io::sink();
    let reading = tokio::io::copy(&mut read, &mut sink);
    let both = async { tokio::join!(sending, reading) };
    let ended = tokio::time::timeout(Duration::from_secs(60), both).await;
    assert!(ended.is_ok(), "the server ends the connection");
    eventually("the flood is counted", || async {
        w.listener.count(&cut("control_frames")) == before + 1
    })
    .await;
}

/// Answers everything with a great deal.
#[derive(Clone)]
struct Large(Bytes);

impl tonic::codegen::Service<Request<tonic::body::Body>> for Large {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        std::future::ready(Ok(Response::new(Full::new(self.0.clone()))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_much_may_open_its_window_as_often() {
    const LENGTH: usize = 48 << 20;
    let (root, answer) = (TestCa::root("root"), Bytes::from(vec![7; LENGTH]));
    let parts = root.parts("/door", vec![root.der.clone()]);
    let listener = TestListener::serving(parts, Timeouts::default(), Large(answer)).await;
    let leaf = root.leaf(|_| {});
    let stream = connect(listener.addr, client(Some(leaf))).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(16 << 10);
    let (mut send, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::post("https://localhost/a/b").header("content-type", "application/grpc");
    let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        got += data.len();
        // h2 opens the window anew for every half of it: thousands of times.
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(got, LENGTH);
    assert_eq!(listener.count(&cut("control_frames")), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_reads_is_cut() {
    let times = Timeouts {
        write_stall_seconds: 1,
        ping_seconds: 600,
        ..Timeouts::default()
    };
    let root = TestCa::root("root");
    let parts = root.parts("/door", vec![root.der.clone()]);
    let large = Large(Bytes::from(vec![7; 48 << 20]));
    let listener = TestListener::serving(parts, times, large).await;
    let mut deaf = connect(listener.addr, client(Some(root.leaf(|_| {}))))
        .await
        .unwrap();
    deaf.write_all(PREFACE).await.unwrap();
    let window = 0x7fff_0000_u32.to_be_bytes();
    let asks = [
        frame(4, 0, 0, &[&[0, 4], &window[..]].concat()),
        frame(8, 0, 0, &window),
        frame(1, 5, 1, &call_headers("/a/b")),
    ];
    deaf.write_all(&asks.concat()).await.unwrap();
    eventually("it is counted", || async {
        listener.count(&cut("write")) == 1
    })
    .await;
    ends(&mut deaf).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_cannot_hold_every_connection() {
    let limits = Connections {
        max: 64,
        max_by_address: 32,
        max_by_identity: 8,
        max_by_workload: 32,
        handshake_timeout_seconds: 60,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let mut held = Vec::new();
    for at in 0..64 {
        let from = [127, 0, 1, 1 + at];
        held.extend(open_from(&w, from, named(&w, "/client/greedy")).await);
    }
    assert_eq!(held.len(), 8, "from however many addresses");
    assert_eq!(w.listener.refused("identity"), 56);
    // Others get in; many of them, from one address, have that address's share.
    for at in 0..64 {
        let leaf = named(&w, &format!("/client/{at}"));
        held.extend(open_from(&w, [127, 0, 2, 1], leaf).await);
    }
    assert!((16..=32).contains(&(held.len() - 8)), "{}", held.len());
    assert!(w.listener.refused("address") >= 32);
    // Which keeps out neither a workload on that address nor a client on another.
    let gateway = open_from(&w, [127, 0, 2, 1], named(&w, "/gateway")).await;
    assert!(gateway.is_some());
    let honest = open_from(&w, [127, 0, 2, 2], named(&w, "/client/honest")).await;
    assert!(honest.is_some());
    drop(held);
    eventually("places come back", || async {
        open_from(&w, [127, 0, 1, 1], named(&w, "/client/greedy"))
            .await
            .is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes_make_way_for_whole_ones_of_the_same_address() {
    let limits = Connections {
        handshake_timeout_seconds: 60,
        max_handshakes: 64,
        max_handshakes_by_address: 8,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let mut half = Vec::new();
    for _ in 0..8 {
        let mut tcp = connect_from([127, 0, 0, 3], w.listener.addr).await.unwrap();
        tcp.write_all(&hello(0x0303, &[0x13, 0x01])[..20])
            .await
            .unwrap();
        half.push(tcp);
    }
    eventually("an honest one of the same address gets in", || async {
        open_from(&w, [127, 0, 0, 3], named(&w, "/client/x"))
            .await
            .is_some()
    })
    .await;
    eventually("one made way", || async {
        w.listener.refused("displaced") == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_exchange_is_hybrid_and_counted() {
    let w = world().await;
    assert!(w.lets_in(client(Some(w.issuer.leaf(|_| {})))).await);
    let line = "mesh_handshakes_total{group=\"X25519MLKEM768\"} ";
    eventually("it is counted", || async { w.listener.count(line) == 1 }).await;
    // An older client falls back to X25519, and shows in the metrics.
    let mut old = rustls::crypto::CryptoProvider::clone(&provider());
    old.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let (chain, key) = w.issuer.leaf(|_| {});
    let mut config = ClientConfig::builder_with_provider(Arc::new(old))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(w.lets_in(config).await);
    let line = "mesh_handshakes_total{group=\"X25519\"} ";
    eventually("it is counted", || async { w.listener.count(line) == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_which_service_is_away_and_not_where_it_was() {
    let w = world().await;
    let identity = || {
        let parts = w.issuer.parts("/gateway", vec![w.root.der.clone()]);
        Identity::new(parts, &tars_tests::time()).unwrap()
    };
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = closed.local_addr().unwrap().to_string();
    drop(closed);
    let expected = SpiffeId::new("tars.local", "/ns/prod/sa/auth").unwrap();
    for (target, audience, told) in [
        (
            target.clone(),
            Audience::Strangers,
            "auth cannot be reached",
        ),
        (
            w.listener.addr.to_string(),
            Audience::Strangers,
            "auth cannot be trusted",
        ),
        (target.clone(), Audience::Operator, target.as_str()),
    ] {
        let channel = Channel::new(ChannelOptions {
            audience,
            ..ChannelOptions::alone(&target, expected.clone(), identity(), Clock::system())
        });
        let mut health = HealthClient::new(channel.unwrap());
        let refused = health
            .check(HealthCheckRequest::default())
            .await
            .unwrap_err();
        let strangers = audience == Audience::Strangers;
        assert_eq!(refused.message() == told, strangers, "{refused:?}");
        assert!(refused.message().contains(told), "{refused:?}");
        assert_eq!(fault::reason(&refused).as_deref(), Some("UNREACHABLE"));
        assert_eq!(!refused.message().contains("127.0.0.1"), strangers);
    }
}
