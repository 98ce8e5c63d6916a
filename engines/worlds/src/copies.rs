//! Copies of one world that are stepped together, for learners that train on batches.
//!
//! A copy whose episode has ended starts the next one within the same step (Gymnasium's same-step
//! autoreset): its row then holds the first observation of the new episode, and the final one, which a
//! learner bootstraps from after a truncation, is kept apart.

use crate::{
    space::{Action, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, Soundness, TimeStep, World},
};
use rand::{Rng, SeedableRng};

/// What one agent of every copy got in the last step: a row, or an element, for each copy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentBatch {
    /// What to act on next: copies × observation components, row-major.
    pub observations: Vec<f32>,
    /// What the episode ended with, in the rows of the copies whose episode has ended; other rows hold
    /// what an earlier episode left.
    pub final_observations: Vec<f32>,
    /// Rewards.
    pub rewards: Vec<f32>,
    /// Which agents reached a final state.
    pub terminated: Vec<bool>,
    /// Which episodes the time limit cut off.
    pub truncated: Vec<bool>,
}

/// Copies of a world, each with a generator of its own.
pub struct Copies {
    copies: Vec<Copy>,
    agents: Vec<AgentBatch>,
}

struct Copy {
    world: Box<dyn World>,
    rng: Generator,
    seen: Observations,
    steps: Vec<TimeStep>,
}

impl AgentBatch {
    fn new(copies: usize, components: usize) -> Self {
        Self {
            observations: vec![0.0; copies * components],
            final_observations: vec![0.0; copies * components],
            rewards: vec![0.0; copies],
            terminated: vec![false; copies],
            truncated: vec![false; copies],
        }
    }

    fn record(&mut self, copy: usize, step: TimeStep) {
        self.rewards[copy] = step.reward;
        self.terminated[copy] = step.terminated;
        self.truncated[copy] = step.truncated;
    }
}

fn row(rows: &mut [f32], at: usize, seen: &[f32]) {
    rows[at * seen.len()..][..seen.len()].copy_from_slice(seen);
}

impl Copy {
    fn new(mut world: Box<dyn World>, mut rng: Generator) -> Self {
        let mut seen = Observations::new(world.spec());
        world.reset(&mut rng, &mut seen);
        let steps = vec![TimeStep::default(); world.spec().agents.len()];
        Self {
            world,
            rng,
            seen,
            steps,
        }
    }

    fn step(&mut self, actions: &[Action]) {
        let Self {
            world,
            rng,
            seen,
            steps,
        } = self;
        world.step(actions, rng, seen, steps);
    }

    fn is_over(&self) -> bool {
        self.steps.iter().all(TimeStep::is_last)
    }
}

impl Copies {
    /// Starts an episode in each of some copies, at least one. The seed determines all of them.
    pub fn new(make: impl Fn() -> Box<dyn World>, copies: usize, seed: u64) -> Self {
        let mut seeds = Generator::seed_from_u64(seed);
        let copy = |_| Copy::new(make(), Generator::seed_from_u64(seeds.next_u64()));
        let copies: Vec<Copy> = (0..copies.max(1)).map(copy).collect();
        let spaces = copies[0].world.spec().agents.iter();
        let batch =
            |space: &crate::AgentSpace| AgentBatch::new(copies.len(), space.observation.len());
        let agents = spaces.map(batch).collect();
        let mut all = Self { copies, agents };
        all.record_observations();
        all
    }

    /// How many copies there are.
    pub fn len(&self) -> usize {
        self.copies.len()
    }

    /// Always false: there is at least one copy.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// The agents and their spaces.
    pub fn spec(&self) -> &WorldSpec {
        self.copies[0].world.spec()
    }

    /// What an agent of every copy sees and got in the last step.
    ///
    /// # Panics
    ///
    /// When the world has no such agent.
    pub fn agent(&self, agent: usize) -> &AgentBatch {
        &self.agents[agent]
    }

    /// The worst among the copies' [`World::soundness`].
    pub fn soundness(&self) -> Soundness {
        let all = self.copies.iter().map(|copy| copy.world.soundness());
        all.max().unwrap_or_default()
    }

