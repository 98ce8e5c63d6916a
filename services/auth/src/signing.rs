//! Signing keys: Ed25519, with the private keys encrypted at rest.

use crate::{
    Auth, AuthError,
    store::{self, KeyState, SigningKeyRow, Store},
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use sha2::{Digest, Sha256};
use std::{fmt, io, path::Path};
use tars_certs::secret;
use tars_credentials::{Claims, token};
use tars_proto::auth::v1::Jwk;
use tars_runtime::clock::Clock;
use zeroize::Zeroizing;

/// Signs tokens with the current key.
pub(crate) struct Signer {
    kid: String,
    key: EncodingKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.kid)
    }
}

impl Signer {
    /// Loads the current key, or generates the first one.
    pub(crate) async fn open(
        store: &Store,
        seal: &[u8; 32],
        clock: &Clock,
    ) -> Result<Self, AuthError> {
        let known = store::signing_keys(&mut store.read("signing_keys.list")).await?;
        let current = known.into_iter().find(|k| k.state == KeyState::Current);
        let row = match current {
            Some(row) => row,
            None => first(store, seal, clock).await?,
        };
        let private = unseal(seal, &row.private_sealed)?;
        Ok(Self {
            kid: row.kid,
            key: EncodingKey::from_ed_der(&private),
        })
    }

    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, AuthError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(token::TYPE.to_owned());
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key)
            .map_err(|_| AuthError::Crypto("signing a token failed"))
    }
}

async fn first(store: &Store, seal: &[u8; 32], clock: &Clock) -> Result<SigningKeyRow, AuthError> {
    let row = generate(seal, clock)?;
    let mut tx = store.begin("signing_keys.add").await?;
    store::insert_signing_key(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(row)
}

fn generate(seal: &[u8; 32], clock: &Clock) -> Result<SigningKeyRow, AuthError> {
    let failed = |_| AuthError::Crypto("generating a signing key failed");
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    let document: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
    let private = Zeroizing::new(document.as_ref().to_vec());
    let public_x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    Ok(SigningKeyRow {
        kid: thumbprint(&public_x),
        state: KeyState::Current,
        public_x,
        private_sealed: sealed(seal, &private)?,
        created_us: clock.now_us(),
        expires_us: None,
    })
}

/// RFC 7638, for an Ed25519 key (RFC 8037).
fn thumbprint(x: &str) -> String {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical.as_bytes()))
}

fn cipher(seal: &[u8; 32]) -> Result<LessSafeKey, AuthError> {
    let key = UnboundKey::new(&AES_256_GCM, seal)
        .map_err(|_| AuthError::Crypto("the sealing key is not usable"))?;
    Ok(LessSafeKey::new(key))
}

fn sealed(seal: &[u8; 32], plain: &[u8]) -> Result<Vec<u8>, AuthError> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut text = plain.to_vec();
    cipher(seal)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text)
        .map_err(|_| AuthError::Crypto("sealing a key failed"))?;
    Ok([nonce.as_slice(), &text].concat())
}

fn unseal(seal: &[u8; 32], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
    let damaged = AuthError::Crypto(
        "a sealed key cannot be decrypted: seal.key is another one, or the row is damaged",
    );
    let Some((nonce, text)) = sealed.split_at_checked(NONCE_LEN) else {
        return Err(damaged);
    };
    let Ok(nonce) = Nonce::try_assume_unique_for_key(nonce) else {
        return Err(damaged);
    };
    let mut text = Zeroizing::new(text.to_vec());
    let Ok(plain) = cipher(seal)?.open_in_place(nonce, Aad::empty(), &mut text) else {
        return Err(damaged);
    };
    Ok(Zeroizing::new(plain.to_vec()))
}

impl Auth {
    /// Newest first.
    pub(crate) async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, AuthError> {
        store::signing_keys(&mut self.store.read("signing_keys.list")).await
    }
}

/// A 256-bit key in a private file, generated at the first start.
pub(crate) fn load_or_create_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, AuthError> {
    if !path.try_exists()? {
        let fresh = Zeroizing::new(rand::random::<[u8; 32]>());
        secret::write(path, URL_SAFE_NO_PAD.encode(fresh.as_slice()).as_bytes())?;
        return Ok(fresh);
    }
    let text = Zeroizing::new(secret::read(path)?);
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.trim()).unwrap_or_default());
    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} does not hold a 256-bit key", path.display()),
        )
    })?;
    Ok(Zeroizing::new(key))
}

pub(crate) fn jwk(row: &SigningKeyRow) -> Jwk {
    Jwk {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        x: row.public_x.clone(),
        kid: row.kid.clone(),
        alg: "EdDSA".to_owned(),
        r#use: "sig".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_keys_open_only_with_their_seal() {
        let sealed_text = sealed(&[1; 32], b"private").unwrap();
        assert_eq!(*unseal(&[1; 32], &sealed_text).unwrap(), b"private");
        assert!(unseal(&[2; 32], &sealed_text).is_err());
        let mut damaged = sealed_text;
        damaged[15] ^= 1;
        assert!(unseal(&[1; 32], &damaged).is_err());
        assert!(unseal(&[1; 32], b"short").is_err());
    }

    #[test]
    fn the_public_key_verifies_signatures_of_a_generated_key() {
        let row = generate(&[1; 32], &Clock::system()).unwrap();
        let private = unseal(&[1; 32], &row.private_sealed).unwrap();
        let signer = Signer {
            kid: row.kid.clone(),
            key: EncodingKey::from_ed_der(&private),
        };
        let claims = Claims {
            iss: token::ISSUER.into(),
            aud: token::AUDIENCE.into(),
            sub: "u".into(),
            sid: "s".into(),
            jti: "j".into(),
            iat: 1,
            nbf: 1,
            exp: 901,
            ver: 1,
            username: "ada".into(),
            roles: vec![],
        };
        let text = signer.sign(&claims).unwrap();
        assert_eq!(token::key_id(&text).unwrap(), row.kid);
        let key = jsonwebtoken::DecodingKey::from_ed_components(&row.public_x).unwrap();
        assert_eq!(token::verify(&text, &key).unwrap(), claims);
    }
}
