//! A backup is restored: all of it into a new data directory, or nothing.

use super::{BackupError, Manifest, ServicePart, archive, database_file, files, take::describe};
use crate::app::{Service, services};
use std::{fs, io, path::Path};
use tars_certs::secret;
use tars_runtime::config::Config;

/// Restores a backup into a data directory that is empty or does not exist.
pub(crate) async fn restore(
    config: &Config,
    file: &Path,
    progress: impl Fn(&str),
) -> Result<Manifest, BackupError> {
    let data = &config.data.dir;
    if config.database.url.is_some() {
        return Err(BackupError::Server);
    }
    ensure_empty(data)?;
    let parent = files::parent(data);
    secret::create_dir(parent).map_err(BackupError::file(parent))?;
    let staging = files::staging(".tars-restore", parent)?;
    progress("unpacking and verifying the files");
    let manifest = archive::extract(file, staging.path())?;
    for part in &manifest.services {
        progress(&format!("verifying the database of {}", part.name));
        verify(staging.path(), part, file).await?;
    }
    files::sync_tree(staging.path())?;
    // Replaces an empty directory, and fails on any other, also one that was filled meanwhile.
    fs::rename(staging.path(), data).map_err(|e| match e.kind() {
        io::ErrorKind::DirectoryNotEmpty => BackupError::NotEmpty(data.clone()),
        _ => BackupError::file(data)(e),
    })?;
    let _moved = staging.keep();
    files::sync(parent)?;
    Ok(manifest)
}

fn ensure_empty(data: &Path) -> Result<(), BackupError> {
    let mut entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(BackupError::file(data)(e)),
    };
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(BackupError::NotEmpty(data.to_owned())),
    }
}

/// A database is sound, of a schema that this version knows, and has the rows that it had.
async fn verify(staging: &Path, part: &ServicePart, file: &Path) -> Result<(), BackupError> {
    let unknown = || BackupError::UnknownService(part.name.clone());
    let mut all = Service::ALL.iter().copied();
    let service = all.find(|s| s.as_str() == part.name).ok_or_else(unknown)?;
    let migrations = services::migrations(service).ok_or_else(unknown)?;
    let damaged = |why: String| BackupError::Damaged {
        path: file.to_owned(),
        why: format!("{}: {why}", part.name),
    };
    let database = staging.join(database_file(service));
    if !database.is_file() {
        return Err(damaged("its database is missing".to_owned()));
    }
    let found = describe(service, &database, migrations).await;
    let found = found.map_err(BackupError::db(&part.name))?;
    if found != *part {
        let why = "its database has other rows than the backup's list of contents";
        return Err(damaged(why.to_owned()));
    }
    Ok(())
}
