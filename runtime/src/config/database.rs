//! The database server, for a mesh that outgrows one machine.
//!
//! A connection to it is as private as one of the mesh: TLS with a verified certificate and name, or a
//! Unix socket, which does not leave the machine. The weaker modes that clients of PostgreSQL have
//! (`prefer` falls back to plaintext unnoticed, `require` verifies nothing) are refused.

use super::{
    otel::decode,
    server::{self, Common, split_port, text},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// The database server. Without a URL each service has a SQLite file in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `postgresql://USER@HOST:PORT/NAME?sslmode=verify-full`, or a Unix socket's directory as
    /// `postgresql://USER@localhost/NAME?host=/var/run/postgresql`. Never a password. Each service has
    /// a schema of its own in that database.
    pub url: Option<String>,
    /// A file with the password, and nothing else but a line end, which only this process's user and group
    /// can read. It is read again when the server refuses the password, so that both can be replaced while
    /// the process runs. Where it is not set, the environment variable `PGPASSWORD` is used, or no password.
    pub password_file: Option<PathBuf>,
    /// The PEM file of the authority that the server's certificate must come from; required with
    /// `sslmode=verify-full`.
    pub root_certificate: Option<PathBuf>,
    /// The PEM file of the certificate that this process shows to the server, with `client_key`. Both
    /// are read again for each new connection.
    pub client_certificate: Option<PathBuf>,
    /// The PEM file of the certificate's private key.
    pub client_key: Option<PathBuf>,
    /// Whether `sslmode=disable` is allowed for a loopback address: for tests, as other users of the
    /// machine can listen there too.
    pub plaintext_loopback: bool,
    /// What the name of each service's schema begins with: `tars` makes `tars_auth`.
    pub schema_prefix: String,
    /// The role that owns the schemas, where it is not the URL's user. A schema of any other role is
    /// refused, since its owner can read and change everything in it.
    pub schema_owner: Option<String>,
    /// Maximum number of connections of one service in one process that read.
    pub readers: u32,
    /// Maximum number of connections of one service in one process that write.
    pub writers: u32,
    /// Whether an older schema is brought up to date at start. If not, the process refuses to start on
    /// one: for a mesh of several replicas whose operator decides when.
    pub migrate: bool,
    /// How long a replica's leases last without renewal, in seconds. After this time another replica goes
    /// on with the work of one that is gone, and one that was cut off refuses to serve what may have changed.
    /// A database that takes as long to answer interrupts the work of every replica: a statement may take
    /// 9 seconds.
    pub lease_seconds: u64,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            root_certificate: None,
            client_certificate: None,
            client_key: None,
            plaintext_loopback: false,
            schema_prefix: "tars".to_owned(),
            schema_owner: None,
            readers: 4,
            writers: 4,
            migrate: true,
            lease_seconds: 15,
        }
    }
}

/// Where a server is, and how the connection to it is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The role to log in as.
    pub user: String,
    /// The machine or the socket.
    pub host: Host,
    /// The TCP port, and the number in the socket's name.
    pub port: u16,
    /// The database's name.
    pub database: String,
}

/// How the server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By the Unix socket in a directory.
    Socket(PathBuf),
    /// By TLS; the server's certificate is verified, and names this host.
    Verified(String),
    /// In plaintext, by a loopback address.
    Loopback(IpAddr),
}

const PORT: u16 = 5432;

impl Database {
    /// The server that the URL names; `None` without one.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL, or too weak about the connection.
    pub fn address(&self) -> Result<Option<Address>, String> {
        let url = server::url(self.url.as_ref());
        url.map(|url| self.parse(url)).transpose()
    }

    /// Whether a URL is set, so that the databases are on a server and not in the data directory. An
    /// empty URL, as the environment may hold, is none; one with mistakes is a server that is not reached.
    pub fn is_server(&self) -> bool {
        server::url(self.url.as_ref()).is_some()
    }

