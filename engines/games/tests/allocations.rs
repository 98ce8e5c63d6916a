//! Inner loops allocate nothing: more rounds of a search are no more allocations.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::{
    alloc::System,
    sync::atomic::{AtomicU64, Ordering},
};
use tars_games::{Algorithm, Control, Game, Options, Process};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Stops at the n-th question.
struct After(AtomicU64);

impl Control for After {
    fn is_stopped(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }
}

/// Allocations and iterations of a solve that is stopped at some question.
fn cost(game: &Game, algorithm: Algorithm, questions: u64) -> (usize, u64) {
    let options = Options {
        // Nothing is good enough, so that nothing ends but by the question.
        tolerance: Some(0.0),
        algorithm,
        rounds: u64::MAX,
        ..Options::default()
    };
    let control = After(AtomicU64::new(questions));
    let region = Region::new(GLOBAL);
    let solution = game.solve(&options, &control).unwrap();
    (region.change().allocations, solution.iterations)
}

// One test: what other tests allocate at the same time would be counted.
#[test]
fn longer_searches_do_not_allocate_more() {
    let two = game(&[20, 20], &nearly_opposed(1, &[20, 20]));
    let four = game(&[4, 4, 4, 4], &constant_sum(1, &[4, 4, 4, 4]));
    let processes = [
        Process::FictitiousPlay,
        Process::RegretMatchingPlus,
        Process::Replicator,
        Process::ProjectedReplicator,
    ];
    let mut cases = vec![
        (&two, Algorithm::LemkeHowson),
        (&four, Algorithm::IteratedPolymatrix),
        (&four, Algorithm::LogitHomotopy),
    ];
    cases.extend(processes.map(|p| (&four, Algorithm::Learning(p))));
    for (game, algorithm) in cases {
        let (short, few) = cost(game, algorithm, 200);
        let (long, many) = cost(game, algorithm, 2_000);
        assert!(many > few, "{algorithm:?}: {few} and {many} iterations");
        assert_eq!(short, long, "{algorithm:?}: {few} and {many} iterations");
    }
}