    /// Writes which discrete actions an agent of every copy may take now: copies × actions, row-major.
    pub fn write_masks(&self, agent: usize, masks: &mut [bool]) {
        let actions = self.spec().agents[agent].action.len();
        for (copy, mask) in self.copies.iter().zip(masks.chunks_exact_mut(actions)) {
            copy.world.write_mask(agent, mask);
        }
    }

    /// Takes an action of each agent in each copy: copies × agents, row-major. It does not allocate.
    ///
    /// # Panics
    ///
    /// When there are not as many actions.
    pub fn step(&mut self, actions: &[Action]) {
        assert_eq!(
            actions.len(),
            self.copies.len() * self.agents.len(),
            "an action for each"
        );
        let joints = actions.chunks_exact(self.agents.len());
        for (copy, joint) in self.copies.iter_mut().zip(joints.clone()) {
            copy.world.announce(joint);
        }
        for (at, joint) in joints.enumerate() {
            self.copies[at].step(joint);
            self.record(at);
        }
    }

    fn record(&mut self, at: usize) {
        let copy = &mut self.copies[at];
        let over = copy.is_over();
        for (agent, batch) in self.agents.iter_mut().enumerate() {
            batch.record(at, copy.steps[agent]);
            if over {
                row(&mut batch.final_observations, at, copy.seen.of(agent));
            }
        }
        if over {
            copy.world.reset(&mut copy.rng, &mut copy.seen);
        }
        for (agent, batch) in self.agents.iter_mut().enumerate() {
            row(&mut batch.observations, at, copy.seen.of(agent));
        }
    }

    fn record_observations(&mut self) {
        for (at, copy) in self.copies.iter().enumerate() {
            for (agent, batch) in self.agents.iter_mut().enumerate() {
                row(&mut batch.observations, at, copy.seen.of(agent));
            }
        }
    }

    /// The states of all copies and their generators, from which [`restore`](Self::restore) goes on as if
    /// nothing had happened; `None` when the worlds run elsewhere.
    pub fn snapshot(&self) -> Option<Vec<u8>> {
        let state = |copy: &Copy| Some((copy.world.snapshot()?, copy.rng.clone()));
        let states: Option<Vec<_>> = self.copies.iter().map(state).collect();
        world::save(&states?)
    }

