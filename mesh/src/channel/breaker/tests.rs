use super::{super::ejections::Ejections, *};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;

const ALWAYS: fn() -> Option<Ejection> = || {
    let ejections = Ejections::new(Gauge::default());
    ejections.set_addresses(2);
    Arc::new(ejections).place()
};
const NEVER: fn() -> Option<Ejection> = || None;

fn breaker() -> (Breaker, Instant) {
    let now = Instant::now();
    (Breaker::new(Seeds::counted(1), now), now)
}

/// An ejected address.
fn ejected() -> (Breaker, Instant) {
    let (mut breaker, now) = breaker();
    for at in 1..=FAILURES_IN_A_ROW {
        let change = breaker.record(Verdict::Failed, now, ALWAYS);
        assert_eq!(change == Change::Ejected, at == FAILURES_IN_A_ROW);
    }
    (breaker, now)
}

/// Whether a call that can be sent again is let through.
fn probes(breaker: &mut Breaker, now: Instant) -> bool {
    breaker.try_probe(true, now).is_some()
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let (mut breaker, now) = breaker();
    for _ in 0..MIN_CALLS {
        for _ in 1..FAILURES_IN_A_ROW {
            // Below half of all, so that only the row counts.
            breaker.record(Verdict::Healthy, now, ALWAYS);
        }
        for _ in 1..FAILURES_IN_A_ROW - 1 {
            assert_eq!(breaker.record(Verdict::Failed, now, ALWAYS), Change::None);
        }
    }
    ejected();
}

#[test]
fn half_of_the_calls_eject_once_there_are_enough_of_them() {
    let (mut breaker, now) = breaker();
    let mut change = Change::None;
    for at in 0..MIN_CALLS {
        assert_eq!(change, Change::None, "{at}");
        let verdict = match at % 2 {
            0 => Verdict::Healthy,
            _ => Verdict::Failed,
        };
        change = breaker.record(verdict, now, ALWAYS);
    }
    assert_eq!(change, Change::Ejected);
}

#[test]
fn failures_of_another_while_do_not_count_together() {
    let (mut breaker, mut now) = breaker();
    for _ in 0..MIN_CALLS {
        for verdict in [Verdict::Failed, Verdict::Healthy] {
            assert_eq!(breaker.record(verdict, now, ALWAYS), Change::None);
        }
        now += WINDOW / 4;
    }
}

#[test]
fn what_says_nothing_neither_ejects_nor_hides_failures() {
    let (mut breaker, now) = breaker();
    for _ in 0..100 {
        assert_eq!(breaker.record(Verdict::Unknown, now, ALWAYS), Change::None);
    }
    for _ in 1..FAILURES_IN_A_ROW {
        breaker.record(Verdict::Failed, now, ALWAYS);
        breaker.record(Verdict::Unknown, now, ALWAYS);
    }
    assert_eq!(
        breaker.record(Verdict::Failed, now, ALWAYS),
        Change::Ejected
    );
}

#[test]
fn an_address_that_may_not_be_ejected_is_asked_about_again() {
    let (mut breaker, now) = breaker();
    for _ in 0..100 {
        assert_eq!(breaker.record(Verdict::Failed, now, NEVER), Change::None);
    }
    assert_eq!(
        breaker.record(Verdict::Failed, now, ALWAYS),
        Change::Ejected
    );
}

#[test]
fn one_probe_is_let_through_when_the_time_is_up() {
    let (mut breaker, now) = ejected();
    assert!(!probes(&mut breaker, now));
    let later = now + FIRST_EJECTION;
    let unspared = breaker.try_probe(false, later);
    assert_eq!(unspared, None, "it could not be sent again");
    assert_eq!(breaker.try_probe(true, later), Some(Change::Probed));
    assert!(!probes(&mut breaker, later), "one at a time");
    let change = breaker.record(Verdict::Healthy, later, ALWAYS);
    assert_eq!(change, Change::None, "that call began before");
    let change = breaker.record_probe(Verdict::Healthy, later);
    assert_eq!(change, Change::Readmitted);
    assert!(!probes(&mut breaker, later + MAX_EJECTION));
}

