//! Who is behind a request, and whose connection it came over.

use std::net::IpAddr;
use tars_runtime::network::Networks;

/// The address that a request is counted, limited and audited by; in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) IpAddr);

/// Whose connection a request came over; in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The client's own.
    Client,
    /// A trusted proxy's, which carries requests of other clients as well.
    Proxy,
}

impl Carrier {
    pub(crate) fn of(peer: IpAddr, proxies: &Networks) -> Self {
        if proxies.contains(peer.to_canonical()) {
            Self::Proxy
        } else {
            Self::Client
        }
    }
}
