use super::*;
use crate::fixtures::{ME, again, by_credential, call, caller};
use tars_certs::PeerClass;
use tars_credentials::Permissions;
use tars_proto::{fault, reason};
use tars_runtime::{
    config,
    usage::{Amounts, Total},
};

const AGENTS: &str = "/tars.orchestration.v1.OrchestrationService/ListAgents";
const LOGOUT: &str = "/tars.auth.v1.AuthService/Logout";

struct Counting {
    usage: Usage,
    clock: Clock,
    quotas: QuotaHandle,
}

fn counting(quotas: config::Quotas) -> Counting {
    let (clock, handle) = (
        Clock::manual(month("2026-11").start()),
        QuotaHandle::default(),
    );
    handle.replace(Quotas::new(&quotas));
    let metrics = UsageMetrics::new(&Metrics::default());
    Counting {
        usage: Usage::for_tests(clock.clone(), handle.clone(), metrics),
        clock,
        quotas: handle,
    }
}

fn of_calls(calls: u64) -> Counting {
    counting(config::Quotas {
        calls,
        ..config::Quotas::default()
    })
}

fn over<T: std::fmt::Debug>(refused: Result<T, QuotaRefusal>) -> OverQuota {
    match refused {
        Err(QuotaRefusal::Over(over)) => over,
        other => panic!("{other:?}"),
    }
}

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

impl Counting {
    fn makes(&self, user: &str, label: &str) -> Result<(), tonic::Status> {
        let call = by_credential(ME, "/gateway", user, label);
        self.usage.admit(&call).map(drop)
    }

    /// How many of so many calls pass.
    fn passed(&self, calls: usize, user: &str) -> usize {
        (0..calls).filter(|_| self.makes(user, "l").is_ok()).count()
    }

    /// What is drained, as month, user and amount.
    fn drained(&self) -> Vec<(String, String, u64)> {
        let items = self.usage.drain().into_iter();
        let mut all: Vec<_> = items
            .map(|i| (i.month.to_string(), i.user_id, i.amount))
            .collect();
        all.sort();
        all
    }

    fn allowance(&self, user: &str) -> Allowance {
        self.usage.allowance(&caller(user, "l", Permissions::ALL))
    }
}

fn row(month: &str, user: &str, amount: u64) -> (String, String, u64) {
    (month.to_owned(), user.to_owned(), amount)
}

fn total(month_of: &str, user: &str, dimension: Dimension, amount: u64) -> Total {
    let mut amounts = Amounts::default();
    amounts.add(dimension, amount);
    Total {
        month: month(month_of),
        user_id: user.to_owned(),
        amounts,
    }
}

#[test]
fn calls_are_counted_by_user_and_drained_once() {
    let counting = of_calls(0);
    assert_eq!(counting.passed(1000, "ada"), 1000);
    assert!(counting.makes("ada", "key:1").is_ok() && counting.makes("bob", "l").is_ok());
    let counted = [row("2026-11", "ada", 1001), row("2026-11", "bob", 1)];
    assert_eq!(counting.drained(), counted);
    assert!(counting.drained().is_empty());
    counting.makes("ada", "l").unwrap();
    let items = counting.usage.drain();
    assert_eq!((items[0].number, items[0].amount), (3, 1), "numbers rise");
    assert_eq!(items[0].source, counting.usage.source());
}

#[test]
fn hops_and_calls_without_a_caller_and_unmetered_calls_are_not_counted() {
    let counting = of_calls(1);
    let hop = call(AGENTS, PeerClass::Automl, "/automl", [10, 0, 0, 1]);
    hop.set_caller(caller("ada", "l", Permissions::ALL));
    let stranger = by_peer_only();
    let logout = by_credential(LOGOUT, "/gateway", "ada", "l");
    for call in [hop, stranger, logout] {
        for _ in 0..5 {
            counting.usage.admit(&call).unwrap();
        }
    }
    assert!(counting.drained().is_empty());
    counting.makes("ada", "l").unwrap();
    counting.makes("ada", "l").unwrap_err();
    let logout = by_credential(LOGOUT, "/gateway", "ada", "l");
    counting.usage.admit(&logout).unwrap();
}

