//! Stepping a world does not allocate, whether alone or among copies, and neither does starting an episode.

#![allow(clippy::unwrap_used)]

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use tars_worlds::{Action, Copies, make_world, world_names};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The allocations of the process while copies take some steps, among which there are ends of episodes.
fn measure(copies: &mut Copies, actions: &[Action]) -> usize {
    let region = Region::new(GLOBAL);
    for _ in 0..600 {
        copies.step(actions);
    }
    region.change().allocations
}

#[test]
fn stepping_copies_of_any_world_does_not_allocate() {
    for name in world_names() {
        let mut copies = Copies::new(|| make_world(name).unwrap(), 4, 1);
        let agents = copies.spec().agents.iter();
        let joint: Vec<Action> = agents.map(|agent| agent.action.first()).collect();
        let actions: Vec<Action> = (0..4).flat_map(|_| joint.clone()).collect();
        // The test harness has a thread of its own, which allocates now and then.
        let fewest = (0..5).map(|_| measure(&mut copies, &actions)).min();
        assert_eq!(fewest, Some(0), "{name}");
    }
}
