//! What the tests of the worlds share.

use crate::{Action, Generator, Observations, TimeStep, World};
use rand::SeedableRng;
use serde::de::DeserializeOwned;

/// A world with what a caller keeps beside it.
pub(crate) struct Episode<W: World> {
    pub(crate) world: W,
    pub(crate) rng: Generator,
    pub(crate) seen: Observations,
    pub(crate) steps: Vec<TimeStep>,
}

impl<W: World> Episode<W> {
    /// The first state of an episode.
    pub(crate) fn start(mut world: W, seed: u64) -> Self {
        let mut rng = Generator::seed_from_u64(seed);
        let mut seen = Observations::new(world.spec());
        world.reset(&mut rng, &mut seen);
        Self::at(world, rng, seen)
    }

    /// The state that a world is in.
    pub(crate) fn resume(world: W) -> Self {
        let mut seen = Observations::new(world.spec());
        world.observe(&mut seen);
        Self::at(world, Generator::seed_from_u64(0), seen)
    }

    fn at(world: W, rng: Generator, seen: Observations) -> Self {
        let steps = vec![TimeStep::default(); world.spec().agents.len()];
        Self {
            world,
            rng,
            seen,
            steps,
        }
    }

    /// Takes a joint action.
    pub(crate) fn step(&mut self, actions: &[Action]) -> &[TimeStep] {
        let (rng, seen) = (&mut self.rng, &mut self.seen);
        self.world.step(actions, rng, seen, &mut self.steps);
        &self.steps
    }

    /// Takes a discrete action of the only agent.
    pub(crate) fn choose(&mut self, action: usize) -> TimeStep {
        self.step(&[Action::Discrete(action)])[0]
    }
}

/// Nothing changes in the mesh but, to begin with, the share of replicas.
pub(crate) fn mesh_hold(share: f32) -> Vec<Action> {
    let mut actions = [0, 0, 0].map(Action::Discrete).to_vec();
    actions.push(Action::Continuous(vec![share]));
    actions
}

/// Stored vectors; `tests/vectors/generate.py` writes them.
pub(crate) fn vectors<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

/// Checks two vectors against each other, component by component.
pub(crate) fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance, "{ours:?} against {theirs:?}");
    }
}

/// Checks that a restored episode goes on as the original, and that no part of a snapshot is one.
pub(crate) fn assert_restores<W: World>(
    mut episode: Episode<W>,
    fresh: W,
    joint: impl Fn(usize) -> Vec<Action>,
) {
    for at in 0..7 {
        episode.step(&joint(at));
    }
    let snapshot = episode.world.snapshot().unwrap();
    let mut copy = Episode::start(fresh, 77);
    copy.world.restore(&snapshot).unwrap();
    copy.world.observe(&mut copy.seen);
    assert_eq!(episode.seen, copy.seen);
    copy.rng = episode.rng.clone();
    for at in 7..20 {
        episode.step(&joint(at));
        copy.step(&joint(at));
        assert_eq!(episode.seen, copy.seen);
        assert_eq!(episode.steps, copy.steps);
    }
    for cut in 0..snapshot.len() {
        assert!(
            copy.world.restore(&snapshot[..cut]).is_err(),
            "cut at {cut}"
        );
    }
}
