//! The real binary as a process of its own: started by a test, and ended with it.

use crate::fleet::free_ports;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};
use tars::{app::Ready, rest::Rest};
use tars_certs::secret;
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

    /// SIGKILL; returns once the process is gone.
    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }

    /// Waits for the process to end by itself; returns its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.0.wait().expect("the process is a child").code()
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
}

impl Up {
    /// `tars` is the binary, with whatever is in front of its arguments; `data` the data directory,
    /// which is created when it does not exist.
    pub fn new(tars: Command, data: &Path) -> Self {
        Self {
            command: tars,
            data: data.to_owned(),
            gateway: None,
        }
    }

    /// Lifts the rate limits that a test runs into, which is all one client.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        for class in ["AUTH", "PUBLIC", "USER"] {
            let limit = format!("TARS__LIMITS__{class}_PER_MINUTE");
            self.command.env(limit, "1000000");
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
        command.envs(tars_test_db::variables(&self.data));
        command.arg("up").arg("--data-dir").arg(&self.data);
        command.arg("--ready-file").arg(&ready_file);
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
}

impl Running {
    /// Logs in as the first administrator.
    pub async fn admin(&self) -> Rest {
        let password = std::fs::read_to_string(&self.ready.admin_password_file);
        let rest = Rest::new(&self.ready.gateway);
        let password = password.expect("the password file");
        let login = rest.login(&self.ready.admin_user, &password).await;
        login.expect("the administrator logs in")
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log file")
    }
}
