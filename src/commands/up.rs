//! `tars up`.

use super::{CommandError, Global, block_on, init_log};
use crate::app::{Mesh, Ready, Service};
use clap::Args;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use tars_runtime::config::{Config, leaf};
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

macro_rules! addresses {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// Where to listen; port 0 takes any free port.
        #[derive(Debug, Args, Default)]
        pub(crate) struct Addresses {
            /// Where Auth listens.
            #[arg(long = "auth-addr", value_name = "ADDR")]
            auth: Option<SocketAddr>,
            $(
                #[arg(
                    long = concat!(stringify!($name), "-addr"),
                    value_name = "ADDR",
                    help = concat!("Where ", $title, " listens"),
                )]
                $name: Option<SocketAddr>,
            )*
            /// Where the REST gateway listens.
            #[arg(long = "gateway-addr", value_name = "ADDR")]
            gateway: Option<SocketAddr>,
            /// Where the admin port listens, on loopback: certificates, policy, connections,
            /// configuration.
            #[arg(long = "admin-addr", value_name = "ADDR")]
            admin: Option<SocketAddr>,
            /// Where health and metrics are shown.
            #[arg(long = "observe-addr", value_name = "ADDR")]
            observe: Option<SocketAddr>,
            /// Where those without a certificate join with a token; off unless it is given.
            #[arg(long = "bootstrap-addr", value_name = "ADDR")]
            bootstrap: Option<SocketAddr>,
        }

        impl Addresses {
            fn given(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
                let all = [
                    ("auth", self.auth),
                    $((stringify!($name), self.$name),)*
                    ("gateway", self.gateway),
                    ("admin", self.admin),
                    ("observe", self.observe),
                    ("bootstrap", self.bootstrap),
                ];
                all.into_iter().filter_map(|(key, addr)| Some((key, addr?)))
            }
        }
    };
}
tars_certs::for_each_service!(addresses);

impl Addresses {
    pub(crate) fn flags(&self) -> Table {
        let mut listen = Table::new();
        for (key, addr) in self.given() {
            for (_, value) in leaf("listen", key, Value::String(addr.to_string())) {
                if let Value::Table(inner) = value {
                    listen.extend(inner);
                }
            }
        }
        if listen.is_empty() {
            Table::new()
        } else {
            Table::from_iter([("listen".to_owned(), Value::Table(listen))])
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flags().is_empty()
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
        let (name, url) = (service.as_str(), service.url(ready));
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
