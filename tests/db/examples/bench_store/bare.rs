//! The baseline: the statements of Auth's store by sqlx alone, as one would write them for one engine.

use crate::{Failure, Store};
use sqlx::{
    PgPool, Row, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};
use tars_runtime::audit::Record;
use uuid::Uuid;

const NEXT: &str = "UPDATE audit_log_position SET last = last + $1 WHERE id = 1 RETURNING last";
const INSERT: &str = "INSERT INTO audit_log (seq, event_id, at_us, event_type, service, caller, record) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (event_id) DO NOTHING";
const CHANGE: &str = "UPDATE api_keys SET secrets = $1, revoked_us = $2, version = $3 WHERE id = $4 AND version = $5";
const KEY: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                   FROM api_keys WHERE id = $1";

/// As many connections as a service has.
const SQLITE_READERS: u32 = 2;
const SERVER_CONNECTIONS: u32 = 4;

/// A row as a program without a port reads it.
#[expect(dead_code, reason = "read to be measured")]
struct Key {
    id: String,
    service_name: String,
    owner_id: Uuid,
    scopes: Vec<String>,
    secrets: serde_json::Value,
    created_us: i64,
    expires_us: i64,
    revoked_us: Option<i64>,
    version: i64,
}

macro_rules! key {
    ($row:ident) => {{
        let json = |column: &str| $row.try_get::<&str, _>(column);
        Key {
            id: $row.try_get("id")?,
            service_name: $row.try_get("service_name")?,
            owner_id: $row.try_get("owner_id")?,
            scopes: serde_json::from_str(json("scopes")?)?,
            secrets: serde_json::from_str(json("secrets")?)?,
            created_us: $row.try_get("created_us")?,
            expires_us: $row.try_get("expires_us")?,
            revoked_us: $row.try_get("revoked_us")?,
            version: $row.try_get("version")?,
        }
    }};
}

macro_rules! store {
    ($store:ident, $begin:literal) => {
        impl Store for $store {
            async fn append(&self, records: &[Record]) -> Result<(), Failure> {
                let mut tx = self.writer.begin_with($begin).await?;
                let count = i64::try_from(records.len())?;
                let next = sqlx::query(NEXT).bind(count).fetch_one(&mut *tx).await?;
                let last: i64 = next.try_get("last")?;
                for (seq, record) in (last - count + 1..).zip(records) {
                    let insert = sqlx::query(INSERT)
                        .bind(seq)
                        .bind(record.event_id)
                        .bind(record.at_us)
                        .bind(&record.event_type)
                        .bind(&record.service)
                        .bind(&record.caller)
                        .bind(serde_json::to_string(record)?);
                    insert.execute(&mut *tx).await?;
                }
                Ok(tx.commit().await?)
            }

            async fn read_key(&self, id: &str) -> Result<(), Failure> {
                let row = sqlx::query(KEY).bind(id).fetch_one(&self.reader).await?;
                std::hint::black_box(key!(row));
                Ok(())
            }

            async fn change_key(&self, id: &str) -> Result<(), Failure> {
                let mut tx = self.writer.begin_with($begin).await?;
                let row = sqlx::query(KEY).bind(id).fetch_one(&mut *tx).await?;
                let key = key!(row);
                let change = sqlx::query(CHANGE)
                    .bind(key.secrets.to_string())
                    .bind(key.revoked_us)
                    .bind(key.version + 1)
                    .bind(&key.id)
                    .bind(key.version);
                match change.execute(&mut *tx).await?.rows_affected() {
                    1 => Ok(tx.commit().await?),
                    _ => Err("the key was changed at the same time".into()),
                }
            }
        }
    };
}

#[derive(Clone)]
pub(crate) struct Sqlite {
    reader: SqlitePool,
    writer: SqlitePool,
}

impl Sqlite {
    pub(crate) async fn open(file: &Path) -> Result<Self, Failure> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .test_before_acquire(false)
        };
        Ok(Self {
            writer: pool(1).connect_with(options.clone()).await?,
            reader: pool(SQLITE_READERS).connect_lazy_with(options.read_only(true)),
        })
    }
}

#[derive(Clone)]
pub(crate) struct Postgres {
    reader: PgPool,
    writer: PgPool,
}

impl Postgres {
    pub(crate) fn open(url: &str, schema: &str) -> Result<Self, Failure> {
        let options: PgConnectOptions = url.parse()?;
        let options = options.options([("search_path", schema)]);
        let pool = || {
            PgPoolOptions::new()
                .max_connections(SERVER_CONNECTIONS)
                .test_before_acquire(false)
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            reader: pool(),
            writer: pool(),
        })
    }
}

store!(Sqlite, "BEGIN IMMEDIATE");
store!(Postgres, "BEGIN");
