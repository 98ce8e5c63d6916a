//! `tars certs`: the authority's files, certificates of a running mesh, and its roots.

mod local;
mod place;
mod remote;
mod revoke;
mod roots;
mod term;

use super::{
    CommandError, Global, block_on,
    mesh::{Mesh, MeshArg},
};
use crate::app::{ServiceName, ca_dir};
use clap::{Args, Subcommand};
use place::Force;
use std::{net::IpAddr, path::PathBuf, process::ExitCode};
use tars_certs::Authority;
use tars_runtime::config::Config;
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars certs init\n  tars certs issue auth --dns auth.tars.svc\n  tars certs client ci-bot --out ~/ci-bot --days 7\n  tars certs join-token automl --out automl.token\n  tars certs inspect ~/ci-bot/tls.crt\n  tars certs revoke --file ~/ci-bot/tls.crt --reason 'laptop lost'\n  tars certs revoke --id /automl --reason 'node compromised'\n  tars certs root rotate\n\nWhere the authority's files are (--data-dir) and no process works on them, issue, client,\njoin-token and bundle work on the files; else they ask the mesh that --gateway or --data-dir names,\nby the session that `tars login` made with it.\n\nPrivate keys go where --out says; without it into `identities` in the data directory."
)]
pub(crate) struct Certs {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the certificate authority in the data directory; an existing one stays as it is.
    Init,
    /// Issue an identity for a workload.
    Issue {
        /// auth, orchestration, automl, hypersync, gateway or worker; or a whole SPIFFE path.
        workload: String,
        #[command(flatten)]
        leaf: Leaf,
    },
    /// Issue an identity for an outside client, as /client/NAME.
    Client {
        /// Its name: the last part of its SPIFFE path.
        name: String,
        #[command(flatten)]
        leaf: Leaf,
    },
    /// Show the certificates in a PEM file.
    Inspect {
        /// A PEM file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List what the mesh has issued.
    List {
        /// Only this identity: a SPIFFE id or path.
        #[arg(long)]
        id: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Renew an identity's files by its own certificate, with a new key. After the roots were rotated
    /// its ca.crt comes first: `tars certs bundle --out DIR/ca.crt --force`.
    Renew {
        /// The folder with tls.crt, tls.key and ca.crt.
        #[arg(value_name = "DIR")]
        identity: PathBuf,
        /// Auth's `host:port`; that of the mesh in the data directory when left out.
        #[arg(long)]
        auth: Option<String>,
    },
    /// Cut off a certificate, of any issuer, or all of an identity: everywhere and at once.
    Revoke(revoke::Revoke),
    /// List what is cut off.
    Revoked {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Rotate the roots.
    Root {
        #[command(subcommand)]
        command: roots::Root,
    },
    /// Make a join token: one first certificate, for one identity.
    JoinToken {
        /// As for `issue`.
        workload: String,
        /// A private file; standard output when left out.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// A day at most.
        #[arg(long, default_value_t = 600, value_name = "SECONDS",
              value_parser = clap::value_parser!(u32).range(1..=86_400))]
        ttl: u32,
        #[command(flatten)]
        force: Force,
    },
    /// Write the roots that are trusted now, as PEM.
    Bundle {
        /// Standard output when left out.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        force: Force,
    },
}

impl Command {
    /// Whether it is done on the authority's files where they are at hand.
    fn works_on_files(&self) -> bool {
        matches!(
            self,
            Self::Issue { .. } | Self::Client { .. } | Self::JoinToken { .. } | Self::Bundle { .. }
        )
    }
}

#[derive(Debug, Args)]
struct Leaf {
    /// The folder for tls.crt, tls.key and ca.crt [default: identities/NAME in the data directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long it lives; cut to what its class and its issuer have, which is told [default: 30 on
    /// the authority's files, else what its class has].
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_600))]
    days: Option<u64>,
    /// A DNS name that the certificate is good for; may be given several times.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address that it is good for; may be given several times.
    #[arg(long, value_name = "ADDR")]
    ip: Vec<IpAddr>,
    #[command(flatten)]
    force: Force,
}

