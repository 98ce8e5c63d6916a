//! What each failure means and what to do about it, as it is printed.

use super::ConnectFailure;

/// The text of each failure. `{target}`, `{expected}`, `{dir}` and `{again}` stand for the address,
/// the server that was meant, the folder of this machine's identity, and how to get another one.
const ADVICE: &[(ConnectFailure, &str)] = &[
    (
        ConnectFailure::Refused,
        "nothing listens at {target}: start the mesh with `tars up`, or name where the service is",
    ),
    (
        ConnectFailure::NameNotResolved,
        "the host of {target} is not known: check its name",
    ),
    (
        ConnectFailure::TimedOut,
        "{target} does not answer: it is overloaded, or a firewall drops what is sent to it",
    ),
    (
        ConnectFailure::Closed,
        "{target} ended the connection without a reason: the port is not one for gRPC over TLS, or the service does not accept {dir}/tls.crt, is stopping, or is full; check the port, then its log",
    ),
    (
        ConnectFailure::NotTls,
        "{target} does not speak TLS: it is the gateway, the admin or the observe port, or another program; name the port of the service for gRPC",
    ),
    (
        ConnectFailure::UnexpectedProtocol,
        "{target} speaks TLS, but is no service of a mesh (TLS 1.3 with HTTP/2): name the port of the service for gRPC",
    ),
    (
        ConnectFailure::ServerUntrusted,
        "{dir}/ca.crt does not vouch for {target}: it is of another mesh, for which another identity is needed, or the roots were rotated since that file was written. Fetch what the mesh trusts now, and try again: `tars certs bundle --out {dir}/ca.crt --force`",
    ),
    (
        ConnectFailure::ServerExpired,
        "the certificate of {target} has expired, as its service could not renew it; its log says why. If only this machine says so, its clock is ahead",
    ),
    (
        ConnectFailure::ServerNotYetValid,
        "the certificate of {target} is not valid yet: the clock of this machine is behind, or that of the mesh is ahead",
    ),
    (
        ConnectFailure::ServerRevoked,
        "the certificate of {target} is revoked: do not trust it. If its service is to come back, start it with a new join token (`tars certs join-token`)",
    ),
    (
        ConnectFailure::UnexpectedServer,
        "{target} is not {expected} but another service of the mesh: the port is another's",
    ),
    (
        ConnectFailure::ServerInvalid,
        "the certificate of {target} is not what a service of a mesh may show; look at it with `tars certs inspect` where its files are",
    ),
    (
        ConnectFailure::ClientUntrusted,
        "{target} does not trust the issuer of {dir}/tls.crt: it is of another mesh, or its root was rotated away. {again}",
    ),
    (
        ConnectFailure::ClientOutsideValidity,
        "{target} refuses {dir}/tls.crt: it has expired, or the clocks differ. An expired certificate cannot renew itself. {again}",
    ),
    (
        ConnectFailure::ClientRevoked,
        "{dir}/tls.crt is revoked, and {target} refuses it; it cannot be renewed. {again}",
    ),
    (
        ConnectFailure::ClientRejected,
        "{target} does not accept {dir}/tls.crt, and its log says why. {again}",
    ),
    (
        ConnectFailure::RootMismatch,
        "{target} is not under the root that the join token names: the token is of another mesh, or from before the last rotation of the roots. Create another with `tars certs join-token`",
    ),
];

/// The text of a failure, with its values filled in.
pub(super) fn text(failure: ConnectFailure, values: &[(&str, &str)]) -> String {
    let found = ADVICE.iter().find(|(of, _)| *of == failure);
    let (_, template) = found.expect("every failure has a text");
    fill(template, values)
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut pieces = template.split('{');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once('}').unwrap_or((piece, ""));
        let value = values.iter().find(|(known, _)| *known == name);
        let (_, value) = value.expect("every name in a text has a value");
        text.push_str(value);
        text.push_str(rest);
    }
    text
}
