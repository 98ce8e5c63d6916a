//! Names of certificates: the key that signed a certificate, and its serial. The names inside a
//! certificate are chosen by whoever runs an authority; these two identify it regardless.

use aws_lc_rs::digest::{SHA256, digest};
use std::{fmt, str::FromStr};

/// The SHA-256 hash of a public key's SubjectPublicKeyInfo, as RFC 7469 pins keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

/// A serial number in lowercase hexadecimal, without leading zero bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(String);

/// Identifies one certificate among those of all issuers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertName {
    /// The key that signed the certificate.
    pub issuer: KeyId,
    /// Its serial number, which is unique per issuer.
    pub serial: Serial,
}

/// Why a text or a byte string is not a key id or serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not 32 bytes or 64 hexadecimal digits.
    #[error("a key id is 64 hexadecimal digits, the SHA-256 hash of a public key")]
    KeyId,
    /// Empty, too long, or not hexadecimal.
    #[error("a serial is 1 to 20 bytes in hexadecimal, with or without colons")]
    Serial,
}

impl KeyId {
    /// Hashes a SubjectPublicKeyInfo in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }

    /// Takes the hash itself.
    ///
    /// # Errors
    ///
    /// [`NameError::KeyId`] unless there are exactly 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        bytes.try_into().map(Self).map_err(|_| NameError::KeyId)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Serial {
    /// Takes the bytes of the `serialNumber` field. RFC 5280 allows 20; leading zeros, which some
    /// authorities pad with, are dropped.
    ///
    /// # Errors
    ///
    /// [`NameError::Serial`] when nothing but zeros, or more than 20 bytes, are left.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
        let bytes = &bytes[start..];
        if bytes.is_empty() || bytes.len() > 20 {
            return Err(NameError::Serial);
        }
        Ok(Self(hex(bytes)))
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value, big-endian.
    pub fn bytes(&self) -> Vec<u8> {
        unhex(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::from_bytes(&unhex(text).ok_or(NameError::KeyId)?)
    }
}

impl FromStr for Serial {
    type Err = NameError;

    /// Also accepts the forms that `openssl x509 -serial` and browsers print.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let even = if digits.len().is_multiple_of(2) {
            digits
        } else {
            format!("0{digits}")
        };
        Self::from_bytes(&unhex(&even).ok_or(NameError::Serial)?)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", hex(&self.0[..8]))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Encodes as lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Decodes hexadecimal of either case; `None` when the text is something else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|p| u8::try_from((digit(p[0])? << 4) | digit(p[1])?).ok())
        .collect()
}

fn digit(b: u8) -> Option<u32> {
    char::from(b).to_digit(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notations_of_a_serial_are_equal() {
        let plain: Serial = "0abc".parse().unwrap();
        for same in ["0ABC", "abc", "00:0a:bc", "0A:BC", "000000abc"] {
            assert_eq!(same.parse::<Serial>().unwrap(), plain, "{same}");
        }
        assert_eq!(Serial::from_bytes(&[0, 0, 0x0a, 0xbc]).unwrap(), plain);
        assert_eq!(plain.bytes(), [0x0a, 0xbc]);
        for bad in ["", "0", "00:00", "xyz", "é", "-1", &"11".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn key_ids_round_trip() {
        let id = KeyId::of_spki(b"key");
        assert_eq!(id.to_string().parse::<KeyId>().unwrap(), id);
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64)] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?}");
        }
    }
}
