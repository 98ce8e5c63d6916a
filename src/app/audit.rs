//! Carries audit records from the layer's queue into the service's outbox, and from there to Auth.
//! Repeated refusals are folded into one record on their way into the outbox.

use std::time::Duration;
use tars_interceptors::{audit::event, client::OutgoingService};
use tars_mesh::Channel;
use tars_proto::auth::v1::{AppendAuditEventsRequest, audit_service_client::AuditServiceClient};
use tars_runtime::{
    audit::{self, Record, refusals::Refusals},
    db::{Db, DbError, Isolation},
    health::Condition,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

const BATCH: usize = 200;
const PAUSE: Duration = Duration::from_millis(250);
/// How often the writer flushes the refusals that it has counted.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes the layer's records until every sender is gone. Repeated refusals become one record.
pub(crate) async fn write(db: Db, mut queue: mpsc::Receiver<Record>, stored: Condition) {
    let mut refusals = Refusals::new(Instant::now());
    let (mut taken, mut open) = (Vec::with_capacity(BATCH), true);
    while open {
        open = tokio::select! {
            received = queue.recv_many(&mut taken, BATCH) => received > 0,
            () = tokio::time::sleep(FLUSH) => true,
        };
        let now = Instant::now();
        let records = taken.drain(..).filter_map(|r| refusals.take(r, now));
        let mut batch: Vec<Record> = records.collect();
        batch.extend(if open {
            refusals.due(now)
        } else {
            refusals.rest()
        });
        store(&db, &batch, &stored).await;
    }
}

/// Stores records, and retries until the database takes them.
async fn store(db: &Db, batch: &[Record], stored: &Condition) {
    if batch.is_empty() {
        return;
    }
    while let Err(e) = try_store(db, batch).await {
        stored.record_failure(e);
        tokio::time::sleep(PAUSE).await;
    }
    stored.record_success();
}

async fn try_store(db: &Db, batch: &[Record]) -> Result<(), DbError> {
    let mut tx = db.write("audit.store", Isolation::Committed).await?;
    for record in batch {
        audit::insert(&mut tx, record).await?;
    }
    tx.commit().await
}

/// Carries the outbox to Auth. A record leaves the outbox once Auth has taken it.
pub(crate) async fn ship(
    db: Db,
    client: AuditServiceClient<OutgoingService<Channel>>,
    stop: CancellationToken,
    shipped: Condition,
) {
    loop {
        match ship_some(&db, &client).await {
            Ok(more) => {
                shipped.record_success();
                if more {
                    continue;
                }
            }
            Err(e) => shipped.record_failure(e),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("{0}")]
    Call(#[from] tonic::Status),
}

async fn ship_some(
    db: &Db,
    client: &AuditServiceClient<OutgoingService<Channel>>,
) -> Result<bool, ShipError> {
    let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
    let peeked = {
        let mut outbox = db.read("audit.outbox");
        audit::peek(&mut outbox, limit).await?
    };
    let Some((last, records)) = peeked else {
        return Ok(false);
    };
    let events = records.into_iter().map(event).collect();
    client
        .clone()
        .append_audit_events(AppendAuditEventsRequest { events })
        .await?;
    let mut tx = db.write("audit.shipped", Isolation::Committed).await?;
    audit::remove(&mut tx, last).await?;
    tx.commit().await?;
    Ok(true)
}
