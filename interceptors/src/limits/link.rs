//! The connection to the server, made again whenever it is lost: first what this process owes is settled,
//! then the server is asked again. While it is, this process counts itself among the replicas, and settles what it
//! has come to owe meanwhile.

use super::{
    breaker::Guarded,
    debts::Debt,
    script::{self, PRESENT, SETTLE_CELL, SETTLE_LOG},
    shared::Shared,
};
use std::{sync::Arc, time::Duration};
use tars_runtime::{
    backoff::spread,
    health::Condition,
    scripts::{ScriptError, Scripts},
    seeds::Seeds,
};
use tokio::time::{sleep, timeout};

/// The time to connect, TLS, login and the scripts included, and for a single step of what follows.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the server is left alone after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How often a replica says that it is present, and for how long it is.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(1);
const PRESENT_FOR: Duration = Duration::from_secs(5);

/// Why the server is not asked, for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Down(String);

impl From<ScriptError> for Down {
    fn from(error: ScriptError) -> Self {
        Self(error.to_string())
    }
}

/// This process, among those that serve the same.
#[derive(Debug)]
pub(super) struct Replica {
    /// The services of the process, by which its replicas know each other.
    pub(super) group: String,
    /// A name that no other process has.
    pub(super) name: String,
}

/// What was sent to the server without a reply, and how many debts have been sent.
#[derive(Debug, Default)]
struct Ledger {
    sent: u64,
    unsure: Option<(Debt, String)>,
}

/// Keeps the limiter connected until it is dropped.
pub(super) async fn run(shared: Arc<Shared>, replica: Replica, condition: Condition, seeds: Seeds) {
    let mut ledger = Ledger::default();
    loop {
        let Down(why) = match bounded(Scripts::open(&shared.server, &script::SOURCES)).await {
            Ok(scripts) => serve(&shared, scripts, &replica, &condition, &mut ledger).await,
            Err(down) => down,
        };
        shared.connection.store(None);
        condition.record_failure(why);
        sleep(spread(PAUSE, &seeds)).await;
    }
}

async fn bounded<T>(step: impl Future<Output = Result<T, ScriptError>>) -> Result<T, Down> {
    let late = |_| Down(format!("no response within {} s", STEP_TIMEOUT.as_secs()));
    Ok(timeout(STEP_TIMEOUT, step).await.map_err(late)??)
}

/// Serves a connection, and returns why it is of no further use.
async fn serve(
    shared: &Shared,
    scripts: Scripts,
    replica: &Replica,
    condition: &Condition,
    ledger: &mut Ledger,
) -> Down {
    if let Err(down) = begin(shared, &scripts, replica, ledger).await {
        return down;
    }
    condition.record_success();
    let since = shared.clock.monotonic();
    loop {
        tokio::select! {
            () = scripts.lost() => return Down(shared.why_lost()),
            () = sleep(PRESENCE_INTERVAL) => {}
        }
        // Others have been connected for as long, or are not present.
        let all_are_counted = shared.clock.monotonic().since(since) >= PRESENT_FOR;
        let said = say_present(shared, &scripts, replica, all_are_counted).await;
        // What was decided here since, as the server had not run what it was asked.
        let settled = match said {
            Ok(()) => settle(shared, &scripts, replica, ledger).await,
            down => down,
        };
        if let Err(down) = settled {
            return down;
        }
    }
}

async fn begin(
    shared: &Shared,
    scripts: &Scripts,
    replica: &Replica,
    ledger: &mut Ledger,
) -> Result<(), Down> {
    say_present(shared, scripts, replica, false).await?;
    settle(shared, scripts, replica, ledger).await?;
    let guarded = Guarded::new(scripts.clone(), shared.budget);
    shared.connection.store(Some(Arc::new(guarded)));
    // What was decided here while the last was being settled.
    settle(shared, scripts, replica, ledger).await
}

async fn say_present(
    shared: &Shared,
    scripts: &Scripts,
    replica: &Replica,
    all_are_counted: bool,
) -> Result<(), Down> {
    let of_group = format!("replicas:{}", replica.group);
    let [of_group, of_all] =
        [of_group.as_str(), "processes"].map(|name| Scripts::key(&shared.server, name));
    let lasts = [PRESENT_FOR.as_millis() as f64];
    let keys = [of_group.as_str(), of_all.as_str(), replica.name.as_str()];
    let present = bounded(scripts.run(PRESENT, &keys, &lasts)).await?;
    if let Some(told) = script::told(&present) {
        shared.present.adopt(told, all_are_counted);
    }
    Ok(())
}

/// Adds what this process owes to the server's count. A debt that has been sent without a reply is sent again
/// with the same marker, so that it counts once.
async fn settle(
    shared: &Shared,
    scripts: &Scripts,
    replica: &Replica,
    ledger: &mut Ledger,
) -> Result<(), Down> {
    let mut owed = shared.debts.take();
    loop {
        let next = ledger.unsure.take();
        let Some((debt, marker)) = next.or_else(|| ledger.mark(owed.pop()?, shared, replica))
        else {
            return Ok(());
        };
        let paid = pay(shared, scripts, &debt, &marker);
        if let Err(down) = bounded(async { kept(paid.await) }).await {
            ledger.unsure = Some((debt, marker));
            shared.debts.put_back(owed);
            return Err(down);
        }
    }
}

/// A debt to a key that holds something else is owed to nobody.
fn kept(paid: Result<Vec<i64>, ScriptError>) -> Result<(), ScriptError> {
    match paid {
        Err(ScriptError::WrongType(why)) => {
            tracing::warn!(why, "what a replica let pass by itself is not counted");
            Ok(())
        }
        paid => paid.map(drop),
    }
}

impl Ledger {
    fn mark(&mut self, debt: Debt, shared: &Shared, replica: &Replica) -> Option<(Debt, String)> {
        self.sent += 1;
        let marker = format!("settled:{}:{}", replica.name, self.sent);
        Some((debt, Scripts::key(&shared.server, &marker)))
    }
}

async fn pay(
    shared: &Shared,
    scripts: &Scripts,
    debt: &Debt,
    marker: &str,
) -> Result<Vec<i64>, ScriptError> {
    let keys = [debt.remote.as_str(), marker];
    if !debt.limit.is_exact() {
        let [interval, burst] = script::cell_size(&debt.limit);
        let owed = debt.owed(shared.clock.monotonic());
        let arguments = [interval, burst, owed];
        return scripts.run(SETTLE_CELL, &keys, &arguments).await;
    }
    let now = shared.clock.monotonic();
    let ages = debt
        .log
        .times()
        .map(|at| script::microseconds(now.since(at)).floor());
    let arguments: Vec<f64> = script::log_size(&debt.limit)
        .into_iter()
        .chain(ages)
        .collect();
    scripts.run(SETTLE_LOG, &keys, &arguments).await
}
