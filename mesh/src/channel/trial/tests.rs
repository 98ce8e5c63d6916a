use super::{
    super::{health::Common, metrics::ChannelMetrics},
    *,
};
use tokio::time::advance;

const METHOD: Option<usize> = Some(0);
const TIMING: Timing = Timing::Method(0);

/// One of two addresses.
pub(in crate::channel) fn of_two() -> Arc<Health> {
    measuring(true, 2)
}

fn measuring(measures: bool, addresses: usize) -> Arc<Health> {
    let metrics = ChannelMetrics::default().of("spiffe://tars.local/auth");
    let common = Arc::new(Common::new(measures, &metrics));
    common.ejections.set_addresses(addresses);
    Health::new(&Arc::from("a:1"), &common)
}

pub(in crate::channel) fn call(health: &Arc<Health>) -> Trial {
    Trial::call(health, TIMING, Instant::now())
}

fn probe(health: &Arc<Health>) -> Option<Trial> {
    Trial::try_probe(health, TIMING, true, Instant::now())
}

fn accepted(mut trial: Trial) -> Trial {
    trial.responded();
    trial
}

fn slowness(health: &Health) -> f64 {
    health.slowness(Instant::now())
}

/// A call that ends after so many milliseconds.
async fn ended(health: &Arc<Health>, after: u64, ending: Ending) {
    let call = call(health);
    advance(Duration::from_millis(after)).await;
    call.end(ending);
}

