use super::*;
use crate::store::MIGRATIONS;
use tars_runtime::{
    db::{Db, Isolation},
    lease::Terms,
    metrics::calls::{CallOutcome, EndedCall},
    seeds::Seeds,
};
use tempfile::TempDir;

const WINDOW: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(3600);

/// A service whose calls a test makes up, under a clock that the test moves.
struct Rig {
    calibrations: Calibrations,
    windows: Windows,
    dir: TempDir,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let clock = Clock::manual(Duration::from_secs(1_800_000_000));
        let calls = CallRecorder::default();
        let calibrations = Calibrations::new(store, calls, clock, WINDOW, 4096);
        let mut rig = Self {
            calibrations,
            windows: Windows::new(WINDOW),
            dir,
        };
        rig.end(WINDOW);
        rig
    }

    fn call(&self, tenant: &str, outcome: CallOutcome, took: Duration, is_retry: bool) {
        self.calibrations.calls.record(&EndedCall {
            tenant,
            outcome,
            took,
            is_retry,
        });
    }

    /// Calls of a caller, with exponential times of a given mean: its quantiles at equal distances.
    fn calls(&self, tenant: &str, count: u32, mean_ms: f64) {
        for n in 0..count {
            let below = (f64::from(n) + 0.5) / f64::from(count);
            let took = Duration::from_secs_f64(-(1.0 - below).ln() * mean_ms / 1e3);
            self.call(tenant, CallOutcome::Completed, took, false);
        }
    }

    fn end(&mut self, lasted: Duration) {
        self.calibrations.clock.advance(lasted);
        self.calibrations.end_window(&mut self.windows);
    }

    /// A window of two callers.
    fn window(&mut self, count: u32, mean_ms: f64) {
        self.calls("a", count * 3 / 4, mean_ms);
        self.calls("b", count / 4, mean_ms);
        self.end(WINDOW);
    }

    fn finding(&self) -> Finding {
        Finding::of(&self.windows, &[], self.calibrations.places).unwrap()
    }

    /// The leases of a replica.
    async fn leases(&self, holder: &str) -> Leases {
        let terms = Terms::Shared {
            holder: holder.to_owned(),
            life: LIFE,
        };
        let db = self.calibrations.store.db().clone();
        let clock = self.calibrations.clock.clone();
        Leases::open(db, terms, clock, Seeds::counted(1))
            .await
            .unwrap()
    }
}

fn value(finding: &Finding, name: &str) -> (f64, bool) {
    let found = finding.parameters.iter().find(|p| p.name == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {finding:?}"));
    (found.value, found.fitted)
}

fn is_close(is: f64, expected: f64) -> bool {
    (is - expected).abs() < 0.03 * expected
}

#[tokio::test]
async fn a_steady_load_is_calibrated_with_what_was_measured() {
    let mut rig = Rig::new().await;
    for _ in 0..3 {
        rig.window(6_000, 2.0);
    }
    let finding = rig.finding();
    assert_eq!(finding.uncalibrated, None, "{finding:?}");
    let (windows, calls, tested) = (finding.windows, finding.calls, finding.tested_calls);
    assert_eq!((windows, calls, tested), (2, 12_000, 6_000));
    let minute = i64::try_from(WINDOW.as_micros()).unwrap();
    assert_eq!(finding.to_us - finding.from_us, 2 * minute);
    assert_eq!(finding.tested_to_us - finding.to_us, minute);
    let errors = finding.errors.unwrap();
    assert!(errors.all().into_iter().all(|e| e < 0.25), "{errors:?}");
    for (name, expected) in [
        ("caller_1.rate", 75.0),
        ("caller_2.rate", 25.0),
        ("caller_1.work", 1.0),
        ("orchestration.service_time", 0.002),
        ("orchestration.service_cv2", 1.0),
    ] {
        let (is, fitted) = value(&finding, name);
        assert!(fitted && is_close(is, expected), "{name} is {is}");
    }
}

#[tokio::test]
async fn what_no_call_shows_keeps_its_shipped_value_and_says_so() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        rig.window(4_000, 2.0);
    }
    let finding = rig.finding();
    let shipped = tars_worlds::mesh::Calibration::shipped();
    for (name, expected) in [
        ("changes.proposals", shipped.changes.proposals),
        ("changes.available", shipped.changes.available),
        ("changes.answer", shipped.changes.answer_s),
        ("changes.spots", shipped.changes.spots),
        ("orchestration.start_up", shipped.services[1].start_up_s),
        // No call failed.
        ("clients.retries", shipped.clients.patient.retries),
    ] {
        assert_eq!(value(&finding, name), (expected, false), "{name}");
    }
    let assumed = parameters(&shipped, &[], false);
    assert!(assumed.iter().all(|parameter| !parameter.fitted));
}

