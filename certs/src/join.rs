//! Join tokens: the credential with which a process that has no certificate yet obtains its first
//! one.
//!
//! A token is bound to one SPIFFE id, is short-lived and single-use, and carries the hash of the
//! root's key so that the joining process can authenticate the server. It is authenticated by an
//! HMAC key that is stored beside the roots; anyone able to read that key could sign certificates
//! anyway. Single use is enforced by the token's id, in the transaction that issues the
//! certificate.
//!
//! A token for a first certificate carries its issue time and lives for at most a day: revoking an
//! identity also voids the tokens issued before the revocation, including those minted directly on
//! the authority's files, which Auth has no record of.

use crate::{Authority, KeyId, SpiffeId};
use aws_lc_rs::hmac;
use std::{fmt, time::Duration};
use zeroize::Zeroizing;

const PREFIX: &str = "tars_join_";
const VERSION: u8 = 2;
const TAG: usize = 32;
/// Version, kind, id, lineage, issue time, expiry, root.
const FIXED: usize = 1 + 1 + 16 + 16 + 8 + 8 + 32;
const MAX_TEXT: usize = 4096;

/// The maximum lifetime of a token for a first certificate: one day.
pub const MAX_LIFE: Duration = Duration::from_secs(86_400);

/// How a token came to be, and what it entitles its holder to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinKind {
    /// Created and recorded by Auth. Starts a new lineage.
    First,
    /// Minted on the authority's files without Auth. Starts a new lineage.
    Unrecorded,
    /// Saved by a process beside its key, for a machine that was suspended past the end of its
    /// certificate. Continues the lineage of that certificate.
    Rejoin,
}

/// The contents of a token. They are unauthenticated unless they were returned by
/// [`JoinToken::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinClaims {
    /// What the token entitles its holder to.
    pub kind: JoinKind,
    /// A random id, which makes the token single-use.
    pub id: [u8; 16],
    /// The lineage that a [`JoinKind::Rejoin`] token continues; zero for the other kinds.
    pub lineage: [u8; 16],
    /// When the token was minted, in whole seconds since the Unix epoch.
    pub issued_at: Duration,
    /// When the token expires, as a duration since the Unix epoch.
    pub expires_at: Duration,
    /// The key of the root that the bootstrap listener's certificate must chain to.
    pub root: KeyId,
    /// The identity that the token is for.
    pub spiffe_id: SpiffeId,
}

/// Why a join token was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The text is not a token of the current format.
    #[error("this is not a join token")]
    Malformed,
    /// The HMAC does not match.
    #[error("the join token was not made by this authority")]
    Forged,
    /// The expiry has passed.
    #[error("the join token has expired")]
    Expired,
    /// A token for a first certificate has a lifetime of more than [`MAX_LIFE`].
    #[error("the join token's lifetime is longer than allowed")]
    TooLong,
}

/// A token as text. It is a secret: `Debug` does not print it, and it is wiped when dropped.
#[derive(Clone)]
pub struct JoinToken(Zeroizing<String>);

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl JoinToken {
    /// Mints a token for `claims`, authenticated with the authority's join key.
    pub fn mint(authority: &Authority, claims: &JoinClaims) -> Self {
        let mut bytes = claims.encode();
        let tag = hmac::sign(&key(authority), &bytes);
        bytes.extend_from_slice(tag.as_ref());
        Self(Zeroizing::new(format!(
            "{PREFIX}{}",
            crate::name::hex(&bytes)
        )))
    }

    /// Wraps a token as it was read or received; surrounding whitespace is removed.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The text of the token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn bytes(&self) -> Result<Vec<u8>, JoinError> {
        let hex = self.0.strip_prefix(PREFIX).filter(|h| h.len() <= MAX_TEXT);
        hex.and_then(crate::name::unhex)
            .filter(|b| b.len() > FIXED + TAG)
            .ok_or(JoinError::Malformed)
    }

    /// Decodes the claims without verifying them, for the joining process, which does not have the
    /// join key.
    ///
    /// # Errors
    ///
    /// [`JoinError::Malformed`] when the text is not a token.
    pub fn unverified_claims(&self) -> Result<JoinClaims, JoinError> {
        let bytes = self.bytes()?;
        JoinClaims::decode(&bytes[..bytes.len() - TAG])
    }

    /// Decodes the claims after verifying that this authority minted the token and that it has not
    /// expired.
    pub fn verify(&self, authority: &Authority, now: Duration) -> Result<JoinClaims, JoinError> {
        let bytes = self.bytes()?;
        let (payload, tag) = bytes.split_at(bytes.len() - TAG);
        hmac::verify(&key(authority), payload, tag).map_err(|_| JoinError::Forged)?;
        let claims = JoinClaims::decode(payload)?;
        claims.check_time(now).map(|()| claims)
    }
}

fn key(authority: &Authority) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, authority.join_key())
}

