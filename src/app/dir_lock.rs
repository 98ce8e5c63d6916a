//! Locks on a data directory: one rule for `tars up`, `tars serve` and the commands on files.
//!
//! A process that uses the whole directory locks it exclusively. A service that runs by itself shares
//! that lock with other services, and locks its own part exclusively. The system releases a lock when
//! its process ends, however it ends.

use super::StartError;
use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};
use tars_certs::secret;

/// Locks that are released when it is dropped.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "an open file keeps its lock")] Vec<File>);

const LOCK: &str = "lock";
const IN_USE: &str = "stop it first (`tars up`, or services by `tars serve`)";
const IN_USE_AS_A_WHOLE: &str =
    "`tars up` or a `tars certs` command uses all of it: stop it, or wait until it ends";
const SERVICE_RUNS: &str = "this service runs on it already: stop that process first";

impl DirLock {
    /// Locks all of a data directory.
    pub(crate) fn whole(data: &Path) -> Result<Self, StartError> {
        lock(data, File::try_lock, IN_USE).map(|file| Self(vec![file]))
    }

    /// Locks one service's part of a data directory.
    pub(crate) fn part(data: &Path, service: &str) -> Result<Self, StartError> {
        let shared = lock(data, File::try_lock_shared, IN_USE_AS_A_WHOLE)?;
        let own = lock(&data.join(service), File::try_lock, SERVICE_RUNS)?;
        Ok(Self(vec![shared, own]))
    }

    /// Whether a process has ever locked a data directory. Whether one does now is not tried: that might be in the way
    /// of a process that starts.
    pub(crate) fn was_taken(data: &Path) -> bool {
        data.join(LOCK).is_file()
    }
}

type TryLock = fn(&File) -> Result<(), TryLockError>;

fn lock(dir: &Path, take: TryLock, why: &'static str) -> Result<File, StartError> {
    secret::create_dir(dir).map_err(|e| StartError::file(dir, e))?;
    let path = dir.join(LOCK);
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

    fn refusal(tried: Result<DirLock, StartError>) -> String {
        let refused = tried.unwrap_err();
        assert!(matches!(refused, StartError::Locked { .. }), "{refused}");
        refused.to_string()
    }

    #[test]
    fn the_whole_excludes_its_parts_and_a_part_the_same_service() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!DirLock::was_taken(dir.path()));
        let whole = DirLock::whole(dir.path()).unwrap();
        assert!(DirLock::was_taken(dir.path()));
        let named = dir.path().display().to_string();
        for tried in [
            DirLock::whole(dir.path()),
            DirLock::part(dir.path(), "auth"),
        ] {
            assert!(refusal(tried).contains(&named));
        }
        assert!(!dir.path().join("auth").exists(), "nothing was written");
        drop(whole);
        let auth = DirLock::part(dir.path(), "auth").unwrap();
        let gateway = DirLock::part(dir.path(), "gateway").unwrap();
        assert!(refusal(DirLock::part(dir.path(), "auth")).contains("this service runs"));
        assert!(refusal(DirLock::whole(dir.path())).contains("tars serve"));
        drop(auth);
        refusal(DirLock::whole(dir.path()));
        drop(gateway);
        DirLock::whole(dir.path()).unwrap();
    }
}