fn by_peer_only() -> Arc<crate::Call> {
    call(AGENTS, PeerClass::Client, "/client/a", [10, 0, 0, 1])
}

#[test]
fn a_quota_of_calls_admits_as_many_as_it_says_over_all_keys_of_a_user() {
    let counting = of_calls(5);
    assert_eq!(counting.passed(3, "ada"), 3);
    assert!(counting.makes("ada", "key:1").is_ok() && counting.makes("ada", "key:2").is_ok());
    let status = counting.makes("ada", "key:3").unwrap_err();
    let reason = fault::reason(&status);
    assert_eq!(reason.as_deref(), Some(reason::QUOTA_EXCEEDED));
    assert_eq!(counting.passed(1, "bob"), 1, "nobody else's");
    assert_eq!(
        counting.drained(),
        [row("2026-11", "ada", 5), row("2026-11", "bob", 1)],
        "refused calls are not counted"
    );
    assert_eq!(counting.passed(1, "ada"), 0, "drained is not forgotten");
}

#[test]
fn what_auth_has_counted_is_neither_forgotten_nor_added_twice() {
    let counting = of_calls(10);
    assert_eq!(counting.passed(4, "ada"), 4);
    let first = counting.usage.drain();
    assert_eq!(counting.passed(1, "ada"), 1);
    // Three of them in other processes; the last of these here is not counted yet.
    let calls = |n| vec![total("2026-11", "ada", Dimension::Calls, n)];
    let answer = |counted, totals| Answer {
        counted,
        totals,
        ..Answer::default()
    };
    counting.usage.learn(&answer(first[0].number, calls(7)));
    assert_eq!(counting.passed(10, "ada"), 2, "7 and 1 are used");
    let second = counting.usage.drain();
    counting.usage.learn(&answer(first[0].number, calls(7)));
    assert_eq!(counting.passed(1, "ada"), 0);
    counting.usage.learn(&answer(second[0].number, calls(10)));
    assert_eq!(counting.passed(1, "ada"), 0);
    assert!(counting.drained().is_empty());
}

#[test]
fn a_month_ends_for_each_call_when_the_clock_says_so() {
    let counting = of_calls(2);
    counting
        .clock
        .advance(month("2026-11").end() - month("2026-11").start());
    counting.clock.step_back(Duration::from_micros(1));
    assert_eq!(counting.passed(3, "ada"), 2);
    counting.clock.advance(Duration::from_micros(1));
    assert_eq!(counting.passed(3, "ada"), 2, "the next month has its own");
    let counted = [row("2026-11", "ada", 2), row("2026-12", "ada", 2)];
    assert_eq!(counting.drained(), counted);
    let old = Answer {
        totals: vec![total("2026-11", "ada", Dimension::Calls, 0)],
        ..Answer::default()
    };
    counting.usage.learn(&old);
    assert_eq!(counting.passed(1, "ada"), 0, "of another month");
}

#[test]
fn accounts_of_the_past_are_forgotten() {
    let counting = of_calls(0);
    assert_eq!(counting.passed(1, "ada"), 1);
    counting.drained();
    counting.clock.advance(Duration::from_secs(32 * 86_400));
    assert!(counting.drained().is_empty());
    let accounts = &counting.usage.0.accounts;
    assert!(format!("{accounts:?}").find("ada").is_none());
}

#[test]
fn quotas_that_are_replaced_hold_at_once() {
    let counting = of_calls(2);
    assert_eq!(counting.passed(3, "ada"), 2);
    let more = Quotas::default().with("[quota]\ncalls = 3").unwrap();
    counting.quotas.replace(more);
    assert_eq!(counting.passed(3, "ada"), 1);
}

