use super::*;
use crate::limits::LimitName;

const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
const KEY: u64 = 7;

fn grant(taken: u32) -> Grant {
    Grant {
        taken,
        room: 50,
        reset: Duration::from_secs(10),
        retry: Duration::ZERO,
    }
}

/// Takes one call, for which the server gives all that is wanted; returns how much that was.
fn spend(leases: &Arc<Leases>, size: u32, now: Monotonic) -> Option<u32> {
    match leases.take(KEY, size, now) {
        Take::Passed(_, None) => None,
        Take::Passed(_, Some(ask)) => {
            leases.stored(&ask, grant(ask.wanted), now);
            Some(ask.wanted)
        }
        Take::Unknown(ask) => {
            assert!(leases.granted(&ask, grant(ask.wanted), now).passed());
            Some(ask.wanted)
        }
        Take::Refused(decision) => panic!("{decision:?}"),
    }
}

#[test]
fn the_size_is_a_twentieth_of_the_limit_over_all_replicas() {
    let limit = |calls| Limit::new(LimitName::User, calls, Duration::from_secs(60));
    for (calls, replicas, expected) in [
        (600, 1, 30),
        (600, 4, 7),
        (10, 4, 1),
        (1_000_000_000, 1, MOST),
        (600, 0, 30),
        (600, u32::MAX, 1),
    ] {
        assert_eq!(
            size(&limit(calls), replicas),
            expected,
            "{calls}, {replicas}"
        );
    }
}

#[test]
fn a_busy_caller_asks_the_server_ever_less() {
    let leases = Arc::new(Leases::new());
    let asked: Vec<u32> = (0..1000).filter_map(|_| spend(&leases, 64, T)).collect();
    assert_eq!(asked[0], 1);
    assert!(asked.iter().all(|wanted| *wanted <= 64));
    assert!(asked.len() < 60, "{asked:?}");
}

#[test]
fn a_caller_at_20_000_a_second_over_four_replicas_costs_few_questions() {
    let limit = Limit::new(LimitName::User, 20_000, LIFE);
    let size = size(&limit, 4);
    assert_eq!(size, 250);
    let replicas: Vec<_> = (0..4).map(|_| Arc::new(Leases::new())).collect();
    let (decisions, mut asks) = (60_000, 0);
    for n in 0..decisions {
        let now = T + LIFE / 20_000 * n;
        let asked = spend(&replicas[n as usize % 4], size, now);
        asks += u32::from(asked.is_some());
    }
    let ratio = f64::from(asks) / f64::from(decisions);
    assert!(ratio < 0.04, "{asks} of {decisions}");
}

#[test]
fn a_slow_caller_asks_for_one_call_at_a_time() {
    let leases = Arc::new(Leases::new());
    for n in 0..20 {
        let now = T + LIFE * 2 * n;
        assert_eq!(spend(&leases, 64, now), Some(1));
    }
}

#[test]
fn no_more_than_the_size_is_held_and_nothing_after_its_life() {
    let leases = Arc::new(Leases::new());
    for _ in 0..500 {
        spend(&leases, 16, T);
        let held = leases.map.with(KEY, T, |lease| lease.left);
        assert!(held <= 16, "{held}");
    }
    assert!(matches!(leases.take(KEY, 16, T + LIFE), Take::Unknown(_)));
    assert!(matches!(leases.take(KEY, 16, T + LIFE), Take::Unknown(_)));
}

#[test]
fn a_refusal_holds_until_its_retry_time() {
    let leases = Arc::new(Leases::new());
    let Take::Unknown(ask) = leases.take(KEY, 16, T) else {
        panic!("nothing is leased");
    };
    let refusal = Grant {
        retry: Duration::from_millis(100),
        ..grant(0)
    };
    assert!(!leases.granted(&ask, refusal, T).passed());
    for millis in [0, 50, 99] {
        let now = T + Duration::from_millis(millis);
        let Take::Refused(decision) = leases.take(KEY, 16, now) else {
            panic!("it holds");
        };
        assert_eq!(decision.retry, Duration::from_millis(100 - millis));
    }
    let later = leases.take(KEY, 16, T + Duration::from_millis(100));
    assert!(matches!(later, Take::Unknown(_)));
}

#[test]
fn one_call_asks_for_a_batch_and_the_others_for_themselves() {
    let leases = Arc::new(Leases::new());
    for _ in 0..10 {
        spend(&leases, 16, T);
    }
    leases.map.with(KEY, T, |lease| lease.left = 0);
    let asks: Vec<Take> = (0..5).map(|_| leases.take(KEY, 16, T)).collect();
    let wanted: Vec<u32> = asks
        .iter()
        .map(|take| match take {
            Take::Unknown(ask) => ask.wanted,
            _ => panic!("nothing is left"),
        })
        .collect();
    assert!(wanted[0] > 1 && wanted[1..] == [1; 4], "{wanted:?}");
    drop(asks);
    let Take::Unknown(ask) = leases.take(KEY, 16, T) else {
        panic!("nothing is left");
    };
    assert!(
        ask.wanted > 1,
        "a call that went away does not ask for ever"
    );
}

#[test]
fn a_call_that_is_given_back_can_be_spent() {
    let leases = Arc::new(Leases::new());
    spend(&leases, 16, T);
    leases.give_back(KEY, T);
    assert!(matches!(leases.take(KEY, 16, T), Take::Passed(..)));
}
