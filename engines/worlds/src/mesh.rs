//! The mesh as a world: a queueing Markov game in which four agents act on what they are named for.
//!
//! A step is a control interval. In it tenants call (with daily rhythm, bursts and retries), a token bucket
//! for each admits them, the replicas of the services serve them, and configuration changes are proposed and
//! decided on. Everything is a closed form of the interval, without events, so that a step takes about a
//! microsecond:
//!
//! | part | model | tests against |
//! |---|---|---|
//! | arrivals | daily rhythm × MMPP × over-dispersion, and retries of what failed | its moments |
//! | waiting | Allen and Cunneen's G/G/c, an exact M/M/c in the special case; a fluid queue on overload | Erlang C |
//! | latency | log-normal by two moments | the exponential distribution |
//! | scheduling | weighted α-fairness | its optimality condition |
//! | changes | Condorcet's jury: a quorum of independent approvers within a timeout | the binomial tail |
//!
//! The agents share one capacity and want different things of it (`reward.rs`): a general-sum game. Policy
//! limits rates and chooses between two modes of timeouts and retries, Consensus sets quorum and timeout of
//! approvals, Ethical sets the tenants' weights and the α of the scheduler, Resource the share of replicas.
//!
//! The seed determines an episode, and what the agents do changes nothing of what is drawn: the same seed
//! meets the same load and the same proposals (common random numbers).

mod calibration;
mod changes;
mod controls;
mod fair;
pub mod fit;
mod flow;
mod forecast;
mod interval;
mod latency;
mod observe;
mod queue;
mod replicas;
mod reward;
mod spread;
mod state;
#[cfg(test)]
mod tests;
mod traffic;

pub use calibration::{
    BadCalibration, Calibration, Changes, Clients, MAX_APPROVERS, MAX_REPLICAS, MAX_SERVICES,
    MAX_TENANTS, Patience, Rewards, Service, Tenant, Traffic,
};
pub use changes::{Decisions, acceptance};
pub use controls::Controls;
pub use fair::{Alpha, jain};
pub(crate) use forecast::Forecast;
pub use interval::Interval;
pub use queue::erlang_c;
pub use spread::Spread;

use crate::{
    space::{Action, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use observe::View;
use rand::SeedableRng;
use state::State;
use std::sync::Arc;

/// The mesh as a world of four agents: `policy`, `consensus`, `ethical` and `resource`. An episode is
/// truncated after the steps that the calibration says.
#[derive(Debug, Clone)]
pub struct MeshEnv {
    calibration: Arc<Calibration>,
    spec: Arc<WorldSpec>,
    state: State,
}

impl MeshEnv {
    /// The mesh of a calibration.
    ///
    /// # Errors
    ///
    /// When a parameter is one that no mesh has.
    pub fn new(calibration: Calibration) -> Result<Self, BadCalibration> {
        calibration.check()?;
        let spec = Arc::new(observe::spec(&calibration));
        let state = State::start(&calibration, &mut Generator::seed_from_u64(0));
        let calibration = Arc::new(calibration);
        Ok(Self {
            calibration,
            spec,
            state,
        })
    }

    /// The mesh of the shipped calibration.
    pub fn shipped() -> Self {
        Self::new(Calibration::shipped()).expect("the shipped calibration is sound")
    }

    /// The parameters.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What happened in the last interval. Before the first step: what an interval without trouble would
    /// look like.
    pub fn interval(&self) -> &Interval {
        &self.state.last
    }

    /// What the agents have set.
    pub fn controls(&self) -> &Controls {
        &self.state.controls
    }

    /// What was decided on proposals since the episode began.
    pub fn decisions(&self) -> &Decisions {
        &self.state.changes.decisions
    }

    fn view<'a>(&'a self, state: &'a State) -> View<'a> {
        View {
            calibration: &self.calibration,
            spec: &self.spec,
            state,
        }
    }

    /// Whether agents would observe numbers only.
    fn shows_numbers(&self, state: &State) -> bool {
        let mut seen = Observations::new(&self.spec);
        self.view(state).write(&mut seen);
        let mut agents = 0..self.spec.agents.len();
        agents.all(|agent| seen.of(agent).iter().all(|number| number.is_finite()))
    }
}

impl World for MeshEnv {
    fn spec(&self) -> &WorldSpec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.state = State::start(&self.calibration, rng);
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        rng: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        self.state.advance(&self.calibration, actions, rng);
        self.observe(observations);
        let truncated = self.state.step >= self.calibration.max_steps;
        let rewards = reward::rewards(&self.calibration, &self.state);
        for (step, reward) in steps.iter_mut().zip(rewards) {
            *step = TimeStep {
                reward: reward as f32,
                terminated: false,
                truncated,
            };
        }
    }

    fn observe(&self, observations: &mut Observations) {
        self.view(&self.state).write(observations);
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let sound = state.is_sound(&self.calibration) && self.shows_numbers(&state);
        self.state = sound.then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}
