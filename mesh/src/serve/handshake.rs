//! The TLS configuration of new connections.

use super::{Admission, ServeOptions};
use parking_lot::Mutex;
use rustls::{NamedGroup, ServerConfig, crypto::SupportedKxGroup};
use std::sync::Arc;
use tars_certs::{Identity, tls};

/// An identity with the configuration that was made from it.
#[derive(Debug, Clone)]
pub(super) struct ServerIdentity {
    pub(super) identity: Arc<Identity>,
    pub(super) config: Arc<ServerConfig>,
}

/// The TLS configuration of the current identity, made anew when that changes.
pub(super) struct TlsConfigs {
    built: Mutex<Option<ServerIdentity>>,
}

impl TlsConfigs {
    pub(super) fn new(options: &ServeOptions) -> Self {
        let configs = Self {
            built: Mutex::new(None),
        };
        configs.current(options);
        configs
    }

    pub(super) fn current(&self, options: &ServeOptions) -> Option<ServerIdentity> {
        let identity = options.identity.current();
        let mut built = self.built.lock();
        if let Some(own) = built.as_ref()
            && Arc::ptr_eq(&own.identity, &identity)
        {
            return Some(own.clone());
        }
        let time = Arc::new(options.clock.clone());
        let config = match options.admission {
            Admission::Mutual => tls::server(&identity, &options.revocations, time),
            Admission::Joiners => tls::bootstrap_server(&identity, time),
        };
        match config {
            Ok(config) => {
                let config = Arc::new(config);
                *built = Some(ServerIdentity { identity, config });
            }
            Err(e) => {
                tracing::error!(service = options.service, error = %e, "the new identity cannot be used");
            }
        }
        built.clone()
    }
}

/// Returns the metric label of a key exchange group.
pub(crate) fn key_exchange(group: Option<&'static dyn SupportedKxGroup>) -> &'static str {
    match group.map(SupportedKxGroup::name) {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::secp256r1MLKEM768) => "secp256r1MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "secp256r1",
        Some(NamedGroup::secp384r1) => "secp384r1",
        _ => "other",
    }
}

/// Returns the metric label of a handshake that failed for another reason than the peer's certificate.
pub(super) fn reason(error: &std::io::Error) -> &'static str {
    use rustls::Error;
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        None => "io",
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::PeerIncompatible(_)) => "incompatible",
        Some(Error::NoApplicationProtocol) => "no_h2",
        Some(Error::InvalidCertificate(rustls::CertificateError::BadSignature)) => "proof",
        Some(Error::InvalidCertificate(_)) => "certificate",
        Some(Error::AlertReceived(_)) => "alert",
        Some(_) => "tls",
    }
}
