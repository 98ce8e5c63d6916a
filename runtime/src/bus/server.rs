//! A Redis server as the configuration names it, and how to connect to it.

use crate::{
    config::{Endpoint, Redis},
    password::{self, unusable},
    roots::{certificates, roots},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};
use std::{fmt, io, sync::Arc};
use tars_certs::crypto::provider;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// The environment variable of the password, which Redis' own client reads too.
pub const PASSWORD_VARIABLE: &str = "REDISCLI_AUTH";

/// Every reason for which the configured server cannot be used, each a line for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ServerError(pub Vec<String>);

/// A server, with what is needed to log in.
#[derive(Clone)]
pub struct Server {
    user: Option<String>,
    endpoint: Endpoint,
    settings: Redis,
    password: Option<Zeroizing<String>>,
}

impl fmt::Debug for Server {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.endpoint)
    }
}

/// A connection, before anything was said on it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Server {
    /// The server of a configuration, if it names one. `password` is the value of
    /// [`PASSWORD_VARIABLE`], and is used where the configuration names no file.
    ///
    /// # Errors
    ///
    /// Every mistake in the settings, and every file that cannot be read or used.
    pub fn of(settings: &Redis, password: Option<String>) -> Result<Option<Self>, ServerError> {
        let mut mistakes = settings.mistakes();
        let Ok(Some((user, endpoint))) = settings.endpoint() else {
            return match mistakes.is_empty() {
                true => Ok(None),
                false => Err(ServerError(mistakes)),
            };
        };
        let password = password.filter(|text| !text.is_empty()).map(Zeroizing::new);
        let server = Self {
            user,
            endpoint,
            settings: settings.clone(),
            password,
        };
        mistakes.extend(server.unusable_files());
        match mistakes.is_empty() {
            true => Ok(Some(server)),
            false => Err(ServerError(mistakes)),
        }
    }

    fn unusable_files(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        mistakes.extend(self.password().err());
        if matches!(self.endpoint, Endpoint::Verified { .. }) {
            mistakes.extend(self.roots().err());
            mistakes.extend(self.client_identity().err());
        }
        mistakes
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The name of a topic's channel.
    pub(crate) fn channel(&self, topic: &str) -> String {
        format!("{}:{topic}", self.settings.channel_prefix)
    }

    /// The topic of a channel.
    pub(super) fn topic<'a>(&self, channel: &'a str) -> Option<&'a str> {
        let rest = channel.strip_prefix(&self.settings.channel_prefix)?;
        rest.strip_prefix(':')
    }

    /// The password, which may have been replaced since the last connection.
    pub(super) fn password(&self) -> Result<Option<Zeroizing<String>>, String> {
        let Some(file) = &self.settings.password_file else {
            return Ok(self.password.clone());
        };
        password::read("redis.password_file", file).map(Some)
    }

    /// Connects, up to and including the TLS handshake.
    ///
    /// # Errors
    ///
    /// Why there is no connection, for the operator.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let failed = |e: io::Error| format!("{self}: {e}");
        Ok(match &self.endpoint {
            Endpoint::Socket(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
            Endpoint::Loopback(address) => {
                Box::new(TcpStream::connect(address).await.map_err(failed)?)
            }
            Endpoint::Verified { host, port } => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|e| format!("{host}: {e}"))?;
                let connector = TlsConnector::from(Arc::new(self.tls()?));
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(failed)?;
                let stream = connector.connect(name, stream).await;
                Box::new(stream.map_err(|e| format!("TLS with {self}: {e}"))?)
            }
        })
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let with_roots = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| e.to_string())?
            .with_root_certificates(self.roots()?);
        Ok(match self.client_identity()? {
            Some((chain, key)) => with_roots
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("redis.client_certificate: {e}"))?,
            None => with_roots.with_no_client_auth(),
        })
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        match &self.settings.root_certificate {
            Some(file) => roots("redis.root_certificate", file),
            None => Ok(RootCertStore::empty()),
        }
    }

    fn client_identity(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, String> {
        let settings = &self.settings;
        let (Some(chain), Some(key)) = (&settings.client_certificate, &settings.client_key) else {
            return Ok(None);
        };
        let chain = certificates("redis.client_certificate", chain)?;
        let name = "redis.client_key";
        let text = password::check_secret(name, key)?;
        let parsed = PrivateKeyDer::from_pem_slice(text.as_bytes());
        let key = parsed.map_err(|e| unusable(name, key, &e))?;
        Ok(Some((chain, key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_certs::secret;

    fn settings(url: &str) -> Redis {
        Redis {
            url: Some(url.to_owned()),
            ..Redis::default()
        }
    }

    #[test]
    fn the_password_is_read_from_its_file_or_the_environment_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        secret::write(&file, b"hunter2\n").unwrap();
        let by_file = Redis {
            password_file: Some(file.clone()),
            ..settings("redis://127.0.0.1")
        };
        let password = |server: &Server| server.password().unwrap().map(|p| p.to_string());
        let server = Server::of(&by_file, Some("other".to_owned())).unwrap();
        let server = server.unwrap();
        assert_eq!(password(&server).as_deref(), Some("hunter2"));
        secret::write(&file, b"hunter3").unwrap();
        assert_eq!(password(&server).as_deref(), Some("hunter3"), "read again");
        let by_variable = settings("redis://127.0.0.1");
        let server = Server::of(&by_variable, Some("hunter2".to_owned())).unwrap();
        let server = server.unwrap();
        assert_eq!(password(&server).as_deref(), Some("hunter2"));
        assert_eq!(format!("{server:?}"), "Server(127.0.0.1:6379)");
        let server = Server::of(&by_variable, Some(String::new())).unwrap();
        assert_eq!(password(&server.unwrap()), None);
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        secret::write(&empty, b"").unwrap();
        let wrong = Redis {
            password_file: Some(empty.clone()),
            root_certificate: Some(empty),
            client_certificate: Some("/nonexistent/client.crt".into()),
            client_key: Some("/nonexistent/client.key".into()),
            channel_prefix: "*".to_owned(),
            ..settings("rediss://redis.example")
        };
        let ServerError(mistakes) = Server::of(&wrong, None).unwrap_err();
        let parts = [
            "channel_prefix",
            "password_file",
            "holds no certificate",
            "/nonexistent/client.crt",
        ];
        assert_eq!(mistakes.len(), parts.len(), "{mistakes:?}");
        for (mistake, part) in mistakes.iter().zip(parts) {
            assert!(mistake.contains(part), "{mistake}");
        }
    }

    #[test]
    fn a_refused_url_is_an_error_and_no_url_is_no_server() {
        assert!(Server::of(&Redis::default(), None).unwrap().is_none());
        let refused = Server::of(&settings("redis://redis.example"), None);
        assert!(refused.unwrap_err().to_string().contains("plaintext"));
    }

    #[test]
    fn a_channel_is_of_this_mesh_and_names_its_topic() {
        let server = Server::of(&settings("redis://127.0.0.1"), None).unwrap();
        let server = server.unwrap();
        assert_eq!(server.channel("auth.credentials"), "tars:auth.credentials");
        assert_eq!(
            server.topic("tars:auth.credentials"),
            Some("auth.credentials")
        );
        for other in ["tars2:auth.credentials", "auth.credentials", "tars", ""] {
            assert_eq!(server.topic(other), None, "{other}");
        }
    }
}