impl Leaf {
    /// Keys that nobody named a place for stay in the data directory, out of any source tree.
    fn folder(&self, config: &Config, path: &str) -> PathBuf {
        let own = || config.data.dir.join("identities");
        self.out
            .clone()
            .unwrap_or_else(|| own().join(path.trim_matches('/')))
    }
}

fn workload_path(config: &Config, workload: &str) -> String {
    if workload.starts_with('/') {
        workload.to_owned()
    } else {
        config.trust.path_of(workload)
    }
}

const RENEWS_AT_AUTH: &str = "`tars certs renew` asks Auth over mTLS, not the gateway: instead of --gateway name it by --auth HOST:PORT, or by a --config whose [connect] has it";

/// What works on files of this machine, and has no use for a gateway.
fn no_gateway(mesh: &Mesh, command: &str) -> Result<(), CommandError> {
    if mesh.is_named_by_gateway() {
        let text = format!("`tars certs {command}` asks no gateway; leave --gateway out");
        return Err(CommandError::Usage(text));
    }
    Ok(())
}

impl Certs {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        let mesh = global.mesh(&self.mesh)?;
        // Kept until the command ends.
        let hold = match &self.command {
            command if command.works_on_files() && !mesh.is_named_by_gateway() => {
                local::take_at_hand(&config)?
            }
            _ => None,
        };
        let at_hand = hold.is_some();
        match self.command {
            Command::Init => {
                no_gateway(&mesh, "init")?;
                local::init(&config)?;
            }
            Command::Issue { workload, leaf } => {
                let path = workload_path(&config, &workload);
                issue(&config, &mesh, at_hand, &path, leaf)?;
            }
            Command::Client { name, leaf } => {
                issue(&config, &mesh, at_hand, &format!("/client/{name}"), leaf)?;
            }
            Command::Inspect { file, json } => {
                no_gateway(&mesh, "inspect")?;
                return local::inspect(&file, json);
            }
            Command::List { id, json } => {
                block_on(remote::list(&config, &mesh, id.as_deref(), json))??;
            }
            Command::Renew { identity, auth } => {
                if mesh.is_named_by_gateway() {
                    return Err(CommandError::Usage(RENEWS_AT_AUTH.to_owned()));
                }
                let target = match auth {
                    Some(target) => target,
                    None => global.target(ServiceName::Auth, "--auth")?,
                };
                block_on(remote::renew(&config, &identity, &target))??;
            }
            Command::Revoke(revoke) => block_on(revoke.run(&config, &mesh))??,
            Command::Revoked { json } => block_on(remote::revoked(&mesh, json))??,
            Command::Root { command } => block_on(command.run(&mesh))??,
            Command::JoinToken {
                workload,
                out,
                ttl,
                force,
            } => {
                force.allows_out(out.as_deref())?;
                let path = workload_path(&config, &workload);
                let token = if at_hand {
                    local::join_token(&config, &path, ttl)?
                } else {
                    block_on(remote::join_token(&mesh, &path, ttl))??
                };
                local::hand_over(&token, out.as_deref())?;
            }
            Command::Bundle { out, force } => {
                force.allows_out(out.as_deref())?;
                let pem = if at_hand {
                    local::bundle(&config)?
                } else {
                    block_on(remote::bundle(&mesh))??
                };
                local::write_public(&pem, out.as_deref())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn issue(
    config: &Config,
    mesh: &Mesh,
    at_hand: bool,
    path: &str,
    leaf: Leaf,
) -> Result<(), CommandError> {
    if at_hand {
        return local::issue(config, path, leaf);
    }
    block_on(remote::issue(config, mesh, path, leaf))?.map_err(|e| match e {
        // Whoever has neither an authority nor a session may mean either.
        CommandError::Failed(why)
            if !mesh.is_named_by_gateway() && !Authority::exists(&ca_dir(config)) =>
        {
            CommandError::Failed(format!(
                "{why}; or make an authority in {} with `tars certs init`",
                config.data.dir.display()
            ))
        }
        other => other,
    })
}
