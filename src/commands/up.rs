//! `tars up`.

use super::{CommandError, Global, block_on, init_log_of};
use crate::app::{Mesh, Ready, Replicas, Service};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tars_runtime::{clock::Clock, config::Config};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use toml::{Table, Value};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars up\n  tars up --data-dir /var/lib/tars --gateway-addr 127.0.0.1:0 --ready-file ready.json\n  tars up --replicas 2 --config replicated.toml"
)]
pub(crate) struct Up {
    #[command(flatten)]
    addresses: Addresses,
    /// Written whole once everything serves: JSON with every address and the operator's identity.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Run this many replicas of every service, each in a process of its own; more than one needs
    /// database.url. Replica K listens 10 x (K - 1) ports above the addresses that are set, or on free
    /// ports where those are 0, and has its data in replicas/K of the data directory.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=16))]
    replicas: u32,
    /// Serve as this one of several replicas; set by the process that supervises them.
    #[arg(long, value_name = "K", hide = true, conflicts_with = "replicas")]
    replica: Option<u32>,
}

/// Where to listen: the flags `--NAME-addr`, one for each listener; port 0 takes any free port.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    /// By the listener's key in the section `listen`.
    given: BTreeMap<String, SocketAddr>,
}

/// The listeners by their keys in the section `listen`, each with the help of its flag.
fn listeners() -> impl Iterator<Item = (&'static str, String)> {
    let service = |s: &Service| (s.as_str(), format!("Where {} listens", s.title()));
    let others = [
        (
            "admin",
            "Where the admin port listens, on loopback: certificates, policy, connections, configuration",
        ),
        ("observe", "Where health and metrics are shown"),
        (
            "bootstrap",
            "Where those without a certificate join with a token; off unless it is given",
        ),
    ];
    let others = others.map(|(key, help)| (key, help.to_owned()));
    Service::ALL.iter().map(service).chain(others)
}

