//! What the parts of a call cost, in one thread and without a socket, each beside what it takes the place of:
//! `cargo bench --package tars-interceptors --bench parts [FILTER]`.
//!
//! `cargo xtask bench mesh` measures whole calls. These tell which part of a call a change of theirs comes from.

mod held;
mod limits;
mod policy;
mod stack;
mod tokens;
mod traces;

use criterion::Criterion;
use held::Held;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let held = Held::new();
    tokens::measure(&mut criterion, &held);
    policy::measure(&mut criterion);
    limits::measure(&mut criterion);
    traces::measure(&mut criterion);
    stack::measure(&mut criterion, &held);
    criterion.final_summary();
}
