//! Who acts for an agent and does not learn.

use crate::policy::Policy;
use std::sync::Arc;
use tars_worlds::{
    AgentSpace, Controller, MeshEnv, World, baseline, make_controller, mesh::Calibration,
};

/// Creates a rule, which may remember what it observed in the episode. Each copy of a world has one of its own.
pub type MakeRule = Arc<dyn Fn() -> Box<dyn Controller> + Send + Sync>;

/// Who acts for an agent and does not learn.
#[derive(Clone)]
pub enum Player {
    /// The best known action of a policy.
    Policy(Policy),
    /// A rule. Instead of an action that the mask forbids, the first one is taken that it allows.
    Rule(MakeRule),
    /// Always the action that the space begins with, or the first one that the mask allows.
    Hold,
}

impl Player {
    /// The controller with a name for an agent of the mesh; `None` when there is none that fits the agent.
    pub fn controller(name: &str, space: &AgentSpace, calibration: &Calibration) -> Option<Self> {
        make_controller(name, space, calibration)?;
        let (name, space, calibration) = (name.to_owned(), space.clone(), calibration.clone());
        let make =
            move || make_controller(&name, &space, &calibration).expect("it was made before");
        Some(Self::Rule(Arc::new(make)))
    }

    /// Who acts for an agent of a built-in world that does not learn: the [baseline](tars_worlds::baseline) in
    /// the mesh, with the shipped calibration, and [`Hold`](Self::Hold) elsewhere.
    pub fn baseline(space: &AgentSpace) -> Self {
        let mesh = MeshEnv::shipped();
        let is_of_mesh = mesh.spec().agents.contains(space);
        let name = baseline(&space.name).filter(|_| is_of_mesh);
        let rule = name.and_then(|name| Self::controller(name, space, mesh.calibration()));
        rule.unwrap_or(Self::Hold)
    }
}