    /// What is wrong with the settings, each for the operator.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Err(problem) = self.address() {
            mistakes.push(format!("database.url: {problem}"));
        }
        let common = Common {
            section: "database",
            client_certificate: self.client_certificate.as_deref(),
            client_key: self.client_key.as_deref(),
            prefix: ("schema_prefix", &self.schema_prefix),
        };
        mistakes.extend(common.mistakes());
        mistakes
    }

    fn parse(&self, url: &str) -> Result<Address, String> {
        let rest = url
            .strip_prefix("postgresql://")
            .or_else(|| url.strip_prefix("postgres://"))
            .ok_or("must begin with postgresql://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').ok_or("names no database")?;
        let (user, host) = authority.rsplit_once('@').ok_or("names no user")?;
        let user = server::user(user, "database")?;
        let (host, port) = split_port(host, PORT)?;
        let Parameters { socket, mode } = Parameters::parse(query)?;
        Ok(Address {
            user,
            host: match socket {
                Some(socket) => Host::Socket(socket),
                None => self.host(host, mode)?,
            },
            port,
            database: text(database).ok_or("names no database")?,
        })
    }

    fn host(&self, host: &str, mode: &str) -> Result<Host, String> {
        let host = text(host).ok_or("names no host")?;
        let loopback = host.parse().ok().filter(IpAddr::is_loopback);
        match (mode, loopback) {
            ("verify-full", _) if self.root_certificate.is_some() => Ok(Host::Verified(host)),
            ("verify-full", _) => Err(
                "sslmode=verify-full needs database.root_certificate, the authority of the server's \
                 certificate"
                    .to_owned(),
            ),
            ("disable", Some(address)) if self.plaintext_loopback => Ok(Host::Loopback(address)),
            ("disable", Some(_)) => Err(
                "sslmode=disable sends everything in plaintext; for tests on a loopback address, allow \
                 it by database.plaintext_loopback"
                    .to_owned(),
            ),
            ("", _) => Err(
                "must say sslmode=verify-full, or host=/DIRECTORY of a Unix socket: the default of \
                 PostgreSQL's clients verifies nothing"
                    .to_owned(),
            ),
            (weak, _) => Err(format!(
                "sslmode={weak} does not verify that the server is the one that is meant; use \
                 sslmode=verify-full with database.root_certificate, or a Unix socket"
            )),
        }
    }
}

/// What follows the `?`.
#[derive(Default)]
struct Parameters<'a> {
    socket: Option<PathBuf>,
    mode: &'a str,
}

