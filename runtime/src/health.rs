//! How the process is: what must hold for it to be ready, and what is wrong without making it so.
//!
//! A [`Check`] says `ok`, `degraded` or `failed`. Only a failure makes the process unready; the rest
//! is detail that `/readyz` shows. One watcher looks at every check once a second, keeps a gauge of
//! each and logs when one changes: once when it begins, once when it is over, never once a call. What
//! is over before it looks is counted where it happens, and not worth a line.
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

/// A check that does not answer is one that fails.
const LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(1);
/// Between looks until the process is ready for the first time: who waits for its start waits for
/// them.
const FIRST_LOOKS: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "lowercase")]
pub enum State {
    Ok,
    /// The process does its work, but for what the text says.
    Degraded(String),
    /// The process must not be sent work.
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

/// One thing to look at.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, State> + Send + Sync>;

/// A check that needs no waiting.
pub fn check(look: impl Fn() -> State + Send + Sync + 'static) -> Check {
    Arc::new(move || {
        let state = look();
        Box::pin(async move { state })
    })
}

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub ready: bool,
    pub checks: BTreeMap<String, State>,
}

#[derive(Clone, Default)]
pub struct Readiness {
    checks: BTreeMap<String, Check>,
}

impl Readiness {
    pub fn add(&mut self, name: &str, check: Check) {
        self.checks.insert(name.to_owned(), check);
    }

    /// Every check with what it found; they are asked at once, and for a bounded time.
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

    /// Looks at every check until it is dropped, says once when one begins to fail and once when it
    /// is over, and tells whoever listens what each look finds.
    pub async fn watch(self, metrics: Metrics, clock: Clock, tell: impl Fn(&Report)) {
        let (mut seen, mut pause) = (Seen::new(&metrics), FIRST_LOOKS);
        loop {
            let report = self.report().await;
            for (name, state) in &report.checks {
                if let Some(change) = seen.take(name, state, clock.monotonic()) {
                    change.log(name);
                }
            }
            tell(&report);
            if report.ready {
                pause = LOOK;
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

/// What the watcher remembers of each check: its level, and since when it is not well.
struct Seen {
    levels: Family<CheckLabel, Gauge>,
    well: BTreeSet<String>,
    troubles: BTreeMap<String, (i64, Monotonic)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It fails and was never well: the process is starting.
    Awaited(State),
    Began(State),
    Over(Duration),
}

impl Seen {
    fn new(metrics: &Metrics) -> Self {
        Self {
            levels: metrics.register(
                "health_check_state",
                "What a check found: 0 ok, 1 degraded, 2 failed",
                Family::default(),
            ),
            well: BTreeSet::new(),
            troubles: BTreeMap::new(),
        }
    }

    /// What is to be said. Getting worse or better without being well is told, too.
    fn take(&mut self, name: &str, state: &State, now: Monotonic) -> Option<Change> {
        let level = state.level();
        let check = name.to_owned();
        self.levels.get_or_create(&CheckLabel { check }).set(level);
        match (self.troubles.get(name).copied(), level) {
            (None, 0) => {
                self.well.insert(name.to_owned());
                None
            }
            (Some((_, since)), 0) => {
                self.well.insert(name.to_owned());
                self.troubles.remove(name);
                Some(Change::Over(now.since(since)))
            }
            (Some((before, _)), level) if before == level => None,
            (before, _) => {
                let since = before.map_or(now, |(_, since)| since);
                self.troubles.insert(name.to_owned(), (level, since));
                let state = state.clone();
                let awaited = level == 2 && !self.well.contains(name);
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
                tracing::info!(check, detail, "not well yet");
            }
            Self::Began(State::Ok) | Self::Awaited(State::Ok) => {}
            Self::Over(lasted) => tracing::info!(check, seconds = lasted.as_secs(), "well again"),
        }
    }
}

/// Something that goes wrong again and again, from when it began until it is well. Cheap to clone;
/// clones share what is known.
#[derive(Debug, Clone)]
pub struct Condition {
    clock: Clock,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub since: Monotonic,
    /// How often it was met.
    pub times: u64,
    /// What it said last.
    pub detail: String,
}

impl Condition {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            trouble: Arc::default(),
        }
    }

    /// It went wrong once more.
    pub fn fails(&self, detail: impl Display) {
        let mut trouble = self.trouble.lock();
        let known = trouble.get_or_insert_with(|| Trouble {
            since: self.clock.monotonic(),
            times: 0,
            detail: String::new(),
        });
        known.times += 1;
        known.detail = detail.to_string();
    }

    pub fn well(&self) {
        *self.trouble.lock() = None;
    }

    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    /// Degraded once it has lasted for `grace`; `what` says what is meant.
    pub fn check(&self, what: &'static str, grace: Duration) -> Check {
        let this = self.clone();
        check(move || match this.lasting() {
            Some((lasted, trouble)) if lasted >= grace => State::Degraded(format!(
                "{what} for {} s: {}",
                lasted.as_secs(),
                trouble.detail
            )),
            _ => State::Ok,
        })
    }

    fn lasting(&self) -> Option<(Duration, Trouble)> {
        let trouble = self.trouble()?;
        Some((self.clock.monotonic().since(trouble.since), trouble))
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
    async fn a_check_that_hangs_fails_and_holds_up_nobody() {
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
    async fn every_look_is_told_soon_while_the_process_starts() {
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
        let started = LOOK / 2;
        tokio::time::timeout(started, watched).await.unwrap_err();
        let told: Vec<bool> = receiver.try_iter().collect();
        assert_eq!(told, [false, false, false, true]);
    }

    #[test]
    fn a_change_is_told_once_when_it_begins_and_once_when_it_is_over() {
        let (clock, mut seen) = (clock(), Seen::new(&Metrics::default()));
        let mut look = |state: &State| {
            clock.advance(Duration::from_secs(1));
            seen.take("x", state, clock.monotonic())
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
    async fn a_condition_is_degraded_from_its_grace_on_until_it_is_well() {
        let clock = clock();
        let condition = Condition::new(clock.clone());
        let check = condition.check("nothing is sent", Duration::from_secs(5));
        condition.fails("first");
        clock.advance(Duration::from_secs(4));
        assert_eq!(check().await, State::Ok);
        condition.fails("refused");
        clock.advance(Duration::from_secs(4));
        clock.step_back(Duration::from_secs(3600));
        let text = "nothing is sent for 8 s: refused".to_owned();
        assert_eq!(check().await, State::Degraded(text));
        assert_eq!(condition.trouble().map(|t| t.times), Some(2));
        condition.well();
        assert_eq!(check().await, State::Ok);
    }
}
