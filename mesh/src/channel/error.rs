//! Why a call could not be made, in the words of whoever reads it.

use super::{CONNECT_TIMEOUT, ChannelOptions};
use tars_certs::tls;

/// The reason of a call that failed because the server refuses the own certificate as revoked.
pub const OWN_CERTIFICATE_REVOKED: &str = "OWN_CERTIFICATE_REVOKED";

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot reach {target}: {source}")]
    Connect {
        target: String,
        source: std::io::Error,
    },
    #[error("cannot reach {target}: no answer in {CONNECT_TIMEOUT:?}")]
    Timeout { target: String },
    #[error("{target} does not speak HTTP/2")]
    NoH2 { target: String },
    #[error("cannot trust {target}: {why}")]
    Refused { target: String, why: String },
    #[error("{0}")]
    Own(String),
    #[error("{target} refuses the own certificate: it is revoked")]
    OwnRevoked { target: String },
    #[error("the own identity is not usable: {0}")]
    Identity(#[from] tls::TlsError),
    #[error("{target}: {}", with_causes(source))]
    Http {
        target: String,
        source: hyper::Error,
    },
    #[error("{target}: the connection went away in the middle of a long request")]
    Moved { target: String },
    #[error("{0:?} is not a host and port")]
    Target(String),
}

impl ChannelError {
    /// What may be said to anybody: which service, and no address, certificate or cause.
    pub(super) fn to_strangers(&self, options: &ChannelOptions) -> String {
        let (to, from) = (options.workload(), options.service);
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Target(_) => {
                format!("{to} cannot be reached")
            }
            Self::NoH2 { .. } => format!("{to} does not speak HTTP/2"),
            Self::Refused { .. } => format!("{to} cannot be trusted"),
            Self::Own(_) => format!("the certificate of {from} has expired or is revoked"),
            Self::OwnRevoked { .. } => format!("{to} refuses the certificate of {from}"),
            Self::Identity(_) => format!("the identity of {from} is not usable"),
            Self::Http { .. } | Self::Moved { .. } => format!("the connection to {to} was lost"),
        }
    }
}

impl ChannelError {
    /// What ended an HTTP/2 connection to `target`.
    pub(super) fn http(target: String, source: hyper::Error) -> Self {
        if says_revoked(&source) {
            Self::OwnRevoked { target }
        } else {
            Self::Http { target, source }
        }
    }
}

/// An error with what stands behind it: an alert of the peer's TLS, most often.
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

/// Whether the other side ended the handshake because the own certificate is revoked. In TLS 1.3 the
/// alert comes after the own side is done with it, behind the proof of who sends it; h2 keeps of it
/// what it says, and not what it is.
fn says_revoked(error: &hyper::Error) -> bool {
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
    with_causes(error).contains(&alert.to_string())
}
