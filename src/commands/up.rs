//! `tars up`.

use super::{CommandError, Global, block_on, init_log};
use crate::app::{Mesh, Ready, Service};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitCode};
use tars_runtime::config::Config;
use tokio::signal::unix::{SignalKind, signal};
use toml::{Table, Value};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars up\n  tars up --data-dir /var/lib/tars --gateway-addr 127.0.0.1:0 --ready-file ready.json"
)]
pub(crate) struct Up {
    #[command(flatten)]
    addresses: Addresses,
    /// Written whole once everything serves: JSON with every address and the operator's identity.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
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
        init_log(&config)?;
        block_on(self.serve(config))?
    }

    async fn serve(self, config: Config) -> Result<ExitCode, CommandError> {
        let own = Ready::default_path(&config.data.dir);
        let mut signals = Signals::new()?;
        let mesh = Mesh::start(config).await?;
        for path in [Some(own.clone()), self.ready_file].into_iter().flatten() {
            mesh.ready
                .save(&path)
                .map_err(|e| CommandError::file(&path, e))?;
        }
        announce(&mesh.ready);
        signals.wait().await;
        tracing::info!("stopping; a second signal stops at once");
        tokio::select! {
            () = mesh.stop() => {}
            () = signals.wait() => return Ok(ExitCode::from(130)),
        }
        // A mesh that is gone must not be found.
        std::fs::remove_file(&own).map_err(|e| CommandError::file(&own, e))?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn announce(ready: &Ready) {
    note!("TARS is ready");
    note!("  REST and OpenAPI  {0}  ({0}/openapi.json)", ready.gateway);
    for service in Service::over_tls() {
        let (name, url) = (service.as_str(), ready.url(service));
        note!("  {name:<16}  {url}  (gRPC, mTLS)");
    }
    note!("  metrics, probes   {}", ready.observe);
    note!("  admin             {}", ready.admin);
    note!("  operator identity {}", ready.client_cert.display());
    note!(
        "  user {} with the password in {}",
        ready.admin_user,
        ready.admin_password_file.display()
    );
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
}
