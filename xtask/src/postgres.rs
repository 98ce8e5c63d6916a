//! A PostgreSQL server of the tests' and benchmarks' own: in a temporary folder, reached by a Unix socket there, and
//! gone with it. No server of the machine is used.

use crate::{Outcome, tools};
use std::{
    io::Write,
    net::TcpListener,
    os::unix::{
        fs::{OpenOptionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A minute.
const MOST_LOOKS: u32 = 1200;
const LOOK: Duration = Duration::from_millis(50);

/// The environment variable by which tests find the programs of servers of their own.
pub(crate) const PROGRAMS: &str = "TARS_TEST_POSTGRES_PROGRAMS";

/// The server; ended when this is dropped.
pub(crate) struct Server {
    programs: PathBuf,
    process: Child,
    folder: TempDir,
    port: u16,
}

const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";
/// Of the role that logs in by TCP, on a server that is gone with the tests.
pub(crate) const PASSWORD: &str = "a password of the tests";

/// Whether a commit survives a power cut.
#[derive(Clone, Copy)]
enum Durability {
    /// For tests, which only read what they have written.
    Off,
    /// As in production.
    On,
}

impl Server {
    /// Starts a server for tests. PostgreSQL is installed if it is missing.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_from(&programs()?, Durability::Off)
    }

    /// Starts a server for benchmarks, whose commits are durable; `None` on a machine without PostgreSQL.
    pub(crate) fn start_durable() -> Result<Option<Self>, String> {
        let start = |programs: PathBuf| Self::start_from(&programs, Durability::On);
        installed().map(start).transpose()
    }

    /// Makes an empty cluster and starts a server on it, as a user without rights: PostgreSQL refuses
    /// to run as root.
    fn start_from(programs: &Path, durability: Durability) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("tars-pg").tempdir();
        let folder = folder.map_err(|e| e.to_string())?;
        let data = folder.path().join("data");
        let user = User::for_servers()?;
        user.give(folder.path())?;
        let tls = Tls::write(folder.path(), &user)?;
        let mut initdb = user.command(&programs.join("initdb"), folder.path());
        initdb.arg("-D").arg(&data).args([
            "--username=tars",
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
            "--no-sync",
        ]);
        tools::run(initdb.stdout(Stdio::null()))?;
        // By TCP only with TLS and a password.
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).map_err(|e| e.to_string())?;
        let mut postgres = user.command(&programs.join("postgres"), folder.path());
        postgres.arg("-D").arg(&data);
        let at = folder.path().display();
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("port={}", tls.port),
            &format!("unix_socket_directories={at}"),
            "ssl=on",
            &format!("ssl_cert_file={at}/{CERTIFICATE}"),
            &format!("ssl_key_file={at}/{KEY}"),
            durability.setting(),
            "max_connections=600",
            "shared_buffers=64MB",
        ] {
            postgres.args(["-c", setting]);
        }
        let log = std::fs::File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let process = postgres.stdout(Stdio::null()).stderr(log).spawn();
        let process = process.map_err(|e| format!("postgres: {e}"))?;
        let mut server = Self {
            programs: programs.to_owned(),
            process,
            folder,
            port: tls.port,
        };
        server.until_ready(programs)?;
        server.add_role(programs)?;
        Ok(server)
    }

    /// The folder of the server's programs.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// As `database.url` takes it.
    pub(crate) fn url(&self) -> String {
        let socket = self.folder.path().display();
        let port = self.port;
        format!("postgresql://tars@localhost:{port}/postgres?host={socket}")
    }

    /// The same server by TLS, for the role that has a password.
    pub(crate) fn tls_url(&self) -> String {
        let port = self.port;
        format!("postgresql://remote@localhost:{port}/postgres?sslmode=verify-full")
    }

    /// The authority of the server's certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join(CERTIFICATE)
    }

    /// The role that logs in by TCP.
    fn add_role(&self, programs: &Path) -> Outcome {
        let role = format!("CREATE ROLE remote SUPERUSER LOGIN PASSWORD '{PASSWORD}'");
        let mut psql = Command::new(programs.join("psql"));
        psql.arg("--host").arg(self.folder.path());
        psql.args(["--port", &self.port.to_string()]);
        psql.args([
            "--username=tars",
            "--dbname=postgres",
            "--quiet",
            "--command",
            &role,
        ]);
        tools::read(&mut psql).map(drop)
    }

    fn until_ready(&mut self, programs: &Path) -> Outcome {
        for _ in 0..MOST_LOOKS {
            let mut ask = Command::new(programs.join("pg_isready"));
            ask.arg("--quiet").arg("--host").arg(self.folder.path());
            ask.args(["--port", &self.port.to_string()]);
            if ask.status().is_ok_and(|s| s.success()) {
                return Ok(());
            }
            let ended = self.process.try_wait().map_err(|e| e.to_string())?;
            if ended.is_some() {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let log = std::fs::read_to_string(self.folder.path().join("log"));
        let log = log.unwrap_or_default();
        Err(format!("postgres does not start: {log}"))
    }
}

impl Durability {
    fn setting(self) -> &'static str {
        match self {
            Self::Off => "fsync=off",
            Self::On => "fsync=on",
        }
    }
}

