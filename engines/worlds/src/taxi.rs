//! The taxi of Dietterich ("Hierarchical Reinforcement Learning with the MAXQ Value Function
//! Decomposition", 2000) on the map of Gymnasium's Taxi-v3, with its rewards, its 200-step limit and the
//! action masks of its `info`.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

const SIZE: usize = 5;
const MAX_STEPS: u32 = 200;
const STATES: usize = SIZE * SIZE * (STANDS.len() + 1) * STANDS.len();
/// Where passengers wait and want to go.
const STANDS: [(usize, usize); 4] = [(0, 0), (0, 4), (4, 0), (4, 3)];
const STAND_NAMES: [&str; 4] = ["red", "green", "yellow", "blue"];
/// The position of a passenger who is in the taxi.
const IN_TAXI: usize = STANDS.len();
/// By row: the columns that have a wall on their right.
const WALLS: [&[usize]; SIZE] = [&[1], &[1], &[], &[0, 2], &[0, 2]];

/// A taxi that fetches a passenger and brings them to their destination. A step costs 1, a pick-up or
/// drop-off that cannot succeed 10, and the delivery, which terminates the episode, earns 20. The
/// observation is one-hot in the 500 states; an episode is truncated after 200 steps.
#[derive(Debug, Default)]
pub struct Taxi {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    row: usize,
    column: usize,
    /// A stand, or [`IN_TAXI`].
    passenger: usize,
    destination: usize,
    steps: u32,
}

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| {
    let component = |state: usize| Component {
        name: State::decode(state).name().into(),
        ..Component::computed("", "1", 0.0, 1.0)
    };
    let actions = ["south", "north", "east", "west", "pick_up", "drop_off"];
    WorldSpec {
        name: "taxi".into(),
        agents: vec![AgentSpace {
            name: "agent".into(),
            observation: (0..STATES).map(component).collect(),
            action: ActionSpace::named(&actions),
        }],
        max_steps: Some(MAX_STEPS),
        calibration: None,
    }
});

impl State {
    /// The state's number in Gymnasium.
    fn encode(&self) -> usize {
        let cell = self.row * SIZE + self.column;
        (cell * (STANDS.len() + 1) + self.passenger) * STANDS.len() + self.destination
    }

    fn decode(number: usize) -> Self {
        let (rest, destination) = (number / STANDS.len(), number % STANDS.len());
        let (cell, passenger) = (rest / (STANDS.len() + 1), rest % (STANDS.len() + 1));
        Self {
            row: cell / SIZE,
            column: cell % SIZE,
            passenger,
            destination,
            steps: 0,
        }
    }

    fn name(&self) -> String {
        let passenger = STAND_NAMES.get(self.passenger).unwrap_or(&"taxi");
        let destination = STAND_NAMES[self.destination];
        format!(
            "at_{}_{}_from_{passenger}_to_{destination}",
            self.row, self.column
        )
    }

    fn stand(&self) -> Option<usize> {
        STANDS.iter().position(|at| *at == (self.row, self.column))
    }

    fn may_go_east(&self) -> bool {
        self.column + 1 < SIZE && !WALLS[self.row].contains(&self.column)
    }

    fn may_go_west(&self) -> bool {
        self.column > 0 && !WALLS[self.row].contains(&(self.column - 1))
    }

    /// Which actions change something.
    fn mask(&self) -> [bool; 6] {
        [
            self.row + 1 < SIZE,
            self.row > 0,
            self.may_go_east(),
            self.may_go_west(),
            self.stand() == Some(self.passenger),
            self.passenger == IN_TAXI && self.stand().is_some(),
        ]
    }

    /// Takes an action and returns its reward. One that the mask excludes changes nothing.
    fn advance(&mut self, action: usize) -> f32 {
        self.steps += 1;
        match (action, self.mask()[action]) {
            (0, true) => self.row += 1,
            (1, true) => self.row -= 1,
            (2, true) => self.column += 1,
            (3, true) => self.column -= 1,
            (4, true) => self.passenger = IN_TAXI,
            (5, true) => self.passenger = self.stand().expect("the mask requires a stand"),
            (4 | 5, false) => return -10.0,
            _ => {}
        }
        if action == 5 && self.has_arrived() {
            20.0
        } else {
            -1.0
        }
    }

