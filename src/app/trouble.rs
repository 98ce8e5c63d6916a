//! Why a connection to the mesh failed, and what to do about it: the one place that turns the words of
//! TLS libraries into those of operators.
//!
//! What is known of a failure is mostly its text. An alert of the other side arrives in the middle of
//! HTTP/2, which keeps of it what it says and not what it is, and a call's status carries a message.
//! So the texts are looked at, in one table; its test makes them from the errors themselves.

use super::OPERATOR;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tars_certs::{IdentityError, IdentityFiles, SpiffeId, files::certificates, inspect::summarise};

/// What stands between a command and the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Nobody,
    NoSuchHost,
    Silent,
    HungUp,
    Plaintext,
    NotTars,
    ServerUnknown,
    ServerExpired,
    ServerEarly,
    ServerRevoked,
    ServerOther,
    ServerRefused,
    OwnUnknown,
    OutOfTime,
    OwnRevoked,
    OwnRefused,
    OtherRoot,
}

/// What a text contains, and what it means; the first that fits.
const SIGNS: &[(&str, Trouble)] = &[
    (
        "is not the server that the join token names",
        Trouble::OtherRoot,
    ),
    // The own verdict on a server, by its label.
    ("(unknown_issuer)", Trouble::ServerUnknown),
    // Two meshes of one trust domain have roots of the same name, and of different keys.
    ("(signature)", Trouble::ServerUnknown),
    ("(expired)", Trouble::ServerExpired),
    ("(expired_root)", Trouble::ServerExpired),
    ("(not_yet_valid)", Trouble::ServerEarly),
    ("(revoked)", Trouble::ServerRevoked),
    ("(other_id)", Trouble::ServerOther),
    ("cannot trust ", Trouble::ServerRefused),
    // The server's verdict on the own certificate.
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
    // No talk of certificates at all.
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
    /// Whether another try may tell more: the alert of a server that refuses a certificate is lost when
    /// the own side was about to send something.
    pub(crate) fn is_vague(self) -> bool {
        self == Self::HungUp
    }

    /// Whether nobody is there who could have answered.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Self::Nobody | Self::NoSuchHost | Self::Silent)
    }

    pub(crate) fn of(text: &str) -> Option<Self> {
        let mut signs = SIGNS.iter();
        signs.find(|(sign, _)| text.contains(sign)).map(|s| s.1)
    }
}

/// A connection as a person speaks of it.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// `host:port`.
    pub(crate) target: String,
    /// Who is meant.
    pub(crate) expected: String,
    /// The folder with the own identity.
    pub(crate) identity: PathBuf,
    /// Its SPIFFE path, where that could be read.
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

/// A failure with what to do about it; the original stays as the cause.
#[derive(Debug)]
pub(crate) struct Explained {
    said: String,
    cause: String,
    pub(crate) trouble: Trouble,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (cause: {})", self.said, self.cause)
    }
}

impl Way {
    /// The way from an identity's files to whoever is meant.
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

    /// What a failure means; `None` when it is not one of a connection.
    pub(crate) fn explain(&self, error: &str) -> Option<Explained> {
        let trouble = Trouble::of(error)?;
        Some(Explained {
            said: self.said(trouble),
            cause: error.to_owned(),
            trouble,
        })
    }

