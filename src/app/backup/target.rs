//! The data directory that a backup becomes.
//!
//! One that does not exist appears whole, by a rename. One that exists may be the root of a volume or
//! the end of a link, which cannot be replaced: it is filled from a directory within it, which is on the
//! same file system.

use super::{
    BackupError, files,
    staging::{self, Staging},
};
use crate::app::DirLock;
use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};
use tars_certs::secret;

#[derive(Debug)]
pub(super) enum Target {
    /// Does not exist.
    New(PathBuf),
    /// Exists; without links.
    Existing(PathBuf),
}

impl Target {
    pub(super) fn of(data: &Path) -> Result<Self, BackupError> {
        match fs::canonicalize(data) {
            Ok(dir) => Ok(Self::Existing(dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && data.symlink_metadata().is_err() => {
                Ok(Self::New(data.to_owned()))
            }
            Err(e) => Err(BackupError::file(data)(e)),
        }
    }

    /// Refuses a directory with files, other than those that a mesh which is down, or a restore that
    /// was killed, may leave in one that was empty.
    pub(super) fn ensure_empty(&self) -> Result<(), BackupError> {
        let Self::Existing(dir) = self else {
            return Ok(());
        };
        let failed = BackupError::file(dir);
        for entry in fs::read_dir(dir).map_err(&failed)? {
            if !means_nothing(&entry.map_err(&failed)?.file_name()) {
                return Err(BackupError::NotEmpty(dir.clone()));
            }
        }
        Ok(())
    }

    /// A directory whose entries can be renamed into the target.
    pub(super) fn staging(&self, progress: &impl Fn(&str)) -> Result<Staging, BackupError> {
        let parent = match self {
            Self::Existing(dir) => dir,
            Self::New(data) => {
                let parent = files::parent(data);
                secret::create_dir(parent).map_err(BackupError::file(parent))?;
                parent
            }
        };
        Staging::new(staging::RESTORE, parent, progress)
    }

    /// Makes the staged files, which are durable, the data directory.
    pub(super) fn place(&self, staging: Staging) -> Result<Placed, BackupError> {
        match self {
            Self::New(data) => {
                // Fails on any directory with files, such as one that was made meanwhile.
                staging.rename(data).map_err(|e| match e.kind() {
                    io::ErrorKind::DirectoryNotEmpty => BackupError::NotEmpty(data.clone()),
                    _ => BackupError::file(data)(e),
                })?;
                files::sync(files::parent(data))?;
                Ok(Placed(vec![data.clone()]))
            }
            Self::Existing(dir) => self.fill(dir, &staging),
        }
    }

    fn fill(&self, dir: &Path, staging: &Staging) -> Result<Placed, BackupError> {
        // No mesh starts on a part of it.
        let _lock = DirLock::whole(dir).map_err(|e| BackupError::InUse(Box::new(e)))?;
        self.ensure_empty()?;
        let mut placed = Placed(Vec::new());
        match placed.take(staging.path(), dir) {
            Ok(()) => {
                files::sync(dir)?;
                Ok(placed)
            }
            Err(e) => {
                placed.remove()?;
                Err(e)
            }
        }
    }
}

/// What was put in place.
#[derive(Debug)]
pub(super) struct Placed(Vec<PathBuf>);

impl Placed {
    fn take(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let failed = BackupError::file(from);
        for entry in fs::read_dir(from).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let path = to.join(entry.file_name());
            fs::rename(entry.path(), &path).map_err(BackupError::file(&path))?;
            self.0.push(path);
        }
        Ok(())
    }

    /// Removes it again.
    pub(super) fn remove(self) -> Result<(), BackupError> {
        for path in self.0 {
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(BackupError::file(&path))?;
        }
        Ok(())
    }
}

/// Whether an entry is in directories that are empty to their owner: the lock of a mesh that is down, or
/// what a file system has at its root.
fn means_nothing(name: &OsStr) -> bool {
    name == "lock" || name == files::LOST_AND_FOUND || staging::is_of_restore(name)
}
