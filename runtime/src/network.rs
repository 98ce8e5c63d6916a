//! Addresses as limits count them, and networks as the configuration names them.

use std::{fmt, net::IpAddr, str::FromStr};

/// Returns one number for each IPv4 address or IPv6 `/64`: a host can use any address of its `/64`, so a
/// limit by whole IPv6 addresses would limit nobody.
pub fn bucket(addr: IpAddr) -> u64 {
    match addr.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        // The upper half; no network of real hosts has its first 32 bits zero.
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

/// How the networks of one IPv6 site, which may use any of its addresses, are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sites {
    /// The bits that the addresses of a site have in common, between 1 and 64.
    pub prefix: u32,
    /// How many times as much as one address its whole site may do.
    pub factor: u32,
}

impl Sites {
    /// Returns one number for each site; `None` for an IPv4 address.
    pub fn of(&self, addr: IpAddr) -> Option<u64> {
        match addr.to_canonical() {
            IpAddr::V4(_) => None,
            IpAddr::V6(_) => Some(bucket(addr) >> (64 - self.prefix.clamp(1, 64))),
        }
    }

    /// What a whole site may do, where an address may do so much.
    pub fn times(&self, limit: u32) -> u32 {
        limit.saturating_mul(self.factor)
    }
}

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It is neither an address nor an address with a prefix.
    #[error("{0:?} is not an address or a network such as 10.0.0.0/8")]
    Syntax(String),
    /// It is an IPv4-mapped IPv6 network, which no IPv4 address would match.
    #[error("{0:?} is an IPv4-mapped IPv6 network: write the IPv4 network")]
    Mapped(String),
    /// Bits after its prefix are set.
    #[error("{0:?} has bits set beyond its prefix")]
    HostBits(String),
    /// Its prefix is zero.
    #[error("{0:?} contains every address")]
    Everybody(String),
}

/// An IPv4 or IPv6 network in CIDR notation; an address without a prefix is a network of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    addr: IpAddr,
    prefix: u8,
}

impl Network {
    /// Returns whether `addr` lies in this network; an IPv4-mapped IPv6 address is an IPv4 address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differs = u128::from(own.to_bits() ^ other.to_bits());
                differs >> (32 - u32::from(self.prefix)) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differs = own.to_bits() ^ other.to_bits();
                // Shifting by the whole width is undefined; no network is that wide.
                differs >> (128 - u32::from(self.prefix)) == 0
            }
            _ => false,
        }
    }

    /// Returns whether every address of the other network lies in this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }

    /// Returns whether the whole site of each of its addresses lies in this network; false for IPv4.
    pub fn has_whole(&self, sites: Sites) -> bool {
        self.addr.is_ipv6() && u32::from(self.prefix) <= sites.prefix
    }

    /// Returns whether it is less than what [`bucket`] counts as one: a part of an IPv6 `/64`.
    pub fn is_part_of_a_bucket(&self) -> bool {
        self.addr.is_ipv6() && self.prefix > 64
    }

    fn has_host_bits(&self) -> bool {
        let bits = match self.addr {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        bits << self.prefix.min(127) != 0 && !self.is_host()
    }

    fn is_host(&self) -> bool {
        self.prefix == self.width()
    }

    fn width(&self) -> u8 {
        if self.addr.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let syntax = || NetworkError::Syntax(text.to_owned());
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        if addr.to_canonical() != addr {
            return Err(NetworkError::Mapped(text.to_owned()));
        }
        let mut network = Self { addr, prefix: 0 };
        network.prefix = match prefix {
            None => network.width(),
            Some(digits) => parse_prefix(digits).ok_or_else(syntax)?,
        };
        match network.prefix {
            0 => Err(NetworkError::Everybody(text.to_owned())),
            prefix if prefix > network.width() => Err(syntax()),
            _ if network.has_host_bits() => Err(NetworkError::HostBits(text.to_owned())),
            _ => Ok(network),
        }
    }
}

