//! Limits without a server, with 10,000 callers in turns; beside `governor`.

use criterion::Criterion;
use governor::{Quota, clock::FakeRelativeClock};
use std::{hint::black_box, num::NonZeroU32, time::Duration};
use tars_interceptors::limits::{
    Charge, Charges, Charging, Limit, LimitName, RateLimiter, Subject,
};
use tars_runtime::{
    clock::{Clock, Monotonic},
    config::Limits,
};

const CALLERS: u32 = 10_000;
/// So many calls in a second that none is refused.
const WIDE: u32 = 1_000_000_000;

fn charges(limit: Limit, who: &str) -> Charges<'_> {
    Charges {
        class: Charge {
            limit,
            subject: Subject::Name(who),
        },
        site: None,
        budget: None,
    }
}

pub(crate) fn measure(criterion: &mut Criterion) {
    let callers: Vec<String> = (0..CALLERS).map(|n| format!("caller-{n:05}")).collect();
    let mut group = criterion.benchmark_group("limits");
    let quota = Quota::per_second(NonZeroU32::new(WIDE).expect("not zero"));
    let usual = governor::RateLimiter::hashmap_with_clock(quota, FakeRelativeClock::default());
    let mut turns = callers.iter().cycle();
    group.bench_function("baseline: governor", |b| {
        b.iter(|| {
            let who = turns.next().expect("it goes round");
            assert!(black_box(usual.check_key(who)).is_ok());
        });
    });
    for (name, limit) in [
        ("volume", Limit::new(LimitName::User, WIDE, MINUTE)),
        ("exact", Limit::new(LimitName::Auth, 10_000, SECOND)),
    ] {
        let limiter = RateLimiter::new(&Limits::default(), Clock::system());
        let mut now = Monotonic::from_start(Duration::from_secs(1000));
        let mut turns = callers.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                now = now + Duration::from_nanos(200);
                let who = turns.next().expect("it goes round");
                match limiter.charge(&charges(limit, who), now) {
                    Charging::Ready(outcome) => assert!(black_box(outcome).passed()),
                    Charging::Remote(_) => unreachable!("there is no server"),
                }
            });
        });
    }
    group.finish();
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
