//! A congestion game (Rosenthal, "A Class of Games Possessing Pure-Strategy Nash Equilibria", 1973): drivers
//! choose among roads that become slower the more of them take the same. It has a potential: whoever takes a
//! faster road lowers it, so that best responses end in a pure equilibrium.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

const DRIVERS: usize = 4;
const ROADS: usize = 3;
const NAMES: [&str; ROADS] = ["highway", "street", "detour"];
/// The minutes that an empty road takes, and the minutes that each driver on it adds.
const DELAYS: [[f32; 2]; ROADS] = [[1.0, 2.0], [3.0, 1.0], [6.0, 0.0]];
/// The reward is the negative delay over this, which no delay exceeds.
const LONGEST: f32 = 9.0;
/// After this many days an episode is truncated: the game itself has no end.
const MAX_STEPS: u32 = 50;

/// Four drivers and three roads, day after day. The observation is the share of drivers on each road and the
/// driver's own road, one-hot, of the day before; the reward is the negative delay.
#[derive(Debug, Default)]
pub struct Congestion {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// Nothing before the first day.
    roads: Option<[usize; DRIVERS]>,
    steps: u32,
}

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| {
    let component = |prefix: &str, road: &str| Component {
        name: format!("{prefix}_{road}").into(),
        ..Component::computed("", "1", 0.0, 1.0)
    };
    let space = |driver: usize| AgentSpace {
        name: format!("driver_{}", driver + 1).into(),
        observation: NAMES
            .map(|road| component("share", road))
            .into_iter()
            .chain(NAMES.map(|road| component("own_last", road)))
            .collect(),
        action: ActionSpace::named(&NAMES),
    };
    WorldSpec {
        name: "congestion".into(),
        agents: (0..DRIVERS).map(space).collect(),
        max_steps: Some(MAX_STEPS),
        calibration: None,
    }
});

/// How many drivers take each road.
fn loads(roads: &[usize; DRIVERS]) -> [usize; ROADS] {
    std::array::from_fn(|road| roads.iter().filter(|taken| **taken == road).count())
}

/// The minutes that a road takes with some drivers on it.
fn delay(road: usize, drivers: usize) -> f32 {
    let [empty, each] = DELAYS[road];
    empty + each * drivers as f32
}

impl World for Congestion {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    fn reset(&mut self, _: &mut Generator, observations: &mut Observations) {
        self.state = State::default();
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        let roads = std::array::from_fn(|driver| actions[driver].index());
        self.state.roads = Some(roads);
        self.state.steps += 1;
        self.observe(observations);
        let loads = loads(&roads);
        for (step, road) in steps.iter_mut().zip(roads) {
            *step = TimeStep {
                reward: -delay(road, loads[road]) / LONGEST,
                terminated: false,
                truncated: self.state.steps >= MAX_STEPS,
            };
        }
    }

    fn observe(&self, observations: &mut Observations) {
        for driver in 0..DRIVERS {
            let seen = observations.of_mut(driver);
            seen.fill(0.0);
            if let Some(roads) = &self.state.roads {
                let shares = loads(roads).map(|load| load as f32 / DRIVERS as f32);
                seen[..ROADS].copy_from_slice(&shares);
                seen[ROADS + roads[driver]] = 1.0;
            }
        }
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let known = state.roads.iter().flatten().all(|road| *road < ROADS);
        self.state = known.then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_restores};

    /// Rosenthal's potential: on each road, the delays that its drivers found when they came one by one.
    fn potential(roads: &[usize; DRIVERS]) -> f32 {
        let of = |(road, load)| (1..=load).map(|n| delay(road, n)).sum::<f32>();
        loads(roads).into_iter().enumerate().map(of).sum()
    }

    /// A driver's delay in the world itself.
    fn delay_of(roads: &[usize; DRIVERS], driver: usize) -> f32 {
        let mut episode = Episode::start(Congestion::default(), 0);
        -episode.step(&roads.map(Action::Discrete))[driver].reward * LONGEST
    }

    fn all_profiles() -> impl Iterator<Item = [usize; DRIVERS]> {
        (0..ROADS.pow(4)).map(|n| [n % 3, n / 3 % 3, n / 9 % 3, n / 27])
    }

    fn with(mut roads: [usize; DRIVERS], driver: usize, road: usize) -> [usize; DRIVERS] {
        roads[driver] = road;
        roads
    }

    #[test]
    fn the_potential_changes_by_what_one_driver_gains() {
        for roads in all_profiles() {
            for (driver, road) in (0..DRIVERS).flat_map(|d| (0..ROADS).map(move |r| (d, r))) {
                let other = with(roads, driver, road);
                let gained = delay_of(&roads, driver) - delay_of(&other, driver);
                let lowered = potential(&roads) - potential(&other);
                assert!((gained - lowered).abs() < 1e-4, "{roads:?} {other:?}");
            }
        }
    }

    #[test]
    fn best_responses_lower_the_potential_until_a_pure_equilibrium() {
        for mut roads in all_profiles() {
            let mut moves = 0;
            loop {
                let better = (0..DRIVERS)
                    .flat_map(|d| (0..ROADS).map(move |r| (d, r)))
                    .find(|(d, r)| {
                        delay_of(&with(roads, *d, *r), *d) < delay_of(&roads, *d) - 1e-4
                    });
                let Some((driver, road)) = better else { break };
                let next = with(roads, driver, road);
                assert!(potential(&next) < potential(&roads));
                (roads, moves) = (next, moves + 1);
            }
            assert!(moves <= 8, "{moves}");
        }
    }

    #[test]
    fn a_crowded_road_is_slow_and_the_episode_is_truncated() {
        let mut episode = Episode::start(Congestion::default(), 0);
        for n in 1..=MAX_STEPS {
            let first = episode.step(&[0, 0, 0, 1].map(Action::Discrete))[0];
            assert_eq!(first.reward, -7.0 / 9.0);
            assert_eq!((first.terminated, first.truncated), (false, n == MAX_STEPS));
        }
        assert_eq!(episode.seen.of(3), [0.75, 0.25, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_restored_game_goes_on_where_it_was_and_an_unknown_road_is_refused() {
        let episode = Episode::start(Congestion::default(), 0);
        assert_restores(episode, Congestion::default(), |at| {
            (0..DRIVERS)
                .map(|driver| Action::Discrete((at + driver) % ROADS))
                .collect()
        });
        let unknown = State {
            roads: Some([0, 1, 2, 3]),
            steps: 1,
        };
        let unknown = world::save(&unknown).unwrap();
        assert_eq!(Congestion::default().restore(&unknown), Err(BadSnapshot));
    }
}
