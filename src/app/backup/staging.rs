//! A directory for unfinished work. It holds every secret of a mesh, and does not outlive the work.

use super::BackupError;
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use tempfile::Builder;

/// What the name of the directory of a backup begins with.
pub(super) const BACKUP: &str = ".tars-backup-partial-";
/// What the name of the directory of a restore begins with.
pub(super) const RESTORE: &str = ".tars-restore-partial-";

/// How often a directory is made again that another run removed before it was locked.
const TRIES: usize = 5;
/// A connection that was dropped closes its file on another thread, and may still write beside it.
const REMOVALS: usize = 20;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(50);

/// A directory for the owner alone, removed when it is dropped. Its lock, which the system releases
/// however the process ends, tells it from those of runs that were killed.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    is_kept: bool,
    _lock: File,
}

impl Staging {
    /// Makes a directory, and removes those with the same prefix that no run uses any more.
    pub(super) fn new(
        prefix: &str,
        parent: &Path,
        progress: &impl Fn(&str),
    ) -> Result<Self, BackupError> {
        sweep(prefix, parent, progress)?;
        for _ in 0..TRIES {
            let made = Self::make(prefix, parent).map_err(BackupError::file(parent))?;
            if let Some(made) = made {
                return Ok(made);
            }
        }
        let error = io::Error::other("another run removes what this one makes");
        Err(BackupError::file(parent)(error))
    }

    /// `None` where another run took the directory for an abandoned one.
    fn make(prefix: &str, parent: &Path) -> io::Result<Option<Self>> {
        let mut builder = Builder::new();
        let builder = builder.prefix(prefix);
        let path = builder
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?
            .keep();
        let lock = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // Not every file system has locks: without them nothing is swept either.
        let is_taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        Ok((!is_taken && path.is_dir()).then_some(Self {
            path,
            is_kept: false,
            _lock: lock,
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the directory, which stays.
    pub(super) fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if self.is_kept || fs::remove_dir_all(&self.path).is_ok() || !self.path.exists() {
                return;
            }
            thread::sleep(BETWEEN_REMOVALS);
        }
        let path = self.path.display();
        tracing::error!(%path, "a directory with secrets could not be removed");
    }
}

/// Whether an entry of a directory is of an unfinished restore.
pub(crate) fn is_of_restore(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(RESTORE)
}

fn sweep(prefix: &str, parent: &Path, progress: &impl Fn(&str)) -> Result<(), BackupError> {
    let failed = BackupError::file(parent);
    for entry in fs::read_dir(parent).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        match remove_abandoned(&path) {
            Ok(false) => {}
            Ok(true) => progress(&format!(
                "removed {}, which an interrupted run left",
                path.display()
            )),
            // It does not prevent this run; the operator is told.
            Err(e) => progress(&format!("{} could not be removed: {e}", path.display())),
        }
    }
    Ok(())
}

/// Removes a directory of this user that no run has locked; whether there was one.
fn remove_abandoned(path: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    let lock = File::open(path)?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    fs::remove_dir_all(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let in_use = Staging::new(BACKUP, dir.path(), &|_| {}).unwrap();
        let abandoned = dir.path().join(format!("{BACKUP}killed"));
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("seal.key"), "secret").unwrap();
        for others in [".tars-backups", ".tars-restore-partial-other"] {
            fs::create_dir(dir.path().join(others)).unwrap();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let link = format!("{BACKUP}link");
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(&link)).unwrap();

        let told = std::cell::RefCell::new(String::new());
        let next = Staging::new(BACKUP, dir.path(), &|step| told.borrow_mut().push_str(step));
        let next = next.unwrap();
        assert!(told.borrow().contains("killed"), "{told:?}");
        let name = |staging: &Staging| staging.path().file_name().unwrap().to_owned();
        let mut expected = vec![
            link,
            ".tars-backups".to_owned(),
            ".tars-restore-partial-other".to_owned(),
            name(&in_use).into_string().unwrap(),
            name(&next).into_string().unwrap(),
        ];
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        drop((in_use, next));
        assert_eq!(names(dir.path()).len(), 3);
        assert!(elsewhere.path().is_dir());
    }
}
