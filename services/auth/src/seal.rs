//! The key that seals the secrets in the database.
//!
//! It is the one secret that the replicas of Auth have as a file: with it and the database, a replica
//! has all the others. Whoever reads the database alone has none of them.

use crate::AuthError;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, io, path::Path, sync::Arc};
use tars_certs::secret;
use zeroize::Zeroizing;

/// What is sealed under the same name cannot be put in the place of something else. Signing keys have
/// been sealed without one.
pub(crate) const SIGNING_KEY: &str = "";

/// A sealing key. Clones share it.
#[derive(Clone)]
pub(crate) struct Seal(Arc<Zeroizing<[u8; 32]>>);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// Reads the key in a private file; `None` when there is no file.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Self>> {
        Ok(read_key(path)?.map(Self::from))
    }

    /// Generates a key into a private file. Where another process was first, its key is read.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            secret::create_dir(dir)?;
        }
        let fresh = Zeroizing::new(rand::random::<[u8; 32]>());
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(fresh.as_slice()));
        if secret::create(path, text.as_bytes())? {
            return Ok(Self::from(fresh));
        }
        Self::read(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn cipher(&self) -> Result<LessSafeKey, AuthError> {
        let key = UnboundKey::new(&AES_256_GCM, self.0.as_slice())
            .map_err(|_| AuthError::Crypto("the sealing key is not usable"))?;
        Ok(LessSafeKey::new(key))
    }

    /// Encrypts a secret, bound to its name.
    pub(crate) fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, AuthError> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = plain.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.cipher()?
            .seal_in_place_append_tag(unique, Aad::from(name.as_bytes()), &mut text)
            .map_err(|_| AuthError::Crypto("sealing a secret failed"))?;
        Ok([nonce.as_slice(), &text].concat())
    }

    /// Decrypts what was sealed under a name.
    ///
    /// # Errors
    ///
    /// When it was sealed with another key or under another name, or is damaged.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
        let damaged = || {
            AuthError::Crypto(
                "a sealed secret cannot be decrypted: it is sealed with another key, or damaged",
            )
        };
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut text = Zeroizing::new(text.to_vec());
        let plain = self
            .cipher()?
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut text)
            .map_err(|_| damaged())?;
        Ok(Zeroizing::new(plain.to_vec()))
    }
}

impl From<Zeroizing<[u8; 32]>> for Seal {
    fn from(key: Zeroizing<[u8; 32]>) -> Self {
        Self(Arc::new(key))
    }
}

/// Reads a 256-bit key in a private file; `None` when there is no file.
pub(crate) fn read_key(path: &Path) -> io::Result<Option<Zeroizing<[u8; 32]>>> {
    let text = match secret::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.trim()).unwrap_or_default());
    match bytes.as_slice().try_into() {
        Ok(key) => Ok(Some(Zeroizing::new(key))),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} does not hold a 256-bit key", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(byte: u8) -> Seal {
        Zeroizing::new([byte; 32]).into()
    }

    #[test]
    fn a_secret_opens_only_with_its_key_and_name() {
        let sealed = seal(1).seal("name", b"private").unwrap();
        assert_eq!(*seal(1).open("name", &sealed).unwrap(), b"private");
        assert!(seal(2).open("name", &sealed).is_err());
        assert!(seal(1).open("other", &sealed).is_err());
        assert!(seal(1).open(SIGNING_KEY, &sealed).is_err());
        for at in [0, NONCE_LEN, sealed.len() - 1] {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(seal(1).open("name", &damaged).is_err(), "{at}");
        }
        assert!(seal(1).open("name", b"short").is_err());
        assert_ne!(seal(1).seal("name", b"private").unwrap(), sealed);
    }

    #[test]
    fn a_key_is_created_once_and_read_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth/seal.key");
        assert!(Seal::read(&path).unwrap().is_none());
        let sealed = Seal::create(&path).unwrap().seal("n", b"x").unwrap();
        assert!(Seal::create(&path).unwrap().open("n", &sealed).is_ok());
        let read = Seal::read(&path).unwrap().unwrap();
        assert!(read.open("n", &sealed).is_ok());
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        Seal::create(&path).unwrap();
        let text = std::fs::read(&path).unwrap();
        secret::write_public(&path, &text).unwrap();
        let refused = Seal::read(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
        for text in [b"".as_slice(), b"AAAA", &[b'A'; 44]] {
            secret::write(&path, text).unwrap();
            let refused = Seal::read(&path).unwrap_err();
            assert!(refused.to_string().contains("256-bit"), "{refused}");
        }
    }
}
