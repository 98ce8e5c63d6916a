//! Whether a peer may call a method: finding the method, and the contract's decision.

use criterion::Criterion;
use std::hint::black_box;
use tars_certs::{PeerClass, SpiffeId};
use tars_interceptors::{Policy, contract};

pub(crate) const METHOD: &str = "/tars.orchestration.v1.TrainingMetricsService/GetTrainingSummary";

pub(crate) fn measure(criterion: &mut Criterion) {
    let table = contract().expect("the contract");
    let policy = Policy::contract(table);
    let id = SpiffeId::new("tars.local", "/gateway").expect("an id");
    let method = table.get(METHOD).expect("the contract has it");
    let mut group = criterion.benchmark_group("policy");
    group.bench_function("find a method", |b| {
        b.iter(|| table.get(black_box(METHOD)));
    });
    group.bench_function("decide about a peer", |b| {
        b.iter(|| {
            policy
                .decide(black_box(method), Some(PeerClass::Gateway), Some(&id))
                .is_ok()
        });
    });
    group.finish();
}