    fn has_arrived(&self) -> bool {
        self.passenger == self.destination
    }

    fn is_valid(&self) -> bool {
        self.row < SIZE
            && self.column < SIZE
            && self.passenger <= IN_TAXI
            && self.destination < STANDS.len()
    }
}

impl World for Taxi {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    /// Draws the taxi's cell, and a passenger who is not yet where they want to go.
    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        let passenger = rng.random_range(0..STANDS.len());
        let further = rng.random_range(1..STANDS.len());
        self.state = State {
            row: rng.random_range(0..SIZE),
            column: rng.random_range(0..SIZE),
            passenger,
            destination: (passenger + further) % STANDS.len(),
            steps: 0,
        };
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        let reward = self.state.advance(actions[0].index());
        self.observe(observations);
        let arrived = self.state.has_arrived();
        steps[0] = TimeStep {
            reward,
            terminated: arrived,
            truncated: !arrived && self.state.steps >= MAX_STEPS,
        };
    }

    fn observe(&self, observations: &mut Observations) {
        let seen = observations.of_mut(0);
        seen.fill(0.0);
        seen[self.state.encode()] = 1.0;
    }

    fn write_mask(&self, _: usize, mask: &mut [bool]) {
        mask.copy_from_slice(&self.state.mask());
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        self.state = state.is_valid().then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_restores, vectors};
    use rand::SeedableRng;

    /// Gymnasium's table: by state and action the next state, the reward and whether it terminates; by
    /// state the mask.
    #[derive(Deserialize)]
    struct Vectors {
        transitions: Vec<[(usize, f32, bool); 6]>,
        masks: Vec<[u8; 6]>,
        starts: Vec<usize>,
    }

    fn theirs() -> Vectors {
        vectors(include_str!("../tests/vectors/taxi.json"))
    }

    #[test]
    fn every_transition_and_mask_is_that_of_gymnasium() {
        let theirs = theirs();
        for number in 0..STATES {
            let state = State::decode(number);
            assert_eq!(state.encode(), number);
            assert_eq!(
                state.mask().map(u8::from),
                theirs.masks[number],
                "{state:?}"
            );
            if state.has_arrived() {
                continue;
            }
            for action in 0..6 {
                let mut next = state;
                let reward = next.advance(action);
                let ours = (next.encode(), reward, next.has_arrived());
                assert_eq!(
                    ours, theirs.transitions[number][action],
                    "{state:?} {action}"
                );
            }
        }
    }

    #[test]
    fn episodes_start_in_the_states_of_gymnasium() {
        let (mut world, mut rng) = (Taxi::default(), Generator::seed_from_u64(3));
        let mut seen = Observations::new(&SPEC);
        let mut starts: Vec<usize> = Vec::new();
        for _ in 0..20_000 {
            world.reset(&mut rng, &mut seen);
            starts.push(world.state.encode());
        }
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, theirs().starts);
    }

    #[test]
    fn a_taxi_that_stands_still_is_truncated() {
        let mut episode = Episode::start(Taxi::default(), 2);
        let last = (0..200).map(|_| episode.choose(5)).last().unwrap();
        assert_eq!(
            (last.reward, last.terminated, last.truncated),
            (-10.0, false, true)
        );
    }

    #[test]
    fn a_restored_episode_goes_on_where_it_was_and_an_invalid_state_is_refused() {
        let episode = Episode::start(Taxi::default(), 2);
        assert_restores(episode, Taxi::default(), |at| {
            vec![Action::Discrete(at % 5)]
        });
        for invalid in [
            State {
                row: 5,
                ..State::default()
            },
            State {
                passenger: 5,
                ..State::default()
            },
            State {
                destination: 4,
                ..State::default()
            },
        ] {
            let invalid = world::save(&invalid).unwrap();
            assert_eq!(Taxi::default().restore(&invalid), Err(BadSnapshot));
        }
    }
}