impl JoinClaims {
    /// Claims for a first certificate of `id`. `life` is capped at [`MAX_LIFE`].
    pub fn first(
        authority: &Authority,
        kind: JoinKind,
        id: SpiffeId,
        now: Duration,
        life: Duration,
    ) -> Self {
        let issued_at = Duration::from_secs(now.as_secs());
        Self {
            kind,
            id: rand::random(),
            lineage: [0; 16],
            issued_at,
            expires_at: issued_at + life.min(MAX_LIFE),
            root: authority.active_root(),
            spiffe_id: id,
        }
    }

    fn check_time(&self, now: Duration) -> Result<(), JoinError> {
        let life = self.expires_at.saturating_sub(self.issued_at);
        match self.kind {
            _ if self.expires_at <= now => Err(JoinError::Expired),
            JoinKind::First | JoinKind::Unrecorded if life > MAX_LIFE => Err(JoinError::TooLong),
            _ => Ok(()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            JoinKind::First => 0,
            JoinKind::Rejoin => 1,
            JoinKind::Unrecorded => 2,
        };
        let mut bytes = vec![VERSION, kind];
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.lineage);
        for at in [self.issued_at, self.expires_at] {
            bytes.extend_from_slice(&at.as_secs().to_be_bytes());
        }
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(self.spiffe_id.as_str().as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, JoinError> {
        let (fixed, id) = bytes.split_at_checked(FIXED).ok_or(JoinError::Malformed)?;
        let part = |from: usize, len: usize| &fixed[from..from + len];
        let sixteen = |from: usize| {
            let mut out = [0; 16];
            out.copy_from_slice(part(from, 16));
            out
        };
        let kind = match (fixed[0], fixed[1]) {
            (VERSION, 0) => JoinKind::First,
            (VERSION, 1) => JoinKind::Rejoin,
            (VERSION, 2) => JoinKind::Unrecorded,
            _ => return Err(JoinError::Malformed),
        };
        let time = |from: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(part(from, 8));
            Duration::from_secs(u64::from_be_bytes(out))
        };
        let text = std::str::from_utf8(id).map_err(|_| JoinError::Malformed)?;
        Ok(Self {
            kind,
            id: sixteen(2),
            lineage: sixteen(18),
            issued_at: time(34),
            expires_at: time(42),
            root: KeyId::from_bytes(part(50, 32)).map_err(|_| JoinError::Malformed)?,
            spiffe_id: text.parse().map_err(|_| JoinError::Malformed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Lifetimes;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn claims(ca: &Authority) -> JoinClaims {
        JoinClaims {
            kind: JoinKind::First,
            id: [7; 16],
            lineage: [0; 16],
            issued_at: NOW,
            expires_at: NOW + Duration::from_secs(60),
            root: ca.active_root(),
            spiffe_id: "spiffe://tars.local/automl".parse().unwrap(),
        }
    }

    fn authority(dir: &std::path::Path) -> Authority {
        Authority::init(dir, "tars.local", Lifetimes::default(), NOW).unwrap()
    }

    #[test]
    fn a_token_round_trips_its_claims() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let token = JoinToken::mint(&ca, &claims(&ca));
        assert_eq!(token.verify(&ca, NOW).unwrap(), claims(&ca));
        assert_eq!(token.unverified_claims().unwrap(), claims(&ca));
        assert_eq!(format!("{token:?}"), "JoinToken(…)");
    }

    #[test]
    fn altered_and_expired_tokens_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(&dir.path().join("a"));
        let token = JoinToken::mint(&ca, &claims(&ca));
        let late = NOW + Duration::from_secs(60);
        assert_eq!(token.verify(&ca, late).unwrap_err(), JoinError::Expired);
        let text = token.as_str();
        for at in (PREFIX.len()..text.len()).step_by(7) {
            let mut other = text.to_owned();
            let digit = if &text[at..=at] == "0" { "1" } else { "0" };
            other.replace_range(at..=at, digit);
            assert!(JoinToken::new(&other).verify(&ca, NOW).is_err(), "at {at}");
        }
        let other = authority(&dir.path().join("b"));
        assert_eq!(token.verify(&other, NOW).unwrap_err(), JoinError::Forged);
        for bad in ["", "tars_join_", "tars_join_zz", &text[10..], &text[..40]] {
            assert_eq!(
                JoinToken::new(bad).verify(&ca, NOW).unwrap_err(),
                JoinError::Malformed,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_token_for_a_first_certificate_lives_for_at_most_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let verified = |claims: &JoinClaims| JoinToken::mint(&ca, claims).verify(&ca, NOW);
        let id = claims(&ca).spiffe_id;
        for kind in [JoinKind::First, JoinKind::Unrecorded] {
            let made = JoinClaims::first(&ca, kind, id.clone(), NOW, Duration::MAX);
            assert_eq!(made.expires_at, NOW + MAX_LIFE);
            assert_eq!(verified(&made).unwrap(), made);
            let longer = JoinClaims {
                expires_at: NOW + MAX_LIFE + Duration::from_secs(1),
                ..made
            };
            assert_eq!(verified(&longer), Err(JoinError::TooLong));
            // A rejoin token lives as long as its lineage.
            let kind = JoinKind::Rejoin;
            assert!(verified(&JoinClaims { kind, ..longer }).is_ok());
        }
    }
}
