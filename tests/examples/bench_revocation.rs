//! How long a revoked certificate still works: from the reply to the revocation to the first
//! refusal in every process, and to the end of the connections that it had open. Each service runs
//! in a process of its own; once with certificates of the built-in authority, once with mounted
//! files of an authority that the mesh knows nothing of.

use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tars::rest::Rest;
use tars_certs::{Authority, CertName, Identity, SpiffeId, ca::Lifetimes};
use tars_mesh::{Channel, ChannelOptions};
use tars_runtime::clock::Clock;
use tars_tests::{
    fleet::{Fleet, Source, services_over_tls},
    issue_for,
    test_ca::{TestCa, client, connect},
    time,
};
use tokio::{io::AsyncReadExt, time::Instant};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nothing takes this long; past it the run fails.
const LIMIT: Duration = Duration::from_secs(20);

struct Victim {
    identity: Identity,
    name: CertName,
}

fn victim(fleet: &Fleet, at: usize) -> Result<Victim, Failure> {
    let path = format!("/client/victim-{at}");
    let identity = match fleet.ca() {
        Some(ca) => {
            let root = ca.above.last().cloned().unwrap_or(ca.der.clone());
            Identity::new(ca.parts(&path, vec![root]), &time())?
        }
        None => {
            let dir = fleet.authority_dir();
            let now = Clock::system().now();
            let authority = Authority::open(&dir, "tars.local", Lifetimes::default(), now)?;
            issue_for(&authority, &path, Duration::from_secs(3600))
        }
    };
    let name = identity.verified().name().clone();
    Ok(Victim { identity, name })
}

/// An open connection of the victim's, read until it ends.
async fn open(
    fleet: &Fleet,
    service: &str,
    victim: &Victim,
) -> Result<tokio::task::JoinHandle<Instant>, Failure> {
    let leaf = (
        victim.identity.chain().to_vec(),
        victim.identity.key().clone_key(),
    );
    let mut stream = connect(fleet.addr(service), client(Some(leaf))).await?;
    let mut first = [0u8; 1];
    stream.read_exact(&mut first).await?;
    Ok(tokio::spawn(async move {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
        Instant::now()
    }))
}

/// When the service first refuses a new connection.
async fn first_refusal(
    addr: std::net::SocketAddr,
    victim: (
        Vec<rustls::pki_types::CertificateDer<'static>>,
        rustls::pki_types::PrivateKeyDer<'static>,
    ),
) -> Instant {
    let config = client(Some(victim));
    loop {
        let refused = match connect(addr, config.clone()).await {
            Err(_) => true,
            Ok(mut stream) => {
                let mut byte = [0u8; 1];
                !matches!(stream.read(&mut byte).await, Ok(1))
            }
        };
        if refused {
            return Instant::now();
        }
    }
}

#[derive(Default)]
struct Times {
    refused: Vec<f64>,
    closed: Vec<f64>,
}

async fn revoke(admin: &Rest, name: &CertName) -> Result<Value, Failure> {
    let body = json!({ "issuer": name.issuer.to_string(), "serial": name.serial.as_str(), "reason": "bench" });
    Ok(admin.post("/admin/certificates/revoke", body).await?)
}

async fn run(fleet: &Fleet, admin: &Rest, at: usize, times: &mut Times) -> Result<(), Failure> {
    let victim = victim(fleet, at)?;
    let mut connections = Vec::new();
    for service in services_over_tls() {
        connections.push(open(fleet, service, &victim).await?);
    }
    let shown = || {
        (
            victim.identity.chain().to_vec(),
            victim.identity.key().clone_key(),
        )
    };
    revoke(admin, &victim.name).await?;
    let replied = Instant::now();
    let refusals: Vec<_> = services_over_tls()
        .map(|s| tokio::spawn(first_refusal(fleet.addr(s), shown())))
        .collect();
    let since = |then: Instant| then.saturating_duration_since(replied).as_secs_f64() * 1e3;
    let (mut refused, mut closed) = (0f64, 0f64);
    for refusal in refusals {
        refused = refused.max(since(tokio::time::timeout(LIMIT, refusal).await??));
    }
    for connection in connections {
        closed = closed.max(since(tokio::time::timeout(LIMIT, connection).await??));
    }
    times.refused.push(refused);
    times.closed.push(closed);
    Ok(())
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    tars_search::quantile::quantile(values, share).expect("there is at least one run")
}

fn summary(times: &mut Times) -> Value {
    let mut both: Vec<f64> = times
        .refused
        .iter()
        .zip(&times.closed)
        .map(|(a, b)| a.max(*b))
        .collect();
    json!({
        "p50_ms": quantile(&mut both, 0.5),
        "p99_ms": quantile(&mut both, 0.99),
        "refused_p50_ms": quantile(&mut times.refused, 0.5),
        "refused_p99_ms": quantile(&mut times.refused, 0.99),
        "closed_p50_ms": quantile(&mut times.closed, 0.5),
        "closed_p99_ms": quantile(&mut times.closed, 0.99),
        "runs": both.len(),
    })
}

async fn measure(binary: &Path, source: Source, runs: usize) -> Result<Value, Failure> {
    let fleet = Fleet::start(binary, source, &[]).await;
    let admin = fleet.admin().await;
    let mut times = Times::default();
    for at in 0..runs {
        run(&fleet, &admin, at, &mut times).await?;
    }
    // Whoever was not revoked is not touched.
    let bystander = victim(&fleet, runs)?;
    let expected = SpiffeId::new("tars.local", "/auth")?;
    let target = fleet.addr("auth").to_string();
    let options = ChannelOptions::alone(&target, expected, bystander.identity, Clock::system());
    Channel::new(options)?.server().await?;
    Ok(summary(&mut times))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let runs = if has("--quick") { 5 } else { 20 };
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let own = measure(&binary, Source::Join, runs).await?;
    let root = TestCa::root("another authority");
    let issuer = root.below("its intermediate", |_| {});
    let issuer = TestCa {
        above: vec![issuer.der.clone(), root.der.clone()],
        ..issuer
    };
    let foreign = measure(&binary, Source::Files(Box::new(issuer)), runs).await?;
    let report = json!({
        "bench": "revocation",
        "from": "the reply to the revocation",
        "to": "the later of: the last process's first refusal, the end of the last open connection; 0 when before the reply",
        "processes": services_over_tls().collect::<Vec<_>>(),
        "certificate": own,
        "certificate_of_another_authority": foreign,
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
