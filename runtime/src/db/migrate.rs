//! The schema's steps, in order.

use super::DbError;
use sqlx::{
    SqlStr,
    migrate::{Migration, MigrationType, Migrator},
};

/// A step of the schema: its number, its name, its text. Texts that have shipped never change.
pub type Step = (i64, &'static str, &'static str);

pub(super) fn migrator(steps: &[Step]) -> Migrator {
    let migration = |(version, name, sql): &Step| {
        let kind = MigrationType::Simple;
        Migration::new(
            *version,
            (*name).into(),
            kind,
            SqlStr::from_static(sql),
            false,
        )
    };
    Migrator::with_migrations(steps.iter().map(migration).collect())
}

pub(super) fn failed(error: sqlx::migrate::MigrateError) -> DbError {
    DbError::Failed(error.to_string())
}