#[tokio::test]
async fn approvals_are_fitted_to_the_proposals_that_were_recorded() {
    let mut rig = Rig::new().await;
    for _ in 0..3 {
        rig.window(6_000, 2.0);
    }
    let finding = async || {
        let decided = rig.calibrations.store.decisions().await.unwrap();
        let found = Finding::of(&rig.windows, &decided, rig.calibrations.places);
        let found = found.unwrap();
        assert_eq!(found.uncalibrated, None, "the calls are: {found:?}");
        found
    };
    let before = finding().await;
    assert!(!before.measures("consensus") && before.measures("policy"));
    assert!(
        before.why_not().starts_with("too few proposals"),
        "{before:?}"
    );
    let all = approvals::tests::history(110).into_iter();
    let all: Vec<_> = all.map(|one| (Uuid::now_v7(), one)).collect();
    rig.calibrations.record(&all).await.unwrap();
    let after = finding().await;
    let approvals = after.approvals.as_ref().unwrap();
    assert_eq!(approvals.uncalibrated, None);
    assert_eq!((approvals.proposals, approvals.tested), (100, 10));
    let (answer, fitted) = value(&after, "changes.answer");
    assert!(fitted && is_close(answer, 600.0), "{answer}");
    assert!(after.measures("consensus"));
}

#[tokio::test]
async fn retries_are_fitted_where_calls_fail() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        rig.calls("a", 2_000, 2.0);
        for n in 0..200 {
            let took = Duration::from_millis(2);
            rig.call("a", CallOutcome::Failed, took, false);
            rig.call("a", CallOutcome::Completed, took, n % 2 == 0);
        }
        rig.end(WINDOW);
    }
    let finding = rig.finding();
    assert_eq!((finding.calls, finding.failed), (2_200, 200));
    let (retries, fitted) = value(&finding, "clients.retries");
    assert!(fitted && (0.5..0.65).contains(&retries), "{retries}");
    let (transient, fitted) = value(&finding, "clients.transient");
    assert!(
        fitted && is_close(transient, 200.0 / 2_400.0),
        "{transient}"
    );
}

#[tokio::test]
async fn what_a_limit_turned_away_is_counted_and_is_no_demand() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        rig.calls("a", 3_000, 2.0);
        for caller in ["a", "flood"] {
            for _ in 0..1_500 {
                let outcome = CallOutcome::Rejected;
                rig.call(caller, outcome, Duration::from_micros(50), false);
            }
        }
        rig.end(WINDOW);
    }
    let finding = rig.finding();
    assert_eq!(finding.uncalibrated, None, "{finding:?}");
    assert_eq!(
        (finding.calls, finding.failed, finding.rejected),
        (3_000, 0, 3_000)
    );
    assert!(is_close(value(&finding, "caller_1.rate").0, 50.0));
    assert_eq!(value(&finding, "clients.transient"), (0.0, true));
    let callers = finding
        .parameters
        .iter()
        .filter(|p| p.name.ends_with(".rate"));
    assert_eq!(callers.count(), 1, "nobody of whom nothing was admitted");
}

