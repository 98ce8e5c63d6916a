//! Where a call comes from: the peer, and the client behind it.

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

    /// As records name it.
    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.peer, self.address)
    }

    /// What delays and shares count by: whatever one host may call itself counts as one.
    pub(crate) fn network(&self) -> u64 {
        bucket(self.address)
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
