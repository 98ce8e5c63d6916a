//! `tars policy`: look at a policy file before it is in force, and ask why a peer may or may not
//! open a call.

use super::{CommandError, Global, output};
use crate::app::policy;
use clap::{Args, Subcommand};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};
use tars_certs::{ClassTable, SpiffeId};
use tars_interceptors::{Policy, contract};
use tars_proto::table::{Method, MethodTable};
use tars_runtime::config::Config;
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars policy check policy.toml\n  tars policy explain tars.auth.v1.CertificateService/StepRoots --peer /user/ada --file policy.toml\n\nThe file in force is named by policy.file in the configuration."
)]
pub(crate) struct PolicyCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a policy file, and show what it leaves of the contract. Exits with 1 on mistakes.
    #[command(after_help = "Example:\n  tars policy check policy.toml")]
    Check {
        /// The policy file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say whether a peer may open a call, and why. Exits with 77 when it may not.
    #[command(
        after_help = "Examples:\n  tars policy explain tars.auth.v1.CertificateService/StepRoots --peer /user/ada\n  tars policy explain tars.automl.v1.StudyService/Optimize --peer /client/ci --file policy.toml --json"
    )]
    Explain {
        /// `package.Service/Method`.
        method: String,
        /// A SPIFFE id, or a path in the configured trust domain.
        #[arg(long)]
        peer: String,
        /// Instead of the configured policy file.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn failed(e: impl std::fmt::Display) -> CommandError {
    CommandError::Failed(e.to_string())
}

impl PolicyCommand {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        let table = contract().map_err(failed)?;
        match self.command {
            Command::Check { file, json } => {
                let policy = policy::read(&file).map_err(failed)?;
                show(&policy, table, json);
                Ok(ExitCode::SUCCESS)
            }
            Command::Explain {
                method,
                peer,
                file,
                json,
            } => {
                let policy = match file.as_ref().or(config.policy.file.as_ref()) {
                    Some(file) => policy::read(file).map_err(failed)?,
                    None => {
                        note!("no policy file is configured: the contract alone");
                        Policy::contract(table)
                    }
                };
                let path = format!("/{}", method.trim_start_matches('/'));
                let method = table
                    .get(&path)
                    .ok_or_else(|| CommandError::Usage(format!("there is no method {path}")))?;
                explain(&config, &policy, method, &peer, json)
            }
        }
    }
}

fn show(policy: &Policy, table: &MethodTable, as_json: bool) {
    let narrowed = table.iter().filter_map(|m| {
        let (classes, rules) = policy.describe(m);
        (!rules.is_empty()).then(|| (m.path[1..].to_owned(), classes.join(" "), rules.join(", ")))
    });
    let narrowed: Vec<_> = narrowed.collect();
    if as_json {
        let rows: Vec<_> = narrowed
            .iter()
            .map(|(method, peers, rules)| json!({ "method": method, "peers": peers, "rules": rules }))
            .collect();
        say!("{:#}", json!({ "rules": policy.rules(), "narrowed": rows }));
        return;
    }
    say!(
        "{} rules, {} methods narrowed",
        policy.rules(),
        narrowed.len()
    );
    let rows: Vec<Vec<String>> = narrowed
        .into_iter()
        .map(|(method, peers, rules)| vec![method, peers, rules])
        .collect();
    if !rows.is_empty() {
        output::table(&["method", "classes left", "rules"], &rows);
    }
}

fn explain(
    config: &Config,
    policy: &Policy,
    method: &Method,
    peer: &str,
    as_json: bool,
) -> Result<ExitCode, CommandError> {
    let id: SpiffeId = if peer.starts_with("spiffe://") {
        peer.parse()
    } else {
        SpiffeId::new(&config.trust.domain, peer)
    }
    .map_err(|e| CommandError::Usage(format!("--peer {peer}: {e}")))?;
    let rules = config.certificates.classes.iter();
    let classes =
        ClassTable::new(rules.map(|r| (r.pattern.as_str(), r.class.as_str()))).map_err(failed)?;
    // The handshake refuses these before there is a call.
    let foreign = id.trust_domain() != config.trust.domain;
    let class = classes.classify(&id).filter(|_| !foreign);
    let verdict = policy.decide(method, class, Some(&id));
    let why = match &verdict {
        _ if foreign => format!(
            "the handshake refuses it: not of the trust domain {}",
            config.trust.domain
        ),
        Ok(()) => "the contract lists its class, and no policy rule leaves it out".to_owned(),
        Err(denial) => denial.to_string(),
    };
    let allowed = verdict.is_ok() && !foreign;
    let (left, names) = policy.describe(method);
    if as_json {
        say!(
            "{:#}",
            json!({ "method": &method.path[1..], "peer": id.as_str(), "class": class.map(|c| c.as_str()),
                    "allowed": allowed, "why": why, "contract": method.rule.peers, "classes_left": left,
                    "rules": names })
        );
    } else {
        say!(
            "{}  {} -> {}",
            if allowed { "ALLOWED" } else { "DENIED" },
            id,
            &method.path[1..]
        );
        say!(
            "  class         {}",
            class.map_or("unknown", |c| c.as_str())
        );
        say!("  contract      {}", method.rule.peers.join(" "));
        say!("  classes left  {}", left.join(" "));
        say!(
            "  rules         {}",
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        );
        say!("  because       {why}");
    }
    Ok(ExitCode::from(if allowed { 0 } else { 77 }))
}