#[tokio::test]
async fn too_few_calls_are_no_calibration() {
    let mut rig = Rig::new().await;
    assert_eq!(Finding::of(&rig.windows, &[], 64), None, "no window");
    rig.window(2_000, 2.0);
    assert_eq!(
        Finding::of(&rig.windows, &[], 64),
        None,
        "nothing follows it"
    );
    rig.window(40, 2.0);
    let reason =
        "too few calls: 2000 to fit to and 40 in the window after them; 1000 and 100 are needed";
    let finding = rig.finding();
    assert_eq!(finding.uncalibrated.as_deref(), Some(reason));
    assert_eq!((finding.errors, finding.parameters.len()), (None, 0));
    // The quiet window ends the run of busy ones.
    rig.window(600, 2.0);
    rig.window(600, 2.0);
    let finding = rig.finding();
    assert_eq!((finding.windows, finding.calls), (1, 600));
    assert!(
        finding
            .uncalibrated
            .unwrap()
            .starts_with("too few calls: 600")
    );
    rig.window(600, 2.0);
    assert_eq!(rig.finding().uncalibrated, None);
}

#[tokio::test]
async fn an_idle_service_is_uncalibrated() {
    let mut rig = Rig::new().await;
    rig.end(WINDOW);
    rig.end(WINDOW);
    let finding = rig.finding();
    assert_eq!(
        (finding.windows, finding.calls, finding.tested_calls),
        (0, 0, 0)
    );
    assert!(
        finding
            .uncalibrated
            .unwrap()
            .starts_with("too few calls: 0")
    );
    assert!(finding.from_us == finding.to_us && finding.to_us < finding.tested_to_us);
}

#[tokio::test]
async fn a_load_that_changes_is_uncalibrated_with_its_errors() {
    let mut rig = Rig::new().await;
    rig.window(6_000, 2.0);
    rig.window(12_000, 10.0);
    let finding = rig.finding();
    let reason = finding.uncalibrated.clone().unwrap();
    assert!(reason.starts_with("the median error of"), "{reason}");
    let errors = finding.errors.unwrap();
    assert!(is_close(errors.throughput, 0.5), "{errors:?}");
    assert!(errors.p50 > 0.5 && !finding.parameters.is_empty());
}

#[tokio::test]
async fn calls_of_two_kinds_are_calibrated_as_long_as_they_come_alike() {
    let mut rig = Rig::new().await;
    for (quick, slow) in [(3_600, 400), (3_600, 400), (1_600, 2_400)] {
        // A log-normal with these moments has another median and other tails.
        rig.calls("a", quick, 0.5);
        rig.calls("a", slow, 50.0);
        rig.end(WINDOW);
        let found = Finding::of(&rig.windows, &[], rig.calibrations.places);
        let Some(finding) = found else { continue };
        let is_alike = slow == 400;
        assert_eq!(finding.uncalibrated.is_none(), is_alike, "{finding:?}");
        assert!(finding.errors.unwrap().throughput < 0.05);
    }
}

#[tokio::test]
async fn callers_beyond_those_that_the_model_has_room_for_are_one() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        for n in 0..200_u32 {
            rig.calls(&format!("caller {n}"), if n < 3 { 1_000 } else { 10 }, 2.0);
        }
        rig.end(WINDOW);
    }
    let finding = rig.finding();
    let rates = finding
        .parameters
        .iter()
        .filter(|p| p.name.ends_with(".rate"));
    let names: Vec<&str> = rates.map(|p| p.name.as_str()).collect();
    let expected = [
        "caller_1.rate",
        "caller_2.rate",
        "caller_3.rate",
        "others.rate",
    ];
    assert_eq!(names, expected);
    assert!(is_close(value(&finding, "caller_3.rate").0, 1_000.0 / 60.0));
    assert!(is_close(value(&finding, "others.rate").0, 1_970.0 / 60.0));
}

#[tokio::test]
async fn a_window_that_was_not_read_in_time_is_dropped_with_those_before_it() {
    let mut rig = Rig::new().await;
    rig.window(4_000, 2.0);
    rig.window(4_000, 2.0);
    assert_eq!(rig.finding().uncalibrated, None);
    rig.calls("a", 4_000, 2.0);
    rig.end(WINDOW * 3);
    assert_eq!(Finding::of(&rig.windows, &[], 64), None);
    rig.window(4_000, 2.0);
    assert_eq!(Finding::of(&rig.windows, &[], 64), None);
}

