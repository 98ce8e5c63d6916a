//! The certificate authority of a data directory, and what it issues to this process's services.

use super::place_of;
use crate::app::{Service, StartError, data_dir};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tars_auth::Vault;
use tars_certs::{
    Authority, SpiffeId,
    ca::{Lifetimes, Request},
};
use tars_runtime::{clock::Clock, config::Config};

const DAY: Duration = Duration::from_secs(86_400);

/// The authority's own folder.
pub(crate) fn ca_dir(config: &Config) -> PathBuf {
    config.data.dir.join("ca")
}

/// What the authority of a data directory trusts, as PEM.
pub(crate) fn ca_bundle(data: &Path) -> PathBuf {
    Authority::bundle_in(&data.join("ca"))
}

/// Opens Auth's database, with the key of the secrets in it.
pub(super) async fn open_vault(config: &Config) -> Result<Vault, StartError> {
    let dir = config.data.dir.join(Service::Auth.as_str());
    let key = config.credentials.seal_key_file.as_deref();
    Ok(Vault::open(&dir, &place_of(config, Service::Auth)?, key).await?)
}

/// Opens the authority over a database of Auth, and creates it at the first start.
pub(super) async fn authority_in(
    vault: &Vault,
    config: &Config,
    clock: &Clock,
) -> Result<Authority, StartError> {
    let (folder, domain) = (ca_dir(config), &config.trust.domain);
    let opened = vault.authority(&folder, domain, lifetimes(config), clock.now());
    Ok(opened.await?)
}

/// Opens the authority for a command, and creates it where there is none. Only one that is shared needs
/// its database.
pub(crate) async fn open_authority(
    config: &Config,
    clock: &Clock,
) -> Result<Authority, StartError> {
    data_dir::check(config, &[Service::Auth])?;
    if config.database.is_server() {
        let vault = open_vault(config).await?;
        return authority_in(&vault, config, clock).await;
    }
    let (domain, lives) = (&config.trust.domain, lifetimes(config));
    Ok(Authority::open_or_init(
        &ca_dir(config),
        domain,
        lives,
        clock.now(),
    )?)
}

fn lifetimes(config: &Config) -> Lifetimes {
    let days = |n: u64| DAY * u32::try_from(n).unwrap_or(u32::MAX);
    Lifetimes {
        root: days(config.certificates.root_life_days),
        intermediate: days(config.certificates.intermediate_life_days),
    }
}

/// A service's SPIFFE id in this mesh.
pub(crate) fn workload_id(config: &Config, service: Service) -> Result<SpiffeId, StartError> {
    let path = config.trust.path_of(service.as_str());
    SpiffeId::new(&config.trust.domain, &path).map_err(StartError::TrustDomain)
}

/// The certificate that a service of this process asks its own authority for.
pub(crate) fn workload_request(config: &Config, service: Service) -> Result<Request, StartError> {
    let life = Duration::from_secs(config.certificates.leaf_life_seconds);
    let name = service.as_str();
    let mut request = Request::new(workload_id(config, service)?, life)
        .with_local_names()
        .managed_by_authority();
    request.dns.push(name.to_owned());
    let suffixes = &config.certificates.dns_suffixes;
    request
        .dns
        .extend(suffixes.iter().map(|s| format!("{name}{s}")));
    Ok(request)
}
