//! The rows of issued certificates and their lineages.

use crate::{AuthError, store::Store};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction},
    page::{Page, Size},
};
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
    /// How it was issued; see `Source` and `ManagedBy`.
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
    /// The current rejoin token and the one before it, which is still accepted because the reply
    /// that carried the current one may have been lost.
    pub(crate) rejoin: String,
    pub(crate) rejoin_before: String,
    /// The replica whose own process holds the certificates; empty for the lineages of others, and on
    /// a database that no other process uses.
    pub(crate) replica: String,
}

/// A certificate of a list.
#[derive(Debug, Clone)]
pub(crate) struct ListedRow {
    pub(crate) issued: IssuedRow,
    /// Zero where there is no lineage.
    pub(crate) lineage_ends_us: i64,
}

const BACKDATE_US: i64 = tars_certs::ca::BACKDATE.as_micros() as i64;

/// The source of certificates whose start was read from them; every other start is the time of
/// issue, less the backdating.
pub(crate) const ELSEWHERE: &str = "elsewhere";

impl IssuedRow {
    /// Whether the certificate begins before a moment.
    pub(crate) fn begins_before(&self, at_us: i64) -> bool {
        let backdated = match self.source.as_str() {
            ELSEWHERE => 0,
            _ => BACKDATE_US,
        };
        self.issued_us - backdated < at_us
    }
}

const ISSUED: &str = "SELECT i.issuer, i.serial, i.spiffe_id, i.lineage, i.issued_us, i.not_after_us, i.generation, \
                      i.source, COALESCE(l.ends_us, 0) AS lineage_ends_us \
                      FROM issued_certificates i LEFT JOIN certificate_lineages l ON l.id = i.lineage \
                      WHERE (i.issued_us, i.serial) < ($1, $2) AND ($3 = '' OR i.spiffe_id = $3) \
                      ORDER BY i.issued_us DESC, i.serial DESC LIMIT $4";
const FIND_ISSUED: &str = "SELECT issuer, serial, spiffe_id, lineage, issued_us, not_after_us, generation, source \
                           FROM issued_certificates WHERE serial = $1 AND ($2 = '' OR issuer = $2)";
const LIVING: &str = "SELECT issuer, serial, spiffe_id, lineage, issued_us, not_after_us, generation, source \
                      FROM issued_certificates WHERE not_after_us > $1 AND (lineage = $2 OR spiffe_id = $3)";
const NEWEST: &str = "SELECT i.issuer, i.serial, i.spiffe_id, i.lineage, i.issued_us, i.not_after_us, i.generation, \
                      i.source FROM issued_certificates i JOIN certificate_lineages l \
                      ON l.id = i.lineage AND l.latest_serial = i.serial WHERE NOT l.revoked";
const INSERT_ISSUED: &str = "INSERT INTO issued_certificates (issuer, serial, spiffe_id, lineage, issued_us, \
                             not_after_us, generation, source) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const DROP_ISSUED: &str = "DELETE FROM issued_certificates WHERE not_after_us < $1";

const LINEAGE: &str = "SELECT id, spiffe_id, started_us, ends_us, revoked, latest_serial, rejoin, rejoin_before, \
                       replica FROM certificate_lineages WHERE id = $1";
const LINEAGES_OF: &str = "SELECT id, spiffe_id, started_us, ends_us, revoked, latest_serial, rejoin, rejoin_before, \
                           replica FROM certificate_lineages WHERE spiffe_id = $1 AND NOT revoked";
const MANAGED_LINEAGE: &str = "SELECT id, spiffe_id, started_us, ends_us, revoked, latest_serial, rejoin, \
                               rejoin_before, replica FROM certificate_lineages \
                               WHERE spiffe_id = $1 AND replica = $2 \
                               AND EXISTS (SELECT 1 FROM issued_certificates i \
                               WHERE i.lineage = certificate_lineages.id AND i.source = 'authority') \
                               ORDER BY started_us DESC LIMIT 1";
const SAVE_LINEAGE: &str = "INSERT INTO certificate_lineages (id, spiffe_id, started_us, ends_us, revoked, \
                            latest_serial, rejoin, rejoin_before, replica) \
                            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                            ON CONFLICT (id) DO UPDATE SET ends_us = $4, latest_serial = $6, rejoin = $7, \
                            rejoin_before = $8";
const END_LINEAGE: &str = "UPDATE certificate_lineages SET revoked = TRUE WHERE id = $1";

const DROP_USED_TOKENS: &str = "DELETE FROM used_join_tokens WHERE expires_us < $1";
const USE_TOKEN: &str =
    "INSERT INTO used_join_tokens (id, expires_us) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";

impl FromRow for IssuedRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            issuer: row.get("issuer")?,
            serial: row.get("serial")?,
            spiffe_id: row.get("spiffe_id")?,
            lineage: row.get("lineage")?,
            issued_us: row.get("issued_us")?,
            not_after_us: row.get("not_after_us")?,
            generation: row.get("generation")?,
            source: row.get("source")?,
        })
    }
}

impl FromRow for ListedRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            issued: IssuedRow::from_row(row)?,
            lineage_ends_us: row.get("lineage_ends_us")?,
        })
    }
}

