//! The calls of the soak, at steady rates.

use crate::Failure;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tars::rest::Rest;
use tars_proto::{
    auth::v1::{GetMeRequest, auth_service_client::AuthServiceClient},
    grpc::health::v1::{HealthCheckRequest, health_client::HealthClient},
};
use tars_tests::process::Running;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// How often each kind begins.
const CALL_EVERY: Duration = Duration::from_millis(10);
const REST_EVERY: Duration = Duration::from_millis(20);
const STREAM_EVERY: Duration = Duration::from_millis(200);
const CONNECT_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    rest: AtomicU64,
    streams: AtomicU64,
    connections: AtomicU64,
    failed: AtomicU64,
}

/// All that is needed to begin one of each kind.
#[derive(Clone)]
struct Client {
    endpoint: Endpoint,
    channel: Channel,
    rest: Rest,
    bearer: String,
    counts: Arc<Counts>,
}

/// Traffic that goes on until its end.
pub(crate) struct Traffic {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Kind {
    Call,
    Rest,
    Stream,
    Connect,
}

impl Kind {
    const ALL: [(Self, Duration); 4] = [
        (Self::Call, CALL_EVERY),
        (Self::Rest, REST_EVERY),
        (Self::Stream, STREAM_EVERY),
        (Self::Connect, CONNECT_EVERY),
    ];
}

impl Traffic {
    /// Begins.
    pub(crate) async fn start(mesh: &Running, ends: Instant) -> Result<Self, Failure> {
        let client = Client::new(mesh).await?;
        let counts = Arc::clone(&client.counts);
        let mut tasks = JoinSet::new();
        for (kind, every) in Kind::ALL {
            tasks.spawn(client.clone().keep(kind, every, ends));
        }
        Ok(Self { counts, tasks })
    }

    pub(crate) fn describe(&self) -> String {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let done = read(&self.counts.calls) + read(&self.counts.rest);
        format!("{done} calls, {} failed", read(&self.counts.failed))
    }

    /// Waits for its end; returns what was done.
    pub(crate) async fn end(mut self) -> Value {
        while self.tasks.join_next().await.is_some() {}
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({
            "calls": read(&self.counts.calls),
            "rest": read(&self.counts.rest),
            "streams": read(&self.counts.streams),
            "connections": read(&self.counts.connections),
            "failed": read(&self.counts.failed),
        })
    }
}

impl Client {
    async fn new(mesh: &Running) -> Result<Self, Failure> {
        let ready = &mesh.ready;
        let rest = mesh.admin().await;
        let password = std::fs::read_to_string(&ready.admin_password_file)?;
        let body = json!({ "username": ready.admin_user, "password": password });
        let login = Rest::new(&ready.gateway).post("/auth/login", body).await?;
        let token = login["access_token"].as_str().ok_or("no token")?;
        let own = (
            std::fs::read(&ready.client_cert)?,
            std::fs::read(&ready.client_key)?,
        );
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&ready.ca)?))
            .identity(Identity::from_pem(own.0, own.1))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(ready.auth.clone())?.tls_config(tls)?;
        let endpoint = endpoint.tcp_nodelay(true);
        Ok(Self {
            // It connects again when the server ends a connection for its age.
            channel: endpoint.connect().await?,
            endpoint,
            rest,
            bearer: format!("Bearer {token}"),
            counts: Arc::default(),
        })
    }

    /// Begins one after the other, at fixed moments, whether earlier ones have ended or not.
    async fn keep(self, kind: Kind, every: Duration, ends: Instant) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut open = JoinSet::new();
        while Instant::now() < ends {
            ticks.tick().await;
            open.spawn(self.clone().one(kind));
            while open.try_join_next().is_some() {}
        }
        while open.join_next().await.is_some() {}
    }

    async fn one(self, kind: Kind) {
        let (done, count) = match kind {
            Kind::Call => (self.call(&self.channel).await, &self.counts.calls),
            Kind::Rest => (self.get().await, &self.counts.rest),
            Kind::Stream => (self.watch().await, &self.counts.streams),
            Kind::Connect => (self.connect().await, &self.counts.connections),
        };
        match done {
            Ok(()) => count.fetch_add(1, Ordering::Relaxed),
            Err(e) => {
                eprintln!("failed: {e}");
                self.counts.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    async fn call(&self, channel: &Channel) -> Result<(), Failure> {
        let mut request = Request::new(GetMeRequest {});
        let bearer = self.bearer.parse()?;
        request.metadata_mut().insert("authorization", bearer);
        AuthServiceClient::new(channel.clone())
            .get_me(request)
            .await?;
        Ok(())
    }

    async fn get(&self) -> Result<(), Failure> {
        Ok(self.rest.get("/auth/me").await.map(drop)?)
    }

    /// Reads the first message of a stream, and gives it up.
    async fn watch(&self) -> Result<(), Failure> {
        let mut request = Request::new(HealthCheckRequest::default());
        request
            .metadata_mut()
            .insert("authorization", self.bearer.parse()?);
        let mut client = HealthClient::new(self.channel.clone());
        let mut stream = client.watch(request).await?.into_inner();
        stream.message().await?.ok_or("the stream ended")?;
        Ok(())
    }

    async fn connect(&self) -> Result<(), Failure> {
        let channel = self.endpoint.connect().await?;
        self.call(&channel).await
    }
}
