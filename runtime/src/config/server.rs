//! What the settings of the servers that a mesh uses have in common: PostgreSQL's and Redis'.

use super::otel::decode;
use std::path::Path;

/// An identifier of PostgreSQL has 63 bytes; the longest service name takes some.
const LONGEST_PREFIX: usize = 40;

/// A URL that is set. An empty one, as the environment may hold, counts as none.
pub(super) fn url(setting: Option<&String>) -> Option<&str> {
    setting.map(String::as_str).filter(|url| !url.is_empty())
}

/// The user of a URL.
///
/// # Errors
///
/// Where the URL holds a password or no name. `section` is the part of the configuration.
pub(super) fn user(user: &str, section: &str) -> Result<String, String> {
    if user.contains(':') {
        return Err(format!(
            "must not hold a password; put it into a file and name that by {section}.password_file"
        ));
    }
    text(user).ok_or_else(|| "names no user".to_owned())
}

/// A host and its port, or the default one; an IPv6 address is in brackets.
pub(super) fn split_port(host: &str, default: u16) -> Result<(&str, u16), String> {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("has a '[' without ']'")?;
            (host, port.strip_prefix(':'))
        }
        None => match host.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let port = port.map_or(Ok(default), str::parse);
    Ok((host, port.map_err(|_| "the port is no number up to 65535")?))
}

/// A part of the URL, which must not be empty.
pub(super) fn text(part: &str) -> Option<String> {
    decode(part).filter(|text| !text.is_empty())
}

/// What is wrong with the settings that both servers have, each for the operator.
pub(super) struct Common<'a> {
    /// The part of the configuration.
    pub(super) section: &'static str,
    pub(super) client_certificate: Option<&'a Path>,
    pub(super) client_key: Option<&'a Path>,
    /// The name of the setting that separates meshes, and its value.
    pub(super) prefix: (&'static str, &'a str),
}

impl Common<'_> {
    pub(super) fn mistakes(&self) -> Vec<String> {
        let (section, mut mistakes) = (self.section, Vec::new());
        if self.client_certificate.is_some() != self.client_key.is_some() {
            mistakes.push(format!(
                "{section}.client_certificate and {section}.client_key belong together"
            ));
        }
        let (name, prefix) = self.prefix;
        if !is_identifier(prefix) {
            mistakes.push(format!(
                "{section}.{name} must be a lower-case letter, then letters, digits and '_', up to \
                 {LONGEST_PREFIX}"
            ));
        }
        mistakes
    }
}

fn is_identifier(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    text.len() <= LONGEST_PREFIX
        && text.bytes().all(rest)
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
}
