//! Credentials: a token that is new to the process, one that it knows, an API key; beside a token that is
//! verified anew in each call.

use crate::held::Held;
use criterion::{BatchSize, Criterion};
use std::hint::black_box;
use tars_credentials::Claims;

pub(crate) fn measure(criterion: &mut Criterion, held: &Held) {
    let mut group = criterion.benchmark_group("credentials");
    let (key, rules) = held.usual();
    let now_s = held.now.as_secs();
    group.bench_function("baseline: jsonwebtoken", |b| {
        b.iter(|| {
            jsonwebtoken::decode::<Claims>(black_box(&held.token), &key, &rules)
                .expect("it is valid")
        });
    });
    group.bench_function("token, new to the process", |b| {
        b.iter_batched_ref(
            || held.view(),
            |view| view.check_token(black_box(&held.token), now_s),
            BatchSize::SmallInput,
        );
    });
    let view = held.view();
    group.bench_function("token, known", |b| {
        b.iter(|| {
            view.check_token(black_box(&held.token), now_s)
                .expect("it is valid")
        });
    });
    group.bench_function("API key", |b| {
        b.iter(|| {
            view.check_api_key(black_box(&held.api_key.text), now_s)
                .expect("it is valid")
        });
    });
    group.finish();
}
