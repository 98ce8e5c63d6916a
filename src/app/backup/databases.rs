//! The services' databases, as a backup describes them.

use super::{BackupError, Manifest, ServicePart, database_file, files};
use crate::app::{Service, services};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use tars_runtime::db::{Db, DbError, Migration};

/// The services that have a database, with its migrations.
pub(super) fn with_database() -> impl Iterator<Item = (Service, &'static [Migration])> {
    let all = Service::ALL.iter().copied();
    all.filter_map(|service| Some((service, services::migrations(service)?)))
}

/// A service of a backup.
pub(super) fn known(name: &str) -> Result<(Service, &'static [Migration]), BackupError> {
    let mut all = with_database();
    let found = all.find(|(service, _)| service.as_str() == name);
    found.ok_or_else(|| BackupError::UnknownService(name.to_owned()))
}

/// Checks that a backup lists the databases of its services and no others, so that none escapes its
/// verification, and nothing that would change a database when it is opened. The inner error is what is
/// wrong with the list.
pub(super) fn check_list(manifest: &Manifest) -> Result<Result<(), String>, BackupError> {
    let mut expected = BTreeSet::new();
    for part in &manifest.services {
        let (service, _) = known(&part.name)?;
        if !expected.insert(database_file(service)) {
            return Ok(Err(format!("{} is listed twice", part.name)));
        }
    }
    for part in &manifest.files {
        let path = PathBuf::from(&part.path);
        if !expected.remove(&path) && files::is_volatile(&path) {
            return Ok(Err(format!("{} is no part of a backup", part.path)));
        }
    }
    Ok(match expected.first() {
        Some(missing) => Err(format!("{} is not in its list", missing.display())),
        None => Ok(()),
    })
}

/// What a copy of a database has, found in the copy.
pub(super) async fn describe(
    service: Service,
    file: &Path,
    migrations: &[Migration],
) -> Result<ServicePart, DbError> {
    let db = Db::attach(file).await?;
    let found = async {
        db.check_integrity().await?;
        let schema = db.schema(migrations).await?;
        let tables = db.tables().await?;
        let tables = tables.into_iter().map(|table| (table.name, table.rows));
        Ok(ServicePart {
            name: service.as_str().to_owned(),
            schema: schema.applied,
            tables: tables.collect(),
        })
    };
    let found = found.await;
    db.close().await;
    found
}