    fn said(&self, trouble: Trouble) -> String {
        let Self {
            target, expected, ..
        } = self;
        let dir = self.identity.display();
        let again = self.issued_again();
        match trouble {
            Trouble::Nobody => format!(
                "nothing listens at {target}: start the mesh with `tars up`, or name where the service is"
            ),
            Trouble::NoSuchHost => format!("the host of {target} is not known: check its name"),
            Trouble::Silent => format!(
                "{target} does not answer: it is overloaded, or a firewall drops what is sent to it"
            ),
            Trouble::HungUp => format!(
                "{target} ended the connection without a reason: it is no port for gRPC over TLS, or the service does not accept {dir}/tls.crt, is stopping, or is full; check the port, then its log"
            ),
            Trouble::Plaintext => format!(
                "{target} does not speak TLS: it is the gateway, the admin or the observe port, or another program; name the port of the service for gRPC"
            ),
            Trouble::NotTars => format!(
                "{target} speaks TLS, but is no service of a mesh (TLS 1.3 with HTTP/2): name the port of the service for gRPC"
            ),
            Trouble::ServerUnknown => format!(
                "{dir}/ca.crt does not vouch for {target}: it is of another mesh, for which another identity is needed, or the roots were rotated since that file was written. Fetch what the mesh trusts now, and try again: `tars certs bundle --out {dir}/ca.crt --force`"
            ),
            Trouble::ServerExpired => format!(
                "the certificate of {target} has expired, as its service could not renew it; its log says why. If only this machine says so, its clock is ahead"
            ),
            Trouble::ServerEarly => format!(
                "the certificate of {target} is not valid yet: the clock of this machine is behind, or that of the mesh is ahead"
            ),
            Trouble::ServerRevoked => format!(
                "the certificate of {target} is revoked: do not trust it. If its service is to come back, start it with a new join token (`tars certs join-token`)"
            ),
            Trouble::ServerOther => format!(
                "{target} is not {expected} but another service of the mesh: the port is another's"
            ),
            Trouble::ServerRefused => format!(
                "the certificate of {target} is not what a service of a mesh may show; look at it with `tars certs inspect` where its files are"
            ),
            Trouble::OwnUnknown => format!(
                "{target} does not trust the issuer of {dir}/tls.crt: it is of another mesh, or its root was rotated away. {again}"
            ),
            Trouble::OutOfTime => format!(
                "{target} says that {dir}/tls.crt is out of time: it has expired, or the clocks differ. What has expired cannot renew itself. {again}"
            ),
            Trouble::OwnRevoked => format!(
                "{dir}/tls.crt is revoked, and {target} refuses it; it cannot be renewed. {again}"
            ),
            Trouble::OwnRefused => {
                format!("{target} does not accept {dir}/tls.crt, and its log says why. {again}")
            }
            Trouble::OtherRoot => format!(
                "{target} does not stand under the root that the join token names: the token is of another mesh, or older than the last rotation of the roots. Make another with `tars certs join-token`"
            ),
        }
    }

    /// What gives the own identity another certificate.
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

