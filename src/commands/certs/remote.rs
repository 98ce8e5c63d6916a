//! Calls of a running mesh: certificates, join tokens and bundles that it issues.

use super::{
    Leaf,
    local::{self, Token},
    term::Asked,
    workload_path,
};
use crate::{
    app::connect_failure::Attempt,
    commands::{CommandError, listing::text, mesh::Mesh, retry},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};
use tars_certs::{Identity, IdentityFiles, SpiffeId, ca::csr, identity::Parts};
use tars_interceptors::client::{Credentials, outgoing};
use tars_mesh::{Channel, ChannelOptions};
use tars_proto::auth::v1::{
    IssuedIdentity, RenewCertificateRequest, certificate_service_client::CertificateServiceClient,
};
use tars_runtime::{clock::Clock, config::Config};
use zeroize::Zeroizing;

pub(super) fn failed(e: impl std::fmt::Display) -> CommandError {
    CommandError::Failed(e.to_string())
}

/// `SPIFFE id or path` as an id.
pub(super) fn full_id(config: &Config, text: &str) -> Result<SpiffeId, CommandError> {
    if text.starts_with("spiffe://") {
        text.parse()
            .map_err(|e| CommandError::Usage(format!("{text}: {e}")))
    } else {
        local::id(config, &workload_path(config, text))
    }
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
    leaf.force.allows_identity(&IdentityFiles::in_dir(&out))?;
    let rest = mesh.session().await?.rest();
    let key = KeyPair::generate().map_err(failed)?;
    let csr = csr::create(&key).map_err(failed)?;
    let ips: Vec<String> = leaf.ip.iter().map(ToString::to_string).collect();
    let mut body = json!({
        "csr": STANDARD.encode(&csr),
        "path": path,
        "dns_names": leaf.dns,
        "ip_addresses": ips,
    });
    let asked = Asked(leaf.days);
    if asked.0.is_some() {
        body["life"] = format!("{}s", asked.or(0).as_secs()).into();
    }
    let answer = rest.post("/admin/certificates", body).await?["identity"].take();
    let parts = Parts {
        chain: base64_list(&answer["chain"])?,
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: base64_list(&answer["bundle"]["roots"])?,
        crls: Vec::new(),
    };
    save(parts, &out, asked)
}

/// Checks what was issued, writes it, and prints how long it lives.
fn save(parts: Parts, out: &Path, asked: Asked) -> Result<(), CommandError> {
    let clock = Clock::system();
    let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
    let identity = Identity::new(parts, &time).map_err(failed)?;
    let files = IdentityFiles::in_dir(out);
    files.save_identity(&identity)?;
    let life = (clock.now(), identity.leaf().not_after);
    local::print_issued(identity.id(), &files, asked, life);
    Ok(())
}

pub(super) async fn join_token(mesh: &Mesh, path: &str, ttl: u32) -> Result<Token, CommandError> {
    let rest = mesh.session().await?.rest();
    let body = json!({ "path": path, "ttl_seconds": ttl });
    let answer = rest.post("/admin/join-tokens", body).await?;
    Ok(Token {
        text: Zeroizing::new(text(&answer["token"])),
        ends: text(&answer["expires_at"]),
    })
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
    let (files, auth) = (IdentityFiles::in_dir(dir), config.trust.path_of("auth"));
    let attempt = Attempt::new(target, &auth, &files);
    let identity = files
        .load(&time)
        .map_err(|e| CommandError::own(&attempt, &e))?;
    let expected = SpiffeId::new(identity.id().trust_domain(), &auth);
    let options = ChannelOptions::alone(target, expected.map_err(failed)?, identity, clock);
    let channel = Channel::new(options).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let csr = csr::create(&key).map_err(failed)?;
    let client = CertificateServiceClient::new(outgoing(channel, Credentials::Own));
    let answer = retry(async || {
        let request = RenewCertificateRequest { csr: csr.clone() };
        let answer = client.clone().renew_certificate(request).await;
        answer.map_err(|s| CommandError::on(&attempt, s.message()))
    })
    .await?;
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
    save(parts, dir, Asked(None))
}
