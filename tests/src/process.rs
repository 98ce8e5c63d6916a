//! The real binary as a process of its own: started by a test, and ended with it.

use crate::{fleet::free_ports, redis::Redis};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};
use tars::{app::Ready, rest::Rest};
use tars_certs::secret;
use tars_proto::reason;
use tokio::time::Instant;

/// A process that ends (SIGKILL) when this is dropped.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// Starts a command.
    pub fn new(command: &mut Command) -> Self {
        Self(command.spawn().expect("the program runs"))
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process id"), Signal::TERM).expect("the process is a child");
    }

    /// SIGKILL; returns once the process is gone.
    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }

    /// Waits for the process to end by itself; returns its exit code.
    ///
    /// # Panics
    ///
    /// If it does not end within a minute.
    pub fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("the process is a child") {
                return status.code();
            }
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(60), "{:?} goes on", self.0);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Builds a `tars up` on free ports.
pub struct Up {
    command: Command,
    data: PathBuf,
    gateway: Option<String>,
    replicas: usize,
    redis_url: Option<String>,
    database: Option<String>,
}

impl Up {
    /// `tars` is the binary, with whatever is in front of its arguments; `data` the data directory,
    /// which is created when it does not exist.
    pub fn new(tars: Command, data: &Path) -> Self {
        let mut command = tars;
        // A pole is balanced after a fraction of the steps that the default environment takes.
        command.env("TARS__ORCHESTRATION__ENVIRONMENT", "cartpole");
        Self {
            command,
            data: data.to_owned(),
            gateway: None,
            replicas: crate::replicas(),
            redis_url: None,
            database: None,
        }
    }

    /// The URL of the database, in place of the one that all tests share.
    #[must_use]
    pub fn database(mut self, url: &str) -> Self {
        self.database = Some(url.to_owned());
        self
    }

    /// The number of replicas; without it, as many as [`crate::replicas`] says. More than one run on
    /// PostgreSQL.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// The Redis server that the mesh uses; without it, replicas have one of their own where there is
    /// a program.
    #[must_use]
    pub fn redis(mut self, redis: &Redis) -> Self {
        let url = redis.settings().url;
        self.redis_url = url;
        self
    }

    /// Sets a variable in the environment of every process of the mesh.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Lifts the rate limits that a test runs into, which is all one client.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        for class in ["AUTH", "PUBLIC", "USER", "IDENTITY", "KEY_CHANGES"] {
            let limit = format!("TARS__LIMITS__{class}_PER_MINUTE");
            // Volume is not counted call by call, and may be larger.
            let calls = if class == "USER" { "1000000" } else { "100000" };
            self.command.env(limit, calls);
        }
        self
    }

    /// The gateway's address; any free port without it.
    #[must_use]
    pub fn gateway(mut self, addr: &str) -> Self {
        self.gateway = Some(addr.to_owned());
        self
    }

    /// Starts it, and waits until it is ready.
    pub fn start(mut self) -> Running {
        secret::create_dir(&self.data).expect("a data directory");
        let ready_file = self.data.join("test-ready.json");
        std::fs::remove_file(&ready_file).ok();
        let log = self.data.join("test.log");
        let command = &mut self.command;
        match (&self.database, self.replicas) {
            (Some(url), _) => command.env("TARS__DATABASE__URL", url),
            (None, 1) => command.envs(tars_test_db::variables(&self.data)),
            (None, _) => command.envs(tars_test_db::postgres_variables(&self.data)),
        };
        let own = self.replicas > 1 && self.redis_url.is_none();
        let redis = own.then(Redis::available).flatten();
        let own = redis.as_ref().and_then(|redis| redis.settings().url);
        if let Some(url) = self.redis_url.or(own) {
            command.env("TARS__REDIS__URL", url);
        }
        command.arg("up").arg("--data-dir").arg(&self.data);
        command.arg("--ready-file").arg(&ready_file);
        command.args(["--replicas", &self.replicas.to_string()]);
        let gateway = self.gateway.map(|addr| format!("--gateway-addr={addr}"));
        let is_replaced = |flag: &String| gateway.is_some() && flag.starts_with("--gateway-addr=");
        command.args(free_ports().filter(|flag| !is_replaced(flag)));
        command.args(&gateway);
        command.stderr(File::create(&log).expect("a log file"));
        let process = Started::new(command);
        Running {
            ready: written(&ready_file, &log),
            process,
            data: self.data,
            log,
            _redis: redis,
        }
    }
}

/// What a process writes once it serves.
fn written(file: &Path, log: &Path) -> Ready {
    let started = Instant::now();
    loop {
        if let Ok(ready) = Ready::load(file) {
            return ready;
        }
        let waited = started.elapsed();
        assert!(
            waited < Duration::from_secs(60),
            "the mesh did not start: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A mesh in a process of its own.
pub struct Running {
    /// The process; dropping it ends the mesh.
    pub process: Started,
    /// Where the mesh is.
    pub ready: Ready,
    /// Its data directory.
    pub data: PathBuf,
    /// The file that its log goes to.
    pub log: PathBuf,
    _redis: Option<Redis>,
}

/// SIGKILL to a replica, which is the child of a child.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// SIGTERM to a replica: it drains, and ends.
pub fn terminate(pid: u32) {
    signal(pid, Signal::TERM);
}

/// SIGSTOP to a replica: its connections stay open, and it does nothing.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
}

/// SIGCONT to a replica.
pub fn thaw(pid: u32) {
    signal(pid, Signal::CONT);
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may have ended by itself.
    kill_process(pid.expect("a process id"), signal).ok();
}

/// Whether a process uses a data directory.
pub fn is_in_use(data: &Path) -> bool {
    let Ok(lock) = File::open(data.join("lock")) else {
        return false;
    };
    matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

impl Running {
    /// What runs now, as the ready file says; replicas that end are started again by other processes.
    pub fn current(&self) -> Option<Ready> {
        Ready::load(&Ready::default_path(&self.data)).ok()
    }

    /// The data directory of the first replica.
    pub fn first_data(&self) -> &Path {
        let first = self.ready.replicas.first();
        first.map_or(&self.data, |replica| &replica.data_dir)
    }

    /// SIGKILL to every process of the mesh; returns once none uses the data directory.
    pub fn kill(&mut self) {
        let replicas = self.current().map(|ready| ready.replicas);
        self.process.kill();
        for replica in replicas.into_iter().flatten() {
            kill(replica.pid);
            let started = Instant::now();
            while is_in_use(&replica.data_dir) {
                assert!(started.elapsed() < Duration::from_secs(60), "{replica:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Logs in as the first administrator; while others' passwords are checked, again.
    pub async fn admin(&self) -> Rest {
        let password = std::fs::read_to_string(&self.ready.admin_password_file);
        let rest = Rest::new(&self.ready.gateway);
        let password = password.expect("the password file");
        let started = Instant::now();
        loop {
            let login = rest.login(&self.ready.admin_user, &password).await;
            let is_busy = matches!(&login, Err(busy) if busy.reason() == Some(reason::LOGIN_BUSY));
            if !is_busy || started.elapsed() > Duration::from_secs(60) {
                return login.expect("the administrator logs in");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log file")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
