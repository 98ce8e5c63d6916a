use super::*;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use std::io;

fn attempt() -> Attempt {
    Attempt {
        target: "10.0.0.7:8093".to_owned(),
        expected: "spiffe://tars.local/auth".to_owned(),
        identity: "/etc/bot".into(),
        own: "/client/bot".to_owned(),
    }
}

/// The error of a channel that received an alert.
fn alert(alert: AlertDescription) -> String {
    let error = Error::AlertReceived(alert);
    format!("10.0.0.7:8093: http2 error: connection error: {error}")
}

/// The error of a channel that does not trust the server.
fn verdict(kind: CertificateError, label: &str) -> String {
    let error = Error::InvalidCertificate(kind);
    format!("cannot trust 10.0.0.7:8093: {error} ({label})")
}

fn failed(error: impl Into<io::Error>) -> String {
    format!("cannot reach 10.0.0.7:8093: {}", error.into())
}

#[test]
fn each_failure_of_tls_is_explained_with_the_next_step() {
    use AlertDescription as A;
    use CertificateError as C;
    let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
    let corrupt = io::Error::other(Error::InvalidMessage(InvalidMessage::InvalidContentType));
    let client = "tars certs client bot";
    for (alerts, means, next) in [
        (
            &[A::CertificateRevoked][..],
            "is revoked",
            "client bot --out /etc/bot --force",
        ),
        (&[A::UnknownCA, A::DecryptError], "another mesh", client),
        (&[A::CertificateExpired], "has expired", client),
        (
            &[A::CertificateUnknown],
            "does not accept /etc/bot/tls.crt",
            "its log says why",
        ),
        (
            &[A::BadCertificate, A::UnsupportedCertificate],
            "does not accept",
            client,
        ),
        (
            &[A::CertificateRequired, A::AccessDenied],
            "does not accept",
            client,
        ),
        (
            &[
                A::NoApplicationProtocol,
                A::ProtocolVersion,
                A::HandshakeFailure,
            ],
            "no service of a mesh",
            "name the port",
        ),
    ] {
        alerts
            .iter()
            .for_each(|a| explains(&alert(*a), means, next));
    }
    let bundle = "tars certs bundle";
    for (kind, label, means, next) in [
        (
            C::UnknownIssuer,
            "unknown_issuer",
            "/etc/bot/ca.crt does not vouch",
            bundle,
        ),
        (C::BadSignature, "signature", "another mesh", bundle),
        (C::Expired, "expired", "has expired", "its log says why"),
        (
            C::Expired,
            "expired_root",
            "has expired",
            "its log says why",
        ),
        (C::NotValidYet, "not_yet_valid", "not valid yet", "clock"),
        (C::Revoked, "revoked", "is revoked", "tars certs join-token"),
        (
            C::BadSignature,
            "other_id",
            "not spiffe://tars.local/auth but another",
            "the port",
        ),
        (
            C::InvalidPurpose,
            "purpose",
            "is not what a service",
            "tars certs inspect",
        ),
    ] {
        explains(&verdict(kind, label), means, next);
    }
    let hung_up = "ended the connection";
    for (error, means, next) in [
        (failed(eof), hung_up, "check the port"),
        (
            failed(io::Error::from_raw_os_error(32)),
            hung_up,
            "check the port",
        ),
        (
            failed(io::Error::from_raw_os_error(104)),
            hung_up,
            "its log",
        ),
        (
            failed(io::Error::from_raw_os_error(111)),
            "nothing listens",
            "tars up",
        ),
        (failed(corrupt), "does not speak TLS", "name the port"),
        (
            failed(io::Error::other("no answer in 5s")),
            "does not answer",
            "firewall",
        ),
    ] {
        explains(&error, means, next);
    }
    for (error, means, next) in [
        (
            "10.0.0.7:8093 does not speak HTTP/2",
            "no service of a mesh",
            "name the port",
        ),
        (REVOKED, "is revoked", client),
        (OTHER_ROOT, "join token names", "tars certs join-token"),
    ] {
        explains(error, means, next);
    }
}

const REVOKED: &str = "10.0.0.7:8093 refuses this process's certificate: it is revoked";
const OTHER_ROOT: &str =
    "10.0.0.7:8092 is not the server that the join token names: x (unknown_issuer)";

/// The explanation says what it means and what to do, keeps the cause, and no words of libraries.
fn explains(error: &str, means: &str, next: &str) {
    let explained = attempt()
        .explain(error)
        .unwrap_or_else(|| panic!("{error}"));
    let text = &explained.text;
    assert!(
        text.contains(means) && text.contains(next),
        "{error}: {text}"
    );
    for word in ["alert", "UnknownIssuer", "eof", "InvalidContentType"] {
        assert!(!text.contains(word), "{text}");
    }
    let whole = explained.to_string();
    assert!(whole.contains(&format!("cause: {error}")), "{whole}");
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
    for (at, (sign, failure)) in SIGNS.iter().enumerate() {
        let first = SIGNS.iter().position(|(other, _)| sign.contains(other));
        assert_eq!(first, Some(at), "{sign} is hidden by an earlier one");
        assert_eq!(ConnectFailure::of(sign), Some(*failure));
        assert!(attempt().explain(sign).is_some(), "{sign} has a text");
    }
    for other in [
        "",
        "rate limit exceeded",
        "the certificate can be renewed no more",
    ] {
        assert_eq!(ConnectFailure::of(other), None, "{other}");
    }
}
