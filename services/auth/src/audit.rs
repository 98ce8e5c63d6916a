//! The audit log, which puts the records of every service's outbox into one order.

use crate::{Auth, AuthError, store::Store};
use tars_runtime::{
    audit::{self, Record},
    db::{DbError, Fetch, FromRow, Query, Row, Transaction, json},
    lease::Fence,
    page::{self, Page},
};

const BATCH: i64 = 200;

/// The records to list. Empty strings and `None` match everything.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) event_type: String,
    pub(crate) caller: String,
    pub(crate) service: String,
    pub(crate) from_us: Option<i64>,
    pub(crate) to_us: Option<i64>,
}

const LIST: &str = "SELECT seq, record FROM audit_log WHERE seq < $1 AND ($2 = '' OR event_type = $2) \
                    AND ($3 = '' OR caller = $3) AND ($4 = '' OR service = $4) AND at_us >= $5 AND at_us < $6 \
                    ORDER BY seq DESC LIMIT $7";

const WAITING: &str = "SELECT COUNT(*) AS waiting FROM audit_outbox";
/// Locks the counter until the commit, so that records are in the order of the commits.
const NEXT: &str = "UPDATE audit_log_position SET last = last + $1 WHERE id = 1 RETURNING last";
const INSERT: &str = "INSERT INTO audit_log (seq, event_id, at_us, event_type, service, caller, record) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (event_id) DO NOTHING";

/// A record with its place in the list.
struct Listed {
    seq: i64,
    record: Record,
}

impl FromRow for Listed {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let seq: i64 = row.get("seq")?;
        let record = row.named("audit_log", seq).json("record")?;
        Ok(Self { seq, record })
    }
}

impl Auth {
    /// Lists records, newest first, with the token of the next page.
    pub(crate) async fn list_audit(
        &self,
        filter: &Filter,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<Record>, String), AuthError> {
        list(&self.store, filter, token, page_size).await
    }

    /// Appends the records of another service. A record that is already in the log is skipped.
    pub(crate) async fn append_audit(&self, records: &[Record]) -> Result<(), AuthError> {
        append_all(&self.store, records).await
    }

    /// Moves the records of Auth's own outbox into the log. Each batch is a transaction of its own: it is
    /// exclusive, and a login must not wait for a whole backlog.
    pub(crate) async fn sequence_audit(&self, fence: &Fence) -> Result<(), AuthError> {
        let mut db = self.db().read("audit.waiting");
        let mut waiting: i64 = db.value(Query::new(WAITING), "waiting").await?;
        while waiting > 0 {
            let mut tx = self.store.begin_owned("audit.sequence", fence).await?;
            let Some((last, records)) = audit::peek(&mut tx, BATCH).await? else {
                return Ok(());
            };
            append(&mut tx, &records).await?;
            audit::remove(&mut tx, last).await?;
            tx.commit().await?;
            waiting -= BATCH;
        }
        Ok(())
    }
}

/// As [`Auth::list_audit`].
pub(crate) async fn list(
    store: &Store,
    filter: &Filter,
    token: &str,
    page_size: u32,
) -> Result<(Vec<Record>, String), AuthError> {
    let size = page::size(page_size);
    let before = page::start(token, i64::MAX)?;
    let query = Query::new(LIST)
        .bind(before)
        .bind(&filter.event_type)
        .bind(&filter.caller)
        .bind(&filter.service)
        .bind(filter.from_us.unwrap_or(i64::MIN))
        .bind(filter.to_us.unwrap_or(i64::MAX))
        .bind(size.limit());
    let rows: Page<Listed> = store.read("audit.list").page(query, size).await?;
    let (rows, next) = rows.cut(|r| r.seq.to_string());
    Ok((rows.into_iter().map(|r| r.record).collect(), next))
}

/// As [`Auth::append_audit`]. The counter's row is what decides, so that nothing else has to wait.
pub(crate) async fn append_all(store: &Store, records: &[Record]) -> Result<(), AuthError> {
    let mut tx = store.begin_concurrent("audit.append").await?;
    append(&mut tx, records).await?;
    Ok(tx.commit().await?)
}

/// Appends records. The number of one that is known already stays unused.
async fn append(tx: &mut Transaction, records: &[Record]) -> Result<(), AuthError> {
    let count = i64::try_from(records.len()).map_err(|e| DbError::Failed(e.to_string()))?;
    let last: i64 = tx.value(Query::new(NEXT).bind(count), "last").await?;
    for (seq, record) in (last - count + 1..).zip(records) {
        let insert = Query::new(INSERT)
            .bind(seq)
            .bind(record.event_id)
            .bind(record.at_us)
            .bind(&record.event_type)
            .bind(&record.service)
            .bind(&record.caller)
            .bind(json(record)?);
        tx.execute(insert).await?.any();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;
    use tars_runtime::db::LostCommit;

    async fn listed(world: &World) -> i64 {
        const LISTED: &str =
            "SELECT COUNT(*) AS listed FROM audit_log WHERE event_type = 'test.batch'";
        let mut db = world.auth.store.read("test.listed");
        db.value(Query::new(LISTED), "listed").await.unwrap()
    }

    #[tokio::test]
    async fn each_batch_of_the_outbox_is_moved_by_a_commit_of_its_own() {
        let world = World::new().await;
        world.auth.sequence_once().await.unwrap();
        let mut tx = world.auth.store.begin("test.records").await.unwrap();
        for _ in 0..BATCH + 1 {
            let record = Record::new(&world.clock, "auth", "test.batch");
            audit::insert(&mut tx, &record).await.unwrap();
        }
        tx.commit().await.unwrap();
        let db = world.auth.db();
        db.lose_commit("audit.sequence", LostCommit::Made);
        let doubt = world.auth.sequence_once().await;
        assert!(matches!(doubt, Err(AuthError::Store(_))), "{doubt:?}");
        assert_eq!(listed(&world).await, BATCH);
        world.auth.sequence_once().await.unwrap();
        assert_eq!(listed(&world).await, BATCH + 1, "each once");
    }
}
