//! A mesh of one process a service, as in production: for tests and benchmarks that stop, revoke
//! and rotate across processes. Processes are ended with the fleet, by their own handles.

use crate::{eventually, process::Started, test_ca::TestCa};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tars::{app::Service, rest::Rest};
use tars_certs::{Identity, IdentityFiles};
use tempfile::TempDir;
use tokio::time::Instant;

/// The names of all services, Auth first.
pub fn services() -> impl Iterator<Item = &'static str> {
    Service::ALL.iter().map(|s| s.as_str())
}

/// The names of the services that speak gRPC over mutual TLS.
pub fn services_over_tls() -> impl Iterator<Item = &'static str> {
    Service::over_tls().map(Service::as_str)
}

/// Flags of `tars up` that make every port a free one.
pub fn free_ports() -> impl Iterator<Item = String> {
    let names = services().chain(["admin", "observe"]);
    names.map(|name| format!("--{name}-addr=127.0.0.1:0"))
}

/// Where identities come from.
pub enum Source {
    /// Auth has the authority; the others join with a token and renew over gRPC.
    Join,
    /// Mounted files of an authority that the mesh knows nothing of.
    Files(Box<TestCa>),
}

#[derive(Clone, Copy)]
struct Ports {
    main: SocketAddr,
    admin: SocketAddr,
    observe: SocketAddr,
}

/// One process a service, with the addresses and files of all of them, and perhaps a second one of Auth.
pub struct Fleet {
    binary: PathBuf,
    dir: TempDir,
    source: Source,
    env: Vec<(String, String)>,
    ports: BTreeMap<&'static str, Ports>,
    bootstrap: SocketAddr,
    second_auth: Option<SecondAuth>,
    running: BTreeMap<&'static str, Started>,
}

/// A replica of Auth with a data directory of its own, which all services but the gateway use.
struct SecondAuth {
    dir: TempDir,
    ports: Ports,
    bootstrap: SocketAddr,
}

/// The second replica of Auth, among the services of a fleet.
pub const SECOND_AUTH: &str = "auth-2";

impl Ports {
    fn free() -> Self {
        Self {
            main: free_addr(),
            admin: free_addr(),
            observe: free_addr(),
        }
    }
}

