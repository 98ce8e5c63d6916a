//! `tars certs`: the authority's files, certificates of a running mesh, and its roots.

mod inspect;
mod list;
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
use crate::app::{Service, ca_dir};
use clap::{Args, Subcommand};
use local::Token;
pub(super) use local::class;
use place::Force;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};
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
    #[command(
        after_help = "Examples:\n  tars certs init\n  tars certs init --data-dir /var/lib/tars"
    )]
    Init,
    /// Issue an identity for a workload.
    #[command(
        after_help = "Examples:\n  tars certs issue auth --dns auth.tars.svc\n  tars certs issue /user/ada --out ~/ada --days 7"
    )]
    Issue {
        #[arg(help = workload_help())]
        workload: String,
        #[command(flatten)]
        leaf: Leaf,
    },
    /// Issue an identity for an outside client, as /client/NAME.
    #[command(after_help = "Example:\n  tars certs client ci-bot --out ~/ci-bot --days 7")]
    Client {
        /// Its name: the last part of its SPIFFE path.
        name: String,
        #[command(flatten)]
        leaf: Leaf,
    },
    /// Show the certificates in a PEM file.
    #[command(after_help = "Example:\n  tars certs inspect ~/ci-bot/tls.crt")]
    Inspect {
        /// A PEM file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the certificates that the mesh has issued and that peers accept.
    #[command(after_help = "Examples:\n  tars certs list\n  tars certs list --id /automl --all")]
    List(list::List),
    /// Renew an identity's files with a new key, authenticated by the certificate in them. After a
    /// rotation of the roots, fetch ca.crt first: `tars certs bundle --out DIR/ca.crt --force`.
    #[command(
        after_help = "Examples:\n  tars certs renew ~/ci-bot\n  tars certs renew ~/ci-bot --auth 10.0.0.7:8093"
    )]
    Renew {
        /// The folder with tls.crt, tls.key and ca.crt.
        #[arg(value_name = "DIR")]
        identity: PathBuf,
        /// Auth's `host:port`; that of the mesh in the data directory when left out.
        #[arg(long)]
        auth: Option<String>,
    },
    /// Cut off a certificate, of any issuer, or all of an identity: everywhere and at once.
    #[command(
        after_help = "Examples:\n  tars certs revoke --file ~/ci-bot/tls.crt --reason 'laptop lost'\n  tars certs revoke --id /automl --reason 'node compromised' --yes"
    )]
    Revoke(revoke::Revoke),
    /// List what is cut off.
    #[command(after_help = "Example:\n  tars certs revoked")]
    Revoked {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Rotate the roots.
    #[command(after_help = "Examples:\n  tars certs root status\n  tars certs root rotate --yes")]
    Root {
        #[command(subcommand)]
        command: roots::Root,
    },
    /// Make a join token: one first certificate, for one identity.
    #[command(
        after_help = "Examples:\n  tars certs join-token automl --out automl.token\n  tars certs join-token gateway --ttl 3600"
    )]
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
    #[command(after_help = "Example:\n  tars certs bundle --out ~/ci-bot/ca.crt --force")]
    Bundle {
        /// Standard output when left out.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        force: Force,
    },
}

impl Command {
    /// Whether the command works on the authority's files where no process uses them.
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
    /// Its lifetime, at most that of its class and of its issuer; a shorter one is reported [default: 30 on
    /// the authority's files, else that of its class].
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
    /// Keys without an `--out` stay in the data directory, out of any source tree.
    fn folder(&self, config: &Config, path: &str) -> PathBuf {
        let own = || config.data.dir.join("identities");
        self.out
            .clone()
            .unwrap_or_else(|| own().join(path.trim_matches('/')))
    }
}

/// What `tars certs issue` issues identities to.
fn workload_help() -> String {
    let services: Vec<&str> = Service::ALL.iter().map(|s| s.as_str()).collect();
    format!("{} or worker; or a whole SPIFFE path", services.join(", "))
}

fn workload_path(config: &Config, workload: &str) -> String {
    if workload.starts_with('/') {
        workload.to_owned()
    } else {
        config.trust.path_of(workload)
    }
}

const RENEWS_AT_AUTH: &str = "`tars certs renew` asks Auth over mTLS, not the gateway: instead of --gateway name it by --auth HOST:PORT, or by a --config whose [connect] has it";

/// Refuses `--gateway` for a command that works on files of this machine alone.
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
        let lock = if self.command.works_on_files() && !mesh.is_named_by_gateway() {
            local::lock_if_unused(&config)?
        } else {
            None
        };
        let scope = Scope {
            global,
            config,
            mesh,
            at_hand: lock.is_some(),
        };
        scope.run(self.command)
    }
}

/// What a command works on: the authority's files where no process uses them, else a mesh.
struct Scope<'a> {
    global: &'a Global,
    config: Config,
    mesh: Mesh,
    at_hand: bool,
}

impl Scope<'_> {
    fn run(&self, command: Command) -> Result<ExitCode, CommandError> {
        let (config, mesh) = (&self.config, &self.mesh);
        match command {
            Command::Init => self.init()?,
            Command::Issue { workload, leaf } => {
                self.issue(&workload_path(config, &workload), leaf)?;
            }
            Command::Client { name, leaf } => self.issue(&format!("/client/{name}"), leaf)?,
            Command::Inspect { file, json } => {
                no_gateway(mesh, "inspect")?;
                return inspect::inspect(&file, json);
            }
            Command::List(list) => block_on(list.run(config, mesh))??,
            Command::Renew { identity, auth } => self.renew(&identity, auth)?,
            Command::Revoke(revoke) => block_on(revoke.run(config, mesh))??,
            Command::Revoked { json } => block_on(list::revoked(mesh, json))??,
            Command::Root { command } => block_on(command.run(mesh))??,
            Command::JoinToken {
                workload,
                out,
                ttl,
                force,
            } => {
                force.allows_out(out.as_deref())?;
                local::hand_over(&self.join_token(&workload, ttl)?, out.as_deref())?;
            }
            Command::Bundle { out, force } => {
                force.allows_out(out.as_deref())?;
                local::write_public(&self.bundle()?, out.as_deref())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn init(&self) -> Result<(), CommandError> {
        no_gateway(&self.mesh, "init")?;
        local::init(&self.config)
    }

    fn renew(&self, identity: &Path, auth: Option<String>) -> Result<(), CommandError> {
        if self.mesh.is_named_by_gateway() {
            return Err(CommandError::Usage(RENEWS_AT_AUTH.to_owned()));
        }
        let target = match auth {
            Some(target) => target,
            None => self.global.target(Service::Auth, "--auth")?,
        };
        block_on(remote::renew(&self.config, identity, &target))?
    }

    fn join_token(&self, workload: &str, ttl: u32) -> Result<Token, CommandError> {
        let path = workload_path(&self.config, workload);
        if self.at_hand {
            local::join_token(&self.config, &path, ttl)
        } else {
            block_on(remote::join_token(&self.mesh, &path, ttl))?
        }
    }

    fn bundle(&self) -> Result<String, CommandError> {
        if self.at_hand {
            local::bundle(&self.config)
        } else {
            block_on(remote::bundle(&self.mesh))?
        }
    }

    fn issue(&self, path: &str, leaf: Leaf) -> Result<(), CommandError> {
        let (config, mesh) = (&self.config, &self.mesh);
        if self.at_hand {
            return local::issue(config, path, leaf);
        }
        block_on(remote::issue(config, mesh, path, leaf))?.map_err(|e| match e {
            // Without an authority and without a session, either can be what was meant.
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
}
