//! The rows of issued certificates and their lineages.

use crate::{AuthError, store::Store};
use sqlx::SqliteConnection;
use tars_runtime::db::is_taken;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct IssuedRow {
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) spiffe_id: String,
    pub(crate) lineage: Uuid,
    pub(crate) issued_us: i64,
    pub(crate) not_after_us: i64,
    pub(crate) generation: i64,
    /// How it came to be.
    pub(crate) source: String,
}

#[derive(Debug, Clone)]
pub(crate) struct LineageRow {
    pub(crate) id: Uuid,
    pub(crate) spiffe_id: String,
    pub(crate) started_us: i64,
    pub(crate) ends_us: i64,
    pub(crate) revoked: bool,
    pub(crate) latest_serial: String,
    /// The rejoin token that works, and the one before it: a reply that was lost must not leave a
    /// sleeper without a way back.
    pub(crate) rejoin: String,
    pub(crate) rejoin_before: String,
}

const BACKDATE_US: i64 = tars_certs::ca::BACKDATE.as_micros() as i64;

type IssuedTuple = (String, String, String, Uuid, i64, i64, i64, String);
type LineageTuple = (Uuid, String, i64, i64, bool, String, String, String);

fn issued(row: IssuedTuple) -> IssuedRow {
    let (issuer, serial, spiffe_id, lineage, issued_us, not_after_us, generation, source) = row;
    IssuedRow {
        issuer,
        serial,
        spiffe_id,
        lineage,
        issued_us,
        not_after_us,
        generation,
        source,
    }
}

fn lineage(row: LineageTuple) -> LineageRow {
    let (id, spiffe_id, started_us, ends_us, revoked, latest_serial, rejoin, rejoin_before) = row;
    LineageRow {
        id,
        spiffe_id,
        started_us,
        ends_us,
        revoked,
        latest_serial,
        rejoin,
        rejoin_before,
    }
}

const ISSUED: &str = "SELECT issuer, serial, spiffe_id, lineage, issued_us, not_after_us, generation, source \
                      FROM issued_certificates";
const LINEAGE: &str = "SELECT id, spiffe_id, started_us, ends_us, revoked, latest_serial, rejoin, rejoin_before \
                       FROM certificate_lineages";

/// Its begin was in its certificate; every other is backdated when it is signed.
pub(crate) const ELSEWHERE: &str = "elsewhere";

impl IssuedRow {
    /// Whether its certificate begins before a moment.
    pub(crate) fn begins_before(&self, at_us: i64) -> bool {
        let backdated = match self.source.as_str() {
            ELSEWHERE => 0,
            _ => BACKDATE_US,
        };
        self.issued_us - backdated < at_us
    }
}

impl Store {
    pub(crate) async fn issued_list(
        &self,
        spiffe_id: &str,
        before: (i64, &str),
        limit: i64,
    ) -> Result<Vec<IssuedRow>, AuthError> {
        let query = format!(
            "{ISSUED} WHERE (issued_us, serial) < ($1, $2) AND ($3 = '' OR spiffe_id = $3) \
             ORDER BY issued_us DESC, serial DESC LIMIT $4"
        );
        let db = self.db().read("certificates.list");
        let rows: Vec<IssuedTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(before.0)
            .bind(before.1)
            .bind(spiffe_id)
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        Ok(rows.into_iter().map(issued).collect())
    }

    pub(crate) async fn lineages(&self) -> Result<Vec<LineageRow>, AuthError> {
        let db = self.db().read("certificates.lineages");
        let rows: Vec<LineageTuple> = sqlx::query_as(LINEAGE).fetch_all(&*db).await?;
        Ok(rows.into_iter().map(lineage).collect())
    }

    /// What the newest leaf of each lineage is.
    pub(crate) async fn newest(&self) -> Result<Vec<IssuedRow>, AuthError> {
        let query = "SELECT i.issuer, i.serial, i.spiffe_id, i.lineage, i.issued_us, i.not_after_us, i.generation, i.source \
                     FROM issued_certificates i JOIN certificate_lineages l \
                     ON l.id = i.lineage AND l.latest_serial = i.serial WHERE NOT l.revoked";
        let db = self.db().read("certificates.newest");
        let rows: Vec<IssuedTuple> = sqlx::query_as(query).fetch_all(&*db).await?;
        Ok(rows.into_iter().map(issued).collect())
    }
}

pub(crate) async fn find_issued(
    tx: &mut SqliteConnection,
    issuer: &str,
    serial: &str,
) -> Result<Option<IssuedRow>, AuthError> {
    let query = format!("{ISSUED} WHERE serial = $1 AND ($2 = '' OR issuer = $2)");
    let row: Option<IssuedTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(serial)
        .bind(issuer)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(issued))
}

