//! Who works on a data directory: one rule for `tars up`, `tars serve` and the commands on files.
//!
//! Whoever works on all of it holds its lock alone. A service that runs by itself shares that lock
//! with other services, and holds the lock of its own part alone. The system lets go of a lock when
//! its process ends, however it ends.

use super::StartError;
use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};
use tars_certs::secret;

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold(#[expect(dead_code, reason = "an open file keeps its lock")] Vec<File>);

const BY_ANYBODY: &str =
    "a process works on it (`tars up`, or services by `tars serve`): stop it first";
const AS_A_WHOLE: &str =
    "`tars up` or a `tars certs` command has it for itself: stop it, or wait for its end";
const SAME_SERVICE: &str = "this service runs on it already: stop that process first";

impl Hold {
    /// All of a data directory.
    pub(crate) fn whole(data: &Path) -> Result<Self, StartError> {
        lock(data, File::try_lock, BY_ANYBODY).map(|file| Self(vec![file]))
    }

    /// One service's part of a data directory.
    pub(crate) fn part(data: &Path, service: &str) -> Result<Self, StartError> {
        let shared = lock(data, File::try_lock_shared, AS_A_WHOLE)?;
        let own = lock(&data.join(service), File::try_lock, SAME_SERVICE)?;
        Ok(Self(vec![shared, own]))
    }
}

type TryLock = fn(&File) -> Result<(), TryLockError>;

fn lock(dir: &Path, take: TryLock, why: &'static str) -> Result<File, StartError> {
    secret::create_dir(dir).map_err(|e| StartError::file(dir, e))?;
    let path = dir.join("lock");
    let failed = |e: io::Error| StartError::file(&path, e);
    let file = File::create(&path).map_err(failed)?;
    match take(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked {
            dir: dir.to_owned(),
            why,
        }),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(tried: Result<Hold, StartError>) -> String {
        let refused = tried.unwrap_err();
        assert!(matches!(refused, StartError::Locked { .. }), "{refused}");
        refused.to_string()
    }

    #[test]
    fn the_whole_is_held_by_one_and_the_parts_by_their_services() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Hold::whole(dir.path()).unwrap();
        let named = dir.path().display().to_string();
        for tried in [Hold::whole(dir.path()), Hold::part(dir.path(), "auth")] {
            assert!(refusal(tried).contains(&named));
        }
        assert!(!dir.path().join("auth").exists(), "nothing was written");
        drop(whole);
        let auth = Hold::part(dir.path(), "auth").unwrap();
        let gateway = Hold::part(dir.path(), "gateway").unwrap();
        assert!(refusal(Hold::part(dir.path(), "auth")).contains("this service runs"));
        assert!(refusal(Hold::whole(dir.path())).contains("tars serve"));
        drop(auth);
        refusal(Hold::whole(dir.path()));
        drop(gateway);
        Hold::whole(dir.path()).unwrap();
    }
}
