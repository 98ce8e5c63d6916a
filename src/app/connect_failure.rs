//! Why a connection to the mesh failed, and what to do about it: the one place that turns the words of
//! TLS libraries into those of operators.
//!
//! What is known of a failure is mostly its text. An alert of the peer arrives in the middle of HTTP/2,
//! which keeps its message and not its type, and a call's status carries a message only. So the texts
//! are matched against one table; its test makes them from the errors themselves.

mod advice;

use super::OPERATOR;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tars_certs::{IdentityError, IdentityFiles, SpiffeId, files::certificates, inspect::summarise};

/// Why a command could not reach the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    /// No process listens at the target.
    Refused,
    /// The host name does not resolve.
    NameNotResolved,
    /// The connection or the handshake timed out.
    TimedOut,
    /// The peer closed the connection and gave no reason.
    Closed,
    /// The peer answered in something other than TLS.
    NotTls,
    /// The peer speaks TLS, but not TLS 1.3 with HTTP/2.
    UnexpectedProtocol,
    /// The server's issuer is not among the trusted roots.
    ServerUntrusted,
    /// The server's certificate has expired.
    ServerExpired,
    /// The server's certificate is not valid yet.
    ServerNotYetValid,
    /// The server's certificate is revoked.
    ServerRevoked,
    /// The server is another service of the mesh.
    UnexpectedServer,
    /// The server's certificate is malformed, or not one for servers.
    ServerInvalid,
    /// The server does not trust the issuer of this machine's certificate.
    ClientUntrusted,
    /// The server finds this machine's certificate expired or not valid yet.
    ClientOutsideValidity,
    /// This machine's certificate is revoked.
    ClientRevoked,
    /// The server refuses this machine's certificate for a reason that it does not send.
    ClientRejected,
    /// The server is not under the root that the join token names.
    RootMismatch,
}

/// Parts of error texts and what they mean; the first that an error contains decides.
const SIGNS: &[(&str, ConnectFailure)] = &[
    (
        "is not the server that the join token names",
        ConnectFailure::RootMismatch,
    ),
    // This machine's verdict on a server, by its label.
    ("(unknown_issuer)", ConnectFailure::ServerUntrusted),
    // Two meshes of one trust domain have roots of the same name, and of different keys.
    ("(signature)", ConnectFailure::ServerUntrusted),
    ("(expired)", ConnectFailure::ServerExpired),
    ("(expired_root)", ConnectFailure::ServerExpired),
    ("(not_yet_valid)", ConnectFailure::ServerNotYetValid),
    ("(revoked)", ConnectFailure::ServerRevoked),
    ("(other_id)", ConnectFailure::UnexpectedServer),
    ("cannot trust ", ConnectFailure::ServerInvalid),
    // The server's verdict on this machine's certificate.
    (
        "refuses this process's certificate: it is revoked",
        ConnectFailure::ClientRevoked,
    ),
    ("alert: CertificateRevoked", ConnectFailure::ClientRevoked),
    ("alert: UnknownCA", ConnectFailure::ClientUntrusted),
    ("alert: DecryptError", ConnectFailure::ClientUntrusted),
    (
        "alert: CertificateExpired",
        ConnectFailure::ClientOutsideValidity,
    ),
    ("alert: CertificateUnknown", ConnectFailure::ClientRejected),
    ("alert: BadCertificate", ConnectFailure::ClientRejected),
    (
        "alert: UnsupportedCertificate",
        ConnectFailure::ClientRejected,
    ),
    ("alert: CertificateRequired", ConnectFailure::ClientRejected),
    ("alert: AccessDenied", ConnectFailure::ClientRejected),
    // The handshake did not get as far as certificates.
    (
        "alert: NoApplicationProtocol",
        ConnectFailure::UnexpectedProtocol,
    ),
    ("alert: ProtocolVersion", ConnectFailure::UnexpectedProtocol),
    (
        "alert: HandshakeFailure",
        ConnectFailure::UnexpectedProtocol,
    ),
    ("peer is incompatible", ConnectFailure::UnexpectedProtocol),
    ("does not speak HTTP/2", ConnectFailure::UnexpectedProtocol),
    (
        "corrupt message of type InvalidContentType",
        ConnectFailure::NotTls,
    ),
    ("tls handshake eof", ConnectFailure::Closed),
    (
        "closed the connection before HTTP/2",
        ConnectFailure::Closed,
    ),
    ("Connection reset", ConnectFailure::Closed),
    ("Broken pipe", ConnectFailure::Closed),
    ("closed because of a broken pipe", ConnectFailure::Closed),
    ("operation was canceled", ConnectFailure::Closed),
    ("Connection refused", ConnectFailure::Refused),
    ("failed to lookup address", ConnectFailure::NameNotResolved),
    ("no answer in", ConnectFailure::TimedOut),
];

