//! A PostgreSQL server of a test's own: killed, restarted and frozen as the test wants it. It is reached by
//! a Unix socket.

use crate::{fleet::free_addr, process::Started};
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::{
    fs::File,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tars_runtime::config::Database;
use tempfile::TempDir;
use tokio::time::Instant;

/// The environment variable that names the folder of the server's programs, as `cargo xtask test` sets it.
pub const PROGRAMS: &str = "TARS_TEST_POSTGRES_PROGRAMS";
/// The user whom the server runs as where the tests run as root, which it refuses.
const NOBODY: u32 = 65534;

/// A server with an empty database. It ends (SIGKILL) when this is dropped.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    port: u16,
    process: Option<Started>,
}

fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os(PROGRAMS).expect("the folder is named in the environment");
    Path::new(&folder).join(name)
}

impl Postgres {
    /// Makes an empty cluster, and starts a server on it.
    ///
    /// # Panics
    ///
    /// If [`PROGRAMS`] does not name a folder with a server.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        if getuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root may give it away");
        }
        let mut this = Self {
            folder,
            port: free_addr().port(),
            process: None,
        };
        let mut initdb = this.command("initdb");
        initdb.arg("-D").arg(this.data()).args([
            "--username=tars",
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
            "--no-sync",
        ]);
        let made = initdb.stdout(Stdio::null()).status();
        assert!(made.is_ok_and(|status| status.success()), "initdb");
        this.start_again();
        this
    }

    /// Starts the server where it was.
    ///
    /// # Panics
    ///
    /// If it does not serve within a minute.
    pub fn start_again(&mut self) {
        self.process = None;
        let log = File::create(self.folder.path().join("log")).expect("a log file");
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data());
        for setting in [
            "listen_addresses=",
            &format!("port={}", self.port),
            &format!("unix_socket_directories={}", self.folder.path().display()),
            "fsync=off",
            "max_connections=200",
            "shared_buffers=64MB",
        ] {
            postgres.args(["-c", setting]);
        }
        self.process = Some(Started::new(postgres.stdout(Stdio::null()).stderr(log)));
        let started = Instant::now();
        while !self.is_ready() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "{}",
                self.logged()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        let mut ask = self.command("pg_isready");
        ask.arg("--quiet").arg("--host").arg(self.folder.path());
        ask.args(["--port", &self.port.to_string()]);
        ask.status().is_ok_and(|status| status.success())
    }

    /// Ends the server (SIGQUIT): its connections are gone, and nothing was shut down in order.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        self.signal(process.id(), Signal::QUIT);
        process.exit_code();
    }

    /// Ends every connection; the server goes on.
    ///
    /// # Panics
    ///
    /// If the server does not respond.
    pub fn cut(&self) {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        let mut psql = self.command("psql");
        psql.arg("--host").arg(self.folder.path());
        psql.args(["--port", &self.port.to_string(), "--username=tars"]);
        psql.args(["--dbname=postgres", "--quiet", "--command", cut]);
        let done = psql.stdout(Stdio::null()).status();
        assert!(done.is_ok_and(|status| status.success()), "psql");
    }

    /// SIGSTOP to every process of the server: connections stay open, and nothing is answered.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    /// The server, then the processes that it has started. A process that it starts meanwhile hangs for
    /// want of the server, or of what the others hold.
    fn signal_all(&self, signal: Signal) {
        let server = self.process.as_ref().expect("the server runs").id();
        self.signal(server, signal);
        let children = format!("/proc/{server}/task/{server}/children");
        let children = std::fs::read_to_string(children).expect("the server's processes");
        for child in children.split_whitespace() {
            self.signal(child.parse().expect("a process id"), signal);
        }
    }

    fn signal(&self, id: u32, signal: Signal) {
        let id = i32::try_from(id).ok().and_then(Pid::from_raw);
        // A process of a connection may have ended.
        kill_process(id.expect("a process id"), signal).ok();
    }

    /// What a process needs in its configuration to use the server.
    pub fn settings(&self) -> Database {
        Database {
            url: Some(self.url()),
            ..Database::default()
        }
    }

    /// As `database.url` takes it.
    pub fn url(&self) -> String {
        let (port, socket) = (self.port, self.folder.path().display());
        format!("postgresql://tars@localhost:{port}/postgres?host={socket}")
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.current_dir(self.folder.path());
        if getuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.thaw();
            self.kill();
        }
    }
}
