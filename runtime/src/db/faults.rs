//! Faults that tests ask a database for: commits whose answer is lost, a server that cannot be
//! reached. A process has none.

use super::{Db, DbError};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

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

    /// Refuses reads and to begin transactions, as when the server cannot be reached, until it is turned off.
    pub fn cut_off(&self, on: bool) {
        self.faults.0.cut_off.store(on, Ordering::Relaxed);
    }
}
