//! What each trouble means and what to do about it, as it is printed.

use super::Trouble;

/// The text of each trouble. `{target}`, `{expected}`, `{dir}` and `{again}` stand for the address,
/// the server that was meant, the folder of this machine's identity, and how to get another one.
const ADVICE: &[(Trouble, &str)] = &[
    (
        Trouble::Nobody,
        "nothing listens at {target}: start the mesh with `tars up`, or name where the service is",
    ),
    (
        Trouble::NoSuchHost,
        "the host of {target} is not known: check its name",
    ),
    (
        Trouble::Silent,
        "{target} does not answer: it is overloaded, or a firewall drops what is sent to it",
    ),
    (
        Trouble::HungUp,
        "{target} ended the connection without a reason: the port is not one for gRPC over TLS, or the service does not accept {dir}/tls.crt, is stopping, or is full; check the port, then its log",
    ),
    (
        Trouble::Plaintext,
        "{target} does not speak TLS: it is the gateway, the admin or the observe port, or another program; name the port of the service for gRPC",
    ),
    (
        Trouble::NotTars,
        "{target} speaks TLS, but is no service of a mesh (TLS 1.3 with HTTP/2): name the port of the service for gRPC",
    ),
    (
        Trouble::ServerUnknown,
        "{dir}/ca.crt does not vouch for {target}: it is of another mesh, for which another identity is needed, or the roots were rotated since that file was written. Fetch what the mesh trusts now, and try again: `tars certs bundle --out {dir}/ca.crt --force`",
    ),
    (
        Trouble::ServerExpired,
        "the certificate of {target} has expired, as its service could not renew it; its log says why. If only this machine says so, its clock is ahead",
    ),
    (
        Trouble::ServerEarly,
        "the certificate of {target} is not valid yet: the clock of this machine is behind, or that of the mesh is ahead",
    ),
    (
        Trouble::ServerRevoked,
        "the certificate of {target} is revoked: do not trust it. If its service is to come back, start it with a new join token (`tars certs join-token`)",
    ),
    (
        Trouble::ServerOther,
        "{target} is not {expected} but another service of the mesh: the port is another's",
    ),
    (
        Trouble::ServerRefused,
        "the certificate of {target} is not what a service of a mesh may show; look at it with `tars certs inspect` where its files are",
    ),
    (
        Trouble::OwnUnknown,
        "{target} does not trust the issuer of {dir}/tls.crt: it is of another mesh, or its root was rotated away. {again}",
    ),
    (
        Trouble::OutOfTime,
        "{target} refuses {dir}/tls.crt: it has expired, or the clocks differ. An expired certificate cannot renew itself. {again}",
    ),
    (
        Trouble::OwnRevoked,
        "{dir}/tls.crt is revoked, and {target} refuses it; it cannot be renewed. {again}",
    ),
    (
        Trouble::OwnRefused,
        "{target} does not accept {dir}/tls.crt, and its log says why. {again}",
    ),
    (
        Trouble::OtherRoot,
        "{target} is not under the root that the join token names: the token is of another mesh, or from before the last rotation of the roots. Create another with `tars certs join-token`",
    ),
];

/// The text of a trouble, with its values filled in.
pub(super) fn text(trouble: Trouble, values: &[(&str, &str)]) -> String {
    let found = ADVICE.iter().find(|(of, _)| *of == trouble);
    let (_, template) = found.expect("every trouble has a text");
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