impl FromRow for LineageRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            spiffe_id: row.get("spiffe_id")?,
            started_us: row.get("started_us")?,
            ends_us: row.get("ends_us")?,
            revoked: row.get("revoked")?,
            latest_serial: row.get("latest_serial")?,
            rejoin: row.get("rejoin")?,
            rejoin_before: row.get("rejoin_before")?,
            replica: row.get("replica")?,
        })
    }
}

impl Store {
    pub(crate) async fn issued_list(
        &self,
        spiffe_id: &str,
        before: (i64, &str),
        size: Size,
    ) -> Result<Page<ListedRow>, AuthError> {
        let query = Query::new(ISSUED)
            .bind(before.0)
            .bind(before.1)
            .bind(spiffe_id)
            .bind(size.limit());
        Ok(self
            .db()
            .read("certificates.list")
            .page(query, size)
            .await?)
    }

    /// The newest leaf of each lineage.
    pub(crate) async fn newest(&self) -> Result<Vec<IssuedRow>, AuthError> {
        let mut db = self.db().read("certificates.newest");
        Ok(db.all(Query::new(NEWEST)).await?)
    }
}

/// The certificate with this serial; of any issuer when that is empty.
pub(crate) async fn find_issued(
    tx: &mut Transaction,
    issuer: &str,
    serial: &str,
) -> Result<Option<IssuedRow>, AuthError> {
    let query = Query::new(FIND_ISSUED).bind(serial).bind(issuer);
    Ok(tx.optional(query).await?)
}

/// The certificates of a lineage or an identity that expire after a moment.
pub(crate) async fn unexpired(
    tx: &mut Transaction,
    lineage: Option<Uuid>,
    spiffe_id: &str,
    past_us: i64,
) -> Result<Vec<IssuedRow>, AuthError> {
    let query = Query::new(LIVING)
        .bind(past_us)
        .bind(lineage.unwrap_or_default())
        .bind(spiffe_id);
    Ok(tx.all(query).await?)
}

pub(crate) async fn insert_issued(tx: &mut Transaction, row: &IssuedRow) -> Result<(), AuthError> {
    let insert = Query::new(INSERT_ISSUED)
        .bind(&row.issuer)
        .bind(&row.serial)
        .bind(&row.spiffe_id)
        .bind(row.lineage)
        .bind(row.issued_us)
        .bind(row.not_after_us)
        .bind(row.generation)
        .bind(&row.source);
    Ok(tx.execute(insert).await?.one()?)
}

pub(crate) async fn find_lineage(
    tx: &mut Transaction,
    id: Uuid,
) -> Result<Option<LineageRow>, AuthError> {
    Ok(tx.optional(Query::new(LINEAGE).bind(id)).await?)
}

/// The latest lineage of an identity that a replica manages in its own process.
pub(crate) async fn managed_lineage(
    tx: &mut Transaction,
    spiffe_id: &str,
    replica: &str,
) -> Result<Option<LineageRow>, AuthError> {
    let query = Query::new(MANAGED_LINEAGE).bind(spiffe_id).bind(replica);
    Ok(tx.optional(query).await?)
}

/// Deletes certificates that expired before a moment.
pub(crate) async fn drop_issued(tx: &mut Transaction, before_us: i64) -> Result<(), AuthError> {
    let ended = Query::new(DROP_ISSUED).bind(before_us);
    tx.execute(ended).await?.any();
    Ok(())
}

pub(crate) async fn save_lineage(tx: &mut Transaction, row: &LineageRow) -> Result<(), AuthError> {
    let save = Query::new(SAVE_LINEAGE)
        .bind(row.id)
        .bind(&row.spiffe_id)
        .bind(row.started_us)
        .bind(row.ends_us)
        .bind(row.revoked)
        .bind(&row.latest_serial)
        .bind(&row.rejoin)
        .bind(&row.rejoin_before)
        .bind(&row.replica);
    Ok(tx.execute(save).await?.one()?)
}

/// Ends a lineage: nothing is renewed in it any more.
pub(crate) async fn end_lineage(tx: &mut Transaction, id: Uuid) -> Result<(), AuthError> {
    Ok(tx.execute(Query::new(END_LINEAGE).bind(id)).await?.one()?)
}

/// Ends the lineages of an identity whose latest certificate begins before a moment. Those that
/// continue lose the rejoin token of the certificate before their latest.
pub(crate) async fn end_lineages(
    tx: &mut Transaction,
    spiffe_id: &str,
    before_us: i64,
) -> Result<(), AuthError> {
    let lineages: Vec<LineageRow> = tx.all(Query::new(LINEAGES_OF).bind(spiffe_id)).await?;
    for lineage in lineages {
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

/// Uses up a join token; lost when it was already used.
pub(crate) async fn use_token(
    tx: &mut Transaction,
    id: &str,
    expires_us: i64,
    past_us: i64,
) -> Result<Swap, AuthError> {
    let ended = Query::new(DROP_USED_TOKENS).bind(past_us);
    tx.execute(ended).await?.any();
    let spend = Query::new(USE_TOKEN).bind(id).bind(expires_us);
    Ok(tx.execute(spend).await?.swap())
}
