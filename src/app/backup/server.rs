//! The schemas of a server, into a directory as a backup has it and back.

use super::{
    BackupError, FilePart, Manifest, ServicePart, Stop, blob_folder, database_file,
    databases::{describe, known, with_database},
    files,
};
use crate::app::Service;
use std::{fs, io::Write, path::Path};
use tars_runtime::{
    blobs::{BlobError, Blobs},
    db::{Dump, Fill, Server},
};

/// The table that a service has when it stores blobs.
const BLOB_TABLE: &str = "blobs";

/// Copies all schemas of a server, as they are at one moment.
pub(super) async fn dump(
    server: &Server,
    staging: &Path,
    stop: &Stop,
    progress: &impl Fn(&str),
) -> Result<(Vec<ServicePart>, Vec<FilePart>), BackupError> {
    let mut dump = Dump::begin(server).await.map_err(BackupError::Server)?;
    let (mut services, mut copied) = (Vec::new(), Vec::new());
    for (service, migrations) in with_database() {
        progress(&format!("copying the schema of {}", service.as_str()));
        let failed = BackupError::db(service.as_str());
        let path = database_file(service);
        let file = staging.join(&path);
        // Made for the owner alone; a copy goes into an empty file.
        drop(files::create(&file, 0o600)?);
        let done = dump.copy(service.as_str(), &file, migrations).await;
        if !done.map_err(&failed)? {
            continue;
        }
        let part = describe(service, &file, migrations).await;
        let part = part.map_err(&failed)?;
        copied.push(files::look(staging, &path, stop)?);
        if part.tables.contains_key(BLOB_TABLE) {
            copied.extend(dump_blobs(&mut dump, service, staging, stop).await?);
        }
        services.push(part);
    }
    match services.is_empty() {
        true => Err(BackupError::NoSchemas(server.to_string())),
        false => Ok((services, copied)),
    }
}

/// Writes the blobs of the schema that was copied last.
async fn dump_blobs(
    dump: &mut Dump,
    service: Service,
    staging: &Path,
    stop: &Stop,
) -> Result<Vec<FilePart>, BackupError> {
    let names = Blobs::names_in(dump).await;
    let mut written = Vec::new();
    for name in names.map_err(BackupError::db(service.as_str()))? {
        let content = Blobs::get_in(dump, &name).await;
        let content = content.map_err(BackupError::blob(service, &name))?;
        // The content has that digest, so that the name is one.
        let path = blob_folder(service).join(&name);
        let file = staging.join(&path);
        let mut created = files::create(&file, 0o600)?;
        created
            .write_all(&content)
            .map_err(BackupError::file(&file))?;
        written.push(files::look(staging, &path, stop)?);
    }
    Ok(written)
}

/// Fills the schemas of a server from a directory, and takes what they hold out of it. Nothing is changed
/// until what is returned is committed.
pub(super) async fn fill(
    server: &Server,
    manifest: &Manifest,
    staging: &Path,
    progress: &impl Fn(&str),
) -> Result<Fill, BackupError> {
    let mut fill = Fill::begin(server).await.map_err(BackupError::Server)?;
    for part in &manifest.services {
        progress(&format!("filling the schema of {}", part.name));
        let (service, migrations) = known(&part.name)?;
        let file = staging.join(database_file(service));
        let filled = fill.copy(&part.name, &file, migrations).await;
        filled.map_err(BackupError::db(&part.name))?;
        let blobs = staging.join(blob_folder(service));
        if blobs.is_dir() {
            fill_blobs(&mut fill, service, &blobs).await?;
        }
        take_out(&file, &blobs)?;
    }
    Ok(fill)
}

async fn fill_blobs(fill: &mut Fill, service: Service, folder: &Path) -> Result<(), BackupError> {
    let failed = BackupError::file(folder);
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let content = fs::read(&path).map_err(BackupError::file(&path))?;
        let failed = BackupError::blob(service, &name);
        let stored = Blobs::put_in(fill, content).await.map_err(&failed)?;
        if stored != name {
            return Err(failed(BlobError::Damaged(name.into_owned())));
        }
    }
    Ok(())
}

/// Removes a database with what is beside it, and its blobs.
fn take_out(database: &Path, blobs: &Path) -> Result<(), BackupError> {
    if blobs.is_dir() {
        fs::remove_dir_all(blobs).map_err(BackupError::file(blobs))?;
    }
    let folder = files::parent(database);
    let failed = BackupError::file(folder);
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        let is_its = |other: &Path| {
            let other = other.file_name().unwrap_or_default().to_string_lossy();
            other.starts_with(&*name)
        };
        if is_its(&path) {
            fs::remove_file(&path).map_err(BackupError::file(&path))?;
        }
    }
    Ok(())
}