/// A port that is free now: `tars serve` is told its ports, as in production. It lies below those
/// that the system gives to outgoing connections, or one of them could take it before its service
/// starts; each process of tests begins elsewhere.
pub fn free_addr() -> SocketAddr {
    const PORTS: std::ops::Range<u16> = 12_000..32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(977);
    for _ in PORTS {
        let at = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(at % PORTS.len() as u32).expect("fits");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no port between {PORTS:?} is free");
}

impl Fleet {
    /// Starts every service and waits until the whole answers.
    pub async fn start(binary: &Path, source: Source, env: &[(&str, &str)]) -> Self {
        Self::start_all(Self::new(binary, source, env, None)).await
    }

    /// Starts two replicas of Auth, on the database that `env` names, and one of every other service. The
    /// gateway uses the first replica and all others the second.
    pub async fn with_second_auth(binary: &Path, source: Source, env: &[(&str, &str)]) -> Self {
        let second = SecondAuth {
            dir: tempfile::tempdir().expect("a temporary directory"),
            ports: Ports::free(),
            bootstrap: free_addr(),
        };
        Self::start_all(Self::new(binary, source, env, Some(second))).await
    }

    fn new(
        binary: &Path,
        source: Source,
        env: &[(&str, &str)],
        second_auth: Option<SecondAuth>,
    ) -> Self {
        Self {
            binary: binary.to_owned(),
            dir: tempfile::tempdir().expect("a temporary directory"),
            source,
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ports: services().map(|name| (name, Ports::free())).collect(),
            bootstrap: free_addr(),
            second_auth,
            running: BTreeMap::new(),
        }
    }

    async fn start_all(mut fleet: Self) -> Self {
        fleet.prepare();
        for name in services() {
            fleet.spawn(name);
        }
        if fleet.second_auth.is_some() {
            // What replicas share is there once the first one serves.
            eventually("the first replica of Auth is ready", async || {
                fleet.is_ready("auth").await
            })
            .await;
            fleet.spawn(SECOND_AUTH);
        }
        fleet.admin().await;
        fleet
    }

    /// The processes that speak gRPC over mutual TLS, with where they listen.
    pub fn over_tls(&self) -> Vec<(&'static str, SocketAddr)> {
        let first = services_over_tls().map(|name| (name, self.addr(name)));
        let second = self.second_auth.iter();
        let second = second.map(|second| (SECOND_AUTH, second.ports.main));
        first.chain(second).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_on(self.dir.path(), args)
    }

    fn command_on(&self, data: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--data-dir").arg(data);
        for (name, value) in [
            ("TARS__LIMITS__AUTH_PER_MINUTE", "100000"),
            ("TARS__LIMITS__PUBLIC_PER_MINUTE", "100000"),
            ("TARS__LIMITS__USER_PER_MINUTE", "10000000"),
            ("TARS__LIMITS__INTERNAL_PER_SECOND", "100000"),
            ("TARS__LIMITS__FLOOD_PER_SECOND", "1000000"),
            ("TARS__LOG__LEVEL", "warn"),
        ] {
            command.env(name, value);
        }
        if self.second_auth.is_some() {
            let key = self.dir.path().join("seal.key");
            command.env("TARS__CREDENTIALS__SEAL_KEY_FILE", key);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// What each service needs before its first start.
    fn prepare(&self) {
        match &self.source {
            Source::Join => {
                let init = self
                    .command(&["certs", "init"])
                    .stdout(Stdio::null())
                    .status();
                assert!(init.expect("tars runs").success());
                for name in services().filter(|n| *n != "auth") {
                    let token = self.token_file(name);
                    let out = token.display().to_string();
                    let args = ["certs", "join-token", name, "--out", &out, "--ttl", "3600"];
                    let made = self.command(&args).stderr(Stdio::null()).status();
                    assert!(made.expect("tars runs").success());
                }
            }
            Source::Files(_) => {
                for name in services() {
                    self.write_identity(name);
                }
            }
        }
    }

    fn token_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.token"))
    }

    /// Where the identity of a service is mounted.
    pub fn identity_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("identities").join(name)
    }

    /// Mounts a fresh identity, as whoever keeps the files would.
    pub fn write_identity(&self, name: &str) {
        let Source::Files(authority) = &self.source else {
            return;
        };
        let root = authority.above.last().cloned();
        let parts = authority.parts(
            &format!("/{name}"),
            vec![root.unwrap_or(authority.der.clone())],
        );
        let identity = Identity::new(parts, &crate::time()).expect("an identity");
        let files = IdentityFiles::in_dir(&self.identity_dir(name));
        files.save_identity(&identity).expect("files");
    }

    /// Starts the process of a service, in place of the one that may run.
    pub fn spawn(&mut self, name: &'static str) {
        let (service, ports, data, bootstrap) = match &self.second_auth {
            Some(second) if name == SECOND_AUTH => {
                ("auth", second.ports, second.dir.path(), second.bootstrap)
            }
            _ => (name, self.ports[name], self.dir.path(), self.bootstrap),
        };
        let mut command = self.command_on(data, &["serve", service]);
        command.args([format!("--{service}-addr"), ports.main.to_string()]);
        command.args(["--admin-addr".to_owned(), ports.admin.to_string()]);
        command.args(["--observe-addr".to_owned(), ports.observe.to_string()]);
        for (other, addr) in self.connections_of(name) {
            let variable = format!("TARS__CONNECT__{}", other.to_uppercase());
            command.env(variable, addr.to_string());
        }
        command.env("TARS__CONNECT__BOOTSTRAP", self.bootstrap.to_string());
        match &self.source {
            Source::Files(_) => {
                command.arg("--identity").arg(self.identity_dir(service));
            }
            Source::Join if service == "auth" => {
                command.args(["--bootstrap-addr".to_owned(), bootstrap.to_string()]);
            }
            Source::Join => {
                command.arg("--join-token-file").arg(self.token_file(name));
            }
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log(name))
            .expect("a log file");
        let process = Started::new(command.stderr(log));
        self.running.insert(name, process);
    }

    /// Where a process finds the others.
    fn connections_of(&self, name: &str) -> Vec<(&'static str, SocketAddr)> {
        let others = self.ports.iter().filter(|(other, _)| **other != "gateway");
        let address = |(other, ports): (&&'static str, &Ports)| match &self.second_auth {
            Some(second) if *other == "auth" && name != "gateway" => (*other, second.ports.main),
            _ => (*other, ports.main),
        };
        others.map(address).collect()
    }

    /// The file that a service's log goes to, over restarts.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// SIGKILL.
    pub fn kill(&mut self, name: &str) {
        self.running.remove(name);
    }

    /// Where a service listens.
    pub fn addr(&self, name: &str) -> SocketAddr {
        self.ports[name].main
    }

    /// The data directory of all processes.
    pub fn data(&self) -> &Path {
        self.dir.path()
    }

    /// The certificate authority of a fleet that joins.
    pub fn authority_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// The outside authority of a fleet with mounted files.
    pub fn ca(&self) -> Option<&TestCa> {
        match &self.source {
            Source::Files(ca) => Some(ca),
            Source::Join => None,
        }
    }

    /// A client of the gateway, without a credential.
    pub fn rest(&self) -> Rest {
        Rest::new(&format!("http://{}", self.ports["gateway"].main))
    }

    /// A page of a process's admin port.
    pub async fn page(&self, name: &str, page: &str) -> Option<Value> {
        let rest = Rest::new(&format!("http://{}", self.ports[name].admin));
        rest.get(&format!("/{page}")).await.ok()
    }

    /// The own certificate of a process, as its admin port shows it.
    pub async fn certificate(&self, name: &str) -> Value {
        let page = self.page(name, "certs").await.unwrap_or_default();
        page["certificates"][0].clone()
    }

    /// The metrics of a process.
    pub async fn metrics(&self, name: &str) -> Option<String> {
        Rest::new(&format!("http://{}", self.ports[name].observe))
            .text("/metrics")
            .await
            .ok()
    }

    /// What a process says of its readiness; `None` unless it is ready.
    pub async fn readiness(&self, name: &str) -> Option<Value> {
        let rest = Rest::new(&format!("http://{}", self.ports[name].observe));
        rest.get("/readyz").await.ok()
    }

    /// Whether a process reports itself ready.
    pub async fn is_ready(&self, name: &str) -> bool {
        let rest = Rest::new(&format!("http://{}", self.ports[name].observe));
        rest.get("/readyz").await.is_ok()
    }

    /// Logs in, once everything answers.
    pub async fn admin(&self) -> Rest {
        let password = self.dir.path().join("admin-password");
        let started = Instant::now();
        loop {
            if let Ok(password) = fs::read_to_string(&password)
                && let Ok(rest) = self.rest().login("admin", &password).await
                && rest.get("/api/v1/sync/pending").await.is_ok()
                && rest.get("/api/v1/studies").await.is_ok()
                && rest.get("/api/v1/orchestration/agents/state").await.is_ok()
            {
                return rest;
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the services did not come up: {}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes the roots through a whole rotation, as soon as every process is ready for each step.
    /// Returns the status of the roots before each.
    pub async fn rotate_roots(&self, admin: &Rest) -> Vec<Value> {
        let mut statuses = Vec::new();
        for step in ["PREPARE", "ACTIVATE", "TAINT", "REMOVE"] {
            let status = async || admin.get("/admin/roots").await.unwrap_or_default();
            eventually(&format!("every process is ready to {step}"), async || {
                let status = status().await;
                status["waiting_for"].as_array().is_some_and(Vec::is_empty)
            })
            .await;
            statuses.push(status().await);
            let body = json!({ "step": format!("ROOT_STEP_{step}"), "cut_off": true });
            let taken = admin.post("/admin/roots/step", body).await;
            taken.unwrap_or_else(|e| panic!("{step}: {e}"));
        }
        statuses
    }

    fn logs(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.log(name)).unwrap_or_default();
        services().chain([SECOND_AUTH]).map(read).collect()
    }
}
