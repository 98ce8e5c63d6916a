//! Carries what a service counts into its outbox, and from there to Auth, from whose answers the service learns
//! what all processes have counted.
//!
//! What is counted in memory is written every second: that is what a process loses when it is killed. While the database
//! is away it is kept in memory, and is lost with the process, which says so when it stops.
//!
//! What Auth does not take does not keep the rest from it: it is moved to a table of its own, logged and counted in
//! `usage_items_set_aside`, for a person to look at.

use std::{sync::Arc, time::Duration};
use tars_auth::{Auth, AuthError};
use tars_interceptors::{client::OutgoingService, usage::Usage};
use tars_mesh::Channel;
use tars_proto::auth::v1::{
    ReportUsageRequest, ReportUsageResponse, UsageDimension, UsageItem, UsageTotal,
    usage_service_client::UsageServiceClient,
};
use tars_runtime::{
    db::{Db, DbError, Isolation},
    health::Condition,
    usage::{self, Amounts, Answer, BadMonth, Dimension, Item, Report, Total},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// How often what was counted is written, and how often Auth is asked for totals.
const EVERY: Duration = Duration::from_secs(1);
/// Items of one report.
const BATCH: i64 = 500;
/// How often all totals are read anew. Those that changed while Auth's database was replaced by a backup may have
/// versions that are known of others.
const REFRESH: Duration = Duration::from_secs(300);

/// Where usage is reported to: Auth, in this process or over the mesh.
pub(crate) trait Counter: Send + 'static {
    fn report(
        &mut self,
        report: Report,
    ) -> impl Future<Output = Result<Answer, ReportError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("{0}")]
    Call(#[from] tonic::Status),
    #[error("the answer names a month that is none: {0}")]
    Month(#[from] BadMonth),
}

impl Counter for Arc<Auth> {
    async fn report(&mut self, report: Report) -> Result<Answer, ReportError> {
        Ok(self.count_usage("auth", &report).await?)
    }
}

impl Counter for UsageServiceClient<OutgoingService<Channel>> {
    async fn report(&mut self, report: Report) -> Result<Answer, ReportError> {
        let answer = self.report_usage(request(report)).await?;
        answer_of(answer.into_inner())
    }
}

/// Writes what is counted into the outbox until the process stops, the last of it then.
pub(crate) async fn write(
    db: Db,
    usage: Usage,
    written: Arc<Notify>,
    stop: CancellationToken,
    stored: Condition,
) {
    let mut waiting = Vec::new();
    loop {
        let goes_on = tokio::select! {
            () = tokio::time::sleep(EVERY) => true,
            () = stop.cancelled() => false,
        };
        waiting.append(&mut usage.drain());
        while !waiting.is_empty() {
            match store(&db, &waiting).await {
                Ok(()) => {
                    stored.record_success();
                    waiting.clear();
                    written.notify_one();
                }
                Err(e) => {
                    if !goes_on {
                        log_unwritten(&waiting, &e);
                    }
                    stored.record_failure(e);
                    tokio::time::sleep(EVERY).await;
                }
            }
        }
        if !goes_on {
            return;
        }
    }
}

/// Says what is lost unless the database returns before the process ends.
fn log_unwritten(items: &[Item], why: &DbError) {
    let of = |dimension| {
        let amounts = items.iter().filter(|item| item.dimension == dimension);
        amounts.map(|item| item.amount).fold(0, u64::saturating_add)
    };
    let (calls, solver_microseconds) = (of(Dimension::Calls), of(Dimension::SolverSeconds));
    tracing::error!(
        calls,
        solver_microseconds,
        %why,
        "usage is not written yet, and lost if the process ends before it is"
    );
}

/// The same items may be written twice, when the answer to the first time was lost.
async fn store(db: &Db, items: &[Item]) -> Result<(), DbError> {
    let mut tx = db.write("usage.store", Isolation::Committed).await?;
    for item in items {
        usage::insert(&mut tx, item).await?;
    }
    tx.commit().await
}

/// Carries the outbox to Auth, and what Auth has counted to `usage`, until the process stops.
pub(crate) async fn ship(
    db: Db,
    usage: Usage,
    mut counter: impl Counter,
    written: Arc<Notify>,
    stop: CancellationToken,
    shipped: Condition,
) {
    let (mut after, mut refreshed, mut month) = (0, Instant::now(), usage.month());
    loop {
        let present = usage.month();
        // What was told of a month before it began here is not known.
        if refreshed.elapsed() >= REFRESH || present != month {
            (after, refreshed, month) = (0, Instant::now(), present);
        }
        match ship_some(&db, &usage, &mut counter, &mut after).await {
            Ok(more) => {
                shipped.record_success();
                if more && !stop.is_cancelled() {
                    continue;
                }
            }
            Err(e) => shipped.record_failure(e),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = written.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn ship_some(
    db: &Db,
    usage: &Usage,
    counter: &mut impl Counter,
    after: &mut i64,
) -> Result<bool, ReportError> {
    let items = match usage::peek(&mut db.read("usage.outbox"), BATCH).await {
        Err(DbError::Corrupt(_)) => return set_damaged_aside(db, usage).await,
        read => read?,
    };
    let is_full = i64::try_from(items.len()) == Ok(BATCH);
    match ship_items(db, usage, counter, after, &items).await {
        Err(ReportError::Call(status)) if is_refusal(&status) && !items.is_empty() => {
            ship_each(db, usage, counter, after, items).await
        }
        shipped => Ok(shipped? || is_full),
    }
}

/// Whether Auth does not take what it was sent, however often.
fn is_refusal(status: &tonic::Status) -> bool {
    status.code() == Code::InvalidArgument
}

/// Reports some items, and removes them. Returns whether there are further totals.
async fn ship_items(
    db: &Db,
    usage: &Usage,
    counter: &mut impl Counter,
    after: &mut i64,
    items: &[Item],
) -> Result<bool, ReportError> {
    let report = Report {
        source: usage.source().to_owned(),
        items: items.to_vec(),
        after: *after,
    };
    let answer = counter.report(report).await?;
    // Before the items are removed: what is in neither the outbox nor the totals would be free.
    usage.learn(&answer);
    *after = answer.version;
    if !items.is_empty() {
        let mut tx = db.write("usage.shipped", Isolation::Committed).await?;
        usage::remove(&mut tx, items).await?;
        tx.commit().await?;
    }
    Ok(answer.more)
}

/// Reports items one by one, and sets those aside that are refused.
async fn ship_each(
    db: &Db,
    usage: &Usage,
    counter: &mut impl Counter,
    after: &mut i64,
    items: Vec<Item>,
) -> Result<bool, ReportError> {
    // Where that is refused, the items are not what is wrong.
    ship_items(db, usage, counter, after, &[]).await?;
    for item in &items {
        match ship_items(db, usage, counter, after, std::slice::from_ref(item)).await {
            Err(ReportError::Call(status)) if is_refusal(&status) => {
                let mut tx = db.write("usage.set_aside", Isolation::Committed).await?;
                let why = status.message();
                usage::set_aside(&mut tx, &item.source, item.number, why).await?;
                tx.commit().await?;
                usage.record_set_aside();
                tracing::error!(?item, why, "usage that Auth does not take is set aside");
            }
            shipped => drop(shipped?),
        }
    }
    Ok(true)
}

async fn set_damaged_aside(db: &Db, usage: &Usage) -> Result<bool, ReportError> {
    let mut tx = db.write("usage.damaged", Isolation::Committed).await?;
    let damaged = usage::set_damaged_aside(&mut tx, BATCH).await?;
    tx.commit().await?;
    for why in damaged {
        usage.record_set_aside();
        tracing::error!(why, "damaged usage is set aside");
    }
    Ok(true)
}

fn request(report: Report) -> ReportUsageRequest {
    let items = report.items.into_iter().map(|item| UsageItem {
        source: item.source,
        number: u64::try_from(item.number).unwrap_or_default(),
        month: item.month.to_string(),
        user_id: item.user_id,
        dimension: match item.dimension {
            Dimension::Calls => UsageDimension::Calls,
            Dimension::TrainingSteps => UsageDimension::TrainingSteps,
            Dimension::SolverSeconds => UsageDimension::SolverMicroseconds,
        }
        .into(),
        amount: item.amount,
    });
    ReportUsageRequest {
        source: report.source,
        items: items.collect(),
        after_version: u64::try_from(report.after).unwrap_or_default(),
    }
}

fn answer_of(response: ReportUsageResponse) -> Result<Answer, ReportError> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let totals = response.totals.into_iter().map(total);
    Ok(Answer {
        counted: number(response.counted),
        version: number(response.version),
        more: response.more,
        totals: totals.collect::<Result<_, _>>()?,
    })
}

fn total(sent: UsageTotal) -> Result<Total, BadMonth> {
    let mut amounts = Amounts::default();
    amounts.add(Dimension::Calls, sent.calls);
    amounts.add(Dimension::TrainingSteps, sent.training_steps);
    amounts.add(Dimension::SolverSeconds, sent.solver_microseconds);
    Ok(Total {
        month: sent.month.parse()?,
        user_id: sent.user_id,
        amounts,
    })
}

#[cfg(test)]
mod tests;
