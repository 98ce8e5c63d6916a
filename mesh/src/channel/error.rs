//! Why a call could not be made, for operators and for strangers.

use super::options::{CONNECT_TIMEOUT, ChannelOptions};
use std::{io, sync::Arc};
use tars_certs::tls;
use tars_runtime::targets::TargetError;

/// Why a channel has no connection, or lost it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelError {
    /// The server's address does not accept connections.
    #[error("cannot reach {target}: {source}")]
    Connect {
        /// The address.
        target: String,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The server did not complete the handshakes in time.
    #[error("cannot reach {target}: no answer in {CONNECT_TIMEOUT:?}")]
    Timeout {
        /// The address.
        target: String,
    },
    /// The server does not negotiate HTTP/2.
    #[error("{target} does not speak HTTP/2")]
    NoH2 {
        /// The address.
        target: String,
    },
    /// The server closed the connection without a reason, before it had begun HTTP/2.
    #[error("{target} closed the connection before HTTP/2")]
    Closed {
        /// The address.
        target: String,
    },
    /// The server's certificate is not acceptable.
    #[error("cannot trust {target}: {why}")]
    Refused {
        /// The address.
        target: String,
        /// The reason.
        why: String,
    },
    /// This process has no usable certificate, for the reason in the text.
    #[error("{0}")]
    Own(String),
    /// The server has revoked this process's certificate.
    #[error("{target} refuses this process's certificate: it is revoked")]
    OwnRevoked {
        /// The address.
        target: String,
    },
    /// No TLS configuration can be made of this process's identity.
    #[error(transparent)]
    Identity(#[from] tls::TlsError),
    /// The HTTP/2 connection failed.
    #[error("{target}: {}", with_causes(&**source))]
    Http {
        /// The address.
        target: String,
        /// The cause.
        source: Arc<hyper::Error>,
    },
    /// The connection was closed, and the request is too long to be sent again.
    #[error("{target}: the connection was closed during a long request")]
    Moved {
        /// The address.
        target: String,
    },
    /// The attempt to connect was dropped, with the runtime that it ran on.
    #[error("{target}: the attempt to connect was abandoned")]
    Abandoned {
        /// The address.
        target: String,
    },
    /// No address of the server can be used, each for its own reason.
    #[error("none of {} addresses can be used: {}", .0.len(), listed(.0))]
    Several(Vec<Self>),
    /// The target is not a list of hosts and ports.
    #[error("{}", listed(.0))]
    Target(Vec<TargetError>),
}

impl ChannelError {
    pub(super) fn connect(target: String, source: io::Error) -> Self {
        let source = Arc::new(source);
        Self::Connect { target, source }
    }

    /// Returns the error of a server none of whose addresses can be used.
    pub(super) fn of_all(mut failures: Vec<Self>) -> Self {
        let own = |error: &Self| matches!(error, Self::Own(_) | Self::Identity(_));
        if let Some(own) = failures.iter().position(own) {
            return failures.swap_remove(own);
        }
        match failures.len() {
            1 => failures.swap_remove(0),
            _ => Self::Several(failures),
        }
    }

    /// Whether a server refuses this process's certificate as revoked.
    pub(super) fn is_own_revoked(&self) -> bool {
        match self {
            Self::OwnRevoked { .. } => true,
            Self::Several(failures) => failures.iter().any(Self::is_own_revoked),
            _ => false,
        }
    }

    /// Why an attempt to connect failed, as a metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::NoH2 { .. } => "no_http2",
            Self::Closed { .. } | Self::Http { .. } => "connection_lost",
            Self::Refused { .. } => "not_trusted",
            Self::Own(_) | Self::Identity(_) => "own_certificate",
            Self::OwnRevoked { .. } => "own_certificate_revoked",
            Self::Moved { .. } => "moved",
            Self::Abandoned { .. } => "abandoned",
            Self::Several(_) => "several_addresses",
            Self::Target(_) => "target",
        }
    }

    /// Whether there was no server that could have refused anything.
    fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Abandoned { .. }
        )
    }

    /// The message for strangers: which service failed, and no address, certificate or cause.
    pub(super) fn public_message(&self, options: &ChannelOptions) -> String {
        self.message_between(options.workload(), options.service)
    }

    fn message_between(&self, to: &str, from: &str) -> String {
        match self {
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Abandoned { .. }
            | Self::Target(_) => format!("{to} cannot be reached"),
            // Of several reasons, one that a server gave says the most.
            Self::Several(failures) => {
                let mut given = failures.iter().filter(|error| !error.is_absence());
                let found = given.next().or(failures.first());
                let unknown = || format!("{to} cannot be reached");
                found.map_or_else(unknown, |error| error.message_between(to, from))
            }
            Self::NoH2 { .. } => format!("{to} does not speak HTTP/2"),
            Self::Refused { .. } => format!("{to} cannot be trusted"),
            Self::Own(_) => format!("the certificate of {from} has expired or is revoked"),
            Self::OwnRevoked { .. } => format!("{to} refuses the certificate of {from}"),
            Self::Identity(_) => format!("the identity of {from} cannot be used"),
            Self::Http { .. } | Self::Moved { .. } | Self::Closed { .. } => {
                format!("the connection to {to} was lost")
            }
        }
    }
}

