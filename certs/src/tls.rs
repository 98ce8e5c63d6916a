//! TLS configurations, each built from one identity snapshot, so that certificate, roots and
//! revocation lists never come from different generations.

use crate::{
    KeyId, Revocations, SpiffeId,
    crypto::provider,
    identity::Identity,
    verify::{ClientVerifier, ExpectedId, PinnedRoot, ServerVerifier},
};
use rustls::{
    ClientConfig, ServerConfig, client::Resumption, server::NoServerSessionStorage,
    time_provider::TimeProvider,
};
use std::sync::Arc;

/// The only protocol that is negotiated: HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// rustls rejected the certificate and key of the identity.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this process's certificate is not usable: {0}")]
pub struct TlsError(#[from] rustls::Error);

/// For a listener that requires a client certificate of the mesh.
pub fn server(
    identity: &Identity,
    revocations: &Revocations,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ClientVerifier {
        trust: Arc::clone(&identity.trust),
        revocations: revocations.clone(),
    };
    let config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    Ok(hardened(config))
}

/// For the bootstrap listener, whose clients have no certificate yet. The presented chain includes
/// the root, so that a joining process can compare it with the one its token names.
pub fn bootstrap_server(
    identity: &Identity,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let mut chain = identity.chain.clone();
    chain.extend(identity.own_root().cloned());
    let config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, identity.key.clone_key())?;
    Ok(hardened(config))
}

fn hardened(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config
}

/// For calls to the workload `expected`, and to no other.
pub fn client(
    identity: &Identity,
    expected: SpiffeId,
    revocations: &Revocations,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let policy = ExpectedId {
        trust: Arc::clone(&identity.trust),
        revocations: revocations.clone(),
        expected,
    };
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier(policy)))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// For a joining process: it presents no certificate, and trusts one root by the hash of its key.
pub fn pinned_client(
    root: KeyId,
    expected: SpiffeId,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier(PinnedRoot { root, expected })))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}
