//! Signing keys: Ed25519, with the private keys encrypted at rest.

use crate::{
    Auth, AuthError,
    seal::{SIGNING_KEY, Seal},
    store::{self, KeyState, SigningKeyRow, Store},
};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use sha2::{Digest, Sha256};
use std::fmt;
use tars_credentials::{Claims, token};
use tars_proto::auth::v1::Jwk;
use tars_runtime::{clock::Clock, db::Fetch};
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
    pub(crate) async fn open(store: &Store, seal: &Seal, clock: &Clock) -> Result<Self, AuthError> {
        let known = current(&mut store.read("signing_keys.list")).await?;
        let row = match known {
            Some(row) => row,
            None => first(store, seal, clock).await?,
        };
        let private = seal.open(SIGNING_KEY, &row.private_sealed)?;
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

async fn current(db: &mut impl Fetch) -> Result<Option<SigningKeyRow>, AuthError> {
    let mut known = store::signing_keys(db).await?.into_iter();
    Ok(known.find(|k| k.state == KeyState::Current))
}

/// The first key, unless another replica has generated it meanwhile: tokens of every replica are signed
/// with one key, which all of them have announced since they started.
async fn first(store: &Store, seal: &Seal, clock: &Clock) -> Result<SigningKeyRow, AuthError> {
    let mut tx = store.begin("signing_keys.add").await?;
    if let Some(row) = current(&mut *tx).await? {
        return Ok(row);
    }
    let row = generate(seal, clock)?;
    store::insert_signing_key(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(row)
}

fn generate(seal: &Seal, clock: &Clock) -> Result<SigningKeyRow, AuthError> {
    let failed = |_| AuthError::Crypto("generating a signing key failed");
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    let document: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
    let private = Zeroizing::new(document.as_ref().to_vec());
    let public_x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    Ok(SigningKeyRow {
        kid: thumbprint(&public_x),
        state: KeyState::Current,
        public_x,
        private_sealed: seal.seal(SIGNING_KEY, &private)?,
        created_us: clock.now_us(),
        expires_us: None,
    })
}

/// RFC 7638, for an Ed25519 key (RFC 8037).
fn thumbprint(x: &str) -> String {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical.as_bytes()))
}

impl Auth {
    /// Newest first.
    pub(crate) async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, AuthError> {
        store::signing_keys(&mut self.store.read("signing_keys.list")).await
    }
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
    fn the_public_key_verifies_signatures_of_a_generated_key() {
        let seal = Seal::from(Zeroizing::new([1; 32]));
        let row = generate(&seal, &Clock::system()).unwrap();
        let private = seal.open(SIGNING_KEY, &row.private_sealed).unwrap();
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
