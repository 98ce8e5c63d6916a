use super::*;
use crate::limits::{Subject, bounded::MAX_KEYS, logs};

const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
const MINUTE: Duration = Duration::from_secs(60);

fn exact(calls: u32, window: Duration) -> Limit {
    Limit::new(LimitName::Auth, calls, window)
}

fn volume(calls: u32, window: Duration) -> Limit {
    Limit::new(LimitName::User, calls, window)
}

/// One budget, taken from at any time.
fn taker(limit: Limit) -> impl Fn(Monotonic) -> Decision {
    let local = Local::new();
    move |now| local.take(limit, 7, now)
}

/// How many of `n` calls pass at once.
fn passed(take: impl Fn(Monotonic) -> Decision, n: usize, now: Monotonic) -> usize {
    (0..n).filter(|_| take(now).passed()).count()
}

#[test]
fn an_exact_limit_is_never_exceeded_in_any_window() {
    for window in [MINUTE, MINUTE * 60] {
        let take = taker(exact(10, window));
        let step = window / 600;
        let times = (0..3000u32).map(|n| T + step * n);
        let admitted: Vec<_> = times.filter(|now| take(*now).passed()).collect();
        for within in admitted.windows(11) {
            assert!(within[10].since(within[0]) >= window);
        }
        assert_eq!(admitted.len(), 50);
    }
}

#[test]
fn a_refusal_has_a_retry_time_and_does_not_extend_it() {
    let take = taker(exact(1, MINUTE));
    assert!(take(T).passed());
    for second in 1..60 {
        let refused = take(T + Duration::from_secs(second));
        assert_eq!(refused.retry, Duration::from_secs(60 - second));
    }
    assert!(take(T + MINUTE).passed());
}

#[test]
fn volume_comes_a_quarter_at_once_and_then_at_its_rate() {
    let take = taker(volume(100, MINUTE));
    assert_eq!(passed(&take, 100, T), 25);
    let refused = take(T);
    assert!(!refused.passed() && take(T + refused.retry).passed());
    let minute = (0..6000u64).filter(|n| take(T + Duration::from_millis(n * 10)).passed());
    assert!(minute.count() <= 100);
}

/// Checks that a limit does what its decisions say: exactly as many calls as remain pass at once, and after
/// the reset the whole limit does.
fn check_decisions(limit: Limit) {
    let (take, most) = (taker(limit), limit.at_once().0);
    let at_once = |now| u32::try_from(passed(&take, 5000, now)).unwrap();
    let first = take(T);
    assert_eq!(first.remaining, most - 1);
    assert_eq!(at_once(T), first.remaining);
    let refused = take(T);
    assert_eq!(refused.remaining, 0);
    let later = T + refused.reset;
    assert_eq!(at_once(later), most);
    let whole = take(later).reset;
    let early = later + whole.saturating_sub(Duration::from_millis(1));
    assert!(at_once(early) < most, "not before the reset");
}

#[test]
fn limit_remaining_and_reset_are_in_one_unit() {
    for (calls, seconds) in [(600, 60), (100, 60), (7, 60), (1, 60), (4000, 1), (5, 3600)] {
        let window = Duration::from_secs(seconds);
        check_decisions(volume(calls, window));
        check_decisions(exact(calls, window));
    }
    let (calls, window) = volume(600, MINUTE).at_once();
    assert_eq!((calls, window), (150, MINUTE / 4));
}

#[test]
fn another_size_begins_with_what_was_spent() {
    let local = Local::new();
    let take = |calls, now| local.take(exact(calls, MINUTE), 7, now);
    assert_eq!(passed(|now| take(30, now), 100, T), 30);
    let lowered = take(10, T + MINUTE / 2);
    assert_eq!((lowered.passed(), lowered.remaining), (false, 0));
    assert_eq!(lowered.retry, MINUTE / 2);
    assert_eq!(passed(|now| take(40, now), 100, T + MINUTE / 2), 10);
}

#[test]
fn a_call_that_one_limit_refuses_is_charged_to_none() {
    let subject = Subject::Name("ada");
    let charge = |limit| Charge { limit, subject };
    for class in [volume(400, MINUTE), exact(100, MINUTE)] {
        let (local, budget) = (Local::new(), Limit::new(LimitName::Identity, 3, MINUTE));
        let both = Charges {
            class: charge(class),
            site: None,
            budget: Some(charge(budget)),
        };
        let outcomes: Vec<_> = (0..50).map(|_| local.charge(&both, T)).collect();
        assert_eq!(outcomes.iter().filter(|o| o.passed()).count(), 3);
        let last = outcomes.last().unwrap();
        assert_eq!(last.refusal().unwrap().0.name, LimitName::Identity);
        assert_eq!(last.class.1.remaining, 97);
        let alone = Charges {
            budget: None,
            ..both
        };
        let left = (0..200).filter(|_| local.charge(&alone, T).passed());
        assert_eq!(left.count(), 97);
        assert!(!local.charge(&both, T).passed());
    }
}

#[test]
fn a_client_that_rotates_within_its_site_has_the_limit_of_the_site() {
    let (local, limit) = (Local::new(), exact(2, MINUTE));
    let by_address = |address| Charges {
        class: Charge {
            limit,
            subject: Subject::Address(address),
        },
        site: Some(Charge {
            limit: exact(20, MINUTE),
            subject: Subject::Site(7),
        }),
        budget: None,
    };
    // What an address is refused is not charged to the site.
    let tries = (0..30).flat_map(|address| [address; 5]);
    let outcomes: Vec<_> = tries
        .map(|address| local.charge(&by_address(address), T))
        .collect();
    assert_eq!(outcomes.iter().filter(|o| o.passed()).count(), 20);
    let (limit, last) = outcomes.last().unwrap().class;
    assert_eq!((limit.calls, last.retry), (20, MINUTE), "the site's");
    assert_eq!(
        local.logs(LimitName::Auth).keys(),
        10 + 1,
        "addresses that were refused leave no trace"
    );
    // Nor is what the site is refused charged to an address.
    let elsewhere = Charges {
        site: None,
        ..by_address(29)
    };
    assert!(local.charge(&elsewhere, T).passed() && local.charge(&elsewhere, T).passed());
}

#[test]
fn a_machine_that_has_just_booted_limits_like_any_other() {
    let start = Monotonic::default();
    assert_eq!(passed(taker(volume(100, MINUTE)), 100, start), 25);
    assert_eq!(passed(taker(exact(10, MINUTE)), 100, start), 10);
}

#[test]
fn strangers_cannot_fill_the_memory() {
    let local = Local::new();
    for n in 0..200_000u64 {
        let now = T + Duration::from_micros(n);
        let key = local.keys.key(n);
        local.take(volume(10, MINUTE), key, now);
        local.take(exact(10, MINUTE), key, now);
    }
    assert!(local.cells.len() <= MAX_KEYS);
    assert!(local.logs(LimitName::Auth).keys() <= logs::MAX_KEYS);
}
