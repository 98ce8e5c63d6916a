//! The origin of a call: the peer, and the client address behind it.

use std::net::IpAddr;
use tars_runtime::network::bucket;

#[derive(Debug, Clone)]
pub(crate) struct Origin {
    peer: String,
    address: IpAddr,
}

impl Origin {
    pub(crate) fn new(peer: impl Into<String>, address: IpAddr) -> Self {
        Self {
            peer: peer.into(),
            address: address.to_canonical(),
        }
    }

    /// The origin in audit records.
    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.peer, self.address)
    }

    /// The key for delays and shares: all addresses that one host may use are one network.
    pub(crate) fn network(&self) -> u64 {
        bucket(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_one_host_are_one_network() {
        let of = |text: &str| Origin::new("p", text.parse().unwrap()).network();
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