impl Drop for Server {
    /// A fast shutdown, so that its processes are gone when this returns.
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let asked = Command::new("kill").args(["-INT", &pid]).status();
        if !asked.is_ok_and(|s| s.success()) {
            self.process.kill().ok();
        }
        self.process.wait().ok();
    }
}

/// What the server needs to be reached by TLS.
struct Tls {
    port: u16,
}

impl Tls {
    /// A certificate for `localhost` that is its own authority, and a port that is free now.
    fn write(folder: &Path, user: &User) -> Result<Self, String> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.map_err(|e| e.to_string())?;
        let key = made.signing_key.serialize_pem();
        for (name, text) in [(CERTIFICATE, made.cert.pem()), (KEY, key)] {
            let path = folder.join(name);
            let mut file = std::fs::File::options();
            let file = file.write(true).create_new(true).mode(0o600).open(&path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            written.map_err(|e| format!("{}: {e}", path.display()))?;
            user.give(&path)?;
        }
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let port = free.map_err(|e| e.to_string())?.port();
        Ok(Self { port })
    }
}

/// Whom the server runs as.
enum User {
    /// As this process.
    Own,
    /// This process is root.
    Other { uid: u32, gid: u32 },
}

impl User {
    fn for_servers() -> Result<Self, String> {
        let id = |args: &[&str]| -> Result<u32, String> {
            let text = tools::read(Command::new("id").args(args))?;
            text.trim().parse().map_err(|e| format!("id: {e}"))
        };
        if id(&["-u"])? != 0 {
            return Ok(Self::Own);
        }
        Ok(Self::Other {
            uid: id(&["-u", "nobody"])?,
            gid: id(&["-g", "nobody"])?,
        })
    }

    fn give(&self, folder: &Path) -> Outcome {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid } => {
                chown(folder, Some(*uid), Some(*gid)).map_err(|e| e.to_string())
            }
        }
    }

    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder);
        if let Self::Other { uid, gid } = self {
            command.uid(*uid).gid(*gid);
        }
        command
    }
}

/// The folder of the server's programs, which Debian keeps out of the path.
pub(crate) fn programs() -> Result<PathBuf, String> {
    if let Some(found) = installed() {
        return Ok(found);
    }
    let missing = "PostgreSQL is missing; on Debian: apt-get install postgresql";
    // Without a cluster of the machine's.
    let install =
        "apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends postgresql";
    let mut apt = Command::new("sh");
    apt.args(["-c", install]);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.env("RUNLEVEL", "1");
    tools::run(&mut apt).map_err(|e| format!("{missing} ({e})"))?;
    installed().ok_or_else(|| missing.to_owned())
}

/// The newest version that is there.
fn installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let debian = versions.flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_server = |folder: &PathBuf| {
        ["initdb", "postgres", "pg_isready", "psql"]
            .iter()
            .all(|program| folder.join(program).exists())
    };
    let version = |folder: &PathBuf| -> u32 {
        let name = folder.parent().and_then(Path::file_name);
        name.and_then(|n| n.to_str()?.parse().ok()).unwrap_or(0)
    };
    let newest = debian.filter(has_server).max_by_key(version);
    newest.or_else(|| std::env::split_paths(&path).find(has_server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "installs PostgreSQL: run by cargo xtask test"]
    fn a_server_answers_and_is_gone_with_its_folder() {
        let server = Server::start().unwrap();
        let folder = server.folder.path().to_owned();
        let socket = folder.join(format!(".s.PGSQL.{}", server.port));
        assert!(socket.exists() && server.url().ends_with(folder.to_str().unwrap()));
        drop(server);
        assert!(!folder.exists(), "nor is a process left that writes there");
    }
}
