//! CPU time of a mutual TLS 1.3 handshake with our configurations, against bare rustls with the
//! same certificates and its own webpki verifiers; both sides in memory, rounds interleaved.

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::{Resumption, WebPkiServerVerifier},
    pki_types::ServerName,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use std::{sync::Arc, time::Duration};
use tars_certs::{
    Authority, CertName, Identity, KeyId, Revocations,
    ca::{Lifetimes, Request},
    tls,
};
use tars_runtime::clock::Clock;
use tars_search::quantile;
use tars_tests::time;

type Failure = Box<dyn std::error::Error>;

struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(t.tv_sec).unwrap_or(0),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

fn handshake(pair: &Pair) -> Result<(), Failure> {
    let name = ServerName::try_from("localhost")?;
    let mut client = ClientConnection::new(Arc::clone(&pair.client), name)?;
    let mut server = ServerConnection::new(Arc::clone(&pair.server))?;
    let mut wire = Vec::with_capacity(16 << 10);
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        server.read_tls(&mut wire.as_slice())?;
        server.process_new_packets()?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire)?;
        }
        client.read_tls(&mut wire.as_slice())?;
        client.process_new_packets()?;
        wire.clear();
    }
    Ok(())
}

fn ours(own: &Identity, list: &Revocations) -> Result<Pair, Failure> {
    let expected = own.id().clone();
    Ok(Pair {
        client: Arc::new(tls::client(own, expected, list, time())?),
        server: Arc::new(tls::server(own, list, time())?),
    })
}

fn bare(own: &Identity) -> Result<Pair, Failure> {
    let mut roots = RootCertStore::empty();
    for root in own.trust().roots() {
        roots.add(root.clone())?;
    }
    let roots = Arc::new(roots);
    let provider = tars_certs::crypto::provider;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build()?;
    let mut server = ServerConfig::builder_with_details(provider(), time())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain().to_vec(), own.key().clone_key())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let mut client = ClientConfig::builder_with_details(provider(), time())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(own.chain().to_vec(), own.key().clone_key())?;
    // The rest as ours, so that the verifiers are all that differs.
    server.alpn_protocols = vec![tls::ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    client.alpn_protocols = vec![tls::ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(Pair {
        client: Arc::new(client),
        server: Arc::new(server),
    })
}

fn slice(pair: &Pair, handshakes: u32) -> Result<f64, Failure> {
    let start = cpu_time();
    for _ in 0..handshakes {
        handshake(pair)?;
    }
    Ok((cpu_time() - start).as_secs_f64() * 1e6 / f64::from(handshakes))
}

fn median(values: Vec<f64>) -> f64 {
    quantile::median(values).expect("there is at least one round")
}

fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let (rounds, each) = if has("--quick") { (11, 50) } else { (41, 200) };
    let dir = tempfile::tempdir()?;
    let clock = Clock::system();
    let authority = Authority::init(dir.path(), "tars.local", Lifetimes::default(), clock.now())?;
    let id = "spiffe://tars.local/auth".parse()?;
    let request = Request::new(id, Duration::from_secs(3600)).with_local_names();
    let issued = authority.issue(&request, clock.now())?;
    let own = Identity::new(issued.into_parts(authority.roots()), &time())?;
    // A list as long as a bad year's.
    let list = Revocations::default();
    list.update(|set| {
        let issuer = KeyId::of_spki(b"x");
        let names = (1..=10_000u64).filter_map(|n| {
            let serial = format!("{n:x}").parse().ok()?;
            Some(CertName { issuer, serial })
        });
        set.certificates.extend(names);
    });
    let (ours, bare) = (ours(&own, &list)?, bare(&own)?);
    slice(&ours, each)?;
    slice(&bare, each)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            a.push(slice(&ours, each)?);
            b.push(slice(&bare, each)?);
        } else {
            b.push(slice(&bare, each)?);
            a.push(slice(&ours, each)?);
        }
    }
    let ratio = median(a.iter().zip(&b).map(|(a, b)| a / b).collect());
    let report = serde_json::json!({
        "bench": "handshake",
        "baseline": "bare rustls, its own webpki verifiers, same certificates and options",
        "rounds": rounds,
        "handshakes_a_round": each,
        "revocations": 10_000,
        "cpu_us": median(a),
        "baseline_cpu_us": median(b),
        "ratio": ratio,
        "cpu_note": "both sides of a mutual handshake, thread CPU time",
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