#[test]
fn training_steps_must_fit_into_what_is_left_with_what_is_promised() {
    let counting = counting(config::Quotas {
        training_steps: 1000,
        ..config::Quotas::default()
    });
    let ada = counting.allowance("ada");
    let check = |more, asked| counting.usage.check_steps(&ada, more, asked);
    assert!(check(0, 1000).is_ok() && check(400, 600).is_ok());
    let refused = over(check(401, 600));
    assert_eq!((refused.left(), refused.asked), (599, 600));
    assert!(check(0, 1001).is_err() && check(u64::MAX, 1).is_err());
    counting.usage.learn(&Answer {
        totals: vec![total("2026-11", "ada", Dimension::TrainingSteps, 900)],
        ..Answer::default()
    });
    assert!(check(0, 100).is_ok() && check(0, 101).is_err());
    let free = Allowance::unlimited("bob");
    assert!(counting.usage.check_steps(&free, 1 << 60, 1 << 60).is_ok());
}

#[test]
fn solver_time_is_promised_while_a_solve_runs_and_counted_as_it_was() {
    let counting = counting(config::Quotas {
        solver_seconds: 10,
        ..config::Quotas::default()
    });
    let ada = counting.allowance("ada");
    let seconds = |n| Some(Duration::from_secs(n));
    let begin = |asked, most| counting.usage.begin_solve(&ada, asked, most);
    let takes = |micros| counting.clock.advance(Duration::from_micros(micros));
    let first = begin(seconds(6), seconds(30)).unwrap();
    let rest = begin(None, seconds(30)).unwrap();
    assert_eq!((first.most(), rest.most()), (seconds(6), seconds(4)));
    let refused = over(begin(None, None));
    assert_eq!((refused.used, refused.left()), (10_000_000, 0));
    first.time(|| takes(1_250_000));
    drop(rest);
    let refused = over(begin(seconds(9), None));
    assert_eq!((refused.left(), refused.asked), (8_750_000, 9_000_000));
    begin(seconds(8), None).unwrap().time(|| takes(9_000_000));
    let refused = over(begin(None, None));
    assert_eq!(
        refused.used, 10_250_000,
        "what took longer than promised is counted"
    );
    assert_eq!(counting.drained(), [row("2026-11", "ada", 10_250_000)]);
}

#[test]
fn unlimited_solver_time_is_counted_and_that_of_the_mesh_is_not() {
    let counting = counting(config::Quotas::default());
    for allowance in [Allowance::unlimited("bob"), Allowance::default()] {
        let solving = counting.usage.begin_solve(&allowance, None, None).unwrap();
        assert_eq!(solving.most(), None);
        solving.time(|| counting.clock.advance(Duration::from_micros(3)));
    }
    assert_eq!(counting.drained(), [row("2026-11", "bob", 3)]);
}

#[test]
fn what_waits_for_auth_is_bounded_by_the_number_of_users() {
    let counting = of_calls(0);
    let mut last = 0;
    for _ in 0..3 * MERGED_FROM {
        counting.makes("ada", "l").unwrap();
        last = counting.usage.drain()[0].number;
    }
    assert!(counting.usage.0.drained.lock().items.len() <= MERGED_FROM);
    let used = || {
        let (usage, month) = (&counting.usage, counting.usage.month());
        let used = |account: &mut accounts::Account| account.used(Dimension::Calls);
        usage.0.accounts.with("ada", month, used)
    };
    assert_eq!(used(), 3 * MERGED_FROM as u64);
    counting.usage.learn(&Answer {
        counted: last,
        totals: vec![total("2026-11", "ada", Dimension::Calls, 7)],
        ..Answer::default()
    });
    assert_eq!(used(), 7);
}

#[test]
fn a_solve_that_panics_is_counted_and_its_promise_ends() {
    let counting = counting(config::Quotas {
        solver_seconds: 10,
        ..config::Quotas::default()
    });
    let ada = counting.allowance("ada");
    let solving = counting.usage.begin_solve(&ada, None, None).unwrap();
    let work = std::panic::AssertUnwindSafe(|| {
        solving.time(|| {
            counting.clock.advance(Duration::from_secs(4));
            panic!("a game that no solver is made for");
        });
    });
    std::panic::catch_unwind(work).unwrap_err();
    assert_eq!(counting.drained(), [row("2026-11", "ada", 4_000_000)]);
    let rest = counting.usage.begin_solve(&ada, None, None).unwrap();
    assert_eq!(rest.most(), Some(Duration::from_secs(6)));
}