#[test]
fn without_calls_to_spare_any_call_is_the_probe_after_a_while() {
    let (mut breaker, now) = ejected();
    let due = now + FIRST_EJECTION + ANY_PROBE_AFTER;
    assert_eq!(breaker.try_probe(false, due), Some(Change::Probed));
}

#[test]
fn a_probe_that_fails_ejects_for_longer_up_to_a_bound() {
    let (mut breaker, mut now) = ejected();
    for failures in 2..20 {
        now += MAX_EJECTION;
        assert!(probes(&mut breaker, now));
        assert_eq!(breaker.record_probe(Verdict::Failed, now), Change::Reopened);
        let whole = Backoff::new(FIRST_EJECTION, MAX_EJECTION).after(failures);
        let early = now + whole / 2 - Duration::from_millis(1);
        assert!(!probes(&mut breaker, early));
    }
}

#[test]
fn a_probe_without_a_result_leaves_its_place_to_the_next_call() {
    let (mut breaker, now) = ejected();
    let later = now + FIRST_EJECTION;
    assert!(probes(&mut breaker, later));
    let change = breaker.record_probe(Verdict::Unknown, later);
    assert_eq!(change, Change::Reopened);
    assert!(probes(&mut breaker, later));
}

#[test]
fn a_probe_that_is_accepted_has_succeeded_once_nothing_bad_has_followed() {
    let (mut breaker, now) = ejected();
    let sent = now + FIRST_EJECTION;
    assert!(probes(&mut breaker, sent));
    assert_eq!(breaker.settle(sent + PROBATION), Change::None, "no answer");
    breaker.accept_probe(sent);
    let early = sent + PROBATION - Duration::from_millis(1);
    assert_eq!(breaker.settle(early), Change::None);
    assert_eq!(breaker.settle(sent + PROBATION), Change::Readmitted);
    let change = breaker.record_probe(Verdict::Failed, sent + PROBATION);
    assert_eq!(
        change,
        Change::None,
        "what follows later is not the probe's"
    );
}

#[test]
fn a_probe_that_fails_after_it_was_accepted_has_failed() {
    let (mut breaker, now) = ejected();
    let sent = now + FIRST_EJECTION;
    assert!(probes(&mut breaker, sent));
    breaker.accept_probe(sent);
    let change = breaker.record_probe(Verdict::Failed, sent);
    assert_eq!(change, Change::Reopened);
    assert_eq!(breaker.settle(sent + PROBATION), Change::None);
}

#[test]
fn a_probe_that_has_no_end_does_not_keep_the_address_out() {
    let (mut breaker, now) = ejected();
    let mut sent = now + FIRST_EJECTION;
    assert!(probes(&mut breaker, sent));
    for _ in 0..3 {
        let early = sent + NEXT_PROBE_AFTER - Duration::from_millis(1);
        assert!(!probes(&mut breaker, early));
        sent += NEXT_PROBE_AFTER;
        let change = breaker.try_probe(true, sent);
        assert_eq!(change, Some(Change::None), "it is half-open already");
    }
    let change = breaker.record_probe(Verdict::Healthy, sent);
    assert_eq!(change, Change::Readmitted);
}

#[test]
fn ejections_start_over_after_a_while_that_was_good() {
    let (mut breaker, now) = ejected();
    let mut now = now + FIRST_EJECTION;
    assert!(probes(&mut breaker, now));
    breaker.record_probe(Verdict::Healthy, now);
    let eject = |breaker: &mut Breaker, now| {
        while breaker.record(Verdict::Failed, now, ALWAYS) == Change::None {}
    };
    now += MAX_EJECTION + FIRST_EJECTION;
    eject(&mut breaker, now);
    assert_eq!(breaker.ejections, 1);
    assert!(probes(&mut breaker, now + FIRST_EJECTION));
    breaker.record_probe(Verdict::Healthy, now + FIRST_EJECTION);
    eject(&mut breaker, now + FIRST_EJECTION * 2);
    assert_eq!(breaker.ejections, 2, "it came back too soon");
}
