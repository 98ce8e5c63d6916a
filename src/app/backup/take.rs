//! A backup is taken.

use super::{
    BackupError, Engine, FilePart, Manifest, ServicePart, Stop, archive, database_file,
    databases::{describe, with_database},
    files::{self, Listed, is_blob},
    server,
    staging::{self, Staging},
};
use crate::app::Service;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tars_runtime::{
    config::Config,
    db::{Db, Migration, Server},
};

/// How often files and databases are copied again because files changed meanwhile.
const TRIES: usize = 5;

/// What a backup has, and what of the data directory it has not.
pub(crate) struct Taken {
    pub(crate) manifest: Manifest,
    pub(crate) left_out: Vec<PathBuf>,
}

/// Backs up a mesh, in use or not, to a file that does not exist yet.
///
/// It blocks its thread while it works on files. Nothing is left of it once it was stopped.
pub(crate) async fn take(
    config: &Config,
    file: &Path,
    stop: &Stop,
    progress: impl Fn(&str),
) -> Result<Taken, BackupError> {
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let server = Server::of(&config.database).map_err(BackupError::Server)?;
    let taken = match &server {
        Some(server) => of_server(server, file, stop, &progress).await,
        None => of_directory(&config.data.dir, file, stop, &progress).await,
    };
    taken.map_err(|e| stop.explain(e))
}

async fn of_server(
    server: &Server,
    file: &Path,
    stop: &Stop,
    progress: &impl Fn(&str),
) -> Result<Taken, BackupError> {
    let staging = Staging::new(staging::BACKUP, files::parent(file), progress)?;
    let dump = server::dump(server, staging.path(), stop, progress);
    let (services, copied) = stop.or(dump).await?;
    let manifest = Manifest::new(Engine::Postgresql, services, copied);
    progress("writing the archive");
    archive::write(staging.path(), &manifest, file, stop)?;
    let left_out = Vec::new();
    Ok(Taken { manifest, left_out })
}

async fn of_directory(
    data: &Path,
    file: &Path,
    stop: &Stop,
    progress: &impl Fn(&str),
) -> Result<Taken, BackupError> {
    check(data, file)?;
    let staging = Staging::new(staging::BACKUP, files::parent(file), progress)?;
    let mut copy = Copy {
        data,
        stop,
        staging: staging.path(),
        files: BTreeMap::new(),
    };
    let services = copy.all(progress).await?;
    let left_out = Listed::of(data)?.left_out.into_iter().collect();
    let copied = copy.files.into_values().collect();
    let manifest = Manifest::new(Engine::Sqlite, services, copied);
    progress("writing the archive");
    archive::write(staging.path(), &manifest, file, stop)?;
    Ok(Taken { manifest, left_out })
}

fn check(data: &Path, file: &Path) -> Result<(), BackupError> {
    if present(data).is_empty() {
        return Err(BackupError::Nothing(data.to_owned()));
    }
    let parent = files::parent(file);
    let parent = fs::canonicalize(parent).map_err(BackupError::file(parent))?;
    let data = fs::canonicalize(data).map_err(BackupError::file(data))?;
    if parent.starts_with(data) {
        return Err(BackupError::Within(file.to_owned()));
    }
    Ok(())
}

/// The services that have a database in a data directory.
fn present(data: &Path) -> Vec<(Service, &'static [Migration])> {
    with_database()
        .filter(|(service, _)| data.join(database_file(*service)).is_file())
        .collect()
}

/// A copy of a data directory, in progress.
struct Copy<'a> {
    data: &'a Path,
    stop: &'a Stop,
    staging: &'a Path,
    files: BTreeMap<PathBuf, FilePart>,
}

impl Copy<'_> {
    /// Copies until nothing has changed between the first file and the last database. What is recorded
    /// in files and tables alike (what the authority issued, what was revoked) is then of one moment.
    async fn all(&mut self, progress: &impl Fn(&str)) -> Result<Vec<ServicePart>, BackupError> {
        let mut changed = PathBuf::new();
        for _ in 0..TRIES {
            progress("copying keys and certificates");
            self.mutable_files()?;
            progress("copying blobs");
            self.blobs()?;
            let mut services = Vec::new();
            for (service, migrations) in present(self.data) {
                progress(&format!("copying the database of {}", service.as_str()));
                services.push(self.database(service, migrations).await?);
            }
            // Those of versions that were made meanwhile.
            self.blobs()?;
            match self.changed()? {
                None => return Ok(services),
                Some(path) => changed = self.data.join(path),
            }
            self.forget()?;
        }
        Err(BackupError::Restless(changed))
    }

    fn mutable_files(&mut self) -> Result<(), BackupError> {
        for path in Listed::of(self.data)?.files {
            if !is_blob(&path) {
                self.file(path)?;
            }
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<(), BackupError> {
        for path in Listed::of(self.data)?.files {
            if is_blob(&path) && !self.files.contains_key(&path) {
                self.file(path)?;
            }
        }
        Ok(())
    }

    /// Copies a file, unless it was deleted since it was listed.
    fn file(&mut self, path: PathBuf) -> Result<(), BackupError> {
        match files::copy(self.data, self.staging, &path, self.stop) {
            Err(e) if e.is_absence() => Ok(()),
            other => {
                self.files.insert(path, other?);
                Ok(())
            }
        }
    }

    async fn database(
        &mut self,
        service: Service,
        migrations: &[Migration],
    ) -> Result<ServicePart, BackupError> {
        self.stop.check()?;
        let failed = BackupError::db(service.as_str());
        let path = database_file(service);
        let copied = self.staging.join(&path);
        // Made for the owner alone; a copy goes into an empty file.
        drop(files::create(&copied, 0o600)?);
        let db = Db::attach(&self.data.join(&path)).await.map_err(&failed)?;
        let done = db.copy_to(&copied).await;
        db.close().await;
        done.map_err(&failed)?;
        let part = describe(service, &copied, migrations)
            .await
            .map_err(&failed)?;
        let file = files::look(self.staging, &path, self.stop)?;
        self.files.insert(path, file);
        Ok(part)
    }

    /// A file that is not any more as it was copied.
    fn changed(&self) -> Result<Option<PathBuf>, BackupError> {
        let is_mutable = |path: &PathBuf| !is_blob(path) && !is_database(path);
        let mut now = Listed::of(self.data)?.files;
        now.retain(is_mutable);
        let copied = self.files.keys().filter(|path| is_mutable(path)).cloned();
        let copied = copied.collect();
        if let Some(path) = now.symmetric_difference(&copied).next() {
            return Ok(Some(path.clone()));
        }
        for path in now {
            match files::look(self.data, &path, self.stop) {
                Ok(part) if self.files.get(&path) == Some(&part) => {}
                Err(e) if !e.is_absence() => return Err(e),
                _ => return Ok(Some(path)),
            }
        }
        Ok(None)
    }

    /// Removes what is to be copied again: all but the blobs.
    fn forget(&mut self) -> Result<(), BackupError> {
        let again = self.files.extract_if(.., |path, _| !is_blob(path));
        for (path, _) in again {
            let path = self.staging.join(path);
            fs::remove_file(&path).map_err(BackupError::file(&path))?;
        }
        Ok(())
    }
}

fn is_database(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "db")
}