/// Accepts digits alone, where `u8::from_str` accepts a sign as well.
fn parse_prefix(digits: &str) -> Option<u8> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Parses a list of networks.
    ///
    /// # Errors
    ///
    /// Every mistake in the list, not only the first.
    pub fn parse(texts: &[String]) -> Result<Self, Vec<NetworkError>> {
        let (mut networks, mut mistakes) = (Vec::new(), Vec::new());
        for text in texts {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() {
            Ok(Self(networks))
        } else {
            Err(mistakes)
        }
    }

    /// Returns whether `addr` lies in one of the networks.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_one_host_share_a_bucket() {
        let of = |text: &str| bucket(addr(text));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    const SITES: Sites = Sites {
        prefix: 48,
        factor: 10,
    };

    #[test]
    fn a_network_has_whole_sites_if_it_is_one_or_larger() {
        for (text, expected) in [
            ("2001:db8::/32", true),
            ("2001:db8:1::/48", true),
            ("2001:db8:1::/49", false),
            ("2001:db8:1:2::/64", false),
            ("10.0.0.0/8", false),
        ] {
            assert_eq!(network(text).has_whole(SITES), expected, "{text}");
        }
    }

    #[test]
    fn the_networks_of_one_customer_are_one_site() {
        let of = |text: &str| SITES.of(addr(text));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:2:2::1"));
        assert_eq!((of("10.0.0.1"), of("::ffff:10.0.0.1")), (None, None));
    }

    #[test]
    fn a_site_is_as_large_as_it_is_set() {
        let together = |prefix, other: &str| {
            let sites = Sites { prefix, factor: 10 };
            sites.of(addr("2001:db8:1:200::1")) == sites.of(addr(other))
        };
        assert!(together(56, "2001:db8:1:2ff::9") && !together(56, "2001:db8:1:300::1"));
        assert!(together(64, "2001:db8:1:200::9") && !together(64, "2001:db8:1:201::1"));
        assert!(together(32, "2001:db8:ffff::1") && !together(32, "2001:db9::1"));
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        let ten = network("10.16.0.0/12");
        assert!(ten.contains(addr("10.16.0.0")) && ten.contains(addr("10.31.255.255")));
        assert!(ten.contains(addr("::ffff:10.16.0.1")));
        assert!(!ten.contains(addr("10.32.0.0")) && !ten.contains(addr("10.15.255.255")));
        assert!(!ten.contains(addr("2001:db8::1")));
        let six = network("2001:db8::/33");
        assert!(six.contains(addr("2001:db8:7fff::1")));
        assert!(!six.contains(addr("2001:db8:8000::1")) && !six.contains(addr("10.16.0.1")));
        let host = network("192.0.2.7");
        assert!(host.contains(addr("192.0.2.7")) && !host.contains(addr("192.0.2.6")));
        assert!(network("::1").contains(addr("::1")) && !network("::1").contains(addr("::2")));
        assert!(network("128.0.0.0/1").contains(addr("255.0.0.1")));
    }

    #[test]
    fn a_network_covers_itself_and_the_smaller_ones_in_it() {
        let covers = |of: &str, other: &str| network(of).covers(&network(other));
        assert!(covers("10.0.0.0/8", "10.0.0.0/8") && covers("10.0.0.0/8", "10.1.0.0/16"));
        assert!(covers("2001:db8::/32", "2001:db8:1::/48"));
        assert!(!covers("10.1.0.0/16", "10.0.0.0/8") && !covers("10.0.0.0/16", "10.1.0.0/16"));
        assert!(!covers("10.0.0.0/8", "2001:db8::/32") && !covers("::a00:0/112", "10.0.0.1"));
    }

    #[test]
    fn invalid_networks_are_refused_all_at_once() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "/8",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "::/129",
            "proxy",
            "10.0.0.0/08x",
            " 10.0.0.0/8",
            "[::1]",
            "10.0.0.0/256",
        ] {
            assert!(
                matches!(text.parse::<Network>(), Err(NetworkError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["0.0.0.0/0", "::/0"] {
            assert!(matches!(
                text.parse::<Network>(),
                Err(NetworkError::Everybody(_))
            ));
        }
        for text in [
            "10.0.0.1/8",
            "192.0.2.1/31",
            "2001:db8::1/64",
            "255.255.255.255/31",
        ] {
            assert!(
                matches!(text.parse::<Network>(), Err(NetworkError::HostBits(_))),
                "{text}"
            );
        }
        let mapped = "::ffff:10.0.0.0/104".parse::<Network>();
        assert!(matches!(mapped, Err(NetworkError::Mapped(_))));
        let list = ["10.0.0.0/8", "x", "0.0.0.0/0"].map(str::to_owned);
        assert_eq!(Networks::parse(&list).unwrap_err().len(), 2);
    }
}
