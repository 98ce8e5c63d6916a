//! The servers in Rust, each a process of its own: `bench_mesh serve VARIANT FOLDER`, which prints its address and
//! ends with its standard input.

use crate::{
    Failure,
    credentials::{Credentials, KID, ROLE, SERVER},
    echo::{Calls, Echo, Streams},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use std::{io::Read, sync::Arc, time::Duration};
use tars_certs::{IdentityHandle, Revocations};
use tars_credentials::{Claims, Permissions, View, token};
use tars_interceptors::{
    Policy, PolicyHandle, Stack, StackOptions, authenticate::Failures, contract,
    limits::RateLimiter, metrics::CallMetrics, overload::Overload, served::Served, usage::Usage,
};
use tars_mesh::{Admission, ConnectionTable, MeshMetrics, ServeOptions};
use tars_proto::auth::v1::{Jwk, RoleView, WatchCredentialsResponse};
use tars_runtime::{
    clock::Clock,
    config::Config,
    health::Condition,
    metrics::Metrics,
    trace::{SpanMetrics, Tracer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tower_layer::Layer;

/// Calls and streams of one connection at a time, the same for all.
const STREAMS: u32 = 1024;
/// Wide limits, which are asked and never reached.
const WIDE: u32 = u32::MAX / 8;
/// The environment variable that names the collector of spans.
pub(crate) const COLLECTOR: &str = "TARS_BENCH_COLLECTOR";

/// What a server of this program is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// Bare tonic over plaintext.
    Plain,
    /// Bare tonic over its own mutual TLS.
    Mtls,
    /// The same with the usual interceptor, which verifies the token of each call.
    Naive,
    /// All layers of the mesh; this share of the calls is traced.
    Full(f64),
}

impl Kind {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "plain" => Self::Plain,
            "mtls" => Self::Mtls,
            "naive" => Self::Naive,
            "full_1pct" => Self::Full(0.01),
            "full_100pct" => Self::Full(1.0),
            other => return Err(format!("there is no server {other}").into()),
        })
    }
}

/// Serves until standard input ends.
pub(crate) async fn serve(kind: Kind, credentials: Credentials, echo: Echo) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let serving = async {
        match kind {
            Kind::Full(share) => full(listener, share, &credentials, echo).await,
            bare => tonic(listener, bare, &credentials, echo).await,
        }
    };
    let (parent, gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whatever ends the pipe, the parent is gone.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        drop(parent);
    });
    tokio::select! {
        done = serving => done,
        _ = gone => Ok(()),
    }
}

/// tonic's own server.
async fn tonic(
    listener: TcpListener,
    kind: Kind,
    credentials: &Credentials,
    echo: Echo,
) -> Result<(), Failure> {
    let mut server = Server::builder().max_concurrent_streams(STREAMS);
    if kind != Kind::Plain {
        let tls = ServerTlsConfig::new()
            .identity(credentials.identity(SERVER)?)
            .client_ca_root(credentials.roots()?);
        server = server.tls_config(tls)?;
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (calls, streams) = (Calls(echo.clone()), Streams(echo));
    if kind == Kind::Naive {
        let check = Naive::new(credentials)?;
        let calls = InterceptedService::new(calls, check.clone());
        let streams = InterceptedService::new(streams, check);
        let server = server.add_service(calls).add_service(streams);
        return Ok(server.serve_with_incoming(incoming).await?);
    }
    let server = server.add_service(calls).add_service(streams);
    Ok(server.serve_with_incoming(incoming).await?)
}

/// The usual interceptor.
#[derive(Clone)]
struct Naive {
    key: Arc<DecodingKey>,
    rules: Arc<Validation>,
}

impl Naive {
    fn new(credentials: &Credentials) -> Result<Self, Failure> {
        let key = DecodingKey::from_ed_components(&credentials.read("token.key")?)?;
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_issuer(&[token::ISSUER]);
        rules.set_audience(&[token::AUDIENCE]);
        Ok(Self {
            key: Arc::new(key),
            rules: Arc::new(rules),
        })
    }
}

impl tonic::service::Interceptor for Naive {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let refused = || Status::unauthenticated("the call has no valid token");
        let value = request
            .metadata()
            .get("authorization")
            .ok_or_else(refused)?;
        let text = value.to_str().map_err(|_| refused())?;
        let text = text.strip_prefix("Bearer ").ok_or_else(refused)?;
        let token = jsonwebtoken::decode::<Claims>(text, &self.key, &self.rules);
        let claims = token.map_err(|_| refused())?.claims;
        request.extensions_mut().insert(claims);
        Ok(request)
    }
}

