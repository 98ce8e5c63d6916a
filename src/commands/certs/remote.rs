//! What a running mesh is asked for.

use super::{Leaf, local, workload_path};
use crate::{
    commands::{CommandError, mesh::Mesh, output},
    rest::Rest,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tars_certs::{
    Identity, IdentityFiles, SpiffeId, ca::csr, files::certificates, identity::Parts,
    inspect::summarise, trust::key_id,
};
use tars_interceptors::client::{Credentials, outgoing};
use tars_mesh::{Channel, ChannelOptions};
use tars_proto::auth::v1::{
    IssuedIdentity, RenewCertificateRequest, certificate_service_client::CertificateServiceClient,
};
use tars_runtime::{clock::Clock, config::Config};
use zeroize::Zeroizing;

fn failed(e: impl std::fmt::Display) -> CommandError {
    CommandError::Failed(e.to_string())
}

/// `SPIFFE id or path` as an id.
fn full_id(config: &Config, text: &str) -> Result<SpiffeId, CommandError> {
    if text.starts_with("spiffe://") {
        text.parse()
            .map_err(|e| CommandError::Usage(format!("{text}: {e}")))
    } else {
        local::id(config, &workload_path(config, text))
    }
}

/// All pages of a list.
async fn pages(rest: &Rest, path: &str, field: &str) -> Result<Vec<Value>, CommandError> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let sign = if path.contains('?') { '&' } else { '?' };
        let page = rest.get(&format!("{path}{sign}page_token={token}")).await?;
        all.extend(page[field].as_array().cloned().unwrap_or_default());
        token = page["next_page_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            return Ok(all);
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn print(rows: &[Value], json: bool, head: &[&str], row: impl Fn(&Value) -> Vec<String>) {
    if json {
        say!("{:#}", Value::from(rows));
    } else {
        let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
        output::table(head, &rows);
    }
}

pub(super) async fn list(
    config: &Config,
    mesh: &Mesh,
    id: Option<&str>,
    json: bool,
) -> Result<(), CommandError> {
    let rest = mesh.session().await?.rest();
    let filter = match id {
        Some(text) => format!("?spiffe_id={}", full_id(config, text)?),
        None => String::new(),
    };
    let rows = pages(
        &rest,
        &format!("/admin/certificates{filter}"),
        "certificates",
    )
    .await?;
    let head = [
        "identity",
        "source",
        "serial",
        "issued",
        "ends",
        "renewable until",
        "root",
        "revoked",
    ];
    print(&rows, json, &head, |c| {
        vec![
            text(&c["spiffe_id"]),
            text(&c["source"]),
            text(&c["serial"]),
            text(&c["issued_at"]),
            text(&c["not_after"]),
            text(&c["lineage_ends_at"]),
            c["root_generation"].to_string(),
            if c["revoked"] == true { "yes" } else { "no" }.to_owned(),
        ]
    });
    Ok(())
}

pub(super) async fn revoked(mesh: &Mesh, json: bool) -> Result<(), CommandError> {
    let rest = mesh.session().await?.rest();
    let rows = pages(&rest, "/admin/certificates/revoked", "revocations").await?;
    print_revocations(&rows, json);
    Ok(())
}

fn print_revocations(rows: &[Value], json: bool) {
    let head = ["identity", "serial", "before", "by", "at", "reason"];
    print(rows, json, &head, |r| {
        let names = [
            "spiffe_id",
            "serial",
            "not_before",
            "revoked_by",
            "revoked_at",
            "reason",
        ];
        names.map(|n| text(&r[n])).to_vec()
    });
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "serial", "id"])))]
pub(crate) struct Revoke {
    /// A PEM file with the certificate and, behind it, the one that signed it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where the signing certificate is, if not in FILE.
    #[arg(long, value_name = "FILE", requires = "file")]
    ca: Option<PathBuf>,
    #[arg(long)]
    serial: Option<String>,
    /// SHA-256 of the issuer's public key; needed for certificates that the mesh did not issue.
    #[arg(long, requires = "serial", value_name = "KEY_ID")]
    issuer: Option<String>,
    /// Everything that this SPIFFE id (or path) holds now.
    #[arg(long)]
    id: Option<String>,
    #[arg(long)]
    reason: String,
    #[arg(long)]
    json: bool,
}

impl Revoke {
    pub(super) async fn run(self, config: &Config, mesh: &Mesh) -> Result<(), CommandError> {
        let mut body = json!({ "reason": self.reason });
        match (&self.file, &self.serial, &self.id) {
            (Some(file), ..) => {
                let (issuer, serial) = name_in(file, self.ca.as_deref())?;
                body["issuer"] = issuer.into();
                body["serial"] = serial.into();
            }
            (_, Some(serial), _) => {
                body["serial"] = serial.as_str().into();
                body["issuer"] = self.issuer.unwrap_or_default().into();
            }
            (_, _, id) => {
                let id = full_id(config, id.as_deref().unwrap_or_default())?;
                body["spiffe_id"] = id.as_str().into();
            }
        }
        let rest = mesh.session().await?.rest();
        let answer = rest.post("/admin/certificates/revoke", body).await?;
        let rows = answer["revocations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if rows.is_empty() && !self.json {
            say!("it was revoked before");
        } else {
            print_revocations(&rows, self.json);
        }
        Ok(())
    }
}

