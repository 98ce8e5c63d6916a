//! TLS configurations, built whole from one identity snapshot: leaf, roots and rules change in one
//! step, never one without the other.

use crate::{
    SpiffeId,
    identity::Identity,
    verify::{ClientVerifier, ServerVerifier},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    time_provider::TimeProvider,
};
use std::sync::{Arc, LazyLock};

pub const ALPN: &[u8] = b"h2";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("a root certificate is not usable: {0}")]
    Root(rustls::Error),
    #[error("there are no root certificates")]
    NoRoots,
    #[error("the own certificate is not usable: {0}")]
    Own(rustls::Error),
    #[error("client verification cannot be set up: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The one provider of the process. Call it first in `main`.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Every root must be good: one that is skipped silently is found out when it is needed.
pub(crate) fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in &identity.roots {
        store.add(root.clone()).map_err(TlsError::Root)?;
    }
    if store.is_empty() {
        Err(TlsError::NoRoots)
    } else {
        Ok(Arc::new(store))
    }
}

pub fn server(identity: &Identity, time: Arc<dyn TimeProvider>) -> Result<ServerConfig, TlsError> {
    let verifier = ClientVerifier::new(roots(identity)?, provider(), identity.id().trust_domain())?;
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Own)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Own)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// For calls to the one workload `expected`.
pub fn client(
    identity: &Identity,
    expected: SpiffeId,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let verifier = ServerVerifier::new(roots(identity)?, provider(), expected);
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Own)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}
