//! `tars db`: the databases of a mesh, and backups of all that it keeps.

mod migrate;
mod status;

use super::{CommandError, Global, block_on};
use crate::app::backup::{self, BackupError, Engine, Manifest, Stop};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tars_runtime::config::Config;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars db status\n  tars db backup tars-backup.tar\n  tars db restore tars-backup.tar --data-dir /var/lib/tars"
)]
pub(crate) struct Database {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show where each service's database is, its schema, its tables and its size.
    #[command(
        after_help = "Examples:\n  tars db status\n  tars db status --data-dir /var/lib/tars --json\n\nExits with 1 when a database is missing, does not answer, or has a schema that this version does not work on."
    )]
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Bring older schemas up to date; the mesh must be stopped.
    #[command(
        after_help = "Examples:\n  tars db migrate\n  tars db migrate --config tars.toml --json"
    )]
    Migrate {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write databases, certificate authority, keys and blobs to one file; the mesh may run.
    #[command(
        after_help = "Examples:\n  tars db backup tars-backup.tar\n  tars db backup /backups/tars.tar --data-dir /var/lib/tars --json\n\nThe file holds every secret of the mesh, also the private keys of its authority: keep it as safe as the\ndata directory. It is readable by its owner alone.\n\nWith database.url, all schemas of the mesh are copied as they are at one moment, with their blobs, and\nnothing of a data directory. The secrets among them are sealed by the key in credentials.seal_key_file,\nwhich is NOT in the file: keep a copy of that key elsewhere. Without it the backup is of no use."
    )]
    Backup {
        /// The file to write, a tar archive; it must not exist.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Restore a backup into a new data directory or into PostgreSQL, after all of it was verified.
    #[command(
        after_help = "Examples:\n  tars db restore tars-backup.tar --data-dir /var/lib/tars\n  tars db restore tars-backup.tar --data-dir ./copy --json\n\nThe directory must be empty, or not exist. Do not start a mesh on it while the one that was backed up\nruns: both have the same authority and the same keys.\n\nWith database.url, databases and blobs go to the server, in one transaction, whose schemas of the mesh must\nbe absent or without tables. The rest of a backup from SQLite becomes the data directory: start the first\nprocess on it, which puts the certificate authority into the database. This is the way\nfrom SQLite to PostgreSQL: stop the mesh, back up, set database.url, restore, start.\n\nA mesh that was backed up from PostgreSQL needs the key that sealed its secrets, in\ncredentials.seal_key_file or DIR/auth/seal.key, before it is started, on either engine."
    )]
    Restore {
        /// The file that `tars db backup` wrote.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Interrupted => Self::Interrupted,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Database {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        let progress = |step: &str| note!("{step}");
        block_on(async {
            match self.command {
                Command::Status { json } => Ok(status::show(&config, json).await),
                Command::Migrate { json } => migrate::migrate(&config, json).await,
                Command::Backup { file, json } => {
                    let (of_work, to) = (config.clone(), file.clone());
                    let take = async move |stop| backup::take(&of_work, &to, &stop, progress).await;
                    let taken = interruptible(take).await?;
                    for path in &taken.left_out {
                        note!("left out: {} is no file", path.display());
                    }
                    report(&taken.manifest, &file, "backed up to", json);
                    note!("{}", what_to_keep(taken.manifest.engine, &config));
                    Ok(ExitCode::SUCCESS)
                }
                Command::Restore { file, json } => {
                    let of_work = config.clone();
                    let restore =
                        async move |stop| backup::restore(&of_work, &file, &stop, progress).await;
                    let manifest = interruptible(restore).await?;
                    report(&manifest, &config.data.dir, "restored to", json);
                    if let Some(advice) = how_to_start(manifest.engine, &config) {
                        note!("{advice}");
                    }
                    Ok(ExitCode::SUCCESS)
                }
            }
        })?
    }
}

fn what_to_keep(engine: Engine, config: &Config) -> &'static str {
    let key = config.credentials.seal_key_file.as_deref();
    let is_elsewhere = key.is_some_and(|key| !key.starts_with(&config.data.dir));
    match engine {
        Engine::Sqlite if !is_elsewhere => {
            "the file holds every secret of the mesh: keep it as safe as its keys"
        }
        _ => {
            "the key that seals the secrets in it (credentials.seal_key_file) is NOT in the file: keep a \
             copy of that key elsewhere, without it the backup is of no use"
        }
    }
}

