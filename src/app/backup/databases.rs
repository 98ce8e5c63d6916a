//! The services' databases, as a backup describes them.

use super::{BackupError, ServicePart};
use crate::app::{Service, services};
use std::path::Path;
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
