//! Why a call could not be made, for operators and for strangers.

use super::{CONNECT_TIMEOUT, ChannelOptions};
use tars_certs::tls;

/// Why a channel has no connection, or lost it.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The server's address does not accept connections.
    #[error("cannot reach {target}: {source}")]
    Connect {
        /// The address.
        target: String,
        /// The cause.
        source: std::io::Error,
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
    #[error("{target}: {}", with_causes(source))]
    Http {
        /// The address.
        target: String,
        /// The cause.
        source: hyper::Error,
    },
    /// The connection was closed, and the request is too long to be sent again.
    #[error("{target}: the connection was closed during a long request")]
    Moved {
        /// The address.
        target: String,
    },
    /// The target is not a host and port.
    #[error("{0:?} is not a host and port")]
    Target(String),
}

impl ChannelError {
    /// The message for strangers: which service failed, and no address, certificate or cause.
    pub(super) fn public_message(&self, options: &ChannelOptions) -> String {
        let (to, from) = (options.workload(), options.service);
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Target(_) => {
                format!("{to} cannot be reached")
            }
            Self::NoH2 { .. } => format!("{to} does not speak HTTP/2"),
            Self::Refused { .. } => format!("{to} cannot be trusted"),
            Self::Own(_) => format!("the certificate of {from} has expired or is revoked"),
            Self::OwnRevoked { .. } => format!("{to} refuses the certificate of {from}"),
            Self::Identity(_) => format!("the identity of {from} cannot be used"),
            Self::Http { .. } | Self::Moved { .. } => format!("the connection to {to} was lost"),
        }
    }
}

impl ChannelError {
    /// Returns the error that ended an HTTP/2 connection to `target`.
    pub(super) fn http(target: String, source: hyper::Error) -> Self {
        if says_revoked(&source) {
            Self::OwnRevoked { target }
        } else {
            Self::Http { target, source }
        }
    }
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
fn says_revoked(error: &hyper::Error) -> bool {
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
    with_causes(error).contains(&alert.to_string())
}
