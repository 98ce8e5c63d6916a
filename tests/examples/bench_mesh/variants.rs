//! What is compared.

use crate::{
    Failure, collector,
    credentials::{Credentials, SERVER},
    echo::{Echo, MESSAGES},
    load::{Slice, Target},
    processes::{self, Process},
    servers::COLLECTOR,
    sidecars::{NGINX, Sidecars},
};
use std::{process::Command, time::Duration};

/// grpc-go's server, where the machine has Go.
pub(crate) const GRPC_GO: &str = "TARS_PEER_GRPC_GO";

/// One server, with all that stands before it.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) address: String,
    pub(crate) target: Target,
    /// Whether clients speak TLS to it.
    pub(crate) encrypted: bool,
    processes: Vec<Process>,
}

/// What a slice took.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) slice: Slice,
    /// CPU time of the servers and of what stands before them.
    pub(crate) server: Duration,
    /// CPU time of the client.
    pub(crate) client: Duration,
}

impl Variant {
    /// Measures the load that a client makes.
    pub(crate) async fn measure<F>(&self, load: F) -> Result<Measured, Failure>
    where
        F: Future<Output = Result<Slice, Failure>>,
    {
        let (server, client) = (self.cpu()?, processes::own_cpu()?);
        let slice = load.await.map_err(|e| format!("{}: {e}", self.name))?;
        Ok(Measured {
            slice,
            server: self.cpu()?.saturating_sub(server),
            client: processes::own_cpu()?.saturating_sub(client),
        })
    }

    /// The CPU time of its processes so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        self.processes.iter().map(Process::cpu).sum()
    }

    /// The memory of its processes.
    pub(crate) fn resident(&self) -> Result<u64, Failure> {
        self.processes.iter().map(Process::resident).sum()
    }
}

impl Measured {
    /// Microseconds of CPU time for one call, of servers alone.
    pub(crate) fn server_us(&self) -> f64 {
        self.server.as_secs_f64() * 1e6 / self.slice.done as f64
    }

    /// Microseconds of CPU time for one call, of both ends and all between them.
    pub(crate) fn total_us(&self) -> f64 {
        (self.server + self.client).as_secs_f64() * 1e6 / self.slice.done as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.slice.done as f64 / self.slice.wall.as_secs_f64()
    }
}

/// Starts all that the machine has the programs for.
pub(crate) async fn start(credentials: &Credentials, echo: &Echo) -> Result<Vec<Variant>, Failure> {
    let spans = collector::start().await?;
    let mut all = Vec::new();
    for name in ["plain", "mtls", "naive", "full_1pct", "full_100pct"] {
        let encrypted = name != "plain";
        let (process, address) = own(name, credentials, echo, &spans)?;
        all.push(variant(
            (name, encrypted),
            address,
            vec![process],
            credentials,
        )?);
    }
    if let Ok(program) = std::env::var(GRPC_GO) {
        let (process, address) = grpc_go(&program, credentials, echo)?;
        all.push(variant(
            ("grpc_go", true),
            address,
            vec![process],
            credentials,
        )?);
    }
    if let Ok(program) = std::env::var(NGINX) {
        let (process, behind) = own("plain", credentials, echo, &spans)?;
        let Sidecars { processes, address } = Sidecars::start(&program, &behind, credentials)?;
        let processes = std::iter::once(process).chain(processes).collect();
        all.push(variant(
            ("sidecar", false),
            address,
            processes,
            credentials,
        )?);
    }
    for one in &all {
        until_ready(one).await?;
    }
    Ok(all)
}

fn variant(
    (name, encrypted): (&'static str, bool),
    address: String,
    processes: Vec<Process>,
    credentials: &Credentials,
) -> Result<Variant, Failure> {
    Ok(Variant {
        name,
        target: Target::new(&address, encrypted, credentials)?,
        address,
        encrypted,
        processes,
    })
}

fn own(
    name: &str,
    credentials: &Credentials,
    echo: &Echo,
    spans: &str,
) -> Result<(Process, String), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", name]).arg(&credentials.0);
    command.arg(&echo.0.agent_id);
    Process::start(command.env(COLLECTOR, spans))
}

fn grpc_go(
    program: &str,
    credentials: &Credentials,
    echo: &Echo,
) -> Result<(Process, String), Failure> {
    let files = credentials.files(SERVER);
    let mut command = Command::new(program);
    command.arg("-cert").arg(&files.cert);
    command.arg("-key").arg(&files.key);
    command.arg("-ca").arg(&files.ca);
    command.args(["-token-key", &credentials.read("token.key")?]);
    command.args(["-answer", &echo.0.agent_id]);
    command.args(["-messages", &MESSAGES.to_string()]);
    Process::start(&mut command)
}

/// Waits for the first answer, for a bounded time.
async fn until_ready(variant: &Variant) -> Result<(), Failure> {
    let mut last = String::new();
    for _ in 0..100 {
        let answer = async {
            let channel = variant.target.connect().await?;
            Ok::<_, Failure>(variant.target.call(&channel).await?)
        };
        match answer.await {
            Ok(_) => return Ok(()),
            Err(e) => last = e.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{} does not answer: {last}", variant.name).into())
}
