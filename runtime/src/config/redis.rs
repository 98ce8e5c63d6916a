//! The Redis server that carries wake-up hints between replicas and counts their rate limits.
//!
//! The hints hold no content, but whoever can send them can make every replica read its database, and
//! the password must not be seen on the way. So a connection is TLS with a verified certificate, a Unix
//! socket, or plaintext to a loopback address; anything else is refused.

use super::{
    otel::decode,
    server::{self, Common, split_port, text},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// The event bus between replicas, and their common count of rate limits. Without a URL both stay inside
/// the process, and another replica learns of a change when it next polls the database, once a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `rediss://USER@HOST:PORT` for TLS, `redis://127.0.0.1:PORT` for a loopback address, or
    /// `unix:///run/redis/redis.sock`. The user may be absent. Never a password. Redis 6 or newer.
    pub url: Option<String>,
    /// A file with the password, and nothing else but a line end, which only this process's user and group
    /// can read; read again for each new connection.
    /// Where it is not set, the environment variable `REDISCLI_AUTH` is used, or no password.
    pub password_file: Option<PathBuf>,
    /// The PEM file of the authority that the server's certificate must come from; required with
    /// `rediss`. Read again for each new connection, as are the other two.
    pub root_certificate: Option<PathBuf>,
    /// The PEM file of the certificate that this process shows to the server, with `client_key`.
    pub client_certificate: Option<PathBuf>,
    /// The PEM file of the certificate's private key.
    pub client_key: Option<PathBuf>,
    /// What the name of each channel and key begins with. Meshes that share a server have different ones.
    pub channel_prefix: String,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            root_certificate: None,
            client_certificate: None,
            client_key: None,
            channel_prefix: "tars".to_owned(),
        }
    }
}

/// How the server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// By a Unix socket.
    Socket(PathBuf),
    /// By TLS; the server's certificate is verified, and names this host.
    Verified {
        /// A host name or an IP address.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// In plaintext, by a loopback address.
    Loopback(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Verified { host, port } => write!(f, "{host}:{port}"),
            Self::Loopback(address) => write!(f, "{address}"),
        }
    }
}

const PORT: u16 = 6379;

impl Redis {
    /// Returns the user of the URL, if it names one, and how the server is reached; `None` without a
    /// URL.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL, or too weak about the connection.
    pub fn endpoint(&self) -> Result<Option<(Option<String>, Endpoint)>, String> {
        let url = server::url(self.url.as_ref());
        url.map(|url| self.parse(url)).transpose()
    }

    /// What is wrong with the settings, each for the operator.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Err(problem) = self.endpoint() {
            mistakes.push(format!("redis.url: {problem}"));
        }
        let common = Common {
            section: "redis",
            client_certificate: self.client_certificate.as_deref(),
            client_key: self.client_key.as_deref(),
            prefix: ("channel_prefix", &self.channel_prefix),
        };
        mistakes.extend(common.mistakes());
        mistakes
    }

    fn parse(&self, url: &str) -> Result<(Option<String>, Endpoint), String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        if !matches!(scheme, "rediss" | "redis" | "unix") {
            return Err("must begin with rediss://, redis:// or unix://".to_owned());
        }
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(server::user(user, "redis")?), place),
            None => (None, rest),
        };
        if place.contains(['?', '#']) {
            return Err("must end with the address: nothing may follow '?' or '#'".to_owned());
        }
        let endpoint = match scheme {
            "unix" => socket(place)?,
            "redis" => loopback(place)?,
            _ => self.verified(place)?,
        };
        Ok((user, endpoint))
    }

    fn verified(&self, place: &str) -> Result<Endpoint, String> {
        let (host, port) = host_and_port(place)?;
        if self.root_certificate.is_none() {
            return Err(
                "rediss:// needs redis.root_certificate, the authority of the server's certificate"
                    .to_owned(),
            );
        }
        Ok(Endpoint::Verified { host, port })
    }
}

fn socket(path: &str) -> Result<Endpoint, String> {
    let path = decode(path).filter(|path| path.starts_with('/') && path.len() > 1);
    let path = path.ok_or("unix:// must be followed by the path of a socket")?;
    Ok(Endpoint::Socket(path.into()))
}

