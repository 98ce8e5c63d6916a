use super::*;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64},
};

const START: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
const MINUTE: Duration = Duration::from_secs(60);

fn call(tenant: &str, outcome: CallOutcome, ms: u64) -> EndedCall<'_> {
    EndedCall {
        tenant,
        outcome,
        took: Duration::from_millis(ms),
        is_retry: false,
    }
}

/// A recorder in its first window.
fn recorder() -> CallRecorder {
    let recorder = CallRecorder::default();
    assert!(recorder.end_window(START).is_none());
    recorder
}

#[test]
fn a_window_has_what_was_recorded_in_it() {
    let recorder = recorder();
    for (tenant, outcome, ms) in [
        ("a", CallOutcome::Completed, 100),
        ("a", CallOutcome::Completed, 300),
        ("a", CallOutcome::Failed, 1_000),
        ("b", CallOutcome::Rejected, 5),
        ("b", CallOutcome::Refused, 5),
    ] {
        recorder.record(&call(tenant, outcome, ms));
    }
    recorder.record(&EndedCall {
        is_retry: true,
        ..call("b", CallOutcome::Completed, 0)
    });
    let window = recorder.end_window(START + MINUTE).unwrap();
    assert_eq!((window.lasted, window.refused), (MINUTE, 1));
    let mut tenants = window.tenants.clone();
    tenants.sort_unstable_by_key(TenantCalls::arrivals);
    let [b, a] = tenants[..] else {
        panic!("{tenants:?}");
    };
    assert_eq!((a.completed, a.failed, a.served()), (2, 1, 3));
    assert!((a.time_s - 1.4).abs() < 1e-9);
    assert_eq!((b.arrivals(), b.rejected, b.retries), (2, 1, 1));
    assert!((window.time_squared - 1.1).abs() < 1e-9);
    assert_eq!(window.latencies.iter().sum::<u64>(), 3, "completed ones");
    let total = window.total();
    assert_eq!((total.arrivals(), total.served()), (5, 4));
}

#[test]
fn the_next_window_begins_with_nothing() {
    let recorder = CallRecorder::default();
    recorder.record(&call("before", CallOutcome::Completed, 1));
    assert!(recorder.end_window(START).is_none(), "of unknown length");
    for window in 1..4 {
        recorder.record(&call("a", CallOutcome::Completed, 1));
        let ended = recorder.end_window(START + MINUTE * window).unwrap();
        assert_eq!((ended.lasted, ended.total().completed), (MINUTE, 1));
        assert_eq!(ended.latencies.iter().sum::<u64>(), 1);
    }
    let idle = recorder.end_window(START + MINUTE * 4).unwrap();
    assert_eq!(idle.total(), TenantCalls::default());
    assert!(idle.tenants.is_empty());
}

#[test]
fn tenants_beyond_the_most_are_pooled_and_none_of_their_calls_is_lost() {
    let recorder = recorder();
    const CALLERS: u64 = 10_000;
    for n in 0..CALLERS {
        recorder.record(&call(&format!("caller {n}"), CallOutcome::Completed, 1));
    }
    let window = recorder.end_window(START + MINUTE).unwrap();
    assert_eq!(window.tenants.len(), MAX_TENANTS);
    assert!(window.pooled.completed > 0);
    assert_eq!(window.total().completed, CALLERS);
    let keys: BTreeSet<u64> = window.tenants.iter().map(|t| t.key).collect();
    assert_eq!(keys.len(), MAX_TENANTS, "each has one place");
}

#[test]
fn a_tenant_has_the_same_key_in_every_window() {
    let recorder = recorder();
    let key = |window| {
        recorder.record(&call("a", CallOutcome::Completed, 1));
        recorder
            .end_window(START + MINUTE * window)
            .unwrap()
            .tenants[0]
            .key
    };
    assert_eq!(key(1), key(2));
}

#[test]
fn a_latency_is_in_the_bucket_of_the_first_bound_that_is_not_below_it() {
    let bounds: Vec<f64> = latency_bounds().collect();
    assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(bounds[0] < 1e-4 && *bounds.last().unwrap() > 120.0);
    for us in [0, 1, 63, 65, 100, 1_000, 10_000, 2_000_000, 400_000_000] {
        let recorder = recorder();
        let took = Duration::from_micros(us);
        recorder.record(&EndedCall {
            took,
            ..call("a", CallOutcome::Completed, 0)
        });
        let counts = recorder.end_window(START + MINUTE).unwrap().latencies;
        assert_eq!(counts.len(), bounds.len() + 1);
        let expected = bounds.partition_point(|bound| *bound < took.as_secs_f64());
        assert_eq!(counts[expected], 1, "{us} µs: {counts:?}");
    }
}

/// Windows end all the time while many threads record: each call is in exactly one window.
#[test]
fn no_call_is_lost_or_counted_twice_while_windows_end() {
    let (recorder, done) = (recorder(), AtomicBool::new(false));
    let (recorded, read) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut time = 0.0;
            while !done.load(SeqCst) {
                let window = recorder.end_window(START).unwrap();
                read.fetch_add(window.total().completed, SeqCst);
                time += window.total().time_s;
                thread::yield_now();
            }
            time
        });
        let writers = ["a", "b", "c", "d"].map(|tenant| {
            let (recorder, recorded) = (&recorder, &recorded);
            scope.spawn(move || {
                for _ in 0..20_000 {
                    recorder.record(&call(tenant, CallOutcome::Completed, 1_000));
                    recorded.fetch_add(1, SeqCst);
                }
            })
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, SeqCst);
        let time = reader.join().unwrap();
        let rest = recorder.end_window(START).unwrap().total();
        let all = read.load(SeqCst) + rest.completed;
        assert_eq!(all, recorded.load(SeqCst));
        assert!((time + rest.time_s - all as f64).abs() < 1e-6);
    });
}
