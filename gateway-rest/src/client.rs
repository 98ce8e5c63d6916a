//! The client behind a request, and the connection that carried it.

use std::net::IpAddr;
use tars_runtime::network::Networks;

/// The address by which a request is counted, limited and audited; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) IpAddr);

/// Whose connection carried a request; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The client's own.
    Client,
    /// A trusted proxy's, which carries the requests of other clients as well.
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
