//! Quantity competition of n firms (Cournot, "Recherches sur les principes mathématiques de la théorie des
//! richesses", 1838) with linear demand and equal costs, whose equilibrium is known in closed form.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use serde::{Deserialize, Serialize};

/// The price at which nothing is sold.
const CHOKE_PRICE: f32 = 2.0;
/// By how much a sold unit lowers the price.
const SLOPE: f32 = 1.0;
/// What a unit costs the firm that makes it.
const COST: f32 = 0.5;
/// What a firm makes at most: as much as all firms sell at cost.
const MAX_QUANTITY: f32 = (CHOKE_PRICE - COST) / SLOPE;
/// After this many periods an episode is truncated: the market itself has no end.
const MAX_STEPS: u32 = 50;

/// A market in which each firm decides on its quantity and all sell at the price `2 - Q`, where Q is the
/// total. The reward is the firm's profit, the observation what each firm made last, its own quantity first.
#[derive(Debug)]
pub struct Cournot {
    spec: WorldSpec,
    state: State,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    quantities: Vec<f32>,
    steps: u32,
}

impl Cournot {
    /// A market of some firms, at least one.
    pub fn new(firms: usize) -> Self {
        let firms = firms.max(1);
        let spec = WorldSpec {
            name: format!("cournot_{firms}").into(),
            agents: (0..firms).map(|firm| space(firm, firms)).collect(),
            max_steps: Some(MAX_STEPS),
            calibration: None,
        };
        let state = State {
            quantities: vec![0.0; firms],
            steps: 0,
        };
        Self { spec, state }
    }

    /// The quantity of each firm in the only equilibrium: (a - c) / ((n + 1) b).
    pub fn equilibrium_quantity(&self) -> f32 {
        (CHOKE_PRICE - COST) / ((self.firms() + 1) as f32 * SLOPE)
    }

    /// The profit of each firm in the only equilibrium: (a - c)² / ((n + 1)² b).
    pub fn equilibrium_profit(&self) -> f32 {
        SLOPE * self.equilibrium_quantity().powi(2)
    }

    fn firms(&self) -> usize {
        self.state.quantities.len()
    }
}

/// The price of a total quantity. It is never negative.
fn price(total: f32) -> f32 {
    (CHOKE_PRICE - SLOPE * total).max(0.0)
}

/// The firms in the order in which one of them sees them: itself first, and then in a circle.
fn seen_by(firm: usize, firms: usize) -> impl Iterator<Item = usize> {
    (0..firms).map(move |distance| (firm + distance) % firms)
}

fn space(firm: usize, firms: usize) -> AgentSpace {
    let component = |other: usize| Component {
        name: match other == firm {
            true => "own_last_quantity".into(),
            false => format!("firm_{}_last_quantity", other + 1).into(),
        },
        ..Component::computed("", "units", 0.0, MAX_QUANTITY)
    };
    let quantity = Component::computed("quantity", "units", 0.0, MAX_QUANTITY);
    AgentSpace {
        name: format!("firm_{}", firm + 1).into(),
        observation: seen_by(firm, firms).map(component).collect(),
        action: ActionSpace::Continuous(vec![quantity]),
    }
}

impl World for Cournot {
    fn spec(&self) -> &WorldSpec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Generator, observations: &mut Observations) {
        self.state.quantities.fill(0.0);
        self.state.steps = 0;
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        for (quantity, action) in self.state.quantities.iter_mut().zip(actions) {
            *quantity = action.number().clamp(0.0, MAX_QUANTITY);
        }
        self.state.steps += 1;
        self.observe(observations);
        let margin = price(self.state.quantities.iter().sum()) - COST;
        for (step, quantity) in steps.iter_mut().zip(&self.state.quantities) {
            *step = TimeStep {
                reward: margin * quantity,
                terminated: false,
                truncated: self.state.steps >= MAX_STEPS,
            };
        }
    }

    fn observe(&self, observations: &mut Observations) {
        for firm in 0..self.firms() {
            let seen = observations.of_mut(firm);
            for (number, other) in seen.iter_mut().zip(seen_by(firm, self.firms())) {
                *number = self.state.quantities[other];
            }
        }
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let range = 0.0..=MAX_QUANTITY;
        let possible = state.quantities.len() == self.firms()
            && state
                .quantities
                .iter()
                .all(|quantity| range.contains(quantity));
        self.state = possible.then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_close, assert_restores};

    /// The profits when all make the same, except that the first firm makes another quantity.
    fn profits(firms: usize, all: f32, first: f32) -> Vec<f32> {
        let mut episode = Episode::start(Cournot::new(firms), 0);
        let mut actions = vec![Action::Continuous(vec![all]); firms];
        actions[0] = Action::Continuous(vec![first]);
        episode
            .step(&actions)
            .iter()
            .map(|step| step.reward)
            .collect()
    }

    #[test]
    fn no_firm_gains_by_leaving_the_equilibrium() {
        for firms in [1, 2, 3] {
            let world = Cournot::new(firms);
            let quantity = world.equilibrium_quantity();
            let here = profits(firms, quantity, quantity);
            assert_close(&here, &vec![world.equilibrium_profit(); firms], 1e-6);
            for first in (0..=150).map(|n| n as f32 / 100.0) {
                assert!(
                    profits(firms, quantity, first)[0] <= here[0] + 1e-6,
                    "{first}"
                );
            }
        }
    }

    #[test]
    fn a_firm_gains_by_leaving_another_quantity() {
        for all in [0.2, 0.375, 0.7] {
            let better = (0..=150).map(|n| profits(2, all, n as f32 / 100.0)[0]);
            assert!(
                better.fold(f32::MIN, f32::max) > profits(2, all, all)[0] + 1e-3,
                "{all}"
            );
        }
    }

    #[test]
    fn a_flooded_market_sells_below_cost_and_never_pays_for_taking() {
        assert_eq!(
            profits(3, MAX_QUANTITY, MAX_QUANTITY),
            [-COST * MAX_QUANTITY; 3]
        );
    }

    #[test]
    fn firms_see_their_own_quantity_first_and_the_episode_is_truncated() {
        let mut episode = Episode::start(Cournot::new(3), 0);
        let actions = [0.1, 0.2, 0.3].map(|quantity| Action::Continuous(vec![quantity]));
        for n in 1..=MAX_STEPS {
            let last = episode.step(&actions)[2];
            assert_eq!((last.terminated, last.truncated), (false, n == MAX_STEPS));
        }
        assert_eq!(episode.seen.of(1), [0.2, 0.3, 0.1]);
        let names: Vec<_> = episode.world.spec().agents[1].observation.iter().collect();
        assert_eq!(names[2].name, "firm_1_last_quantity");
    }

    #[test]
    fn a_restored_market_goes_on_where_it_was_and_an_impossible_one_is_refused() {
        assert_restores(Episode::start(Cournot::new(2), 0), Cournot::new(2), |at| {
            let quantity = at as f32 / 20.0;
            vec![
                Action::Continuous(vec![quantity]),
                Action::Continuous(vec![1.0 - quantity]),
            ]
        });
        for quantities in [vec![0.1], vec![0.1, f32::NAN], vec![0.1, 2.0]] {
            let impossible = world::save(&State {
                quantities,
                steps: 0,
            })
            .unwrap();
            assert_eq!(Cournot::new(2).restore(&impossible), Err(BadSnapshot));
        }
    }
}
