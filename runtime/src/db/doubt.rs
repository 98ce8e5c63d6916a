//! What became of a transaction whose commit is in doubt, and how tests bring that about.
//!
//! A commit is in doubt when the connection is lost before the database has answered: it was made,
//! or not, or is still being made. An exclusive transaction that begins afterwards waits for the
//! first to end, so that what it reads is final. Until that has succeeded nothing can be decided,
//! and whoever keeps something in memory that follows from rows must not go on as if the commit
//! had failed.

use super::{Db, DbError, Fetch, Isolation, Query, Write};
use crate::backoff::Backoff;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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
    pub async fn commit_with_proof(self, proof: Query<'_>) -> Result<(), DbError> {
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
    }
}

/// What became of a commit whose answer a test lets be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostCommit {
    /// It was lost on its way to the database, which has changed nothing.
    Undone,
    /// It was made, and its answer was lost.
    Made,
}

/// The faults that a test has asked for. There are none in a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    /// Each for a transaction of that name, with whether the database is cut off together with it.
    lost: Mutex<Vec<(&'static str, LostCommit, bool)>>,
    cut_off: AtomicBool,
}

impl Faults {
    /// The fault of a commit that is being made.
    pub(super) fn of_commit(&self, name: &str) -> Option<LostCommit> {
        let (_, lost, cut_off) = {
            let mut asked = self.0.lost.lock();
            let at = asked.iter().position(|(of, ..)| *of == name)?;
            asked.remove(at)
        };
        if cut_off {
            self.0.cut_off.store(true, Ordering::Relaxed);
        }
        Some(lost)
    }

    pub(super) fn check_reachable(&self) -> Result<(), DbError> {
        match self.0.cut_off.load(Ordering::Relaxed) {
            true => Err(DbError::Unavailable("a test has cut it off".to_owned())),
            false => Ok(()),
        }
    }
}

/// For tests alone: the faults of a network, on every engine.
impl Db {
    /// Loses the answer of the next commit of a transaction of this name: it is reported as in doubt.
    pub fn lose_commit(&self, name: &'static str, lost: LostCommit) {
        self.faults.0.lost.lock().push((name, lost, false));
    }

    /// Loses the answer of the next commit of this name, and cuts the database off together with it.
    pub fn cut_off_after(&self, name: &'static str, lost: LostCommit) {
        self.faults.0.lost.lock().push((name, lost, true));
    }

    /// Refuses to begin transactions, as when the server cannot be reached, until it is turned off.
    pub fn cut_off(&self, on: bool) {
        self.faults.0.cut_off.store(on, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
