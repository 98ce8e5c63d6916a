//! Carries what a service counts into its outbox, and from there to Auth, from whose answers the service learns
//! what all processes have counted.
//!
//! What is counted in memory is written every second: that is what a process loses when it is killed.

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
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often what was counted is written, and how often Auth is asked for totals.
const EVERY: Duration = Duration::from_secs(1);
/// Items of one report.
const BATCH: i64 = 500;

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
    let mut after = 0;
    loop {
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
    let items = usage::peek(&mut db.read("usage.outbox"), BATCH).await?;
    let report = Report {
        source: usage.source().to_owned(),
        items: items.clone(),
        after: *after,
    };
    let answer = counter.report(report).await?;
    // Before the items are removed: what is in neither the outbox nor the totals would be free.
    usage.learn(&answer);
    *after = answer.version;
    if items.is_empty() {
        return Ok(answer.more);
    }
    let mut tx = db.write("usage.shipped", Isolation::Committed).await?;
    usage::remove(&mut tx, &items).await?;
    tx.commit().await?;
    Ok(answer.more || i64::try_from(items.len()) == Ok(BATCH))
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
