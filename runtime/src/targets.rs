//! The addresses of a service, as the configuration names them: one `host:port`, or several separated
//! by commas.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Maximum number of addresses in one list.
pub const MAX_TARGETS: usize = 64;

/// What is wrong with a list of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is not a host and port.
    #[error("{0:?} is not a host and port, such as auth.example:8093 or [::1]:8093")]
    Syntax(String),
    /// Nothing can be reached at port 0.
    #[error("{0:?} has port 0, which nothing listens on")]
    PortZero(String),
    /// It is in the list twice.
    #[error("{0} is listed twice")]
    Repeated(Target),
    /// The list is longer than [`MAX_TARGETS`].
    #[error("{0} addresses are more than {MAX_TARGETS}")]
    TooMany(usize),
}

/// A host and port. The host is a name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// The host: a name, or an IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address where the host is one; `None` where a name has to be looked up.
    pub fn addr(&self) -> Option<SocketAddr> {
        let host: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(host, self.port))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let syntax = || TargetError::Syntax(text.to_owned());
        let (host, digits) = text.rsplit_once(':').ok_or_else(syntax)?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = plain
            .then(|| digits.parse().ok())
            .flatten()
            .ok_or_else(syntax)?;
        let host = parse_host(host).ok_or_else(syntax)?.to_owned();
        match port {
            0 => Err(TargetError::PortZero(text.to_owned())),
            port => Ok(Self { host, port }),
        }
    }
}

/// Underscores are not allowed in host names, but are common in those of containers.
fn parse_host(text: &str) -> Option<&str> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        let address: Result<std::net::Ipv6Addr, _> = inner.parse();
        return address.is_ok().then_some(inner);
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    ((1..=253).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

/// The addresses of one service, at least one, in the order in which they are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets(Vec<Target>);

impl Targets {
    /// Parses a list that is separated by commas; spaces around an address are ignored.
    ///
    /// # Errors
    ///
    /// Every mistake in the list, not only the first.
    pub fn parse(text: &str) -> Result<Self, Vec<TargetError>> {
        let (mut targets, mut mistakes) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for item in text.split(',') {
            match item.trim().parse::<Target>() {
                Ok(target) if !seen.insert(target.clone()) => {
                    mistakes.push(TargetError::Repeated(target));
                }
                Ok(target) => targets.push(target),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if targets.len() > MAX_TARGETS {
            mistakes.push(TargetError::TooMany(targets.len()));
        }
        match mistakes.is_empty() {
            true => Ok(Self(targets)),
            false => Err(mistakes),
        }
    }

    /// Returns the addresses in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Target> {
        self.0.iter()
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, target) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{target}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(text: &str) -> Vec<Option<SocketAddr>> {
        Targets::parse(text)
            .unwrap()
            .iter()
            .map(Target::addr)
            .collect()
    }

    #[test]
    fn a_list_keeps_its_order_and_tells_names_from_addresses() {
        let addr = |text: &str| Some(text.parse().unwrap());
        assert_eq!(addrs("127.0.0.1:8093"), [addr("127.0.0.1:8093")]);
        assert_eq!(
            addrs("auth_1.example:1, 10.0.0.1:65535 ,[::1]:7"),
            [None, addr("10.0.0.1:65535"), addr("[::1]:7")]
        );
        for text in ["[::1]:7", "auth:1", "10.0.0.1:1,b:2"] {
            assert_eq!(Targets::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_host_and_port_is_refused() {
        for text in [
            "",
            ":",
            "auth",
            "auth:",
            ":1",
            "auth:+1",
            "auth:65536",
            "auth:1x",
            "::1:80",
            "[::1]",
            "[auth]:1",
            "[::1:1",
            "a b:1",
            "https://auth:1",
            "user@auth:1",
            "auth:1/x",
            "a\n:1",
        ] {
            let refused = Targets::parse(text).unwrap_err();
            assert_eq!(
                refused,
                [TargetError::Syntax(text.trim().to_owned())],
                "{text:?}"
            );
        }
        let long = format!("{}:1", "a".repeat(254));
        assert!(matches!(
            long.parse::<Target>(),
            Err(TargetError::Syntax(_))
        ));
    }

    #[test]
    fn every_mistake_in_a_list_is_reported() {
        let mistakes = Targets::parse("a:1,,b,c:0,a:1").unwrap_err();
        let texts: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(mistakes.len(), 4, "{texts:?}");
        assert!(texts[3].contains("a:1 is listed twice"), "{texts:?}");
        let many: Vec<_> = (1..=MAX_TARGETS + 1)
            .map(|port| format!("a:{port}"))
            .collect();
        assert_eq!(
            Targets::parse(&many.join(",")).unwrap_err(),
            [TargetError::TooMany(MAX_TARGETS + 1)]
        );
    }
}