/// What there is to know before a mesh is started on what was restored.
fn how_to_start(engine: Engine, config: &Config) -> Option<String> {
    let data = config.data.dir.display();
    match (engine, config.database.is_server()) {
        (Engine::Sqlite, false) => None,
        (Engine::Sqlite, true) => Some(format!(
            "start the first process on {data}: it puts the certificate authority \
             into the database"
        )),
        (Engine::Postgresql, _) => Some(format!(
            "the mesh needs the key that sealed its secrets, in credentials.seal_key_file or \
             {data}/auth/seal.key"
        )),
    }
}

/// Runs work that a signal stops, and waits until it has removed what it made. The work blocks, and is
/// on a thread of its own.
async fn interruptible<T: Send + 'static>(
    work: impl AsyncFnOnce(Stop) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, CommandError> {
    // Before the work: until then a signal ends the process, with nothing to remove.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::Runtime)?;
    let stop = Stop::default();
    let (of_work, runtime) = (stop.clone(), Handle::current());
    let mut working = spawn_blocking(move || runtime.block_on(work(of_work)));
    let done = tokio::select! {
        done = &mut working => Some(done),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    let done = match done {
        Some(done) => done,
        None => {
            stop.request();
            working.await
        }
    };
    let done = done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    done.map_err(Into::into)
}

fn report(manifest: &Manifest, place: &Path, done: &str, json: bool) {
    if json {
        say!("{:#}", to_json(manifest, place));
        return;
    }
    for service in &manifest.services {
        let rows: i64 = service.tables.values().sum();
        say!("{}: schema {}, {rows} rows", service.name, service.schema);
    }
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let files = manifest.files.len();
    say!("{done} {}: {files} files, {}", place.display(), size(bytes));
}

fn to_json(manifest: &Manifest, place: &Path) -> Value {
    json!({
        "place": place,
        "made_by": manifest.made_by,
        "made_at_s": manifest.made_at_s,
        "engine": manifest.engine,
        "services": manifest.services,
        "files": manifest.files.len(),
        "bytes": manifest.files.iter().map(|file| file.bytes).sum::<u64>(),
    })
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{amount:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_in_the_backup_is_named() {
        let config = |key: Option<&str>| {
            let mut config = Config::default();
            config.data.dir = "/data".into();
            config.credentials.seal_key_file = key.map(Into::into);
            config
        };
        for (engine, key, is_in_it) in [
            (Engine::Sqlite, None, true),
            (Engine::Sqlite, Some("/data/auth/seal.key"), true),
            (Engine::Sqlite, Some("/etc/tars/seal.key"), false),
            (Engine::Postgresql, None, false),
            (Engine::Postgresql, Some("/data/auth/seal.key"), false),
        ] {
            let text = what_to_keep(engine, &config(key));
            assert_eq!(text.contains("is NOT in the file"), !is_in_it, "{key:?}");
        }
    }

    #[tokio::test]
    async fn a_signal_stops_the_work_which_ends_by_itself() {
        use rustix::process::{Signal, getpid, kill_process};
        use std::sync::Arc;
        for signal in [Signal::TERM, Signal::INT] {
            // Held by the work until it has ended.
            let held = Arc::new(());
            let of_work = held.clone();
            let done = interruptible(async move |stop: Stop| {
                let _held = of_work;
                kill_process(getpid(), signal).unwrap();
                loop {
                    stop.check()?;
                    std::thread::yield_now();
                }
                #[expect(unreachable_code, reason = "the type of the result")]
                Ok(())
            });
            let done = done.await;
            assert!(matches!(done, Err(CommandError::Interrupted)));
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }

    #[test]
    fn an_empty_url_needs_no_advice_about_a_server() {
        let mut config = Config::default();
        for (url, is_server) in [
            (None, false),
            (Some(""), false),
            (Some("postgresql://"), true),
        ] {
            config.database.url = url.map(Into::into);
            let advice = how_to_start(Engine::Sqlite, &config);
            assert_eq!(advice.is_some(), is_server, "{url:?}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