    /// What is wrong with the own files, before anybody was asked.
    pub(crate) fn explain_own(&self, error: &IdentityError) -> Option<Explained> {
        let IdentityError::Refused(refusal) = error else {
            return None;
        };
        let (dir, again) = (self.identity.display(), self.issued_again());
        let (said, trouble) = match refusal.reason() {
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
            said,
            cause: error.to_string(),
            trouble,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
    use std::io;

    fn way() -> Way {
        Way {
            target: "10.0.0.7:8093".to_owned(),
            expected: "spiffe://tars.local/auth".to_owned(),
            identity: "/etc/bot".into(),
            own: "/client/bot".to_owned(),
        }
    }

    /// As a channel tells of an alert.
    fn alert(alert: AlertDescription) -> String {
        let error = Error::AlertReceived(alert);
        format!("10.0.0.7:8093: http2 error: connection error: {error}")
    }

    /// As a channel tells of a server that it does not trust.
    fn verdict(kind: CertificateError, label: &str) -> String {
        let error = Error::InvalidCertificate(kind);
        format!("cannot trust 10.0.0.7:8093: {error} ({label})")
    }

    fn failed(error: impl Into<io::Error>) -> String {
        format!("cannot reach 10.0.0.7:8093: {}", error.into())
    }

    #[test]
    fn each_failure_of_tls_says_what_to_do() {
        use AlertDescription as A;
        use CertificateError as C;
        let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
        let corrupt = io::Error::other(Error::InvalidMessage(InvalidMessage::InvalidContentType));
        let table = [
            (
                alert(A::CertificateRevoked),
                "is revoked",
                "tars certs client bot --out /etc/bot --force",
            ),
            (alert(A::UnknownCA), "another mesh", "tars certs client bot"),
            (
                alert(A::CertificateExpired),
                "has expired",
                "tars certs client bot",
            ),
            (
                alert(A::CertificateUnknown),
                "does not accept /etc/bot/tls.crt",
                "its log says why",
            ),
            (
                alert(A::BadCertificate),
                "does not accept",
                "tars certs client bot",
            ),
            (
                alert(A::UnsupportedCertificate),
                "does not accept",
                "tars certs client bot",
            ),
            (
                alert(A::CertificateRequired),
                "does not accept",
                "tars certs client bot",
            ),
            (
                alert(A::AccessDenied),
                "does not accept",
                "tars certs client bot",
            ),
            (
                alert(A::DecryptError),
                "another mesh",
                "tars certs client bot",
            ),
            (
                alert(A::NoApplicationProtocol),
                "no service of a mesh",
                "name the port",
            ),
            (
                alert(A::ProtocolVersion),
                "no service of a mesh",
                "name the port",
            ),
            (
                alert(A::HandshakeFailure),
                "no service of a mesh",
                "name the port",
            ),
            (
                verdict(C::UnknownIssuer, "unknown_issuer"),
                "/etc/bot/ca.crt does not vouch",
                "tars certs bundle --out /etc/bot/ca.crt",
            ),
            (
                verdict(C::Expired, "expired"),
                "has expired",
                "its log says why",
            ),
            (
                verdict(C::Expired, "expired_root"),
                "has expired",
                "its log says why",
            ),
            (
                verdict(C::NotValidYet, "not_yet_valid"),
                "not valid yet",
                "clock",
            ),
            (
                verdict(C::Revoked, "revoked"),
                "is revoked",
                "tars certs join-token",
            ),
            (
                verdict(C::BadSignature, "other_id"),
                "not spiffe://tars.local/auth but another",
                "the port",
            ),
            (
                verdict(C::BadSignature, "signature"),
                "another mesh",
                "tars certs bundle",
            ),
            (
                verdict(C::InvalidPurpose, "purpose"),
                "is not what a service",
                "tars certs inspect",
            ),
            (failed(eof), "ended the connection", "check the port"),
            (
                failed(io::Error::from_raw_os_error(32)),
                "ended the connection",
                "check the port",
            ),
            (failed(corrupt), "does not speak TLS", "name the port"),
            (
                failed(io::Error::from_raw_os_error(111)),
                "nothing listens",
                "tars up",
            ),
            (
                failed(io::Error::from_raw_os_error(104)),
                "ended the connection",
                "its log",
            ),
            (
                "10.0.0.7:8093 does not speak HTTP/2".to_owned(),
                "no service of a mesh",
                "name the port",
            ),
            (
                "cannot reach 10.0.0.7:8093: no answer in 5s".to_owned(),
                "does not answer",
                "firewall",
            ),
            (
                "10.0.0.7:8093 refuses this process's certificate: it is revoked".to_owned(),
                "is revoked",
                "tars certs client bot",
            ),
            (
                "10.0.0.7:8092 is not the server that the join token names: x (unknown_issuer)"
                    .to_owned(),
                "join token names",
                "tars certs join-token",
            ),
        ];
        for (error, means, next) in table {
            let explained = way().explain(&error).unwrap_or_else(|| panic!("{error}"));
            let said = explained.said.clone();
            assert!(said.contains(means), "{error}: {said}");
            assert!(said.contains(next), "{error}: {said}");
            for word in ["alert", "UnknownIssuer", "eof", "InvalidContentType"] {
                assert!(!said.contains(word), "{said}");
            }
            let whole = explained.to_string();
            assert!(whole.contains(&format!("cause: {error}")), "{whole}");
        }
    }

    #[test]
    fn another_certificate_is_issued_by_the_command_that_can() {
        for (path, command) in [
            ("/client/bot", "tars certs client bot --out DIR --force"),
            (
                "/client/ci/bot",
                "tars certs issue /client/ci/bot --out DIR --force",
            ),
            (
                OPERATOR,
                "tars certs issue /user/operator --out DIR --force",
            ),
        ] {
            assert_eq!(issue_command(path, &"DIR"), command);
        }
    }

    #[test]
    fn every_sign_is_reached_and_what_is_no_failure_of_tls_stays_as_it_is() {
        for (at, (sign, trouble)) in SIGNS.iter().enumerate() {
            let first = SIGNS.iter().position(|(other, _)| sign.contains(other));
            assert_eq!(first, Some(at), "{sign} is hidden by an earlier one");
            assert_eq!(Trouble::of(sign), Some(*trouble));
        }
        for other in [
            "",
            "rate limit exceeded",
            "the certificate can be renewed no more",
        ] {
            assert_eq!(Trouble::of(other), None, "{other}");
        }
    }
}
