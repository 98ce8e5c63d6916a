//! `tars certs`.

use super::{CommandError, Global, output};
use crate::app::open_authority;
use clap::{Args, Subcommand};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};
use tars_certs::{
    SpiffeId,
    ca::{IdentityFiles, Request, Summary, summarise},
};
use tars_runtime::{clock::Clock, config::Config};
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars certs init\n  tars certs issue auth --out certs/auth --dns auth.tars.svc\n  tars certs client ci-bot --out certs/ci-bot --days 7\n  tars certs inspect certs/auth/tls.crt"
)]
pub(crate) struct Certs {
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
        name: String,
        #[command(flatten)]
        leaf: Leaf,
    },
    /// Show the certificates in a PEM file.
    Inspect {
        file: PathBuf,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Leaf {
    /// The folder for tls.crt, tls.key and ca.crt.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, default_value_t = 30)]
    days: u64,
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    #[arg(long, value_name = "ADDR")]
    ip: Vec<IpAddr>,
}

impl Certs {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        match self.command {
            Command::Init => {
                let authority = open_authority(&config, &Clock::system())?;
                println!("{}", authority.root_path().display());
            }
            Command::Issue { workload, leaf } => {
                let path = if workload.starts_with('/') {
                    workload
                } else {
                    format!("/{workload}")
                };
                issue(&config, &path, leaf)?;
            }
            Command::Client { name, leaf } => issue(&config, &format!("/client/{name}"), leaf)?,
            Command::Inspect { file, json } => inspect(&file, json)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn issue(config: &Config, path: &str, leaf: Leaf) -> Result<(), CommandError> {
    let clock = Clock::system();
    let authority = open_authority(config, &clock)?;
    let id = SpiffeId::new(&config.trust.domain, path)
        .map_err(|e| CommandError::Usage(e.to_string()))?;
    let mut dns = leaf.dns;
    dns.push("localhost".to_owned());
    let mut ips = leaf.ip;
    ips.push([127, 0, 0, 1].into());
    let life = Duration::from_secs(leaf.days.saturating_mul(86_400));
    let issued = authority.issue(
        &Request {
            id: id.clone(),
            dns,
            ips,
            life,
        },
        clock.now(),
    )?;
    let files = IdentityFiles::in_dir(&leaf.out);
    files.save(&issued, authority.root_pem())?;
    println!("{id}  {}", files.cert.display());
    Ok(())
}

fn inspect(file: &std::path::Path, json: bool) -> Result<(), CommandError> {
    let certs: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|e| CommandError::Failed(format!("{}: {e}", file.display())))?;
    let summaries: Vec<Summary> = certs.iter().filter_map(|c| summarise(c)).collect();
    if summaries.is_empty() || summaries.len() != certs.len() {
        return Err(CommandError::Failed(format!(
            "{}: no certificate that parses",
            file.display()
        )));
    }
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&summaries).unwrap_or_default()
        );
        return Ok(());
    }
    let now = i64::try_from(Clock::system().now_s()).unwrap_or(i64::MAX);
    let rows: Vec<Vec<String>> = summaries
        .into_iter()
        .map(|s| {
            let hours = (s.not_after - now) / 3600;
            let left = if s.not_after <= now {
                "EXPIRED".to_owned()
            } else {
                format!("{hours} h")
            };
            vec![
                s.spiffe_id.unwrap_or(s.subject),
                s.issuer,
                s.serial,
                if s.is_ca { "yes" } else { "no" }.to_owned(),
                left,
            ]
        })
        .collect();
    output::table(&["identity", "issuer", "serial", "ca", "expires in"], &rows);
    Ok(())
}
