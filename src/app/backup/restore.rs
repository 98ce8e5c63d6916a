//! A backup is restored: all of it into a new data directory or a server without schemas of the mesh, or
//! nothing.

use super::{
    BackupError, Engine, Manifest, ServicePart, Stop, archive, database_file,
    databases::{describe, known},
    files, server,
    staging::Staging,
    target::Target,
};
use std::path::Path;
use tars_runtime::{
    config::Config,
    db::{DbError, Fill, Server},
};

/// Restores a backup: the databases into the server of the configuration if it names one, all else, and
/// the databases too where there is no server, into a data directory that is empty or does not exist.
///
/// It blocks its thread while it works on files. Nothing is left of it once it was stopped; what is
/// verified and about to be put in place is not stopped any more.
pub(crate) async fn restore(
    config: &Config,
    file: &Path,
    stop: &Stop,
    progress: impl Fn(&str),
) -> Result<Manifest, BackupError> {
    let target = Target::of(&config.data.dir)?;
    let prepared = prepare(config, file, &target, stop, &progress).await;
    let prepared = prepared.map_err(|e| stop.explain(e))?;
    match prepared.fill {
        None => drop(target.place(prepared.staging)?),
        Some(fill) => {
            let has_files = prepared.manifest.engine == Engine::Sqlite;
            let files = has_files.then_some(prepared.staging);
            commit(fill, files, &target, &progress).await?;
        }
    }
    Ok(prepared.manifest)
}

/// A backup that was verified, before anything of it is in place.
struct Prepared {
    manifest: Manifest,
    staging: Staging,
    fill: Option<Fill>,
}

async fn prepare(
    config: &Config,
    file: &Path,
    target: &Target,
    stop: &Stop,
    progress: &impl Fn(&str),
) -> Result<Prepared, BackupError> {
    let server = Server::of(&config.database).map_err(BackupError::Server)?;
    if server.is_none() {
        target.ensure_empty()?;
    }
    let staging = target.staging(progress)?;
    progress("unpacking and verifying the files");
    let manifest = archive::extract(file, staging.path(), stop)?;
    for part in &manifest.services {
        progress(&format!("verifying the database of {}", part.name));
        stop.check()?;
        verify(staging.path(), part, file).await?;
    }
    let fill = match server {
        None => None,
        Some(server) => {
            if manifest.engine == Engine::Sqlite {
                target.ensure_empty()?;
            }
            let fill = server::fill(&server, &manifest, staging.path(), progress);
            Some(stop.or(fill).await?)
        }
    };
    files::sync_tree(staging.path(), stop)?;
    stop.check()?;
    Ok(Prepared {
        manifest,
        staging,
        fill,
    })
}

/// Commits the schemas, after the files are in place, so that no mesh is without its authority.
async fn commit(
    fill: Fill,
    files: Option<Staging>,
    target: &Target,
    progress: &impl Fn(&str),
) -> Result<(), BackupError> {
    let placed = files.map(|files| target.place(files)).transpose()?;
    progress("committing the schemas");
    match fill.commit().await {
        Err(doubt @ DbError::InDoubt(_)) => Err(BackupError::Server(doubt)),
        Err(e) => {
            if let Some(placed) = placed {
                placed.remove()?;
            }
            Err(BackupError::Server(e))
        }
        Ok(()) => Ok(()),
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
