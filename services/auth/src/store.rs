//! Auth's SQL. The texts are portable, and racing writes are decided by compare-and-set.

mod changes;
mod keys;
mod sealed;
mod sessions;
mod signing;
mod usage;
mod users;

pub(crate) use changes::{ChangeRow, append_change, changes_after, last_change};
pub(crate) use keys::{KeyRow, Secret, insert_key, key_in, keys, live_keys, update_key};
pub(crate) use sealed::{
    Edition, delete_sealed, insert_sealed, sealed, sealed_count, sealed_edition, swap_sealed,
};
pub(crate) use sessions::{
    RevokedRow, SessionRow, drop_ended, insert_refresh, insert_session, refresh, revoke_session,
    revoke_sessions_of, revoked_sessions, session, use_refresh,
};
pub(crate) use signing::{KeyState, SigningKeyRow, insert_signing_key, signing_keys};
pub(crate) use usage::{
    Place as UsagePlace, UsageRow, add_usage, changed_usage, counted, drop_sources, last_version,
    next_versions, open_from, put_counted, usage,
};
pub(crate) use users::{
    UserRow, all_users, enabled_with_role, insert_user, update_user, user_by_id, user_by_name,
    user_count, users,
};

use crate::AuthError;
use tars_runtime::{
    audit,
    db::{Db, Isolation, Migration, Read, Write},
    lease::{self, Fence},
    usage as usage_outbox,
};

/// The migrations of the database's schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "initial", include_str!("../migrations/0001_initial.sql")),
    Migration::new(2, "audit outbox", audit::MIGRATION),
    Migration::new(
        3,
        "certificates",
        include_str!("../migrations/0003_certificates.sql"),
    ),
    Migration::new(4, "changes", include_str!("../migrations/0004_changes.sql")),
    Migration::new(
        5,
        "issued by the process",
        include_str!("../migrations/0005_issued_by_the_process.sql"),
    ),
    Migration::new(
        6,
        "join tokens",
        include_str!("../migrations/0006_join_tokens.sql"),
    ),
    Migration::new(
        7,
        "makers of join tokens",
        include_str!("../migrations/0007_makers_of_join_tokens.sql"),
    ),
    Migration::new(
        8,
        "reports by holder",
        include_str!("../migrations/0008_reports_by_holder.sql"),
    )
    .on_postgres(include_str!(
        "../migrations/0008_reports_by_holder.postgres.sql"
    )),
    Migration::new(9, "leases", lease::MIGRATION),
    Migration::new(
        10,
        "replicas",
        include_str!("../migrations/0010_replicas.sql"),
    ),
    Migration::new(
        11,
        "indexes",
        include_str!("../migrations/0011_indexes.sql"),
    ),
    Migration::new(12, "usage", include_str!("../migrations/0012_usage.sql")),
    Migration::new(13, "usage outbox", usage_outbox::MIGRATION),
    Migration::new(14, "usage set aside", usage_outbox::SET_ASIDE),
];

#[derive(Debug, Clone)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, AuthError> {
        Ok(self.db.write(name, Isolation::Exclusive).await?)
    }

    /// Begins a transaction in which constraints and locked rows decide alone.
    pub(crate) async fn begin_concurrent(&self, name: &'static str) -> Result<Write, AuthError> {
        Ok(self.db.write(name, Isolation::Committed).await?)
    }

    /// Begins a transaction of the replica that does the periodic work.
    pub(crate) async fn begin_owned(
        &self,
        name: &'static str,
        fence: &Fence,
    ) -> Result<Write, AuthError> {
        Ok(fence.begin(&self.db, name, Isolation::Exclusive).await?)
    }

    pub(crate) fn read(&self, name: &'static str) -> Read<'_> {
        self.db.read(name)
    }
}
