//! API keys: `tars_live_svc_<id>_<secret><checksum>`.
//!
//! The checksum lets a secret scanner or the edge reject a typo or a guess without a lookup. The
//! secret has 256 bits of entropy, so a fast hash suffices at rest.

use rand::RngExt;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

const PREFIX: &str = "tars_live_svc_";
/// The length of an id, in letters and digits.
pub const ID_LEN: usize = 12;
const SECRET_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The SHA-256 hash of a key's text.
pub type Hash = [u8; 32];

/// A key as issued to its holder. The text is returned once and never stored.
pub struct ApiKey {
    /// Identifies the key in lists and records; not secret.
    pub id: String,
    /// The key itself; a secret.
    pub text: Zeroizing<String>,
    /// What is stored in place of the text.
    pub hash: Hash,
}

impl ApiKey {
    /// Generates a key with a new id.
    pub fn generate() -> Self {
        Self::with_id(&random(ID_LEN))
    }

    /// Generates a new secret for an existing key.
    pub fn with_id(id: &str) -> Self {
        let body = Zeroizing::new(format!("{PREFIX}{id}_{}", random(SECRET_LEN)));
        let text = Zeroizing::new(format!("{}{}", *body, checksum(&body)));
        let hash = hash(&text);
        Self {
            id: id.to_owned(),
            text,
            hash,
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.id)
    }
}

/// The id of a presented key and the hash to compare; `None` when the text cannot be a key.
pub fn parse(text: &str) -> Option<(&str, Hash)> {
    let total = PREFIX.len() + ID_LEN + 1 + SECRET_LEN + CHECKSUM_LEN;
    if text.len() != total || !text.is_ascii() {
        return None;
    }
    let (body, check) = text.split_at(total - CHECKSUM_LEN);
    let (id, secret) = body.strip_prefix(PREFIX)?.split_at(ID_LEN);
    let shape = is_id(id) && secret.strip_prefix('_').is_some_and(is_plain);
    (shape && checksum(body) == check).then(|| (id, hash(text)))
}

/// Whether a key can have this id.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && is_plain(text)
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| ALPHABET.contains(&b))
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

fn random(len: usize) -> String {
    let mut rng = rand::rng();
    (0..len)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

fn checksum(body: &str) -> String {
    let mut crc = crc32fast::hash(body.as_bytes());
    let mut digits = [ALPHABET[0]; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(crc % 62) as usize];
        crc /= 62;
    }
    digits.iter().map(|b| char::from(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_round_trips() {
        let key = ApiKey::generate();
        assert_eq!(parse(&key.text), Some((key.id.as_str(), key.hash)));
        let next = ApiKey::with_id(&key.id);
        assert_eq!(next.id, key.id);
        assert_ne!(next.hash, key.hash);
    }

    #[test]
    fn a_change_of_any_character_is_refused() {
        let key = ApiKey::generate();
        for at in 0..key.text.len() {
            let mut bytes = key.text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(
                parse(std::str::from_utf8(&bytes).unwrap()),
                None,
                "position {at}"
            );
        }
        for bad in [
            "",
            "tars_live_svc_",
            &key.text[1..],
            &format!("{}x", *key.text),
            &"é".repeat(38),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let key = ApiKey::generate();
        assert_eq!(format!("{key:?}"), format!("ApiKey({})", key.id));
    }
}
