//! `tars policy`: look at a policy file before it is in force, and ask why a peer may or may not
//! open a call.

use super::{CommandError, Global, certs, output};
use crate::app::policy;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};
use tars_certs::{PeerClass, SpiffeId};
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
                let explanation = explain(&config, &policy, method, &peer)?;
                explanation.print(json);
                Ok(explanation.exit_code())
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

/// What a policy decides about one peer and one method, and why.
struct Explanation<'a> {
    method: &'a Method,
    peer: SpiffeId,
    class: Option<PeerClass>,
    allowed: bool,
    why: String,
    classes_left: Vec<&'static str>,
    rules: Vec<&'a str>,
}

fn explain<'a>(
    config: &Config,
    policy: &'a Policy,
    method: &'a Method,
    peer: &str,
) -> Result<Explanation<'a>, CommandError> {
    let peer = peer_id(config, peer)?;
    let foreign = peer.trust_domain() != config.trust.domain;
    // A peer of another trust domain is refused at the handshake, before there is a call.
    let class = match foreign {
        true => None,
        false => certs::class(config, &peer)?,
    };
    let verdict = policy.decide(method, class, Some(&peer));
    let why = match &verdict {
        _ if foreign => format!(
            "the handshake refuses it: not of the trust domain {}",
            config.trust.domain
        ),
        Ok(()) => "the contract lists its class, and no policy rule leaves it out".to_owned(),
        Err(denial) => denial.to_string(),
    };
    let (classes_left, rules) = policy.describe(method);
    Ok(Explanation {
        allowed: verdict.is_ok() && !foreign,
        method,
        peer,
        class,
        why,
        classes_left,
        rules,
    })
}

fn peer_id(config: &Config, peer: &str) -> Result<SpiffeId, CommandError> {
    let id = if peer.starts_with("spiffe://") {
        peer.parse()
    } else {
        SpiffeId::new(&config.trust.domain, peer)
    };
    id.map_err(|e| CommandError::Usage(format!("--peer {peer}: {e}")))
}

impl Explanation<'_> {
    fn print(&self, as_json: bool) {
        if as_json {
            say!("{:#}", self.to_json());
            return;
        }
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        say!("{verdict}  {} -> {}", self.peer, self.name());
        let rules = match self.rules[..] {
            [] => "none".to_owned(),
            _ => self.rules.join(", "),
        };
        for (name, value) in [
            (
                "class",
                self.class.map_or("unknown", |c| c.as_str()).to_owned(),
            ),
            ("contract", self.method.rule.peers.join(" ")),
            ("classes left", self.classes_left.join(" ")),
            ("rules", rules),
            ("because", self.why.clone()),
        ] {
            say!("  {name:<13} {value}");
        }
    }

    /// `package.Service/Method`.
    fn name(&self) -> &str {
        &self.method.path[1..]
    }

    fn to_json(&self) -> Value {
        json!({
            "method": self.name(),
            "peer": self.peer.as_str(),
            "class": self.class.map(|c| c.as_str()),
            "allowed": self.allowed,
            "why": self.why,
            "contract": self.method.rule.peers,
            "classes_left": self.classes_left,
            "rules": self.rules,
        })
    }

    /// 77 (not permitted) when the peer may not.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.allowed { 0 } else { 77 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_names_class_verdict_and_reason() {
        let (config, table) = (Config::default(), contract().unwrap());
        let policy = Policy::contract(table);
        let steps = table.get("/tars.auth.v1.CertificateService/StepRoots");
        for (peer, class, allowed, why) in [
            (
                "/user/ada",
                Some("operator"),
                true,
                "the contract lists its class",
            ),
            ("/nobody", None, false, ""),
            (
                "spiffe://other.example/user/ada",
                None,
                false,
                "not of the trust domain",
            ),
        ] {
            let explanation = explain(&config, &policy, steps.unwrap(), peer).unwrap();
            let json = explanation.to_json();
            assert_eq!(json["class"].as_str(), class, "{json}");
            assert_eq!(json["allowed"], allowed, "{json}");
            assert!(explanation.why.contains(why), "{json}");
        }
        let error = explain(&config, &policy, steps.unwrap(), "no path").err();
        assert_eq!(error.unwrap().exit_code(), 64);
    }
}
