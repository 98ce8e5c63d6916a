//! Controllers that do not learn: the rules that operators use today, and a controller that plans with the
//! model itself. They are what learning has to beat.
//!
//! A controller sees what its agent observes and nothing else, so that it can be compared with a learned
//! policy, and could run on a live mesh.

use crate::{
    mesh::Calibration,
    space::{Action, ActionSpace, AgentSpace},
    world::BadSnapshot,
};

mod aimd;
mod consensus;
mod constant;
mod model;
mod quotas;
mod target_tracking;

/// Chooses an agent's actions by what it observes.
pub trait Controller: Send {
    /// Forgets what it remembers of an episode.
    fn reset(&mut self) {}

    /// Chooses an action. It is written into one of the right form, so that nothing is allocated.
    fn act(&mut self, observation: &[f32], action: &mut Action);

    /// Chooses an action by an observation and nothing else, for a caller who keeps no episode. What it remembers
    /// is forgotten. A controller whose first action of an episode is no answer to what it observes has another
    /// one here.
    fn act_once(&mut self, observation: &[f32], action: &mut Action) {
        self.reset();
        self.act(observation, action);
    }

    /// What it remembers of an episode; empty when it remembers nothing.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Continues from what a controller of the same kind remembered.
    ///
    /// # Errors
    ///
    /// When it is not what such a controller saves.
    fn restore(&mut self, saved: &[u8]) -> Result<(), BadSnapshot> {
        saved.is_empty().then_some(()).ok_or(BadSnapshot)
    }
}

/// Creates a controller for an agent of a mesh; `None` when the space lacks what the controller looks at.
type Make = fn(&AgentSpace, &Calibration) -> Option<Box<dyn Controller>>;

/// The controllers by the agent that they control and their name. A new one is its file and a line here.
const CONTROLLERS: &[(&str, &str, Make)] = &[
    ("policy", "hold", constant::hold),
    ("policy", "aimd", aimd::make),
    ("policy", "mpc", model::make),
    ("consensus", "hold", constant::hold),
    ("consensus", "majority_quorum", consensus::majority),
    ("consensus", "mpc", consensus::planned),
    ("ethical", "hold", constant::hold),
    ("ethical", "static_quotas", quotas::make_static),
    ("ethical", "max_min_fairness", quotas::make_max_min),
    ("ethical", "mpc", model::make),
    ("resource", "hold", constant::hold),
    ("resource", "half", constant::half),
    ("resource", "target_tracking", target_tracking::make),
    ("resource", "mpc", model::make),
];

/// The controllers that act for the agents of a mesh that do not learn, unless others are wanted: what operators
/// use today.
const BASELINES: &[(&str, &str)] = &[
    ("policy", "aimd"),
    ("consensus", "majority_quorum"),
    ("ethical", "static_quotas"),
    ("resource", "target_tracking"),
];

/// The name of the controller that acts for an agent of a mesh that does not learn; `None` for other agents.
pub fn baseline(agent: &str) -> Option<&'static str> {
    let mut known = BASELINES.iter();
    known.find(|(whose, _)| *whose == agent).map(|(_, n)| *n)
}

/// Creates a controller for an agent of a mesh by its name, such as `target_tracking` for `resource`; `None`
/// for an unknown name, or an agent that it does not fit.
pub fn make_controller(
    name: &str,
    agent: &AgentSpace,
    calibration: &Calibration,
) -> Option<Box<dyn Controller>> {
    let mut known = CONTROLLERS.iter();
    let (_, _, make) = known.find(|(whose, n, _)| *whose == agent.name && *n == name)?;
    make(agent, calibration)
}

/// The names of the controllers of an agent.
pub fn controller_names(agent: &str) -> impl Iterator<Item = &'static str> {
    let of = CONTROLLERS
        .iter()
        .filter(move |(whose, ..)| *whose == agent);
    of.map(|(_, name, _)| *name)
}

/// A component of an observation, in its own unit.
#[derive(Debug, Clone, Copy)]
pub struct Gauge {
    at: usize,
    scale: f32,
}

impl Gauge {
    /// Finds a component by its name, such as `latency_p95`.
    pub fn find(space: &AgentSpace, name: &str) -> Option<Self> {
        let at = space.position(name)?;
        let scale = space.observation[at].scale;
        Some(Self { at, scale })
    }