#[tokio::test]
async fn windows_are_bounded_in_number() {
    let mut rig = Rig::new().await;
    for _ in 0..40 {
        rig.window(200, 2.0);
    }
    assert_eq!(rig.finding().windows, 15);
}

#[tokio::test]
async fn calibrations_are_stored_by_the_replica_with_the_lease_and_listed_newest_first() {
    let mut rig = Rig::new().await;
    let (own, other) = (rig.leases("this").await, rig.leases("other").await);
    let held = other.acquire(LEASE).await.unwrap().unwrap();
    rig.window(100, 2.0);
    rig.window(100, 2.0);
    let (calibrations, mut lease) = (rig.calibrations.clone(), None);
    let done = calibrations.calibrate_as_owner(&rig.windows, &own, &mut lease);
    done.await.unwrap();
    assert_eq!(
        calibrations.latest().await.unwrap(),
        None,
        "the other replica has the lease"
    );
    held.release().await.unwrap();
    let mut findings = Vec::new();
    for _ in 0..3 {
        rig.window(2_000, 2.0);
        let done = calibrations.calibrate_as_owner(&rig.windows, &own, &mut lease);
        done.await.unwrap();
        findings.insert(0, rig.finding());
    }
    let latest = calibrations.latest().await.unwrap().unwrap();
    assert_eq!((latest.number, &latest.finding), (3, &findings[0]));
    let (page, next) = calibrations.list("", 2).await.unwrap();
    let (rest, end) = calibrations.list(&next, 2).await.unwrap();
    assert_eq!((page.len(), rest.len(), end.as_str()), (2, 1, ""));
    let listed = page.into_iter().chain(rest).map(|row| row.finding);
    assert_eq!(listed.collect::<Vec<_>>(), findings);
    let refused = calibrations.list("x", 2).await;
    assert!(
        matches!(refused, Err(OrchestrationError::PageToken(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_replica_that_was_replaced_stores_nothing() {
    let mut rig = Rig::new().await;
    rig.window(100, 2.0);
    rig.window(100, 2.0);
    let own = rig.leases("this").await;
    let lease = own.acquire(LEASE).await.unwrap().unwrap();
    let fence = lease.fence();
    lease.release().await.unwrap();
    let taken = rig.leases("next").await.acquire(LEASE).await.unwrap();
    assert!(taken.is_some());
    let refused = rig.calibrations.calibrate(&rig.windows, &fence).await;
    assert!(
        matches!(refused, Err(OrchestrationError::NotOwned(_))),
        "{refused:?}"
    );
    assert_eq!(rig.calibrations.latest().await.unwrap(), None);
}

#[tokio::test]
async fn only_the_newest_are_retained() {
    let mut rig = Rig::new().await;
    rig.end(WINDOW);
    rig.end(WINDOW);
    let store = rig.calibrations.store.clone();
    let mut tx = store
        .db()
        .write("test.row", Isolation::Exclusive)
        .await
        .unwrap();
    let number = RETAINED + 1;
    let row = "INSERT INTO calibrations (number, at_us, body) VALUES (1, 0, '{}'), (2, 0, '{}'), ($1, 0, '{}')";
    let row = tars_runtime::db::Query::new(row).bind(number);
    tx.execute(row).await.unwrap().any();
    tx.commit().await.unwrap();
    let fence = rig
        .leases("this")
        .await
        .acquire(LEASE)
        .await
        .unwrap()
        .unwrap()
        .fence();
    rig.calibrations
        .calibrate(&rig.windows, &fence)
        .await
        .unwrap();
    let mut read = store.db().read("test.numbers");
    let left = tars_runtime::db::Query::new("SELECT COUNT(*) AS n FROM calibrations");
    let left: i64 = tars_runtime::db::Fetch::value(&mut read, left, "n")
        .await
        .unwrap();
    assert_eq!(left, 2, "the last of those before, and the new one");
    drop(rig.dir);
}
