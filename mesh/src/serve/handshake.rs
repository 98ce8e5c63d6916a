//! What a connection needs before it is one: a slot, and the TLS configuration of the day.

use super::{Admission, ServeOptions};
use parking_lot::Mutex;
use rustls::{NamedGroup, ServerConfig, crypto::SupportedKxGroup};
use std::{collections::HashMap, net::IpAddr, sync::Arc};
use tars_certs::{Identity, tls};
use tars_runtime::config::Connections;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds the handshakes under way, in all and by address.
#[derive(Debug, Clone)]
pub(super) struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Arc<Semaphore>,
    most_by_address: usize,
    /// No more entries than handshakes under way.
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A handshake under way; dropped when it is over.
#[derive(Debug)]
pub(super) struct Slot {
    of: Handshakes,
    address: IpAddr,
    _all: OwnedSemaphorePermit,
}

impl Handshakes {
    pub(super) fn new(limits: &Connections) -> Self {
        Self(Arc::new(Inner {
            all: Arc::new(Semaphore::new(limits.max_handshakes)),
            most_by_address: limits.max_handshakes_by_address,
            by_address: Mutex::default(),
        }))
    }

    pub(super) fn enter(&self, address: IpAddr) -> Option<Slot> {
        let all = Arc::clone(&self.0.all).try_acquire_owned().ok()?;
        let mut by_address = self.0.by_address.lock();
        let under_way = by_address.entry(address).or_default();
        if *under_way >= self.0.most_by_address {
            return None;
        }
        *under_way += 1;
        Some(Slot {
            of: self.clone(),
            address,
            _all: all,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by_address = self.of.0.by_address.lock();
        if let Some(under_way) = by_address.get_mut(&self.address) {
            *under_way -= 1;
            if *under_way == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// An identity with the configuration that was built from it.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) identity: Arc<Identity>,
    pub(super) config: Arc<ServerConfig>,
}

/// The TLS configuration of the current identity, rebuilt when that changes.
pub(super) struct TlsConfigs {
    built: Mutex<Option<Own>>,
}

impl TlsConfigs {
    pub(super) fn new(options: &ServeOptions) -> Self {
        let configs = Self {
            built: Mutex::new(None),
        };
        configs.current(options);
        configs
    }

    pub(super) fn current(&self, options: &ServeOptions) -> Option<Own> {
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
                *built = Some(Own { identity, config });
            }
            Err(e) => {
                tracing::error!(service = options.service, error = %e, "the new identity is not usable");
            }
        }
        built.clone()
    }
}

/// A metric label for the key exchange.
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

/// A metric label for a handshake that failed before or behind the certificate.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_slot() {
        let limits = Connections {
            max_handshakes: 3,
            max_handshakes_by_address: 2,
            ..Connections::default()
        };
        let handshakes = Handshakes::new(&limits);
        let (one, two) = (IpAddr::from([1, 1, 1, 1]), IpAddr::from([2, 2, 2, 2]));
        let held = [
            handshakes.enter(one).unwrap(),
            handshakes.enter(one).unwrap(),
        ];
        assert!(handshakes.enter(one).is_none(), "its share is taken");
        let other = handshakes.enter(two).unwrap();
        assert!(handshakes.enter(two).is_none(), "all are taken");
        drop(held);
        assert!(handshakes.enter(one).is_some());
        drop(other);
        assert!(
            handshakes.0.by_address.lock().is_empty(),
            "nothing is remembered"
        );
    }
}
