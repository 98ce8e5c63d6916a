//! Password hashing: argon2id with OWASP's parameters, on a bounded pool off the async threads.
//!
//! The permit moves into the blocking task: a client that goes away must not free a slot whose
//! memory is still in use.

use crate::AuthError;
use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use rand::RngExt;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use zeroize::Zeroizing;

const QUEUE: usize = 64;
const WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    /// Verified for unknown users, so that they cost what known ones cost.
    dummy: Arc<str>,
}

impl Passwords {
    pub(crate) fn new() -> Result<Self, AuthError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            running: Arc::new(Semaphore::new(cores)),
            queue: Arc::new(Semaphore::new(QUEUE)),
            dummy: hash(b"no user has this password")?.into(),
        })
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, AuthError> {
        let _place = self.queue.try_acquire().map_err(|_| AuthError::Busy)?;
        let running = Arc::clone(&self.running).acquire_owned();
        timeout(WAIT, running)
            .await
            .map_err(|_| AuthError::Busy)?
            .map_err(|_| AuthError::Busy)
    }

    pub(crate) async fn hash(&self, password: &str) -> Result<String, AuthError> {
        let password = Zeroizing::new(password.to_owned());
        self.run(move || hash(password.as_bytes())).await?
    }

    /// Whether the password is the stored one; `stored` is `None` for unknown users.
    pub(crate) async fn verify(
        &self,
        password: &str,
        stored: Option<&str>,
    ) -> Result<bool, AuthError> {
        let known = stored.is_some();
        let phc = stored.unwrap_or(&self.dummy).to_owned();
        let password = Zeroizing::new(password.to_owned());
        let matches = self
            .run(move || {
                let parsed = PasswordHash::new(&phc)
                    .map_err(|_| AuthError::Crypto("a stored hash does not parse"))?;
                Ok::<_, AuthError>(
                    Argon2::default()
                        .verify_password(password.as_bytes(), &parsed)
                        .is_ok(),
                )
            })
            .await??;
        Ok(matches && known)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let permit = self.permit().await?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        task.await
            .map_err(|_| AuthError::Crypto("a hashing task failed"))
    }
}

fn hash(password: &[u8]) -> Result<String, AuthError> {
    let hash = Argon2::default()
        .hash_password(password)
        .map_err(|_| AuthError::Crypto("hashing failed"))?;
    Ok(hash.to_string())
}

/// 32 letters and digits: 190 bits.
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

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_passes() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash("correct horse").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(
            passwords
                .verify("correct horse", Some(&stored))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("correct horse ", Some(&stored))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("no user has this password", None)
                .await
                .unwrap()
        );
    }
}