    /// Goes on from a snapshot of as many copies of the same world. Rewards and ends of the step before it
    /// are not part of it.
    ///
    /// # Errors
    ///
    /// When the bytes are not such a snapshot. The copies are then of no further use.
    pub fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let states: Vec<(Vec<u8>, Generator)> = world::load(snapshot)?;
        if states.len() != self.copies.len() {
            return Err(BadSnapshot);
        }
        for (copy, (state, rng)) in self.copies.iter_mut().zip(states) {
            copy.world.restore(&state)?;
            copy.world.observe(&mut copy.seen);
            copy.rng = rng;
        }
        self.record_observations();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GridWorld, make_world, world_names};

    fn grid(copies: usize) -> Copies {
        Copies::new(|| Box::new(GridWorld::default()), copies, 1)
    }

    fn walk(copies: &mut Copies, actions: &[usize]) {
        let actions: Vec<Action> = actions.iter().map(|at| Action::Discrete(*at)).collect();
        copies.step(&actions);
    }

    #[test]
    fn a_copy_whose_episode_ends_starts_the_next_and_keeps_the_final_observation() {
        let mut copies = grid(2);
        for _ in 0..4 {
            walk(&mut copies, &[1, 0]);
        }
        for n in 1..=4 {
            walk(&mut copies, &[3, 0]);
            assert_eq!(copies.agent(0).terminated, [n == 4, false]);
        }
        let batch = copies.agent(0);
        assert_eq!(batch.rewards, [1.0, -0.01]);
        assert_eq!(
            (batch.observations[0], batch.final_observations[24]),
            (1.0, 1.0)
        );
        for _ in 8..50 {
            walk(&mut copies, &[0, 0]);
        }
        assert_eq!(copies.agent(0).truncated, [false, true]);
        assert_eq!(copies.agent(0).final_observations[25], 1.0);
    }

    #[test]
    fn copies_are_determined_by_the_seed_and_differ_from_each_other() {
        let new = |seed| Copies::new(|| make_world("pendulum").unwrap(), 3, seed);
        let (one, same, other) = (new(1), new(1), new(2));
        assert_eq!(one.agent(0), same.agent(0));
        assert_ne!(one.agent(0), other.agent(0));
        assert_ne!(
            one.agent(0).observations[..3],
            one.agent(0).observations[3..6]
        );
    }

    #[test]
    fn masks_are_those_of_each_copy() {
        let copies = Copies::new(|| make_world("taxi").unwrap(), 2, 5);
        let mut masks = [false; 12];
        copies.write_masks(0, &mut masks);
        let mut second = [false; 6];
        copies.copies[1].world.write_mask(0, &mut second);
        assert_eq!(masks[6..], second);
    }

    /// The first action, or the middle of a continuous space.
    fn joint(spec: &WorldSpec) -> impl Iterator<Item = Action> {
        spec.agents.iter().map(|agent| agent.action.first())
    }

    #[test]
    fn every_world_resumes_its_copies_to_the_bit() {
        for name in world_names() {
            let mut copies = Copies::new(|| make_world(name).unwrap(), 3, 1);
            let actions: Vec<Action> = (0..3).flat_map(|_| joint(copies.spec())).collect();
            for _ in 0..60 {
                copies.step(&actions);
            }
            let snapshot = copies.snapshot().unwrap();
            let mut resumed = Copies::new(|| make_world(name).unwrap(), 3, 2);
            resumed.restore(&snapshot).unwrap();
            for _ in 0..300 {
                copies.step(&actions);
                resumed.step(&actions);
            }
            for agent in 0..copies.agents.len() {
                let (a, b) = (copies.agent(agent), resumed.agent(agent));
                assert_eq!(
                    (&a.observations, &a.rewards),
                    (&b.observations, &b.rewards),
                    "{name}"
                );
            }
            assert!(resumed.restore(&snapshot[1..]).is_err());
        }
    }

    #[test]
    fn a_snapshot_of_another_number_of_copies_is_refused() {
        let snapshot = grid(2).snapshot().unwrap();
        assert_eq!(grid(3).restore(&snapshot), Err(BadSnapshot));
    }

    /// A world that runs elsewhere, and notes what it is asked for.
    struct Remote(GridWorld, std::sync::mpsc::Sender<&'static str>, Soundness);

    impl World for Remote {
        fn spec(&self) -> &WorldSpec {
            self.0.spec()
        }

        fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
            self.0.reset(rng, observations);
        }

        fn announce(&mut self, _: &[Action]) {
            self.1.send("announce").unwrap();
        }

        fn step(
            &mut self,
            actions: &[Action],
            rng: &mut Generator,
            observations: &mut Observations,
            steps: &mut [TimeStep],
        ) {
            self.1.send("step").unwrap();
            self.0.step(actions, rng, observations, steps);
        }

        fn observe(&self, observations: &mut Observations) {
            self.0.observe(observations);
        }

        fn soundness(&self) -> Soundness {
            self.2
        }

        fn snapshot(&self) -> Option<Vec<u8>> {
            None
        }

        fn restore(&mut self, _: &[u8]) -> Result<(), BadSnapshot> {
            Err(BadSnapshot)
        }
    }

    #[test]
    fn all_actions_are_announced_before_the_first_is_taken() {
        let (noted, notes) = std::sync::mpsc::channel();
        let world = || {
            Box::new(Remote(
                GridWorld::default(),
                noted.clone(),
                Soundness::Sound,
            ))
        };
        let mut copies = Copies::new(|| world(), 2, 1);
        walk(&mut copies, &[0, 0]);
        let noted: Vec<_> = notes.try_iter().collect();
        assert_eq!(noted, ["announce", "announce", "step", "step"]);
        assert_eq!(copies.snapshot(), None);
    }

    #[test]
    fn copies_are_as_sound_as_the_worst_of_them() {
        let (noted, _notes) = std::sync::mpsc::channel();
        let all = [Soundness::Sound, Soundness::Lost, Soundness::Interrupted];
        let next = std::cell::Cell::new(0);
        let world = || -> Box<dyn World> {
            let at = next.replace(next.get() + 1);
            Box::new(Remote(GridWorld::default(), noted.clone(), all[at]))
        };
        assert_eq!(Copies::new(world, 3, 1).soundness(), Soundness::Lost);
    }
}
