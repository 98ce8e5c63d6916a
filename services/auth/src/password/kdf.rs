//! argon2id with OWASP's parameters, in memory that is reused.

use crate::AuthError;
use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use zeroize::Zeroize;

const SALT: usize = 16;

/// The memory that a password is hashed in.
pub(super) struct Matrix {
    blocks: Vec<Block>,
    used: bool,
}

impl Matrix {
    /// Allocates the memory, 19 MiB.
    pub(super) fn new() -> Self {
        Self {
            blocks: vec![Block::new(); Params::default().block_count()],
            used: false,
        }
    }

    /// Clears the memory: what a password leaves in it makes guessing cheaper than its hash does.
    pub(super) fn wipe(&mut self) {
        if std::mem::take(&mut self.used) {
            self.blocks.iter_mut().for_each(Zeroize::zeroize);
        }
    }

    fn derive(
        &mut self,
        argon2: &Argon2<'_>,
        password: &[u8],
        salt: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        self.used = true;
        argon2
            .hash_password_into_with_memory(password, salt, out, &mut self.blocks)
            .map_err(|_| AuthError::Crypto("hashing failed"))
    }
}

/// Hashes a password with a new salt, as a PHC string.
pub(super) fn hash(matrix: &mut Matrix, password: &[u8]) -> Result<String, AuthError> {
    let failed = |_| AuthError::Crypto("a hash has no text");
    let salt: [u8; SALT] = rand::random();
    let params = Params::default();
    let mut out = [0u8; Params::DEFAULT_OUTPUT_LEN];
    matrix.derive(&Argon2::default(), password, &salt, &mut out)?;
    let text = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::default().into()),
        params: ParamsString::try_from(&params)
            .map_err(|_| AuthError::Crypto("a hash has no text"))?,
        salt: Some(Salt::new(&salt).map_err(failed)?),
        hash: Some(Output::new(&out).map_err(failed)?),
    };
    Ok(text.to_string())
}

/// Whether the password matches the hash.
pub(super) fn verify(matrix: &mut Matrix, password: &[u8], phc: &str) -> Result<bool, AuthError> {
    let broken = || AuthError::Crypto("a stored hash does not parse");
    let stored = PasswordHash::new(phc).map_err(|_| broken())?;
    let (Some(salt), Some(expected)) = (&stored.salt, &stored.hash) else {
        return Err(broken());
    };
    let algorithm = Algorithm::try_from(stored.algorithm.as_str()).map_err(|_| broken())?;
    let version = stored.version.map(Version::try_from).transpose();
    let version = version.map_err(|_| broken())?.unwrap_or_default();
    let params = Params::try_from(&stored).map_err(|_| broken())?;
    let mut out = [0u8; Output::MAX_LENGTH];
    let out = out.get_mut(..expected.len()).ok_or_else(broken)?;
    matrix.derive(
        &Argon2::new(algorithm, version, params),
        password,
        salt,
        out,
    )?;
    // The comparison takes constant time.
    Ok(Output::new(out).map_err(|_| broken())? == *expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::{PasswordHasher, PasswordVerifier};

    #[test]
    fn hashes_are_interchangeable_with_the_librarys() {
        let mut matrix = Matrix::new();
        for password in ["correct horse", "another", ""] {
            let ours = hash(&mut matrix, password.as_bytes()).unwrap();
            let parsed = PasswordHash::new(&ours).unwrap();
            let library = Argon2::default();
            assert!(
                library
                    .verify_password(password.as_bytes(), &parsed)
                    .is_ok()
            );
            let theirs = library
                .hash_password(password.as_bytes())
                .unwrap()
                .to_string();
            assert!(verify(&mut matrix, password.as_bytes(), &theirs).unwrap());
            assert!(!verify(&mut matrix, b"wrong", &theirs).unwrap());
        }
        assert_eq!(matrix.blocks.len(), 19_456);
    }

    #[test]
    fn a_wipe_clears_the_memory() {
        let mut matrix = Matrix::new();
        hash(&mut matrix, b"secret").unwrap();
        let is_zero = |m: &Matrix| m.blocks.iter().all(|b| b.as_ref().iter().all(|w| *w == 0));
        assert!(!is_zero(&matrix));
        matrix.wipe();
        assert!(is_zero(&matrix));
    }

    #[test]
    fn a_malformed_hash_is_an_error() {
        let mut matrix = Matrix::new();
        for broken in [
            "",
            "x",
            "$argon2id$v=19$m=19456,t=2,p=1$",
            "$scrypt$ln=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAA",
        ] {
            assert!(verify(&mut matrix, b"x", broken).is_err(), "{broken}");
        }
    }
}