/// Leaves that live past a moment, of a lineage or of an identity.
pub(crate) async fn living(
    tx: &mut SqliteConnection,
    lineage: Option<Uuid>,
    spiffe_id: &str,
    past_us: i64,
) -> Result<Vec<IssuedRow>, AuthError> {
    let query = format!("{ISSUED} WHERE not_after_us > $1 AND (lineage = $2 OR spiffe_id = $3)");
    let rows: Vec<IssuedTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(past_us)
        .bind(lineage.unwrap_or_default())
        .bind(spiffe_id)
        .fetch_all(tx)
        .await?;
    Ok(rows.into_iter().map(issued).collect())
}

pub(crate) async fn insert_issued(
    tx: &mut SqliteConnection,
    row: &IssuedRow,
) -> Result<(), AuthError> {
    sqlx::query("INSERT INTO issued_certificates VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
        .bind(&row.issuer)
        .bind(&row.serial)
        .bind(&row.spiffe_id)
        .bind(row.lineage)
        .bind(row.issued_us)
        .bind(row.not_after_us)
        .bind(row.generation)
        .bind(&row.source)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn find_lineage(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<LineageRow>, AuthError> {
    let query = format!("{LINEAGE} WHERE id = $1");
    let row: Option<LineageTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(id)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(lineage))
}

/// The lineage of an identity that the authority's own process keeps.
pub(crate) async fn managed_lineage(
    tx: &mut SqliteConnection,
    spiffe_id: &str,
) -> Result<Option<LineageRow>, AuthError> {
    let query = format!(
        "{LINEAGE} WHERE spiffe_id = $1 AND EXISTS (SELECT 1 FROM issued_certificates i \
         WHERE i.lineage = certificate_lineages.id AND i.source = 'authority') \
         ORDER BY started_us DESC LIMIT 1"
    );
    let row: Option<LineageTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(spiffe_id)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(lineage))
}

/// Forgets what ended before a moment.
pub(crate) async fn drop_issued(
    tx: &mut SqliteConnection,
    before_us: i64,
) -> Result<(), AuthError> {
    sqlx::query("DELETE FROM issued_certificates WHERE not_after_us < $1")
        .bind(before_us)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn save_lineage(
    tx: &mut SqliteConnection,
    row: &LineageRow,
) -> Result<(), AuthError> {
    sqlx::query(
        "INSERT INTO certificate_lineages VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) \
         DO UPDATE SET ends_us = $4, latest_serial = $6, rejoin = $7, rejoin_before = $8",
    )
    .bind(row.id)
    .bind(&row.spiffe_id)
    .bind(row.started_us)
    .bind(row.ends_us)
    .bind(row.revoked)
    .bind(&row.latest_serial)
    .bind(&row.rejoin)
    .bind(&row.rejoin_before)
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends a lineage: nothing is renewed from it any more.
pub(crate) async fn end_lineage(tx: &mut SqliteConnection, id: Uuid) -> Result<(), AuthError> {
    sqlx::query("UPDATE certificate_lineages SET revoked = TRUE WHERE id = $1")
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Ends the lineages of an identity whose latest certificate begins before a moment. Those that go on
/// keep no rejoin token of a certificate before their latest.
pub(crate) async fn end_lineages(
    tx: &mut SqliteConnection,
    spiffe_id: &str,
    before_us: i64,
) -> Result<(), AuthError> {
    let query = format!("{LINEAGE} WHERE spiffe_id = $1 AND NOT revoked");
    let lineages: Vec<LineageTuple> = sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(spiffe_id)
        .fetch_all(&mut *tx)
        .await?;
    for lineage in lineages.into_iter().map(lineage) {
        let latest = find_issued(tx, "", &lineage.latest_serial).await?;
        if latest.is_none_or(|c| c.begins_before(before_us)) {
            end_lineage(tx, lineage.id).await?;
        } else {
            let row = LineageRow {
                rejoin_before: String::new(),
                ..lineage
            };
            save_lineage(tx, &row).await?;
        }
    }
    Ok(())
}

/// Uses a join token up; false when it was used already.
pub(crate) async fn use_token(
    tx: &mut SqliteConnection,
    id: &str,
    expires_us: i64,
    past_us: i64,
) -> Result<bool, AuthError> {
    sqlx::query("DELETE FROM used_join_tokens WHERE expires_us < $1")
        .bind(past_us)
        .execute(&mut *tx)
        .await?;
    let done = sqlx::query("INSERT INTO used_join_tokens VALUES ($1, $2)")
        .bind(id)
        .bind(expires_us)
        .execute(tx)
        .await;
    match done {
        Ok(_) => Ok(true),
        Err(e) if is_taken(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
