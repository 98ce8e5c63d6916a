//! Where a call comes from: the peer, and the client behind it.

use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that a host cannot choose.
const NETWORK: u32 = 64;

#[derive(Debug, Clone)]
pub struct Origin {
    peer: String,
    address: IpAddr,
}

impl Origin {
    pub fn new(peer: impl Into<String>, address: IpAddr) -> Self {
        Self {
            peer: peer.into(),
            address: address.to_canonical(),
        }
    }

    /// As records name it.
    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.peer, self.address)
    }

    /// What delays and shares count by: an IPv4 address, or an IPv6 network, since a host can pick any
    /// address of its /64.
    pub(crate) fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => self.address,
            IpAddr::V6(v6) => {
                let mask = u128::MAX << NETWORK;
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_host_count_as_one() {
        let of = |text: &str| Origin::new("p", text.parse().unwrap()).network();
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