impl ConnectFailure {
    /// Whether another attempt may give a reason: the alert of a server that refuses a certificate is
    /// lost when the client was about to send something.
    pub(crate) fn is_vague(self) -> bool {
        self == Self::Closed
    }

    /// Whether there was no peer that could have answered.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Self::Refused | Self::NameNotResolved | Self::TimedOut)
    }

    pub(crate) fn of(text: &str) -> Option<Self> {
        let mut signs = SIGNS.iter();
        signs.find(|(sign, _)| text.contains(sign)).map(|s| s.1)
    }
}

/// An attempt to connect, in the terms in which a person speaks of it.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// `host:port`.
    pub(crate) target: String,
    /// The server that is meant, by its SPIFFE id or path.
    pub(crate) expected: String,
    /// The folder with this machine's identity.
    pub(crate) identity: PathBuf,
    /// The SPIFFE path of that identity; empty where it could not be read.
    pub(crate) own: String,
}

/// The command that issues another certificate for an identity, in place of the one in `dir`.
pub(crate) fn issue_command(path: &str, dir: &dyn fmt::Display) -> String {
    match path.strip_prefix("/client/") {
        Some(name) if !name.contains('/') => {
            format!("tars certs client {name} --out {dir} --force")
        }
        _ => format!("tars certs issue {path} --out {dir} --force"),
    }
}

/// A failure with what to do about it; the original error is kept as the cause.
#[derive(Debug)]
pub(crate) struct Explained {
    text: String,
    cause: String,
    pub(crate) failure: ConnectFailure,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (cause: {})", self.text, self.cause)
    }
}

impl Attempt {
    /// An attempt to reach a server with the identity in `files`.
    pub(crate) fn new(target: &str, expected: &str, files: &IdentityFiles) -> Self {
        let leaf = certificates(&files.cert).ok();
        let leaf = leaf.and_then(|chain| summarise(chain.first()?)?.spiffe_id);
        let own = leaf.and_then(|id| id.parse::<SpiffeId>().ok());
        Self {
            target: target.to_owned(),
            expected: expected.to_owned(),
            identity: files.cert.parent().unwrap_or(Path::new(".")).to_owned(),
            own: own.map(|id| id.path().to_owned()).unwrap_or_default(),
        }
    }

    /// Explains a failure; `None` when it is not one of a connection.
    pub(crate) fn explain(&self, error: &str) -> Option<Explained> {
        let failure = ConnectFailure::of(error)?;
        Some(Explained {
            text: self.describe(failure),
            cause: error.to_owned(),
            failure,
        })
    }

    fn describe(&self, failure: ConnectFailure) -> String {
        let (dir, again) = (self.identity.display().to_string(), self.issued_again());
        let values = [
            ("target", self.target.as_str()),
            ("expected", &self.expected),
            ("dir", &dir),
            ("again", &again),
        ];
        advice::text(failure, &values)
    }

    /// How this machine's identity gets another certificate.
    fn issued_again(&self) -> String {
        let issue = || issue_command(&self.own, &self.identity.display());
        match self.own.as_str() {
            "" => "Have another issued: `tars certs issue`".to_owned(),
            OPERATOR => {
                "`tars up` writes the operator's anew at its start; copy it from there".to_owned()
            }
            _ => format!("Have another issued: `{}`", issue()),
        }
    }

    /// Explains why this machine's identity cannot be used, before any connection is made.
    pub(crate) fn explain_own(&self, error: &IdentityError) -> Option<Explained> {
        let IdentityError::Refused(refusal) = error else {
            return None;
        };
        let (dir, again) = (self.identity.display(), self.issued_again());
        let (text, failure) = match refusal.reason() {
            "expired" => (
                format!("{dir}/tls.crt has expired, and cannot renew itself any more. {again}"),
                ConnectFailure::ClientOutsideValidity,
            ),
            "not_yet_valid" => (
                format!("{dir}/tls.crt is not valid yet: the clock of this machine is behind"),
                ConnectFailure::ClientOutsideValidity,
            ),
            "unknown_issuer" | "signature" => (
                format!(
                    "{dir}/ca.crt does not vouch for {dir}/tls.crt: they are of two meshes, or of before and after a rotation of the roots. {again}"
                ),
                ConnectFailure::ClientUntrusted,
            ),
            _ => return None,
        };
        Some(Explained {
            text,
            cause: error.to_string(),
            failure,
        })
    }
}

#[cfg(test)]
mod tests;
