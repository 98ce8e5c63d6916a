//! The audit list: records from every service's outbox get their place in one order here.

use crate::{Auth, AuthError};
use sqlx::SqliteConnection;
use tars_runtime::{
    audit::{self, Record},
    page,
};

const BATCH: i64 = 200;

/// What to list.
#[derive(Debug, Default)]
pub struct Filter {
    pub event_type: String,
    pub caller: String,
    pub service: String,
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
}

const LIST: &str = "SELECT seq, record FROM audit_log WHERE seq < $1 AND ($2 = '' OR event_type = $2) \
                    AND ($3 = '' OR caller = $3) AND ($4 = '' OR service = $4) AND at_us >= $5 AND at_us < $6 \
                    ORDER BY seq DESC LIMIT $7";

impl Auth {
    pub async fn list_audit(
        &self,
        filter: &Filter,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<Record>, String), AuthError> {
        let size = page::size(page_size);
        let before: i64 = if token.is_empty() {
            i64::MAX
        } else {
            token
                .parse()
                .map_err(|_| AuthError::PageToken("page_token"))?
        };
        let db = self.db().read("audit.list");
        let rows: Vec<(i64, String)> = sqlx::query_as(LIST)
            .bind(before)
            .bind(&filter.event_type)
            .bind(&filter.caller)
            .bind(&filter.service)
            .bind(filter.from_us.unwrap_or(i64::MIN))
            .bind(filter.to_us.unwrap_or(i64::MAX))
            .bind(size + 1)
            .fetch_all(&*db)
            .await?;
        let (rows, next) = page::cut(rows, size, |r| r.0.to_string());
        let records = rows
            .iter()
            .map(|(_, text)| {
                serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)).into())
            })
            .collect::<Result<_, AuthError>>()?;
        Ok((records, next))
    }

    /// Takes records from another service; one that is here already is not taken twice.
    pub async fn append_audit(&self, records: &[Record]) -> Result<(), AuthError> {
        let mut tx = self.store.begin("audit.append").await?;
        for record in records {
            append(&mut tx, record).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Moves the own outbox into the log.
    pub(crate) async fn sequence_audit(&self) -> Result<(), AuthError> {
        let waiting: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit_outbox")
            .fetch_one(&*self.db().read("audit.waiting"))
            .await?;
        if waiting == 0 {
            return Ok(());
        }
        let mut tx = self.store.begin("audit.sequence").await?;
        while let Some((last, records)) = audit::peek(&mut tx, BATCH).await? {
            for record in &records {
                append(&mut tx, record).await?;
            }
            audit::remove(&mut tx, last).await?;
        }
        Ok(tx.commit().await?)
    }
}

async fn append(tx: &mut SqliteConnection, record: &Record) -> Result<(), AuthError> {
    let text = serde_json::to_string(record).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
    let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit_log WHERE event_id = $1")
        .bind(record.event_id)
        .fetch_one(&mut *tx)
        .await?;
    if known > 0 {
        return Ok(());
    }
    let seq: i64 = sqlx::query_scalar(
        "UPDATE audit_log_position SET last = last + 1 WHERE id = 1 RETURNING last",
    )
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("INSERT INTO audit_log VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(seq)
        .bind(record.event_id)
        .bind(record.at_us)
        .bind(&record.event_type)
        .bind(&record.service)
        .bind(&record.caller)
        .bind(text)
        .execute(tx)
        .await?;
    Ok(())
}
