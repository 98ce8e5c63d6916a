//! What became of a transaction whose commit is in doubt.
//!
//! A commit is in doubt when the connection is lost before the database has answered: it was made,
//! or not, or is still being made. An exclusive transaction that begins afterwards waits for the
//! first to end, so that what it reads is final. Until that has succeeded nothing can be decided,
//! and whoever keeps something in memory that follows from rows must not go on as if the commit
//! had failed.

use super::{Access, Db, DbError, Fetch, Isolation, Query, Write};
use crate::backoff::Backoff;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Db {
    /// Repeats a read after a commit in doubt, for as long as the database cannot be asked. The read
    /// must use an exclusive transaction. It is not bounded, because giving up would leave rows that
    /// nobody acts upon: run it on a task of its own and bound the caller.
    ///
    /// # Errors
    ///
    /// The error of a read that is not transient, and of any where the database was closed.
    pub async fn settled<T, E, F>(
        &self,
        read: impl Fn() -> F,
        is_transient: impl Fn(&E) -> bool,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match read().await {
                Err(error) if is_transient(&error) && !self.pools.is_closed() => {
                    tracing::warn!(%error, "the outcome of a commit is not known yet");
                }
                done => return done,
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

impl Write {
    /// Commits as [`commit`](Self::commit), and finds out what became of a commit that is in doubt:
    /// it was made if `proof` finds a row, which must be one that only this transaction writes.
    /// As [`settled`](Db::settled), it waits until the database can be asked.
    ///
    /// # Errors
    ///
    /// [`DbError::Unavailable`] where the commit was lost and nothing has changed. The outcome is
    /// unknown only where `proof` itself fails, or the database was closed.
    pub fn commit_with_proof(self, proof: Query<'_>) -> Access<'_, ()> {
        Box::pin(async move {
            let db = self.db.clone();
            let doubt = match self.commit().await {
                Err(doubt @ DbError::InDoubt(_)) => doubt,
                done => return done,
            };
            let look = || async {
                let mut tx = db.write("db.settle", Isolation::Exclusive).await?;
                Ok(!tx.rows(proof.clone()).await?.is_empty())
            };
            match db.settled(look, DbError::is_transient).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(DbError::Unavailable(doubt.to_string())),
                Err(_) => Err(doubt),
            }
        })
    }
}

#[cfg(test)]
mod tests;
