//! The rows of trust reports, and of the rotation steps that are recorded.

use crate::{AuthError, store::Store};
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct ReportRow {
    pub(crate) spiffe_id: String,
    pub(crate) instance: Uuid,
    /// The lineage of its certificate; the certificate itself, as in `names`, when it is not
    /// recorded here.
    pub(crate) holder: String,
    /// Key ids in hexadecimal, separated by commas.
    pub(crate) roots: String,
    pub(crate) anchor: String,
    pub(crate) not_after_us: i64,
    /// The chain of its certificate, leaf first: `issuer:serial`, separated by commas.
    pub(crate) names: String,
    pub(crate) not_before_us: i64,
    /// Another one with each report; `None` before replicas needed it.
    pub(crate) report: Option<Uuid>,
}

const REPORTS: &str = "SELECT spiffe_id, instance, holder, roots, anchor, not_after_us, names, not_before_us, \
                       report FROM trust_reports WHERE not_after_us > $1 ORDER BY spiffe_id, instance, holder";
const INSERT_REPORT: &str = "INSERT INTO trust_reports (spiffe_id, instance, holder, roots, anchor, not_after_us, \
                             names, not_before_us, report) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const TRIM_REPORTS: &str = "DELETE FROM trust_reports WHERE spiffe_id = $1 AND holder = $3 AND instance <> $2 \
                            AND instance NOT IN (SELECT instance FROM trust_reports WHERE spiffe_id = $1 \
                            AND holder = $3 AND instance <> $2 ORDER BY not_after_us DESC LIMIT $4)";
const DROP_REPORT: &str = "DELETE FROM trust_reports WHERE spiffe_id = $1 AND instance = $2 AND (holder = $3 \
                           OR holder IN (SELECT issuer || ':' || serial FROM issued_certificates \
                           WHERE lineage = $4))";

const REPLACED: &str = "DELETE FROM trust_reports WHERE spiffe_id = $1 AND holder = $2 AND instance IN \
                        (SELECT instance FROM trust_reports WHERE spiffe_id = $1 AND holder = $3)";
const ADOPT_REPORTS: &str =
    "UPDATE trust_reports SET holder = $2 WHERE spiffe_id = $1 AND holder = $3";

const RECORDED_STEP: &str = "SELECT version FROM recorded_steps WHERE id = 1";
const RECORD_STEP: &str = "UPDATE recorded_steps SET version = $1 WHERE id = 1";

impl FromRow for ReportRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            spiffe_id: row.get("spiffe_id")?,
            instance: row.get("instance")?,
            holder: row.get("holder")?,
            roots: row.get("roots")?,
            anchor: row.get("anchor")?,
            not_after_us: row.get("not_after_us")?,
            names: row.get("names")?,
            not_before_us: row.get("not_before_us")?,
            report: row.get("report")?,
        })
    }
}

impl Store {
    pub(crate) async fn reports(&self, past_us: i64) -> Result<Vec<ReportRow>, AuthError> {
        let query = Query::new(REPORTS).bind(past_us);
        Ok(self.db().read("trust.reports").all(query).await?)
    }
}

/// Replaces the report of a process. At most `most` reports of one holder are kept: this one, and
/// those that expire last.
pub(crate) async fn save_report(
    tx: &mut Transaction,
    row: &ReportRow,
    most: usize,
) -> Result<(), AuthError> {
    // Replaces also what the same process reported before its certificate was known here.
    drop_report(tx, &row.spiffe_id, row.instance, &row.holder).await?;
    let insert = Query::new(INSERT_REPORT)
        .bind(&row.spiffe_id)
        .bind(row.instance)
        .bind(&row.holder)
        .bind(&row.roots)
        .bind(&row.anchor)
        .bind(row.not_after_us)
        .bind(&row.names)
        .bind(row.not_before_us)
        .bind(row.report);
    tx.execute(insert).await?.one()?;
    let trim = Query::new(TRIM_REPORTS)
        .bind(&row.spiffe_id)
        .bind(row.instance)
        .bind(&row.holder)
        .bind(i64::try_from(most).unwrap_or(i64::MAX) - 1);
    tx.execute(trim).await?.any();
    Ok(())
}

/// Removes the report of a process, if this holder made it.
pub(crate) async fn drop_report(
    tx: &mut Transaction,
    spiffe_id: &str,
    instance: Uuid,
    holder: &str,
) -> Result<(), AuthError> {
    let report = Query::new(DROP_REPORT)
        .bind(spiffe_id)
        .bind(instance)
        .bind(holder)
        .bind(holder.parse::<Uuid>().ok());
    tx.execute(report).await?.any();
    Ok(())
}

/// Gives a lineage the reports that were made with one of its certificates before that was recorded, as
/// at another replica. They replace what the same processes have reported before.
pub(crate) async fn adopt_reports(
    tx: &mut Transaction,
    spiffe_id: &str,
    lineage: Uuid,
    certificate: &str,
) -> Result<(), AuthError> {
    let lineage = lineage.to_string();
    for query in [REPLACED, ADOPT_REPORTS] {
        let query = Query::new(query)
            .bind(spiffe_id)
            .bind(&lineage)
            .bind(certificate);
        tx.execute(query).await?.any();
    }
    Ok(())
}

/// The last rotation step that has an audit record.
pub(crate) async fn recorded_step(tx: &mut Transaction) -> Result<i64, AuthError> {
    Ok(tx.value(Query::new(RECORDED_STEP), "version").await?)
}

pub(crate) async fn record_step(tx: &mut Transaction, version: i64) -> Result<(), AuthError> {
    let record = Query::new(RECORD_STEP).bind(version);
    Ok(tx.execute(record).await?.one()?)
}
