//! A steady load of steps, and what each answer was made of.

use crate::Failure;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_proto::orchestration::v1::{
    AgentAction, Observation, StepRequest, StepResponse,
    orchestration_service_client::OrchestrationServiceClient,
};
use tars_search::quantile::quantile;
use tars_tests::{governed::FOUR, process::Running};
use tokio::{task::JoinSet, time::Instant};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

const WORKERS: usize = 4;
/// Between two calls of a worker: a steady load, not the most there is.
const PAUSE: Duration = Duration::from_millis(4);
/// A call that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);

/// What an agent answered by, without the number of the version.
pub(crate) type Print = Vec<u64>;

/// Steps all four agents in one state, which never changes.
#[derive(Clone)]
pub(crate) struct Stepper {
    client: OrchestrationServiceClient<Channel>,
    token: String,
}

/// What was measured between two moments.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// The times of the calls that succeeded, in seconds.
    pub(crate) times: Vec<f64>,
    pub(crate) failures: Vec<String>,
    /// By agent and version, in how many steps it answered by what.
    pub(crate) seen: BTreeMap<(String, u64), BTreeMap<Print, usize>>,
}

impl Stepper {
    pub(crate) async fn connect(mesh: &Running) -> Result<Self, Failure> {
        let read = |path: &std::path::Path| std::fs::read(path);
        let ready = &mesh.ready;
        let own = Identity::from_pem(read(&ready.client_cert)?, read(&ready.client_key)?);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&ready.ca)?))
            .identity(own)
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(ready.orchestration.clone())?;
        let endpoint = endpoint.tls_config(tls)?.tcp_nodelay(true);
        let password = std::fs::read_to_string(&ready.admin_password_file)?;
        let login = json!({ "username": ready.admin_user, "password": password });
        let rest = tars::rest::Rest::new(&ready.gateway);
        let login: Value = rest.post("/auth/login", login).await?;
        let token = login["access_token"].as_str().ok_or("no token")?;
        Ok(Self {
            client: OrchestrationServiceClient::new(endpoint.connect().await?),
            token: format!("Bearer {token}"),
        })
    }

    pub(crate) async fn step(&mut self) -> Result<StepResponse, Failure> {
        let state = |agent: &str| {
            let (_, width) = FOUR.iter().find(|(name, _)| *name == agent)?;
            Some(Observation {
                agent_type: None,
                state_vector: vec![0.25; *width],
            })
        };
        let mut request = Request::new(StepRequest {
            policy_state: state("policy"),
            consensus_state: state("consensus"),
            ethical_state: state("ethical"),
            resource_state: state("resource"),
            ..StepRequest::default()
        });
        let token = self.token.parse()?;
        request.metadata_mut().insert("authorization", token);
        request.set_timeout(LIMIT);
        Ok(self.client.step(request).await?.into_inner())
    }
}

pub(crate) fn print(action: &AgentAction) -> Print {
    action.action_values.iter().map(|v| v.to_bits()).collect()
}

impl Slice {
    fn record(&mut self, time: Duration, answer: Result<StepResponse, Failure>) {
        match answer {
            Err(e) => self.failures.push(e.to_string()),
            Ok(stepped) => {
                self.times.push(time.as_secs_f64());
                for (agent, action) in stepped.agent_actions {
                    let version = (agent, action.weights_version);
                    *self.count(version, print(&action)) += 1;
                }
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.times.extend(other.times);
        self.failures.extend(other.failures);
        for (version, prints) in other.seen {
            for (print, count) in prints {
                *self.count(version.clone(), print) += count;
            }
        }
    }

    fn count(&mut self, version: (String, u64), print: Print) -> &mut usize {
        let prints = self.seen.entry(version).or_default();
        prints.entry(print).or_default()
    }

    /// A quantile of the times, in microseconds.
    pub(crate) fn micros(&self, share: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        quantile(&times, share).unwrap_or(f64::NAN) * 1e6
    }
}

/// Measures steps for as long as something goes on.
pub(crate) async fn during<T>(stepper: &Stepper, work: impl Future<Output = T>) -> (T, Slice) {
    let (measured, going) = (
        Arc::new(Mutex::new(Slice::default())),
        Arc::new(AtomicBool::new(true)),
    );
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (mut stepper, measured, going) = (stepper.clone(), measured.clone(), going.clone());
        workers.spawn(async move {
            while going.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = stepper.step().await;
                measured.lock().record(began.elapsed(), answer);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    let done = work.await;
    going.store(false, Ordering::Relaxed);
    workers.join_all().await;
    let measured = std::mem::take(&mut *measured.lock());
    (done, measured)
}