impl<'a> Parameters<'a> {
    fn parse(query: &'a str) -> Result<Self, String> {
        let mut found = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", mode)) => found.mode = mode,
                Some(("host", directory)) => {
                    let directory = decode(directory).filter(|d| d.starts_with('/'));
                    let directory = directory.ok_or("host must be the directory of a socket")?;
                    found.socket = Some(directory.into());
                }
                Some(("password", _)) => {
                    return Err("must not hold a password".to_owned());
                }
                _ => {
                    let name = pair.split('=').next().unwrap_or_default();
                    return Err(format!("{name}: only sslmode and host may follow the '?'"));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_root(url: &str) -> Database {
        Database {
            url: Some(url.to_owned()),
            root_certificate: Some("/etc/tars/db.crt".into()),
            ..Database::default()
        }
    }

    #[test]
    fn nothing_set_is_no_server() {
        assert_eq!(Database::default().address(), Ok(None));
        assert!(!Database::default().is_server());
        for (url, is_server) in [
            ("", false),
            ("postgresql://", true),
            ("mysql://a@b/c", true),
        ] {
            assert_eq!(with_root(url).is_server(), is_server, "{url:?}");
        }
        assert_eq!(Database::default().mistakes(), Vec::<String>::new());
    }

    #[test]
    fn a_verified_host_a_socket_and_an_allowed_loopback_are_accepted() {
        let address = |host, port| Address {
            user: "tars".to_owned(),
            host,
            port,
            database: "mesh".to_owned(),
        };
        let verified = with_root("postgresql://tars@db.example:6432/mesh?sslmode=verify-full");
        let host = Host::Verified("db.example".to_owned());
        assert_eq!(verified.address(), Ok(Some(address(host, 6432))));
        let socket = Database {
            root_certificate: None,
            ..with_root("postgres://tars@localhost/mesh?host=/run/pg%20sql")
        };
        let host = Host::Socket("/run/pg sql".into());
        assert_eq!(socket.address(), Ok(Some(address(host, PORT))));
        let loopback = Database {
            plaintext_loopback: true,
            ..with_root("postgres://tars@[::1]:1/mesh?sslmode=disable")
        };
        let host = Host::Loopback("::1".parse().unwrap());
        assert_eq!(loopback.address(), Ok(Some(address(host, 1))));
    }

    #[test]
    fn a_connection_that_is_not_verified_is_refused_with_the_reason() {
        let plaintext = Database {
            plaintext_loopback: true,
            ..with_root("postgresql://tars@192.0.2.1/mesh?sslmode=disable")
        };
        assert!(plaintext.address().unwrap_err().contains("sslmode=disable"));
        for (mode, reason) in [
            ("", "must say sslmode=verify-full"),
            ("?sslmode=prefer", "sslmode=prefer does not verify"),
            ("?sslmode=require", "sslmode=require does not verify"),
            ("?sslmode=verify-ca", "sslmode=verify-ca does not verify"),
            ("?sslmode=disable", "sslmode=disable does not verify"),
        ] {
            let refused = with_root(&format!("postgresql://tars@db.example/mesh{mode}"));
            let refused = refused.address().unwrap_err();
            assert!(refused.contains(reason), "{mode}: {refused}");
        }
        let loopback = with_root("postgresql://tars@127.0.0.1/mesh?sslmode=disable");
        assert!(
            loopback
                .address()
                .unwrap_err()
                .contains("plaintext_loopback")
        );
        let no_root = Database {
            root_certificate: None,
            ..with_root("postgresql://tars@db.example/mesh?sslmode=verify-full")
        };
        assert!(no_root.address().unwrap_err().contains("root_certificate"));
    }

    #[test]
    fn a_url_that_holds_a_password_or_lacks_a_part_is_refused() {
        for (url, reason) in [
            (
                "postgresql://tars:secret@db/mesh?sslmode=verify-full",
                "password_file",
            ),
            (
                "postgresql://tars@db/mesh?sslmode=verify-full&password=secret",
                "password",
            ),
            ("postgresql://db/mesh?sslmode=verify-full", "no user"),
            ("postgresql://@db/mesh?sslmode=verify-full", "no user"),
            ("postgresql://tars@/mesh?sslmode=verify-full", "no host"),
            ("postgresql://tars@db?sslmode=verify-full", "no database"),
            ("postgresql://tars@db/?sslmode=verify-full", "no database"),
            (
                "postgresql://tars@db:70000/mesh?sslmode=verify-full",
                "port",
            ),
            ("postgresql://tars@[::1/mesh?sslmode=verify-full", "']'"),
            ("postgresql://tars@db/mesh?host=run", "directory"),
            (
                "postgresql://tars@db/mesh?sslmode=verify-full&options=x",
                "options",
            ),
            ("mysql://tars@db/mesh", "postgresql://"),
        ] {
            let refused = with_root(url).address().unwrap_err();
            assert!(refused.contains(reason), "{url}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = Database {
            client_key: Some("key.pem".into()),
            schema_prefix: "Tars; DROP".to_owned(),
            ..with_root("postgresql://tars@db/mesh")
        };
        assert_eq!(wrong.mistakes().len(), 3, "{:?}", wrong.mistakes());
    }
}
