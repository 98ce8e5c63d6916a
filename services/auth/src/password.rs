//! Passwords, hashed and compared on dedicated threads within bounded time.

mod kdf;
mod pool;

use crate::AuthError;
use pool::Pool;
use rand::RngExt;
use std::{fmt, sync::Arc, time::Duration};
use tars_runtime::shares::Full;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The maximum time in the queue.
const WAIT: Duration = Duration::from_secs(2);

pub(crate) struct Passwords {
    pool: Pool,
    /// Verified for unknown users, so that they take as long as known ones.
    dummy: Arc<str>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords")
    }
}

impl From<Full> for AuthError {
    fn from(full: Full) -> Self {
        match full {
            Full::All => Self::Busy,
            Full::Share => Self::BusyHere,
        }
    }
}

impl Passwords {
    pub(crate) fn new() -> Result<Self, AuthError> {
        let dummy = kdf::hash(&mut kdf::Matrix::new(), b"no user has this password")?;
        Ok(Self {
            pool: Pool::start()?,
            dummy: dummy.into(),
        })
    }

    pub(crate) async fn hash(&self, network: u64, password: &str) -> Result<String, AuthError> {
        let password = Zeroizing::new(password.to_owned());
        self.run(network, move |m| kdf::hash(m, password.as_bytes()))
            .await?
    }

    /// Whether the password matches the stored hash, which is `None` for unknown users.
    pub(crate) async fn verify(
        &self,
        network: u64,
        password: &str,
        stored: Option<&str>,
    ) -> Result<bool, AuthError> {
        let known = stored.is_some();
        let phc = stored.unwrap_or(&self.dummy).to_owned();
        let password = Zeroizing::new(password.to_owned());
        let work = move |m: &mut kdf::Matrix| kdf::verify(m, password.as_bytes(), &phc);
        let matches = self.run(network, work).await??;
        Ok(matches && known)
    }

    async fn run<T: Send + 'static>(
        &self,
        network: u64,
        work: impl FnOnce(&mut kdf::Matrix) -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let answer = self.pool.submit(network, work)?;
        let answer = timeout(WAIT, answer).await.map_err(|_| AuthError::Busy)?;
        answer.map_err(|_| AuthError::Crypto("a hashing thread failed"))
    }
}

/// A password of 32 letters and digits: 186 bits.
pub(crate) fn random() -> Zeroizing<String> {
    const ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut rng = rand::rng();
    Zeroizing::new(
        (0..32)
            .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 1;

    #[tokio::test]
    async fn only_the_password_of_a_known_user_is_accepted() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash(HERE, "correct horse").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let verify =
            async |password: &str, stored| passwords.verify(HERE, password, stored).await.unwrap();
        assert!(verify("correct horse", Some(&stored)).await);
        assert!(!verify("correct horse ", Some(&stored)).await);
        assert!(!verify("no user has this password", None).await);
    }

    #[tokio::test]
    async fn a_full_queue_distinguishes_the_callers_share_from_the_total() {
        let passwords = Passwords::new().unwrap();
        let waiting: Vec<_> = (0..20u8)
            .map(|_| passwords.pool.submit(HERE, |m| kdf::hash(m, b"x").is_ok()))
            .collect();
        assert!(waiting.iter().any(Result::is_err));
        let refused = passwords.hash(HERE, "mine").await.unwrap_err();
        assert!(matches!(refused, AuthError::BusyHere), "{refused}");
        let elsewhere = 2;
        assert!(passwords.hash(elsewhere, "mine").await.is_ok());
    }
}
