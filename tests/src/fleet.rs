//! A mesh of one process a service, or one for each replica of a service, as in production: for tests and
//! benchmarks that stop, revoke and rotate across processes. Processes are ended with the fleet, by their
//! own handles.

use crate::{eventually, process::Started, redis::Redis, test_ca::TestCa};
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

/// One process of the fleet.
struct Member {
    service: &'static str,
    /// Which replica of its service it is, from 0.
    replica: usize,
    ports: Ports,
    bootstrap: SocketAddr,
}

impl Member {
    fn new(service: &'static str, replica: usize) -> Self {
        Self {
            service,
            replica,
            ports: Ports::free(),
            bootstrap: free_addr(),
        }
    }

    /// The first replica of a service has the name of the service.
    fn name(&self) -> String {
        match self.replica {
            0 => self.service.to_owned(),
            n => format!("{}-{}", self.service, n + 1),
        }
    }
}

/// Which services have more than one process, and where processes connect to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Each service has so many replicas, and connects to all replicas of the others.
    Even(usize),
    /// Auth has two replicas. The gateway connects to the first and all others to the second.
    SecondAuth,
}

impl Layout {
    fn members(self) -> Vec<Member> {
        let counts = services().map(|service| match self {
            Self::Even(count) => (service, count),
            Self::SecondAuth => (service, 1 + usize::from(service == "auth")),
        });
        let replicas = counts.flat_map(|(service, count)| (0..count).map(move |n| (service, n)));
        replicas
            .map(|(service, replica)| Member::new(service, replica))
            .collect()
    }

    fn connects(self, from: &Member, to: &Member) -> bool {
        let uses_second = from.service != "gateway";
        self != Self::SecondAuth || to.service != "auth" || (to.replica == 1) == uses_second
    }

    /// How many data directories it needs: the processes of one service never share one.
    fn directories(self) -> usize {
        match self {
            Self::Even(count) => count,
            Self::SecondAuth => 2,
        }
    }
}