fn loopback(place: &str) -> Result<Endpoint, String> {
    let (host, port) = host_and_port(place)?;
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => {
            Ok(Endpoint::Loopback(SocketAddr::new(address, port)))
        }
        _ if host == "localhost" => Err(
            "localhost is what the resolver makes of it; name the loopback address itself, as \
             redis://127.0.0.1"
                .to_owned(),
        ),
        _ => Err(
            "redis:// sends the password and the hints in plaintext, and does not verify the server; \
             use rediss:// with redis.root_certificate, or a Unix socket"
                .to_owned(),
        ),
    }
}

fn host_and_port(place: &str) -> Result<(String, u16), String> {
    let place = place.strip_suffix('/').unwrap_or(place);
    if place.contains('/') {
        return Err("must not name a database: channels belong to none".to_owned());
    }
    let (host, port) = split_port(place, PORT)?;
    Ok((text(host).ok_or("names no host")?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_root(url: &str) -> Redis {
        Redis {
            url: Some(url.to_owned()),
            root_certificate: Some("/etc/tars/redis.crt".into()),
            ..Redis::default()
        }
    }

    #[test]
    fn nothing_set_is_no_server() {
        assert_eq!(Redis::default().endpoint(), Ok(None));
        assert_eq!(with_root("").endpoint(), Ok(None));
        assert_eq!(Redis::default().mistakes(), Vec::<String>::new());
    }

    #[test]
    fn a_verified_host_a_socket_and_a_loopback_address_are_accepted() {
        let verified = |host: &str, port| Endpoint::Verified {
            host: host.to_owned(),
            port,
        };
        let loopback = |address: &str| Endpoint::Loopback(address.parse().unwrap());
        let user = Some("tars".to_owned());
        for (url, expected) in [
            (
                "rediss://redis.example",
                (None, verified("redis.example", PORT)),
            ),
            (
                "rediss://tars@redis.example:7000/",
                (user.clone(), verified("redis.example", 7000)),
            ),
            ("rediss://192.0.2.1", (None, verified("192.0.2.1", PORT))),
            ("redis://127.0.0.1", (None, loopback("127.0.0.1:6379"))),
            ("redis://tars@[::1]:1", (user, loopback("[::1]:1"))),
            (
                "unix:///run/redis%20one/redis.sock",
                (None, Endpoint::Socket("/run/redis one/redis.sock".into())),
            ),
        ] {
            assert_eq!(with_root(url).endpoint(), Ok(Some(expected)), "{url}");
        }
    }

    #[test]
    fn an_unverified_connection_is_refused_with_the_reason() {
        for (url, reason) in [
            ("redis://redis.example", "in plaintext"),
            ("redis://192.168.0.1:6379", "in plaintext"),
            ("redis://0.0.0.0", "in plaintext"),
            ("redis://127.0.0.1.example", "in plaintext"),
            ("redis://localhost", "name the loopback address"),
        ] {
            let refused = with_root(url).endpoint().unwrap_err();
            assert!(refused.contains(reason), "{url}: {refused}");
        }
        let no_root = Redis {
            root_certificate: None,
            ..with_root("rediss://redis.example")
        };
        assert!(no_root.endpoint().unwrap_err().contains("root_certificate"));
    }

    #[test]
    fn a_url_that_holds_a_password_or_lacks_a_part_is_refused() {
        for (url, reason) in [
            ("rediss://tars:secret@redis.example", "password_file"),
            ("rediss://:secret@redis.example", "password_file"),
            ("redis://:secret@127.0.0.1", "password_file"),
            ("rediss://@redis.example", "names no user"),
            ("rediss://", "no host"),
            ("rediss://redis.example:70000", "port"),
            ("rediss://redis.example/1", "database"),
            ("rediss://redis.example?password=secret", "'?'"),
            ("rediss://redis.example/#insecure", "'#'"),
            ("unix://redis.sock", "path of a socket"),
            ("unix:///", "path of a socket"),
            ("redis.example:6379", "rediss://"),
            ("http://redis.example", "rediss://"),
        ] {
            let refused = with_root(url).endpoint().unwrap_err();
            assert!(refused.contains(reason), "{url}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = Redis {
            client_key: Some("key.pem".into()),
            channel_prefix: "Tars *".to_owned(),
            ..with_root("redis://redis.example")
        };
        assert_eq!(wrong.mistakes().len(), 3, "{:?}", wrong.mistakes());
    }
}
