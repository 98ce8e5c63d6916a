//! The rows that there are before anything is measured, written in bulk.

use crate::Failure;
use sqlx::{
    Connection, PgConnection, SqliteConnection, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};
use std::path::PathBuf;
use tars_runtime::{audit::Record, clock::Clock};
use uuid::Uuid;

/// How many rows to write.
pub(crate) struct Rows {
    pub(crate) keys: usize,
    pub(crate) records: i64,
}

impl Rows {
    pub(crate) fn of_records(records: i64) -> Self {
        Self { keys: 0, records }
    }
}

/// The id of a key.
pub(crate) fn key(n: usize) -> String {
    format!("key{n:09}")
}

/// Where the databases are.
pub(crate) enum Fixture {
    /// In folders of this one.
    Sqlite(PathBuf),
    /// In schemas of a server.
    Postgres(String),
}

const USER: &str = "INSERT INTO users (id, username, password, roles, disabled, version, created_us) \
                    VALUES ($1, 'ada', '', '[]', FALSE, 1, 1)";
const KEY: &str = "INSERT INTO api_keys (id, service_name, owner_id, scopes, secrets, created_us, expires_us, \
                   revoked_us, version) VALUES ($1, 'bench', $2, '[\"agents.read\",\"agents.write\"]', $3, 1, \
                   9000000000000000, NULL, 1)";
const SQLITE_RECORDS: &str = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers \
                              WHERE n < $1) INSERT INTO audit_log (seq, event_id, at_us, event_type, service, \
                              caller, record) SELECT n, unhex(printf('%032x', n)), n, 'agent.reloaded', \
                              'orchestration', 'user:ada', $2 FROM numbers";
const POSTGRES_RECORDS: &str = "INSERT INTO audit_log (seq, event_id, at_us, event_type, service, caller, record) \
                                SELECT n, CAST(lpad(to_hex(n), 32, '0') AS UUID), n, 'agent.reloaded', \
                                'orchestration', 'user:ada', $2 FROM generate_series(CAST(1 AS BIGINT), $1) AS n";
const POSITION: &str = "UPDATE audit_log_position SET last = $1 WHERE id = 1";

/// Writes the rows in one transaction.
macro_rules! fill {
    ($connection:ident, $rows:ident, $records:ident) => {{
        let mut tx = $connection.begin().await?;
        let user = Uuid::from_u128(1);
        if $rows.keys > 0 {
            sqlx::query(USER).bind(user).execute(&mut *tx).await?;
        }
        for n in 0..$rows.keys {
            let secrets = format!(r#"[{{"sha256":"{}","expires_us":null}}]"#, "0".repeat(64));
            let insert = sqlx::query(KEY).bind(key(n)).bind(user).bind(secrets);
            insert.execute(&mut *tx).await?;
        }
        if $rows.records > 0 {
            let record = Record::new(&Clock::system(), "orchestration", "agent.reloaded");
            let record = serde_json::to_string(&record.caller("user:ada"))?;
            let insert = sqlx::query($records).bind($rows.records).bind(record);
            insert.execute(&mut *tx).await?;
        }
        let position = sqlx::query(POSITION).bind($rows.records);
        position.execute(&mut *tx).await?;
        tx.commit().await?;
    }};
}

impl Fixture {
    /// Fills a database whose schema is there, and gathers statistics of it.
    pub(crate) async fn fill(&self, name: &str, rows: Rows) -> Result<(), Failure> {
        match self {
            Self::Sqlite(dir) => {
                let file = dir.join(name).join("auth.db");
                let options = SqliteConnectOptions::new().filename(file);
                let mut connection = SqliteConnection::connect_with(&options).await?;
                fill!(connection, rows, SQLITE_RECORDS);
                let truncate = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)");
                truncate.execute(&mut connection).await?;
            }
            Self::Postgres(url) => {
                let options: PgConnectOptions = url.parse()?;
                let options = options.options([("search_path", format!("{name}_auth"))]);
                let mut connection = PgConnection::connect_with(&options).await?;
                fill!(connection, rows, POSTGRES_RECORDS);
                sqlx::query("VACUUM (ANALYZE) audit_log, api_keys")
                    .execute(&mut connection)
                    .await?;
            }
        }
        Ok(())
    }
}
