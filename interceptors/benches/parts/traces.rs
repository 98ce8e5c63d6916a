//! Where a call stands in its trace: the header read, and the span of a call that is not sampled.

use criterion::Criterion;
use http::{HeaderMap, HeaderValue};
use std::hint::black_box;
use tars_runtime::trace::{Entry, Parent, Tracer};

const POSITION: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static(POSITION));
    let tracer = Tracer::disabled();
    let mut group = criterion.benchmark_group("trace");
    group.bench_function("read the parent", |b| {
        b.iter(|| Parent::read(black_box(&headers)).expect("it is well formed"));
    });
    group.bench_function("a span that is not sampled", |b| {
        b.iter(|| {
            let entry = Entry {
                parent: Parent::read(black_box(&headers)),
                trusted: true,
                infrastructure: false,
            };
            tracer.enter("call", entry).context()
        });
    });
    group.finish();
}
