//! The rows of trust reports, and of the rotation steps that are recorded.

use crate::{AuthError, store::Store};
use sqlx::SqliteConnection;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct ReportRow {
    pub(crate) spiffe_id: String,
    pub(crate) instance: Uuid,
    /// The lineage of its certificate; the certificate itself, as in `names`, when it has none here.
    pub(crate) holder: String,
    /// Key ids in hexadecimal, with commas.
    pub(crate) roots: String,
    pub(crate) anchor: String,
    pub(crate) not_after_us: i64,
    /// The chain of its certificate, leaf first: `issuer:serial`, with commas.
    pub(crate) names: String,
    pub(crate) not_before_us: i64,
}

type ReportTuple = (String, Uuid, String, String, String, i64, String, i64);

fn report(row: ReportTuple) -> ReportRow {
    let (spiffe_id, instance, holder, roots, anchor, not_after_us, names, not_before_us) = row;
    ReportRow {
        spiffe_id,
        instance,
        holder,
        roots,
        anchor,
        not_after_us,
        names,
        not_before_us,
    }
}

impl Store {
    pub(crate) async fn reports(&self, past_us: i64) -> Result<Vec<ReportRow>, AuthError> {
        let query = "SELECT spiffe_id, instance, holder, roots, anchor, not_after_us, names, not_before_us \
                     FROM trust_reports WHERE not_after_us > $1 ORDER BY spiffe_id, instance, holder";
        let db = self.db().read("trust.reports");
        let rows: Vec<ReportTuple> = sqlx::query_as(query).bind(past_us).fetch_all(&*db).await?;
        Ok(rows.into_iter().map(report).collect())
    }
}

/// Keeps no more than `most` of one holder: those that end last, and this one.
pub(crate) async fn save_report(
    tx: &mut SqliteConnection,
    row: &ReportRow,
    most: usize,
) -> Result<(), AuthError> {
    // With what the same process told before its certificate was known here.
    drop_report(tx, &row.spiffe_id, row.instance, &row.holder).await?;
    sqlx::query("INSERT INTO trust_reports VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
        .bind(&row.spiffe_id)
        .bind(row.instance)
        .bind(&row.holder)
        .bind(&row.roots)
        .bind(&row.anchor)
        .bind(row.not_after_us)
        .bind(&row.names)
        .bind(row.not_before_us)
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "DELETE FROM trust_reports WHERE spiffe_id = $1 AND holder = $3 AND instance <> $2 AND instance NOT IN \
         (SELECT instance FROM trust_reports WHERE spiffe_id = $1 AND holder = $3 AND instance <> $2 \
         ORDER BY not_after_us DESC LIMIT $4)",
    )
    .bind(&row.spiffe_id)
    .bind(row.instance)
    .bind(&row.holder)
    .bind(i64::try_from(most).unwrap_or(i64::MAX) - 1)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets what a process has told, if it was this holder who told it.
pub(crate) async fn drop_report(
    tx: &mut SqliteConnection,
    spiffe_id: &str,
    instance: Uuid,
    holder: &str,
) -> Result<(), AuthError> {
    sqlx::query(
        "DELETE FROM trust_reports WHERE spiffe_id = $1 AND instance = $2 AND (holder = $3 OR holder IN \
         (SELECT issuer || ':' || serial FROM issued_certificates WHERE lineage = $4))",
    )
    .bind(spiffe_id)
    .bind(instance)
    .bind(holder)
    .bind(holder.parse::<Uuid>().ok())
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn recorded_step(tx: &mut SqliteConnection) -> Result<i64, AuthError> {
    let query = "SELECT version FROM recorded_steps WHERE id = 1";
    Ok(sqlx::query_scalar(query).fetch_one(tx).await?)
}

pub(crate) async fn record_step(tx: &mut SqliteConnection, version: i64) -> Result<(), AuthError> {
    sqlx::query("UPDATE recorded_steps SET version = $1 WHERE id = 1")
        .bind(version)
        .execute(tx)
        .await?;
    Ok(())
}