/// The processes of a mesh, with the addresses and files of all of them.
pub struct Fleet {
    binary: PathBuf,
    dirs: Vec<TempDir>,
    source: Source,
    env: Vec<(String, String)>,
    layout: Layout,
    members: BTreeMap<String, Member>,
    running: BTreeMap<String, Started>,
    _redis: Option<Redis>,
}

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
    /// Starts every service and waits until the whole answers. Each has as many replicas as
    /// [`crate::replicas`] says; more than one run on PostgreSQL, and on Redis where there is a program.
    pub async fn start(binary: &Path, source: Source, env: &[(&str, &str)]) -> Self {
        let mut fleet = Self::new(binary, source, env, Layout::Even(crate::replicas()));
        if crate::replicas() > 1 {
            fleet.share();
        }
        fleet.start_all().await
    }

    /// Starts two replicas of Auth, on the database that `env` names, and one of every other service. The
    /// gateway uses the first replica and all others the second.
    pub async fn with_second_auth(binary: &Path, source: Source, env: &[(&str, &str)]) -> Self {
        let fleet = Self::new(binary, source, env, Layout::SecondAuth);
        fleet.start_all().await
    }

    fn new(binary: &Path, source: Source, env: &[(&str, &str)], layout: Layout) -> Self {
        let dir = |_| tempfile::tempdir().expect("a temporary directory");
        let members = layout.members().into_iter();
        Self {
            binary: binary.to_owned(),
            dirs: (0..layout.directories()).map(dir).collect(),
            source,
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            layout,
            members: members.map(|member| (member.name(), member)).collect(),
            running: BTreeMap::new(),
            _redis: None,
        }
    }

    /// Puts the database on the server of the tests, and starts a Redis server of its own.
    fn share(&mut self) {
        let database = tars_test_db::postgres_variables(self.data()).into_iter();
        let redis = Redis::available();
        let url = redis.as_ref().and_then(|redis| redis.settings().url);
        let shared = database.chain(url.map(|url| ("TARS__REDIS__URL", url)));
        self.env
            .extend(shared.map(|(name, value)| (name.to_owned(), value)));
        self._redis = redis;
    }

    async fn start_all(mut self) -> Self {
        self.prepare();
        let (first, others): (Vec<_>, Vec<_>) = self
            .members
            .keys()
            .cloned()
            .partition(|name| name == "auth");
        for name in first {
            self.start_process(&name);
        }
        if self.dirs.len() > 1 {
            // What replicas share is there once the first one serves.
            eventually("the first replica of Auth is ready", async || {
                self.is_process_ready("auth").await
            })
            .await;
        }
        for name in others {
            self.start_process(&name);
        }
        self.admin().await;
        self.all_ready().await;
        self
    }

    /// Waits until every process is ready: what goes through the gateway shows it of one replica each.
    async fn all_ready(&self) {
        let started = Instant::now();
        while let Some(unready) = self.unready().await {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "{unready} is not ready: {}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn unready(&self) -> Option<&String> {
        for name in self.members.keys() {
            if !self.is_process_ready(name).await {
                return Some(name);
            }
        }
        None
    }

    /// The processes that speak gRPC over mutual TLS, with where they listen.
    pub fn over_tls(&self) -> Vec<(String, SocketAddr)> {
        let members = self.members.iter();
        let over_tls = members.filter(|(_, member)| member.service != "gateway");
        over_tls
            .map(|(name, member)| (name.clone(), member.ports.main))
            .collect()
    }

    /// The names of the processes of a service, the one that has the service's name first.
    pub fn processes_of(&self, service: &str) -> Vec<String> {
        let members = self.members.iter();
        let own = members.filter(|(_, member)| member.service == service);
        own.map(|(name, _)| name.clone()).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_on(self.data(), args)
    }

    fn command_on(&self, data: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--data-dir").arg(data);
        for (name, value) in [
            ("TARS__LIMITS__AUTH_PER_MINUTE", "100000"),
            ("TARS__LIMITS__PUBLIC_PER_MINUTE", "100000"),
            ("TARS__LIMITS__USER_PER_MINUTE", "10000000"),
            ("TARS__LIMITS__IDENTITY_PER_MINUTE", "100000"),
            ("TARS__LIMITS__KEY_CHANGES_PER_MINUTE", "100000"),
            ("TARS__LIMITS__INTERNAL_PER_SECOND", "100000"),
            ("TARS__LIMITS__FLOOD_PER_SECOND", "1000000"),
            ("TARS__LOG__LEVEL", "warn"),
        ] {
            command.env(name, value);
        }
        if self.dirs.len() > 1 {
            let key = self.data().join("seal.key");
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
                let joining = self.members.iter().filter(|(_, m)| m.service != "auth");
                for (name, member) in joining {
                    let out = self.token_file(name).display().to_string();
                    let of = member.service;
                    let args = ["certs", "join-token", of, "--out", &out, "--ttl", "3600"];
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

    /// The file that a process reads its join token from, where it joins.
    pub fn token_file(&self, name: &str) -> PathBuf {
        self.data().join(format!("{name}.token"))
    }

    /// Where the identity of a service is mounted.
    pub fn identity_dir(&self, name: &str) -> PathBuf {
        self.data().join("identities").join(name)
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

    /// Starts the processes of a service, in place of those that may run.
    pub fn spawn(&mut self, service: &str) {
        for name in self.processes_of(service) {
            self.start_process(&name);
        }
    }

    fn start_process(&mut self, name: &str) {
        let member = &self.members[name];
        let (service, ports) = (member.service, member.ports);
        let data = self.dirs[member.replica].path();
        let mut command = self.command_on(data, &["serve", service]);
        command.args([format!("--{service}-addr"), ports.main.to_string()]);
        command.args(["--admin-addr".to_owned(), ports.admin.to_string()]);
        command.args(["--observe-addr".to_owned(), ports.observe.to_string()]);
        for other in services_over_tls() {
            let variable = format!("TARS__CONNECT__{}", other.to_uppercase());
            command.env(variable, self.addresses(member, other, |m| m.ports.main));
        }
        let bootstrap = self.addresses(member, "auth", |m| m.bootstrap);
        command.env("TARS__CONNECT__BOOTSTRAP", bootstrap);
        match &self.source {
            Source::Files(_) => {
                command.arg("--identity").arg(self.identity_dir(service));
            }
            Source::Join if service == "auth" => {
                command.args(["--bootstrap-addr".to_owned(), member.bootstrap.to_string()]);
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
        self.running.insert(name.to_owned(), process);
    }

    /// Where a process finds the replicas of a service.
    fn addresses(
        &self,
        from: &Member,
        service: &str,
        address: impl Fn(&Member) -> SocketAddr,
    ) -> String {
        let all = self.members.values().filter(|to| to.service == service);
        let used = all.filter(|to| self.layout.connects(from, to));
        let texts = used.map(|to| address(to).to_string());
        texts.collect::<Vec<_>>().join(",")
    }

    /// The file that a process's log goes to, over restarts.
    pub fn log(&self, name: &str) -> PathBuf {
        self.data().join(format!("{name}.log"))
    }

    /// SIGKILL to every process of a service.
    pub fn kill(&mut self, service: &str) {
        for name in self.processes_of(service) {
            self.running.remove(&name);
        }
    }

    /// Where a process listens.
    pub fn addr(&self, name: &str) -> SocketAddr {
        self.members[name].ports.main
    }

    /// The data directory of the first process of every service.
    pub fn data(&self) -> &Path {
        self.dirs[0].path()
    }

    /// The certificate authority of a fleet that joins.
    pub fn authority_dir(&self) -> PathBuf {
        self.data().join("ca")
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
        Rest::new(&format!("http://{}", self.addr("gateway")))
    }

    /// A page of a process's admin port.
    pub async fn page(&self, name: &str, page: &str) -> Option<Value> {
        let rest = Rest::new(&format!("http://{}", self.members[name].ports.admin));
        rest.get(&format!("/{page}")).await.ok()
    }

    /// The own certificate of a process, as its admin port shows it.
    pub async fn certificate(&self, name: &str) -> Value {
        let page = self.page(name, "certs").await.unwrap_or_default();
        page["certificates"][0].clone()
    }

    /// The metrics of a process.
    pub async fn metrics(&self, name: &str) -> Option<String> {
        Rest::new(&format!("http://{}", self.members[name].ports.observe))
            .text("/metrics")
            .await
            .ok()
    }

    /// What a process says of its readiness; `None` unless it is ready.
    pub async fn readiness(&self, name: &str) -> Option<Value> {
        let rest = Rest::new(&format!("http://{}", self.members[name].ports.observe));
        rest.get("/readyz").await.ok()
    }

    /// Whether every process of a service reports itself ready.
    pub async fn is_ready(&self, service: &str) -> bool {
        for name in self.processes_of(service) {
            if !self.is_process_ready(&name).await {
                return false;
            }
        }
        true
    }

    async fn is_process_ready(&self, name: &str) -> bool {
        self.readiness(name).await.is_some()
    }

    /// Logs in, once everything answers.
    pub async fn admin(&self) -> Rest {
        let password = self.data().join("admin-password");
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
            // Another replica of Auth may not have seen yet what the status was made from.
            eventually(&format!("{step} is taken"), async || {
                let body = json!({ "step": format!("ROOT_STEP_{step}"), "cut_off": true });
                match admin.post("/admin/roots/step", body).await {
                    Ok(_) => true,
                    Err(e) if e.reason() == Some("PEERS_NOT_READY") => false,
                    Err(e) => panic!("{step}: {e}"),
                }
            })
            .await;
        }
        statuses
    }

    fn logs(&self) -> String {
        let read = |name: &String| fs::read_to_string(self.log(name)).unwrap_or_default();
        self.members.keys().map(read).collect()
    }
}
