//! Health: what must hold for the process to be ready, and what degrades it.
//!
//! The result of a [`Check`] is `ok`, `degraded` or `failed`. Only a failure makes the process unready;
//! the rest is detail that `/readyz` shows. One watcher runs every check once a second, exports a gauge
//! for each and logs a check that changes: once when a problem begins and once when it is over, never
//! once per call. A problem that is over before the watcher runs is counted where it happens, and not
//! logged.
//!
//! Code that meets a fault again and again keeps a [`Condition`] and makes a check of it.

use crate::{
    clock::{Clock, Monotonic},
    metrics::Metrics,
};
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    sync::Arc,
    time::Duration,
};

/// A check that does not answer within this time has failed.
const LIMIT: Duration = Duration::from_secs(2);
/// The interval between two runs of all checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// The interval until the process is ready for the first time: whoever waits for its start waits for
/// this.
const FIRST_INTERVAL: Duration = Duration::from_millis(20);

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "lowercase")]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// The process does its work, except for what the text says.
    Degraded(String),
    /// The process must not be sent work, for the reason in the text.
    Failed(String),
}

impl State {
    fn level(&self) -> i64 {
        match self {
            Self::Ok => 0,
            Self::Degraded(_) => 1,
            Self::Failed(_) => 2,
        }
    }
}

impl<E: Display> From<Result<(), E>> for State {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(|e| Self::Failed(e.to_string()), |()| Self::Ok)
    }
}

/// One thing to check.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, State> + Send + Sync>;

/// Makes a check of a function that does not wait.
pub fn check(look: impl Fn() -> State + Send + Sync + 'static) -> Check {
    Arc::new(move || {
        let state = look();
        Box::pin(async move { state })
    })
}

/// The response of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether no check has failed.
    pub ready: bool,
    /// The result of every check by name.
    pub checks: BTreeMap<String, State>,
}

/// The checks of a process by name.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: BTreeMap<String, Check>,
}

impl Readiness {
    /// Adds a check, or replaces the one of that name.
    pub fn add(&mut self, name: &str, check: Check) {
        self.checks.insert(name.to_owned(), check);
    }

    /// Runs all checks at once, each for a bounded time.
    pub async fn report(&self) -> Report {
        let asked = self.checks.iter().map(|(name, check)| async {
            let silent = |_| State::Failed(format!("no answer in {} s", LIMIT.as_secs()));
            let found = tokio::time::timeout(LIMIT, check()).await;
            (name.clone(), found.unwrap_or_else(silent))
        });
        let checks: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
        let ready = !checks.values().any(|s| matches!(s, State::Failed(_)));
        Report { ready, checks }
    }

