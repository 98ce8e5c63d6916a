//! Peers that are refused at the handshake, each with a reason of its own.

#![allow(clippy::unwrap_used)]

#[path = "handshake/chains.rs"]
mod chains;
#[path = "handshake/connections.rs"]
mod connections;

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
