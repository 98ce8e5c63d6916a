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
pub(crate) enum Trouble {
    /// No process listens at the target.
    Nobody,
    /// The host name does not resolve.
    NoSuchHost,
    /// The connection or the handshake timed out.
    Silent,
    /// The peer closed the connection and gave no reason.
    HungUp,
    /// The peer answered in something other than TLS.
    Plaintext,
    /// The peer speaks TLS, but not TLS 1.3 with HTTP/2.
    NotTars,
    /// The server's issuer is not among the trusted roots.
    ServerUnknown,
    /// The server's certificate has expired.
    ServerExpired,
    /// The server's certificate is not valid yet.
    ServerEarly,
    /// The server's certificate is revoked.
    ServerRevoked,
    /// The server is another service of the mesh.
    ServerOther,
    /// The server's certificate is malformed, or not one for servers.
    ServerRefused,
    /// The server does not trust the issuer of this machine's certificate.
    OwnUnknown,
    /// The server finds this machine's certificate expired or not valid yet.
    OutOfTime,
    /// This machine's certificate is revoked.
    OwnRevoked,
    /// The server refuses this machine's certificate for a reason that it does not send.
    OwnRefused,
    /// The server is not under the root that the join token names.
    OtherRoot,
}

/// Parts of error texts and what they mean; the first that an error contains decides.
const SIGNS: &[(&str, Trouble)] = &[
    (
        "is not the server that the join token names",
        Trouble::OtherRoot,
    ),
    // This machine's verdict on a server, by its label.
    ("(unknown_issuer)", Trouble::ServerUnknown),
    // Two meshes of one trust domain have roots of the same name, and of different keys.
    ("(signature)", Trouble::ServerUnknown),
    ("(expired)", Trouble::ServerExpired),
    ("(expired_root)", Trouble::ServerExpired),
    ("(not_yet_valid)", Trouble::ServerEarly),
    ("(revoked)", Trouble::ServerRevoked),
    ("(other_id)", Trouble::ServerOther),
    ("cannot trust ", Trouble::ServerRefused),
    // The server's verdict on this machine's certificate.
    (
        "refuses this process's certificate: it is revoked",
        Trouble::OwnRevoked,
    ),
    ("alert: CertificateRevoked", Trouble::OwnRevoked),
    ("alert: UnknownCA", Trouble::OwnUnknown),
    ("alert: DecryptError", Trouble::OwnUnknown),
    ("alert: CertificateExpired", Trouble::OutOfTime),
    ("alert: CertificateUnknown", Trouble::OwnRefused),
    ("alert: BadCertificate", Trouble::OwnRefused),
    ("alert: UnsupportedCertificate", Trouble::OwnRefused),
    ("alert: CertificateRequired", Trouble::OwnRefused),
    ("alert: AccessDenied", Trouble::OwnRefused),
    // The handshake did not get as far as certificates.
    ("alert: NoApplicationProtocol", Trouble::NotTars),
    ("alert: ProtocolVersion", Trouble::NotTars),
    ("alert: HandshakeFailure", Trouble::NotTars),
    ("peer is incompatible", Trouble::NotTars),
    ("does not speak HTTP/2", Trouble::NotTars),
    (
        "corrupt message of type InvalidContentType",
        Trouble::Plaintext,
    ),
    ("tls handshake eof", Trouble::HungUp),
    ("Connection reset", Trouble::HungUp),
    ("Broken pipe", Trouble::HungUp),
    ("closed because of a broken pipe", Trouble::HungUp),
    ("operation was canceled", Trouble::HungUp),
    ("Connection refused", Trouble::Nobody),
    ("failed to lookup address", Trouble::NoSuchHost),
    ("no answer in", Trouble::Silent),
];

impl Trouble {
    /// Whether another attempt may give a reason: the alert of a server that refuses a certificate is
    /// lost when the client was about to send something.
    pub(crate) fn is_vague(self) -> bool {
        self == Self::HungUp
    }

    /// Whether there was no peer that could have answered.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Self::Nobody | Self::NoSuchHost | Self::Silent)
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
    pub(crate) trouble: Trouble,
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
        let trouble = Trouble::of(error)?;
        Some(Explained {
            text: self.describe(trouble),
            cause: error.to_owned(),
            trouble,
        })
    }

    fn describe(&self, trouble: Trouble) -> String {
        let (dir, again) = (self.identity.display().to_string(), self.issued_again());
        let values = [
            ("target", self.target.as_str()),
            ("expected", &self.expected),
            ("dir", &dir),
            ("again", &again),
        ];
        advice::text(trouble, &values)
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
        let (text, trouble) = match refusal.reason() {
            "expired" => (
                format!("{dir}/tls.crt has expired, and cannot renew itself any more. {again}"),
                Trouble::OutOfTime,
            ),
            "not_yet_valid" => (
                format!("{dir}/tls.crt is not valid yet: the clock of this machine is behind"),
                Trouble::OutOfTime,
            ),
            "unknown_issuer" | "signature" => (
                format!(
                    "{dir}/ca.crt does not vouch for {dir}/tls.crt: they are of two meshes, or of before and after a rotation of the roots. {again}"
                ),
                Trouble::OwnUnknown,
            ),
            _ => return None,
        };
        Some(Explained {
            text,
            cause: error.to_string(),
            trouble,
        })
    }
}

#[cfg(test)]
mod tests;
