//! SPIFFE ids, parsed strictly: what the standard does not allow is rejected, never normalized.

use std::{fmt, str::FromStr};

const MAX_LEN: usize = 2048;

/// A SPIFFE id: `spiffe://<trust domain>/<path>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    domain_len: usize,
}

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The text does not start with `spiffe://`.
    #[error("a SPIFFE id starts with spiffe://")]
    Scheme,
    /// The id is longer than the SPIFFE standard's 2048 bytes.
    #[error("a SPIFFE id is at most {MAX_LEN} bytes long")]
    TooLong,
    /// The trust domain is empty, too long, or has characters that are not allowed.
    #[error("a trust domain is 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    TrustDomain,
    /// The path is missing or has a segment that is not allowed.
    #[error(
        "a SPIFFE path is one or more segments of letters, digits, '.', '-', '_', none of them '.' or '..'"
    )]
    Path,
}

impl SpiffeId {
    /// Joins a trust domain and a path, which must start with a slash: without one it would
    /// continue the trust domain's name.
    pub fn new(trust_domain: &str, path: &str) -> Result<Self, SpiffeError> {
        if !is_trust_domain(trust_domain) {
            return Err(SpiffeError::TrustDomain);
        }
        if !path.starts_with('/') {
            return Err(SpiffeError::Path);
        }
        format!("{SCHEME}{trust_domain}{path}").parse()
    }

    /// The trust domain, without the scheme.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..SCHEME.len() + self.domain_len]
    }

    /// The path, including its leading slash.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.domain_len..]
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        if text.len() > MAX_LEN {
            return Err(SpiffeError::TooLong);
        }
        let slash = rest.find('/').ok_or(SpiffeError::Path)?;
        let (domain, path) = rest.split_at(slash);
        if !is_trust_domain(domain) {
            return Err(SpiffeError::TrustDomain);
        }
        if !path[1..].split('/').all(is_segment) {
            return Err(SpiffeError::Path);
        }
        Ok(Self {
            text: text.to_owned(),
            domain_len: domain.len(),
        })
    }
}

fn is_trust_domain(text: &str) -> bool {
    let plain =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=255).contains(&text.len()) && text.bytes().all(plain)
}

pub(crate) fn is_segment(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(plain)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_id_splits_into_trust_domain_and_path() {
        let id: SpiffeId = "spiffe://tars.local/ns/prod/sa/auth".parse().unwrap();
        assert_eq!(
            (id.trust_domain(), id.path()),
            ("tars.local", "/ns/prod/sa/auth")
        );
        assert_eq!(
            SpiffeId::new("tars.local", "/auth").unwrap().to_string(),
            "spiffe://tars.local/auth"
        );
    }

    #[test]
    fn a_path_cannot_change_the_trust_domain() {
        for path in [
            ".evil/auth",
            "x/client/bot",
            "-/auth",
            "",
            "auth",
            "@evil/auth",
            ":1/auth",
        ] {
            let made = SpiffeId::new("tars.local", path);
            assert_eq!(made, Err(SpiffeError::Path), "{path:?}");
        }
        for domain in ["", "a/b", "tars.local/x", "TARS", "a:1"] {
            let made = SpiffeId::new(domain, "/auth");
            assert_eq!(made, Err(SpiffeError::TrustDomain), "{domain:?}");
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        let long = format!("spiffe://d/{}", "a".repeat(2048));
        for bad in [
            "",
            "http://d/a",
            "SPIFFE://d/a",
            "spiffe://d",
            "spiffe://d/",
            "spiffe:///a",
            "spiffe://D/a",
            "spiffe://d:1/a",
            "spiffe://u@d/a",
            "spiffe://d/a?q",
            "spiffe://d/a#f",
            "spiffe://d//a",
            "spiffe://d/a/",
            "spiffe://d/./a",
            "spiffe://d/../a",
            "spiffe://d/a%2Fb",
            "spiffe://d/a b",
            "spiffe://d/\0",
            "spiffe://dé/a",
            " spiffe://d/a",
            &long,
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was accepted");
        }
    }
}