/// The mesh's own serve loop and all of its layers.
async fn full(
    listener: TcpListener,
    share: f64,
    credentials: &Credentials,
    echo: Echo,
) -> Result<(), Failure> {
    let mut config = Config::default();
    config.telemetry.sample_ratio = share;
    config.limits.user_per_minute = WIDE;
    config.limits.flood_per_second = WIDE;
    config.connections.max_by_identity = config.connections.max;
    config.connections.max_by_address = config.connections.max;
    config.connections.max_streams = STREAMS;
    // What a call costs is compared, and whom a busy process refuses is not: none of these is shed.
    config.overload.floor = STREAMS;
    let (metrics, clock, stop) = (
        Metrics::default(),
        Clock::system(),
        CancellationToken::new(),
    );
    let stack = stack(&config, credentials, (&metrics, &clock, &stop))?;
    let mut routes = Routes::builder();
    routes.add_service(Calls(echo.clone()));
    routes.add_service(Streams(echo));
    let service = stack.layer(routes.routes().prepare());
    let options = ServeOptions {
        service: "auth",
        admission: Admission::Mutual,
        identity: IdentityHandle::new(credentials.files(SERVER).load(&tars_tests::time())?),
        revocations: Revocations::default(),
        classes: Arc::new(config.certificates.class_table()?),
        clock,
        limits: config.connections.clone(),
        times: config.timeouts.clone(),
        metrics: MeshMetrics::new(&metrics),
        table: ConnectionTable::default(),
    };
    tars_mesh::serve(listener, service, options, stop).await;
    Ok(())
}

type Process<'a> = (&'a Metrics, &'a Clock, &'a CancellationToken);

/// All layers, as a process of the mesh has them, with spans that go to the collector of the run.
fn stack(
    config: &Config,
    credentials: &Credentials,
    (metrics, clock, stop): Process<'_>,
) -> Result<Stack, Failure> {
    let collector = std::env::var(COLLECTOR)?;
    let tracer = Tracer::exporting(
        "auth",
        &collector,
        &config.telemetry,
        &SpanMetrics::new(metrics),
        Condition::new(clock.clone()),
    )?;
    let view = view(credentials, clock)?;
    tokio::spawn(beat(view.clone(), clock.clone()));
    let (audit, mut records) = mpsc::channel(1024);
    tokio::spawn(async move { while records.recv().await.is_some() {} });
    Ok(Stack::new(StackOptions {
        service: "auth",
        listener: "auth",
        config,
        view,
        clock: clock.clone(),
        tracer,
        call_metrics: CallMetrics::new(metrics),
        failures: Failures::new(metrics),
        limiter: RateLimiter::new(&config.limits, clock.clone()),
        overload: Overload::new(&config.overload, metrics),
        usage: Usage::detached(clock.clone()),
        audit,
        policy: PolicyHandle::new(Policy::contract(contract()?)),
        served: Served::new(|_| true),
        stop: stop.clone(),
        end_streams: stop.clone(),
    }))
}

/// What Auth would have pushed.
fn view(credentials: &Credentials, clock: &Clock) -> Result<View, Failure> {
    let permissions = Permissions::ALL.names();
    let view = View::default();
    let item = WatchCredentialsResponse {
        reset: true,
        keys: vec![Jwk {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: credentials.read("token.key")?,
            kid: KID.to_owned(),
            alg: "EdDSA".to_owned(),
            r#use: "sig".to_owned(),
        }],
        roles: vec![RoleView {
            name: ROLE.to_owned(),
            permissions: permissions.into_iter().map(str::to_owned).collect(),
        }],
        ..WatchCredentialsResponse::default()
    };
    view.apply(&item, clock.now().as_secs());
    Ok(view)
}

/// The heartbeats of the stream of credentials, without which a view is too old.
async fn beat(view: View, clock: Clock) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        view.apply(&WatchCredentialsResponse::default(), clock.now().as_secs());
    }
}