    /// Reads it.
    ///
    /// # Panics
    ///
    /// When the observation is not of the space that it was found in.
    pub fn read(&self, observation: &[f32]) -> f64 {
        f64::from(observation[self.at] * self.scale)
    }
}

/// Writes a discrete action.
pub(crate) fn choose(action: &mut Action, at: usize) {
    *action = Action::Discrete(at);
}

/// Writes the only number of a continuous action.
pub(crate) fn set(action: &mut Action, number: f64) {
    match action {
        Action::Continuous(numbers) => numbers[0] = number as f32,
        Action::Discrete(_) => *action = Action::Continuous(vec![number as f32]),
    }
}

/// The position of a discrete action by its name, such as `quorum_up`.
pub fn find_action(space: &AgentSpace, name: &str) -> Option<usize> {
    match &space.action {
        ActionSpace::Discrete(names) => names.iter().position(|n| n == name),
        ActionSpace::Continuous(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MeshEnv, World,
        testing::{Episode, mesh_hold},
    };

    #[test]
    fn every_controller_plays_its_agent_with_actions_of_its_space() {
        for (whose, name, _) in CONTROLLERS {
            let mut mesh = Episode::start(MeshEnv::shipped(), 3);
            let at = mesh.world.spec().agent(whose).unwrap();
            let space = mesh.world.spec().agents[at].clone();
            let calibration = mesh.world.calibration().clone();
            let mut controller = make_controller(name, &space, &calibration).unwrap();
            let mut joint = mesh_hold(0.5);
            for _ in 0..200 {
                controller.act(mesh.seen.of(at), &mut joint[at]);
                assert_eq!(space.action.check(&joint[at]), Ok(()), "{whose} {name}");
                mesh.step(&joint);
            }
        }
    }

    #[test]
    fn a_restored_controller_goes_on_where_it_was() {
        for (whose, name, _) in CONTROLLERS {
            let mut mesh = Episode::start(MeshEnv::shipped(), 3);
            let at = mesh.world.spec().agent(whose).unwrap();
            let space = mesh.world.spec().agents[at].clone();
            let calibration = mesh.world.calibration().clone();
            let make = || make_controller(name, &space, &calibration).unwrap();
            let (mut controller, mut joint) = (make(), mesh_hold(0.5));
            for step in 0..40 {
                let mut restored = make();
                restored.restore(&controller.save()).unwrap();
                let mut again = joint[at].clone();
                restored.act(mesh.seen.of(at), &mut again);
                controller.act(mesh.seen.of(at), &mut joint[at]);
                assert_eq!(joint[at], again, "{whose} {name}, step {step}");
                mesh.step(&joint);
            }
            let mut other = make();
            assert_eq!(other.restore(&[0xff; 3]), Err(BadSnapshot), "{name}");
        }
    }

    #[test]
    fn an_action_without_an_episode_does_not_depend_on_what_was_before() {
        for (whose, name, _) in CONTROLLERS {
            let mut mesh = Episode::start(MeshEnv::shipped(), 3);
            let at = mesh.world.spec().agent(whose).unwrap();
            let space = mesh.world.spec().agents[at].clone();
            let calibration = mesh.world.calibration().clone();
            let make = || make_controller(name, &space, &calibration).unwrap();
            let (mut controller, mut joint) = (make(), mesh_hold(0.5));
            for step in 0..40 {
                let mut again = joint[at].clone();
                make().act_once(mesh.seen.of(at), &mut again);
                controller.act_once(mesh.seen.of(at), &mut joint[at]);
                assert_eq!(joint[at], again, "{whose} {name}, step {step}");
                mesh.step(&joint);
            }
        }
    }

    #[test]
    fn unknown_names_and_other_agents_controllers_are_refused() {
        let mesh = MeshEnv::shipped();
        let policy = &mesh.spec().agents[0];
        for name in ["target_tracking", "static_quotas", "surprise"] {
            assert!(
                make_controller(name, policy, mesh.calibration()).is_none(),
                "{name}"
            );
        }
        for agent in &mesh.spec().agents {
            let name = baseline(&agent.name).unwrap();
            assert!(make_controller(name, agent, mesh.calibration()).is_some());
        }
        assert_eq!(baseline("cart"), None);
        let names: Vec<_> = controller_names("resource").collect();
        assert_eq!(names, ["hold", "half", "target_tracking", "mpc"]);
    }
}
