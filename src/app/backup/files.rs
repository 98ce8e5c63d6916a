//! The files of a data directory that a backup holds: all but databases, which are copied by
//! transactions, and what only a running process has a use for.

use super::{BackupError, FilePart, Stop};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tars_certs::secret;

/// Contents of blob folders never change: they are copied once, and may come and go meanwhile.
pub(super) const BLOBS: &str = "blobs";

/// What a file system has at its root, for the system alone.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// The files of a data directory, by their paths in it.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) files: BTreeSet<PathBuf>,
    /// What is neither a file nor a directory, and is left out.
    pub(super) left_out: BTreeSet<PathBuf>,
}

impl Listed {
    pub(super) fn of(data: &Path) -> Result<Self, BackupError> {
        let mut listed = Self::default();
        let mut pending = vec![PathBuf::new()];
        while let Some(dir) = pending.pop() {
            let failed = BackupError::file(&data.join(&dir));
            for entry in fs::read_dir(data.join(&dir)).map_err(&failed)? {
                let entry = entry.map_err(&failed)?;
                let path = dir.join(entry.file_name());
                if path.as_os_str() == LOST_AND_FOUND {
                    continue;
                }
                let kind = entry.file_type().map_err(&failed)?;
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() && !is_volatile(&path) {
                    listed.files.insert(path);
                } else if !kind.is_file() {
                    listed.left_out.insert(path);
                }
            }
        }
        Ok(listed)
    }
}

/// Locks, addresses of a running mesh, the name of a replica, which is one process's alone, databases,
/// logs, and unfinished writes.
pub(super) fn is_volatile(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = [
        ".db",
        ".db-wal",
        ".db-shm",
        ".db-journal",
        ".db.lock",
        ".log",
    ];
    name == "lock"
        || name == "ready.json"
        || name == "replica"
        || ends.iter().any(|end| name.ends_with(end))
        || (name.starts_with('.') && name.ends_with(".tmp"))
}

pub(super) fn is_blob(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name);
    folder.is_some_and(|folder| folder == BLOBS)
}

/// Copies a file, below another directory, and returns what the copy is.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    path: &Path,
    stop: &Stop,
) -> Result<FilePart, BackupError> {
    let (from, to) = (from.join(path), to.join(path));
    let failed = BackupError::file(&from);
    let source = File::open(&from).map_err(&failed)?;
    let mode = source.metadata().map_err(&failed)?.permissions().mode() & 0o777;
    let mut target = create(&to, mode)?;
    let (bytes, sha256) = copy_digested(stop.reader(&source), &mut target).map_err(&failed)?;
    Ok(part(path, bytes, sha256, mode))
}

/// What a file is.
pub(super) fn look(data: &Path, path: &Path, stop: &Stop) -> Result<FilePart, BackupError> {
    let file = data.join(path);
    let failed = BackupError::file(&file);
    let source = File::open(&file).map_err(&failed)?;
    let mode = source.metadata().map_err(&failed)?.permissions().mode() & 0o777;
    let (bytes, sha256) = copy_digested(stop.reader(&source), &mut io::sink()).map_err(&failed)?;
    Ok(part(path, bytes, sha256, mode))
}

fn part(path: &Path, bytes: u64, sha256: String, mode: u32) -> FilePart {
    FilePart {
        path: path.to_string_lossy().into_owned(),
        bytes,
        sha256,
        mode,
    }
}

/// Makes a file that did not exist, and its directories, for the owner alone until it has its mode.
pub(super) fn create(path: &Path, mode: u32) -> Result<File, BackupError> {
    let failed = BackupError::file(path);
    if let Some(parent) = path.parent() {
        secret::create_dir(parent).map_err(&failed)?;
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(&failed)?;
    // Nobody else may write to what a process trusts, and nothing of it is a program, whatever an
    // archive says.
    let mode = fs::Permissions::from_mode(mode & 0o644 | 0o400);
    file.set_permissions(mode).map_err(&failed)?;
    Ok(file)
}

pub(super) fn copy_digested(mut from: impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer)?;
        let Some(content) = buffer.get(..read).filter(|content| !content.is_empty()) else {
            return Ok((bytes, hex(&digest.finalize())));
        };
        digest.update(content);
        to.write_all(content)?;
        bytes += content.len() as u64;
    }
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes a directory and all below it durable.
pub(super) fn sync_tree(dir: &Path, stop: &Stop) -> Result<(), BackupError> {
    stop.check()?;
    let failed = BackupError::file(dir);
    for entry in fs::read_dir(dir).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        match path.is_dir() {
            true => sync_tree(&path, stop)?,
            false => sync(&path)?,
        }
    }
    sync(dir)
}

pub(super) fn sync(path: &Path) -> Result<(), BackupError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(BackupError::file(path))
}

/// The directory that a path is in; that of a bare name is the current one.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