/// The issuer's key id and the serial of the first certificate in a file.
fn name_in(file: &Path, ca: Option<&Path>) -> Result<(String, String), CommandError> {
    let mut chain = certificates(file).map_err(failed)?;
    if let Some(ca) = ca {
        chain.truncate(1);
        chain.extend(certificates(ca).map_err(failed)?);
    }
    let leaf = summarise(&chain[0])
        .ok_or_else(|| failed("the file's first certificate does not parse"))?;
    let issuer = chain[1..]
        .iter()
        .find(|c| summarise(c).is_some_and(|s| s.subject == leaf.issuer))
        .and_then(|c| key_id(c))
        .ok_or_else(|| {
            failed(format!(
                "{}: the certificate of {:?}, which signed it, is not in the file; name it with --ca",
                file.display(),
                leaf.issuer
            ))
        })?;
    Ok((issuer.to_string(), leaf.serial))
}

fn base64_list(value: &Value) -> Result<Vec<CertificateDer<'static>>, CommandError> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|v| {
            let bytes = STANDARD.decode(v.as_str().unwrap_or_default());
            bytes.map(CertificateDer::from).map_err(failed)
        })
        .collect()
}

pub(super) async fn issue(
    config: &Config,
    mesh: &Mesh,
    path: &str,
    leaf: Leaf,
) -> Result<(), CommandError> {
    let out = leaf.folder(config, path);
    let rest = mesh.session().await?.rest();
    let key = KeyPair::generate().map_err(failed)?;
    let csr = csr::create(&key).map_err(failed)?;
    let ips: Vec<String> = leaf.ip.iter().map(ToString::to_string).collect();
    let body = json!({
        "csr": STANDARD.encode(&csr),
        "path": path,
        "dns_names": leaf.dns,
        "ip_addresses": ips,
        "life": format!("{}s", leaf.days.saturating_mul(86_400)),
    });
    let answer = rest.post("/admin/certificates", body).await?["identity"].take();
    let parts = Parts {
        chain: base64_list(&answer["chain"])?,
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: base64_list(&answer["bundle"]["roots"])?,
        crls: Vec::new(),
    };
    save(parts, &out)
}

/// Checks what was issued, and writes it.
fn save(parts: Parts, out: &Path) -> Result<(), CommandError> {
    let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(Clock::system());
    let identity = Identity::new(parts, &time).map_err(failed)?;
    let files = IdentityFiles::in_dir(out);
    files.save_identity(&identity)?;
    say!("{}  {}", identity.id(), files.cert.display());
    Ok(())
}

pub(super) async fn join_token(
    mesh: &Mesh,
    path: &str,
    ttl: u32,
) -> Result<Zeroizing<String>, CommandError> {
    let rest = mesh.session().await?.rest();
    let body = json!({ "path": path, "ttl_seconds": ttl });
    let answer = rest.post("/admin/join-tokens", body).await?;
    Ok(Zeroizing::new(text(&answer["token"])))
}

pub(super) async fn bundle(mesh: &Mesh) -> Result<String, CommandError> {
    let rest = mesh.session().await?.rest();
    let answer = rest.get("/api/v1/certificates/bundle").await?;
    let roots = base64_list(&answer["bundle"]["roots"])?;
    Ok(roots
        .iter()
        .map(|r| tars_certs::files::encode("CERTIFICATE", r))
        .collect())
}

pub(super) async fn renew(config: &Config, dir: &Path, target: &str) -> Result<(), CommandError> {
    let clock = Clock::system();
    let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
    let identity = IdentityFiles::in_dir(dir).load(&time).map_err(failed)?;
    let expected = SpiffeId::new(identity.id().trust_domain(), &config.trust.path_of("auth"));
    let options = ChannelOptions::alone(target, expected.map_err(failed)?, identity, clock);
    let channel = Channel::new(options).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let csr = csr::create(&key).map_err(failed)?;
    let answer = CertificateServiceClient::new(outgoing(channel, Credentials::Own))
        .renew_certificate(RenewCertificateRequest { csr })
        .await
        .map_err(|s| failed(s.message()))?;
    let IssuedIdentity { chain, bundle, .. } = answer
        .into_inner()
        .identity
        .ok_or_else(|| failed("the answer has no identity"))?;
    let parts = Parts {
        chain: chain.into_iter().map(CertificateDer::from).collect(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: bundle
            .unwrap_or_default()
            .roots
            .into_iter()
            .map(CertificateDer::from)
            .collect(),
        crls: Vec::new(),
    };
    save(parts, dir)
}