impl ChannelError {
    /// Returns the error that ended an HTTP/2 connection to `target`.
    pub(super) fn http(target: String, source: hyper::Error) -> Self {
        if is_revoked_alert(&source) {
            Self::OwnRevoked { target }
        } else {
            let source = Arc::new(source);
            Self::Http { target, source }
        }
    }
}

fn listed(items: &[impl ToString]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Formats an error with its causes, most often a TLS alert of the peer.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// Whether the peer ended the handshake because this process's certificate is revoked. In TLS 1.3 the alert
/// arrives after this side has completed the handshake, and h2 preserves only the text of the error, not
/// its type.
fn is_revoked_alert(error: &hyper::Error) -> bool {
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
    with_causes(error).contains(&alert.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn away(target: &str) -> ChannelError {
        ChannelError::connect(target.to_owned(), io::ErrorKind::ConnectionRefused.into())
    }

    fn revoked(target: &str) -> ChannelError {
        ChannelError::OwnRevoked {
            target: target.to_owned(),
        }
    }

    #[test]
    fn an_error_of_several_addresses_names_each_with_its_reason() {
        let error = ChannelError::of_all(vec![away("a:1"), revoked("b:2")]);
        let text = error.to_string();
        assert!(
            text.starts_with("none of 2 addresses can be used: cannot reach a:1: "),
            "{text}"
        );
        assert!(
            text.contains("; b:2 refuses this process's certificate"),
            "{text}"
        );
        assert!(error.is_own_revoked());
        let both_away = ChannelError::of_all(vec![away("a:1"), away("b:2")]);
        assert!(!both_away.is_own_revoked());
    }

    #[test]
    fn every_kind_of_failure_has_a_label_that_says_which() {
        let target = || "a:1".to_owned();
        let named = [
            away("a:1"),
            ChannelError::Timeout { target: target() },
            ChannelError::NoH2 { target: target() },
            ChannelError::Closed { target: target() },
            ChannelError::Refused {
                target: target(),
                why: String::new(),
            },
            ChannelError::Own(String::new()),
            revoked("a:1"),
            ChannelError::Moved { target: target() },
            ChannelError::Abandoned { target: target() },
            ChannelError::Several(vec![away("a:1"), away("b:2")]),
            ChannelError::Target(Vec::new()),
        ];
        let labels: BTreeSet<_> = named.iter().map(ChannelError::label).collect();
        assert_eq!(labels.len(), named.len(), "{labels:?}");
        assert!(!labels.contains("other"), "{labels:?}");
    }

    #[test]
    fn an_error_that_is_not_of_an_address_stands_alone() {
        assert_eq!(
            ChannelError::of_all(vec![away("a:1")]).to_string(),
            away("a:1").to_string()
        );
        let own = ChannelError::Own("the certificate has expired".to_owned());
        let error = ChannelError::of_all(vec![away("a:1"), own.clone(), own]);
        assert_eq!(error.to_string(), "the certificate has expired");
    }

    #[test]
    fn strangers_are_given_the_reason_of_a_server_before_that_of_an_absence() {
        let public = |failures| ChannelError::of_all(failures).message_between("auth", "gateway");
        assert_eq!(
            public(vec![away("a:1"), away("b:2")]),
            "auth cannot be reached"
        );
        assert_eq!(
            public(vec![away("a:1"), revoked("b:2")]),
            "auth refuses the certificate of gateway"
        );
    }
}