#[test]
fn whoever_has_a_quota_is_refused_until_auth_has_told_all_that_is_used() {
    let handle = QuotaHandle::default();
    let text =
        "[quota]\ntraining_steps = 5\nsolver_seconds = 5\n[[override]]\nuser = \"ada\"\ncalls = 5";
    let metrics = UsageMetrics::new(&Metrics::default());
    let clock = Clock::manual(month("2026-11").start());
    let usage = Usage::new(clock, handle.clone(), metrics);
    assert!(usage.is_ready(), "nobody has a quota");
    handle.replace(Quotas::default().with(text).unwrap());
    assert!(!usage.is_ready());
    let calls = |user: &str| {
        let call = by_credential(ME, "/gateway", user, "l");
        usage.admit(&call).map(drop)
    };
    let ada = usage.allowance(&caller("ada", "l", Permissions::ALL));
    let solves = || usage.begin_solve(&ada, None, None).map(drop);
    let refused = |status: tonic::Status| {
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(
            fault::reason(&status).as_deref(),
            Some(reason::USAGE_UNKNOWN)
        );
        assert!(fault::retry_after(&status).is_some());
    };
    let part = Answer {
        more: true,
        ..Answer::default()
    };
    for _ in 0..2 {
        refused(calls("ada").unwrap_err());
        refused(usage.check_steps(&ada, 0, 1).unwrap_err().status());
        refused(solves().unwrap_err().status());
        calls("bob").unwrap();
        usage.learn(&part);
    }
    let all = Answer {
        totals: vec![total("2026-11", "ada", Dimension::Calls, 4)],
        ..Answer::default()
    };
    usage.learn(&all);
    assert!(usage.is_ready());
    calls("ada").unwrap();
    let status = calls("ada").unwrap_err();
    assert_eq!(
        fault::reason(&status).as_deref(),
        Some(reason::QUOTA_EXCEEDED)
    );
    assert!(usage.check_steps(&ada, 0, 5).is_ok() && solves().is_ok());
}

#[test]
fn a_call_that_is_sent_again_counts_once_and_no_client_can_say_so() {
    let counting = of_calls(2);
    let from = |class| again(AGENTS, class, caller("ada", "l", Permissions::ALL));
    for _ in 0..5 {
        let further = from(PeerClass::Gateway);
        assert!(further.is_retry() && further.is_charged());
        counting.usage.admit(&further).unwrap();
    }
    assert!(counting.drained().is_empty());
    let client = from(PeerClass::Client);
    assert!(!client.is_retry() && !client.is_charged());
    for _ in 0..2 {
        counting.usage.admit(&client).unwrap();
    }
    counting.usage.admit(&client).unwrap_err();
    assert_eq!(counting.drained(), [row("2026-11", "ada", 2)]);
}

#[test]
fn a_call_is_used_while_it_runs_and_given_back_when_it_is_shed() {
    let counting = of_calls(1);
    let call = by_credential(AGENTS, "/gateway", "ada", "l");
    let admitted = counting.usage.admit(&call).unwrap();
    assert!(counting.makes("ada", "l").is_err(), "the one that runs");
    assert!(counting.drained().is_empty(), "and is not counted yet");
    call.flight().shed();
    drop(admitted);
    assert!(counting.drained().is_empty());
    assert_eq!(counting.passed(2, "ada"), 1);
    assert_eq!(counting.drained(), [row("2026-11", "ada", 1)]);
}

#[test]
fn a_clock_that_is_set_back_does_not_reopen_the_month_before() {
    let counting = of_calls(2);
    let length = month("2026-11").end() - month("2026-11").start();
    counting.clock.advance(length);
    assert_eq!(counting.passed(3, "ada"), 2);
    counting.clock.step_back(Duration::from_secs(60));
    assert_eq!(counting.usage.month(), month("2026-12"));
    assert_eq!(counting.passed(3, "ada"), 0, "all of December is used");
    assert_eq!(counting.passed(3, "bob"), 2);
    let counted = [row("2026-12", "ada", 2), row("2026-12", "bob", 2)];
    assert_eq!(counting.drained(), counted);
}