/// Fails until the address is ejected, and waits until a probe is due.
async fn eject(health: &Arc<Health>) {
    for _ in 0..5 {
        assert!(!health.is_ejected());
        call(health).end(Ending::Failed);
    }
    assert!(health.is_ejected());
    assert!(probe(health).is_none());
    advance(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_as_slow_however_fast_it_is() {
    for ending in [Ending::Failed, Ending::Busy] {
        let health = of_two();
        call(&health).end(Ending::Served);
        assert_eq!(slowness(&health), 1.0);
        call(&health).end(ending);
        assert_eq!(slowness(&health), MAX_RATIO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_address_is_not_ejected_and_a_refusal_for_the_caller_tells_nothing() {
    let health = of_two();
    for _ in 0..100 {
        call(&health).end(Ending::Other);
    }
    assert_eq!(slowness(&health), 1.0);
    for _ in 0..100 {
        call(&health).end(Ending::Busy);
    }
    assert!(!health.is_ejected());
}

#[tokio::test(start_paused = true)]
async fn what_is_usual_is_learned_from_what_was_served_alone() {
    let health = of_two();
    ended(&health, 100, Ending::Served).await;
    let usual = health.usual(METHOD);
    assert_eq!(usual, Some(Duration::from_millis(100)));
    for ending in [
        Ending::Answered,
        Ending::Busy,
        Ending::Failed,
        Ending::Other,
    ] {
        ended(&health, 1, ending).await;
        ended(&health, 10_000, ending).await;
        assert_eq!(health.usual(METHOD), usual, "{ending:?}");
    }
    drop(accepted(call(&health)));
    assert_eq!(health.usual(METHOD), usual, "its end was not read");
    ended(&health, 1, Ending::Served).await;
    assert!(health.usual(METHOD) < usual);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_may_show_that_an_address_is_slow_and_not_that_it_is_fast() {
    let health = of_two();
    ended(&health, 10, Ending::Served).await;
    ended(&health, 100, Ending::Answered).await;
    assert_eq!(slowness(&health), 10.0);
    // What was slow twice is left alone for longer, unless it was fast in between.
    let later = |health: &Health| health.slowness(Instant::now() + Duration::from_secs(10));
    advance(Duration::from_secs(4)).await;
    ended(&health, 100, Ending::Answered).await;
    let slow = later(&health);
    call(&health).end(Ending::Answered);
    drop(call(&health));
    assert_eq!(later(&health), slow);
    call(&health).end(Ending::Served);
    assert!(later(&health) < slow);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_answered_readmits_the_address_as_if_nothing_had_been() {
    for ending in [Ending::Served, Ending::Answered] {
        let health = of_two();
        eject(&health).await;
        probe(&health).unwrap().end(ending);
        assert!(!health.is_ejected());
        assert_eq!(slowness(&health), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_or_limited_leaves_its_place_to_the_next() {
    let health = of_two();
    eject(&health).await;
    drop(probe(&health).unwrap());
    probe(&health).unwrap().end(Ending::Other);
    assert!(probe(&health).is_some());
    assert!(health.is_ejected());
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_as_long_as_its_method_may_take() {
    let patience_after = async |usual: Option<u64>| {
        let health = of_two();
        if let Some(usual) = usual {
            ended(&health, usual, Ending::Served).await;
        }
        assert_eq!(call(&health).patience(), None, "it is no probe");
        eject(&health).await;
        probe(&health).unwrap().patience().unwrap().as_millis()
    };
    for (usual, expected) in [
        (None, 1000),
        (Some(1), 20),
        (Some(10), 80),
        (Some(125), 1000),
        (Some(400), 1000),
        (Some(500), 1000),
        (Some(600), 1200),
        (Some(30_000), 60_000),
    ] {
        assert_eq!(patience_after(usual).await, expected, "{usual:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_after_long_silence_eject_and_impatient_ones_do_not() {
    let health = of_two();
    for _ in 0..100 {
        drop(call(&health));
    }
    assert!(!health.is_ejected());
    let calls: Vec<_> = (0..5).map(|_| call(&health)).collect();
    advance(MIN_SILENCE).await;
    drop(calls);
    assert!(health.is_ejected());
}

#[tokio::test(start_paused = true)]
async fn giving_up_a_method_that_takes_long_shows_nothing() {
    let health = of_two();
    ended(&health, 10_000, Ending::Served).await;
    let calls: Vec<_> = (0..5).map(|_| call(&health)).collect();
    advance(Duration::from_secs(10)).await;
    drop(calls);
    assert!(!health.is_ejected());
    assert_eq!(slowness(&health), 1.0);
}

fn queued(health: &Arc<Health>) -> Trial {
    Trial::call(health, Timing::Queued, Instant::now())
}

#[tokio::test(start_paused = true)]
async fn giving_up_what_waits_in_a_queue_shows_nothing_however_short_it_was_before() {
    let health = of_two();
    for short in [false, true] {
        for _ in 0..if short { 100 } else { 0 } {
            queued(&health).end(Ending::Served);
        }
        let calls: Vec<_> = (0..8).map(|_| queued(&health)).collect();
        advance(Duration::from_millis(1100)).await;
        drop(calls);
        assert!(!health.is_ejected());
        assert_eq!(slowness(&health), 1.0);
    }
    for _ in 0..5 {
        queued(&health).end(Ending::Failed);
    }
    assert!(health.is_ejected(), "a failure is one");
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_queue_is_a_probe_only_where_nothing_else_is_called() {
    let health = of_two();
    eject(&health).await;
    let try_queued = || Trial::try_probe(&health, Timing::Queued, true, Instant::now());
    assert!(try_queued().is_none());
    probe(&health).unwrap().end(Ending::Other);
    advance(Duration::from_secs(10)).await;
    let long = try_queued().unwrap();
    assert_eq!(long.patience(), None, "it is waited for");
    advance(Duration::from_secs(5)).await;
    drop(long);
    assert!(probe(&health).is_some(), "it is not ejected for longer");
}

#[tokio::test(start_paused = true)]
async fn streams_weigh_nothing_until_one_fails() {
    let health = measuring(false, 2);
    call(&health).end(Ending::Served);
    for ending in [Ending::Served, Ending::Answered] {
        ended(&health, 10_000, ending).await;
    }
    assert_eq!(slowness(&health), 1.0);
    call(&health).end(Ending::Failed);
    assert_eq!(slowness(&health), MAX_RATIO);
}

#[tokio::test(start_paused = true)]
async fn what_has_begun_counts_as_healthy_until_it_fails() {
    let health = measuring(false, 2);
    for _ in 0..5 {
        let silent = accepted(call(&health));
        advance(Duration::from_secs(3600)).await;
        drop(silent);
    }
    assert!(!health.is_ejected(), "it had nothing to say");
    for _ in 0..5 {
        accepted(call(&health)).end(Ending::Failed);
    }
    assert!(health.is_ejected());
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_response_has_begun_is_judged_by_what_follows() {
    let health = of_two();
    eject(&health).await;
    let first = accepted(probe(&health).unwrap());
    assert!(health.is_ejected(), "a fault may follow");
    first.end(Ending::Failed);
    assert!(health.is_ejected());
    advance(Duration::from_secs(30)).await;
    let second = accepted(probe(&health).unwrap());
    assert!(probe(&health).is_none());
    advance(Duration::from_secs(1)).await;
    assert!(probe(&health).is_none(), "none is needed any more");
    assert!(!health.is_ejected(), "nothing bad has followed");
    drop(second);
    assert!(!health.is_ejected());
}

#[tokio::test(start_paused = true)]
async fn the_only_address_is_never_ejected() {
    let health = measuring(true, 1);
    for _ in 0..100 {
        call(&health).end(Ending::Failed);
    }
    assert!(!health.is_ejected());
}