impl Args for Addresses {
    fn augment_args(command: Command) -> Command {
        command.args(listeners().map(|(key, help)| {
            Arg::new(key)
                .long(format!("{key}-addr"))
                .value_name("ADDR")
                .value_parser(value_parser!(SocketAddr))
                .help(help)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Addresses {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all = Self::default();
        all.update_from_arg_matches(matches)?;
        Ok(all)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (key, _) in listeners() {
            if let Some(addr) = matches.get_one(key) {
                self.given.insert(key.to_owned(), *addr);
            }
        }
        Ok(())
    }
}

impl Addresses {
    pub(crate) fn flags(&self) -> Table {
        if self.given.is_empty() {
            return Table::new();
        }
        let value = |addr: &SocketAddr| Value::String(addr.to_string());
        let listen: Table = self
            .given
            .iter()
            .map(|(k, a)| (k.clone(), value(a)))
            .collect();
        Table::from_iter([("listen".to_owned(), Value::Table(listen))])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }
}

impl Up {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(self.addresses.flags())?;
        init_log_of(&config, self.replica)?;
        match (self.replica, self.replicas) {
            (Some(_), _) => block_on(replica(config))?,
            (None, 1) => block_on(self.serve(config))?,
            (None, _) if !config.database.is_server() => Err(CommandError::Usage(
                "--replicas needs a database that all of them can use: set database.url, as in \
                 TARS__DATABASE__URL='postgresql://USER@localhost/NAME?host=/var/run/postgresql'"
                    .to_owned(),
            )),
            (None, _) => block_on(self.supervise(config))?,
        }
    }

    /// Writes where the mesh is, for other commands and for whoever asked for it.
    fn save(&self, ready: &Ready, own: &Path) -> Result<(), CommandError> {
        for path in [Some(own), self.ready_file.as_deref()]
            .into_iter()
            .flatten()
        {
            ready.save(path).map_err(|e| CommandError::file(path, e))?;
        }
        Ok(())
    }

    async fn serve(self, config: Config) -> Result<ExitCode, CommandError> {
        let own = Ready::default_path(&config.data.dir);
        let mut signals = Signals::new()?;
        let mesh = Mesh::start(config).await?;
        self.save(&mesh.ready, &own)?;
        announce(&mesh.ready);
        signals.wait().await;
        match signals.unless_again(mesh.stop()).await {
            true => gone(&own),
            false => Ok(ExitCode::from(130)),
        }
    }

    /// Supervises several replicas, each in a process of its own.
    async fn supervise(self, config: Config) -> Result<ExitCode, CommandError> {
        let own = Ready::default_path(&config.data.dir);
        let mut signals = Signals::new()?;
        let mut replicas = tokio::select! {
            started = Replicas::start(&config, self.replicas) => started?,
            () = signals.wait() => return Ok(ExitCode::from(130)),
        };
        if let Some(ready) = replicas.ready() {
            self.save(&ready, &own)?;
            announce(&ready);
        }
        loop {
            tokio::select! {
                () = signals.wait() => break,
                () = replicas.supervise() => {}
            }
            let saved = replicas.ready().map(|ready| self.save(&ready, &own));
            if let Some(Err(error)) = saved {
                tracing::error!(%error, "the ready file cannot be written");
            }
        }
        match signals.unless_again(replicas.stop()).await {
            true => gone(&own),
            false => Ok(ExitCode::from(130)),
        }
    }
}

/// A mesh that is gone must not be found.
fn gone(ready: &Path) -> Result<ExitCode, CommandError> {
    match std::fs::remove_file(ready) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CommandError::file(ready, e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Serves as one replica of several, until a signal or the end of the supervisor.
async fn replica(config: Config) -> Result<ExitCode, CommandError> {
    let own = Ready::default_path(&config.data.dir);
    let mut signals = Signals::new()?;
    let mut end = Box::pin(supervisor_ended());
    let mesh = tokio::select! {
        started = Mesh::start_replica(config, Clock::system()) => started?,
        () = &mut end => return Ok(ExitCode::SUCCESS),
    };
    mesh.ready
        .save(&own)
        .map_err(|e| CommandError::file(&own, e))?;
    say!("{}", serde_json::json!(mesh.ready));
    tokio::select! {
        () = signals.wait() => {}
        () = end => {}
    }
    match signals.unless_again(mesh.stop()).await {
        true => gone(&own),
        false => Ok(ExitCode::from(130)),
    }
}

/// Returns when standard input is closed: the supervisor stops its replicas, or has ended itself. A thread
/// of the runtime's own that reads would keep the process from ending.
fn supervisor_ended() -> impl Future<Output = ()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An error is the end, too.
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        ended.send(()).ok();
    });
    async {
        end.await.ok();
    }
}

pub(crate) fn announce(ready: &Ready) {
    match ready.replicas.len() {
        0 => note!("TARS is ready"),
        count => note!("TARS is ready, with {count} replicas; the first one's addresses are"),
    }
    note!("  REST and OpenAPI  {0}  ({0}/openapi.json)", ready.gateway);
    for service in Service::over_tls() {
        let (name, url) = (service.as_str(), ready.url(service));
        note!("  {name:<16}  {url}  (gRPC, mTLS)");
    }
    note!("  metrics, probes   {}", ready.observe);
    note!("  admin             {}", ready.admin);
    note!("  operator identity {}", ready.client_cert.display());
    // After a move to another data directory, or once somebody has removed it, it is not there.
    if ready.admin_password_file.is_file() {
        note!(
            "  user {} with the password in {}",
            ready.admin_user,
            ready.admin_password_file.display()
        );
    }
    for replica in ready.replicas.iter().skip(1) {
        let (number, url) = (replica.number, |key| {
            replica.urls.get(key).map_or("", String::as_str)
        });
        note!(
            "  replica {number:<10}{}  (metrics, probes {})",
            url("gateway"),
            url("observe")
        );
    }
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, CommandError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(CommandError::Runtime)?,
            terminate: signal(SignalKind::terminate()).map_err(CommandError::Runtime)?,
        })
    }

    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits until everything has stopped, unless a signal comes meanwhile: then it returns `false`, and the process
    /// ends as it is.
    pub(crate) async fn unless_again(&mut self, stops: impl Future<Output = ()>) -> bool {
        tracing::info!("stopping; another signal stops at once");
        tokio::select! {
            () = stops => true,
            () = self.wait() => {
                tracing::warn!("another signal: stopped at once, and calls that were served are cut");
                false
            }
        }
    }
}
