//! How long a revoked certificate still works: from the reply to the revocation to the first
//! refusal in every process, and to the end of the connections that it had open. Each service runs
//! in a process of its own; once with certificates of the built-in authority, once with mounted
//! files of an authority that the mesh knows nothing of.
//!
//! With `--replicas 2` there are two processes of Auth on one PostgreSQL: the change is made at one, and
//! all others watch the other. Once hints go over Redis, and once Redis is gone.

use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tars::rest::Rest;
use tars_certs::{Authority, CertName, Identity, SpiffeId, ca::Lifetimes};
use tars_mesh::{Channel, ChannelOptions};
use tars_runtime::clock::Clock;
use tars_tests::{
    fleet::{Fleet, Source},
    issue_for,
    redis::Redis,
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
    addr: SocketAddr,
    victim: &Victim,
) -> Result<tokio::task::JoinHandle<Instant>, Failure> {
    let leaf = (
        victim.identity.chain().to_vec(),
        victim.identity.key().clone_key(),
    );
    let mut stream = connect(addr, client(Some(leaf))).await?;
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
    addr: SocketAddr,
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
    for (_, addr) in fleet.over_tls() {
        connections.push(open(addr, &victim).await?);
    }
    let shown = || {
        (
            victim.identity.chain().to_vec(),
            victim.identity.key().clone_key(),
        )
    };
    revoke(admin, &victim.name).await?;
    let replied = Instant::now();
    let refusals: Vec<_> = fleet
        .over_tls()
        .into_iter()
        .map(|(_, addr)| tokio::spawn(first_refusal(addr, shown())))
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

async fn measure(fleet: &Fleet, runs: usize) -> Result<Value, Failure> {
    let admin = fleet.admin().await;
    let mut times = Times::default();
    for at in 0..runs {
        run(fleet, &admin, at, &mut times).await?;
    }
    // Whoever was not revoked is not touched.
    for (name, addr) in fleet.over_tls() {
        let bystander = victim(fleet, runs)?;
        let path = name.strip_suffix("-2").unwrap_or(&name);
        let expected = SpiffeId::new("tars.local", &format!("/{path}"))?;
        let identity = bystander.identity;
        let options = ChannelOptions::alone(&addr.to_string(), expected, identity, Clock::system());
        Channel::new(options)?.server().await?;
    }
    Ok(summary(&mut times))
}

/// An authority that the mesh knows nothing of.
fn foreign() -> Source {
    let root = TestCa::root("another authority");
    let issuer = root.below("its intermediate", |_| {});
    Source::Files(Box::new(TestCa {
        above: vec![issuer.der.clone(), root.der.clone()],
        ..issuer
    }))
}

/// One process of each service.
async fn alone(binary: &Path, runs: usize) -> Result<Value, Failure> {
    let own = Fleet::start(binary, Source::Join, &[]).await;
    let own = measure(&own, runs).await?;
    let other = Fleet::start(binary, foreign(), &[]).await;
    Ok(json!({
        "processes": processes(&other),
        "certificate": own,
        "certificate_of_another_authority": measure(&other, runs).await?,
    }))
}

fn processes(fleet: &Fleet) -> Vec<String> {
    fleet.over_tls().into_iter().map(|(name, _)| name).collect()
}

/// Two processes of Auth, by certificates of one source: with Redis, and once Redis is gone.
async fn replicated(
    binary: &Path,
    (source, prefix): (Source, &str),
    runs: usize,
) -> Result<(Vec<String>, Value, Value), Failure> {
    let database = std::env::var("TARS_BENCH_POSTGRES")?;
    let mut redis = Redis::start();
    let bus = redis.settings().url.ok_or("Redis has no address")?;
    let env = [
        ("TARS__DATABASE__URL", database.as_str()),
        ("TARS__DATABASE__SCHEMA_PREFIX", prefix),
        ("TARS__REDIS__URL", bus.as_str()),
        ("TARS__REDIS__CHANNEL_PREFIX", prefix),
    ];
    let fleet = Fleet::with_second_auth(binary, source, &env).await;
    let with = measure(&fleet, runs).await?;
    redis.kill();
    let without = measure(&fleet, runs).await?;
    Ok((processes(&fleet), with, without))
}

async fn in_replicas(binary: &Path, runs: usize) -> Result<Value, Failure> {
    let (processes, own, own_without) =
        replicated(binary, (Source::Join, "bench_own"), runs).await?;
    let (_, other, other_without) = replicated(binary, (foreign(), "bench_other"), runs).await?;
    Ok(json!({
        "processes": processes,
        "replicas_of_auth": 2,
        "certificate": own,
        "certificate_of_another_authority": other,
        "without_redis": {
            "certificate": own_without,
            "certificate_of_another_authority": other_without,
        },
    }))
}

fn has(flag: &str) -> bool {
    std::env::args().any(|a| a == flag)
}

fn replicas() -> Result<usize, Failure> {
    let mut args = std::env::args().skip_while(|a| a != "--replicas");
    Ok(args.nth(1).map_or(Ok(1), |n| n.parse())?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let runs = if has("--quick") { 5 } else { 20 };
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let mut report = match replicas()? {
        1 => alone(&binary, runs).await?,
        2 => in_replicas(&binary, runs).await?,
        n => return Err(format!("{n} replicas: there are 1 or 2").into()),
    };
    report["bench"] = "revocation".into();
    report["from"] = "the reply to the revocation".into();
    report["to"] = "the later of: the last process's first refusal, the end of the last open connection; 0 when before the reply".into();
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
