//! A PostgreSQL server of the tests' own: in a temporary folder, reached by a Unix socket there, and
//! gone with it. No server of the machine is used.

use crate::{Outcome, tools};
use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A minute.
const MOST_LOOKS: u32 = 1200;
const LOOK: Duration = Duration::from_millis(50);

/// The server; ended when this is dropped.
pub(crate) struct Server {
    process: Child,
    folder: TempDir,
}

impl Server {
    /// Makes an empty cluster and starts a server on it, as a user without rights: PostgreSQL refuses
    /// to run as root.
    pub(crate) fn start() -> Result<Self, String> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("tars-pg").tempdir();
        let folder = folder.map_err(|e| e.to_string())?;
        let data = folder.path().join("data");
        let user = User::for_servers()?;
        user.give(folder.path())?;
        let mut initdb = user.command(&programs.join("initdb"), folder.path());
        initdb.arg("-D").arg(&data).args([
            "--username=tars",
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
            "--no-sync",
        ]);
        tools::run(initdb.stdout(Stdio::null()))?;
        let mut postgres = user.command(&programs.join("postgres"), folder.path());
        postgres.arg("-D").arg(&data);
        let socket = format!("unix_socket_directories={}", folder.path().display());
        for setting in [
            "listen_addresses=",
            &socket,
            "fsync=off",
            "max_connections=600",
            "shared_buffers=64MB",
        ] {
            postgres.args(["-c", setting]);
        }
        let log = std::fs::File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let process = postgres.stdout(Stdio::null()).stderr(log).spawn();
        let process = process.map_err(|e| format!("postgres: {e}"))?;
        let mut server = Self { process, folder };
        server.until_ready(&programs)?;
        Ok(server)
    }

    /// As `database.url` takes it.
    pub(crate) fn url(&self) -> String {
        let socket = self.folder.path().display();
        format!("postgresql://tars@localhost/postgres?host={socket}")
    }

    fn until_ready(&mut self, programs: &Path) -> Outcome {
        for _ in 0..MOST_LOOKS {
            let mut ask = Command::new(programs.join("pg_isready"));
            ask.arg("--quiet").arg("--host").arg(self.folder.path());
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
fn programs() -> Result<PathBuf, String> {
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
        ["initdb", "postgres", "pg_isready"]
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
        let socket = folder.join(".s.PGSQL.5432");
        assert!(socket.exists() && server.url().ends_with(folder.to_str().unwrap()));
        drop(server);
        assert!(!folder.exists(), "nor is a process left that writes there");
    }
}
