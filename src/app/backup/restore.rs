//! A backup is restored: all of it into a new data directory or a server without schemas of the mesh, or
//! nothing.

use super::{
    BackupError, Engine, Manifest, ServicePart, archive, database_file,
    databases::{describe, known},
    files, server,
};
use std::{fs, io, path::Path};
use tars_certs::secret;
use tars_runtime::{
    config::Config,
    db::{DbError, Server},
};
use tempfile::TempDir;

/// Restores a backup: the databases into the server of the configuration if it names one, all else, and
/// the databases too where there is no server, into a data directory that is empty or does not exist.
pub(crate) async fn restore(
    config: &Config,
    file: &Path,
    progress: impl Fn(&str),
) -> Result<Manifest, BackupError> {
    let data = &config.data.dir;
    let server = Server::of(&config.database).map_err(BackupError::Server)?;
    if server.is_none() {
        ensure_empty(data)?;
    }
    let parent = files::parent(data);
    secret::create_dir(parent).map_err(BackupError::file(parent))?;
    let staging = files::staging(".tars-restore", parent)?;
    progress("unpacking and verifying the files");
    let manifest = archive::extract(file, staging.path())?;
    for part in &manifest.services {
        progress(&format!("verifying the database of {}", part.name));
        verify(staging.path(), part, file).await?;
    }
    match server {
        None => place(staging, data)?,
        Some(server) => into_server(&server, &manifest, staging, data, &progress).await?,
    }
    Ok(manifest)
}

/// Fills the schemas; what else there is becomes the data directory, before the schemas are committed, so
/// that no mesh is without its authority.
async fn into_server(
    server: &Server,
    manifest: &Manifest,
    staging: TempDir,
    data: &Path,
    progress: &impl Fn(&str),
) -> Result<(), BackupError> {
    let has_files = manifest.engine == Engine::Sqlite;
    if has_files {
        ensure_empty(data)?;
    }
    let fill = server::fill(server, manifest, staging.path(), progress).await?;
    if has_files {
        place(staging, data)?;
    }
    progress("committing the schemas");
    match fill.commit().await {
        Err(doubt @ DbError::InDoubt(_)) => Err(BackupError::Server(doubt)),
        Err(e) => {
            if has_files {
                fs::remove_dir_all(data).map_err(BackupError::file(data))?;
            }
            Err(BackupError::Server(e))
        }
        Ok(()) => Ok(()),
    }
}

/// Makes the staged files the data directory.
fn place(staging: TempDir, data: &Path) -> Result<(), BackupError> {
    files::sync_tree(staging.path())?;
    // Replaces an empty directory, and fails on any other, also one that was filled meanwhile.
    fs::rename(staging.path(), data).map_err(|e| match e.kind() {
        io::ErrorKind::DirectoryNotEmpty => BackupError::NotEmpty(data.to_owned()),
        _ => BackupError::file(data)(e),
    })?;
    let _moved = staging.keep();
    files::sync(files::parent(data))
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
    let (service, migrations) = known(&part.name)?;
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
