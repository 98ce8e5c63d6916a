//! The inner loops of the solvers do not allocate: a longer search makes no more allocations.

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

/// Stops the search at the n-th poll.
struct After(AtomicU64);

impl Control for After {
    fn is_stopped(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }
}

/// The allocations and iterations of a search that is stopped at some poll.
fn measure(game: &Game, algorithm: Algorithm, polls: u64) -> (usize, u64) {
    let options = Options {
        // No profile is good enough, so the search ends only when it is stopped.
        tolerance: Some(0.0),
        algorithm,
        rounds: u64::MAX,
        ..Options::default()
    };
    let control = After(AtomicU64::new(polls));
    let region = Region::new(GLOBAL);
    let solution = game.solve(&options, &control).unwrap();
    (region.change().allocations, solution.iterations)
}

/// The smallest of several measurements: the allocator counts the test harness's thread too, which
/// adds an allocation now and then.
fn cost(game: &Game, algorithm: Algorithm, polls: u64) -> (usize, u64) {
    let measured = (0..10).map(|_| measure(game, algorithm, polls));
    measured.min().unwrap()
}

// This is the only test of its file, as allocations of a concurrent one would be counted.
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