    /// Runs every check periodically until it is dropped, logs once when a problem begins and once when
    /// it is over, and passes each report to `on_report`.
    pub async fn watch(self, metrics: Metrics, clock: Clock, on_report: impl Fn(&Report)) {
        let (mut history, mut pause) = (History::new(&metrics), FIRST_INTERVAL);
        loop {
            let report = self.report().await;
            for (name, state) in &report.checks {
                if let Some(change) = history.record(name, state, clock.monotonic()) {
                    change.log(name);
                }
            }
            on_report(&report);
            if report.ready {
                pause = INTERVAL;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.checks.keys()).finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabel {
    check: String,
}

/// What the watcher remembers of each check: its level, and since when it has a problem.
struct History {
    levels: Family<CheckLabel, Gauge>,
    healthy: BTreeSet<String>,
    problems: BTreeMap<String, (i64, Monotonic)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// The check fails and was never ok: the process is starting.
    Awaited(State),
    Began(State),
    Over(Duration),
}

impl History {
    fn new(metrics: &Metrics) -> Self {
        Self {
            levels: metrics.register(
                "health_check_state",
                "What a check found: 0 ok, 1 degraded, 2 failed",
                Family::default(),
            ),
            healthy: BTreeSet::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Returns what is to be logged. A problem that gets worse or better without ending counts, too.
    fn record(&mut self, name: &str, state: &State, now: Monotonic) -> Option<Change> {
        let level = state.level();
        let check = name.to_owned();
        self.levels.get_or_create(&CheckLabel { check }).set(level);
        match (self.problems.get(name).copied(), level) {
            (None, 0) => {
                self.healthy.insert(name.to_owned());
                None
            }
            (Some((_, since)), 0) => {
                self.healthy.insert(name.to_owned());
                self.problems.remove(name);
                Some(Change::Over(now.since(since)))
            }
            (Some((before, _)), level) if before == level => None,
            (before, _) => {
                let since = before.map_or(now, |(_, since)| since);
                self.problems.insert(name.to_owned(), (level, since));
                let state = state.clone();
                let awaited = level == 2 && !self.healthy.contains(name);
                Some(if awaited {
                    Change::Awaited(state)
                } else {
                    Change::Began(state)
                })
            }
        }
    }
}

impl Change {
    fn log(&self, check: &str) {
        match self {
            Self::Began(State::Degraded(detail)) => tracing::warn!(check, detail, "degraded"),
            Self::Began(State::Failed(detail)) => tracing::error!(check, detail, "not ready"),
            Self::Awaited(State::Degraded(detail) | State::Failed(detail)) => {
                tracing::info!(check, detail, "not ready yet");
            }
            Self::Began(State::Ok) | Self::Awaited(State::Ok) => {}
            Self::Over(lasted) => tracing::info!(check, seconds = lasted.as_secs(), "recovered"),
        }
    }
}

/// A problem that occurs again and again, from its first occurrence until it is over. Clones share
/// the state.
#[derive(Debug, Clone)]
pub struct Condition {
    clock: Clock,
    outage: Arc<Mutex<Option<Outage>>>,
}

/// A problem that is not over yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When it first occurred.
    pub since: Monotonic,
    /// How often it has occurred.
    pub times: u64,
    /// The text of its last occurrence.
    pub detail: String,
}

impl Condition {
    /// Creates a condition without a problem.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            outage: Arc::default(),
        }
    }

    /// Records an occurrence of the problem.
    pub fn record_failure(&self, detail: impl Display) {
        let mut outage = self.outage.lock();
        let known = outage.get_or_insert_with(|| Outage {
            since: self.clock.monotonic(),
            times: 0,
            detail: String::new(),
        });
        known.times += 1;
        known.detail = detail.to_string();
    }

    /// Records that the problem is over.
    pub fn record_success(&self) {
        *self.outage.lock() = None;
    }

    /// Returns the current problem.
    pub fn outage(&self) -> Option<Outage> {
        self.outage.lock().clone()
    }

    /// Returns a check that is degraded once the problem has lasted for `grace`; `what` begins its
    /// text, as in `{what} for 5 s: …`.
    pub fn check(&self, what: &'static str, grace: Duration) -> Check {
        let this = self.clone();
        check(move || match this.lasting() {
            Some((lasted, outage)) if lasted >= grace => State::Degraded(format!(
                "{what} for {} s: {}",
                lasted.as_secs(),
                outage.detail
            )),
            _ => State::Ok,
        })
    }

    fn lasting(&self) -> Option<(Duration, Outage)> {
        let outage = self.outage()?;
        Some((self.clock.monotonic().since(outage.since), outage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::manual(Duration::from_secs(1_800_000_000))
    }

    fn readiness(states: &[State]) -> Readiness {
        let mut readiness = Readiness::default();
        for (n, state) in states.iter().enumerate() {
            let state = state.clone();
            readiness.add(&n.to_string(), check(move || state.clone()));
        }
        readiness
    }

    #[tokio::test]
    async fn only_a_failure_makes_the_process_unready() {
        let degraded = State::Degraded("slow".to_owned());
        let report = readiness(&[State::Ok, degraded.clone()]).report().await;
        assert!(report.ready);
        let shown = serde_json::to_value(&report).unwrap();
        assert_eq!(shown["checks"]["0"]["state"], "ok");
        assert_eq!(shown["checks"]["1"]["state"], "degraded");
        assert_eq!(shown["checks"]["1"]["detail"], "slow");
        let failed = State::Failed("gone".to_owned());
        let report = readiness(&[State::Ok, degraded, failed]).report().await;
        assert!(!report.ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_fails_and_delays_no_other() {
        let mut readiness = readiness(&[State::Ok]);
        let never: Check = Arc::new(|| Box::pin(std::future::pending()));
        readiness.add("a", never.clone());
        readiness.add("b", never);
        let asked = tokio::time::timeout(LIMIT * 3 / 2, readiness.report());
        let report = asked.await.expect("both are waited for at once");
        assert_eq!(report.checks["0"], State::Ok);
        assert!(matches!(&report.checks["b"], State::Failed(why) if why.contains("no answer")));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_come_quickly_while_the_process_starts() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let looks = Mutex::new(0);
        let mut readiness = Readiness::default();
        let starting = check(move || {
            *looks.lock() += 1;
            match *looks.lock() {
                1..4 => State::Failed("no view yet".to_owned()),
                _ => State::Ok,
            }
        });
        readiness.add("x", starting);
        let tell = move |report: &Report| sender.send(report.ready).unwrap();
        let watched = readiness.watch(Metrics::default(), clock(), tell);
        let started = INTERVAL / 2;
        tokio::time::timeout(started, watched).await.unwrap_err();
        let told: Vec<bool> = receiver.try_iter().collect();
        assert_eq!(told, [false, false, false, true]);
    }

    #[test]
    fn a_change_is_logged_once_when_it_begins_and_once_when_it_is_over() {
        let (clock, mut history) = (clock(), History::new(&Metrics::default()));
        let mut look = |state: &State| {
            clock.advance(Duration::from_secs(1));
            history.record("x", state, clock.monotonic())
        };
        let degraded = |text: &str| State::Degraded(text.to_owned());
        let early = State::Failed("no view yet".to_owned());
        assert_eq!(look(&early), Some(Change::Awaited(early.clone())));
        assert!(matches!(look(&State::Ok), Some(Change::Over(_))));
        assert_eq!(look(&State::Ok), None);
        assert!(matches!(look(&degraded("for 1 s")), Some(Change::Began(_))));
        for seconds in 2..60 {
            assert_eq!(look(&degraded(&format!("for {seconds} s"))), None);
        }
        let failed = State::Failed("gone".to_owned());
        assert_eq!(look(&failed), Some(Change::Began(failed.clone())), "worse");
        assert_eq!(look(&failed), None);
        let lasted = Duration::from_secs(61);
        assert_eq!(look(&State::Ok), Some(Change::Over(lasted)));
        assert_eq!(look(&State::Ok), None);
    }

    #[tokio::test]
    async fn a_condition_is_degraded_after_its_grace_until_it_is_over() {
        let clock = clock();
        let condition = Condition::new(clock.clone());
        let check = condition.check("nothing is sent", Duration::from_secs(5));
        condition.record_failure("first");
        clock.advance(Duration::from_secs(4));
        assert_eq!(check().await, State::Ok);
        condition.record_failure("refused");
        clock.advance(Duration::from_secs(4));
        clock.step_back(Duration::from_secs(3600));
        let text = "nothing is sent for 8 s: refused".to_owned();
        assert_eq!(check().await, State::Degraded(text));
        assert_eq!(condition.outage().map(|t| t.times), Some(2));
        condition.record_success();
        assert_eq!(check().await, State::Ok);
    }
}
