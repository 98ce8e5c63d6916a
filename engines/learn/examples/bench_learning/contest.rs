//! Who plays against whom.

use crate::{options::Options, training::Trained};
use std::{collections::BTreeMap, ops::Range};
use tars_learn::comparison::{self, Difference};
use tars_worlds::{Controller, MeshEnv, World, baseline, controller_names, make_controller};

/// The controllers that act for the agents that are not compared.
pub(crate) fn baseline_names() -> [&'static str; 4] {
    let agents = ["policy", "consensus", "ethical", "resource"];
    agents.map(|agent| baseline(agent).expect("an agent of the mesh"))
}

/// Who acts for an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Player {
    /// A network as it was initialised.
    Untrained,
    Trained,
    Controlled(&'static str),
}

impl Player {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Untrained => "untrained",
            Self::Trained => "trained",
            Self::Controlled(name) => name,
        }
    }
}

/// One player for each agent.
pub(crate) type Profile = [Player; 4];

pub(crate) const TRAINED: Profile = [Player::Trained; 4];
pub(crate) const UNTRAINED: Profile = [Player::Untrained; 4];

pub(crate) fn baselines() -> Profile {
    baseline_names().map(Player::Controlled)
}

/// A profile in which one agent plays something else.
pub(crate) fn with(profile: Profile, agent: usize, player: Player) -> Profile {
    let mut changed = profile;
    changed[agent] = player;
    changed
}

pub(crate) struct Contest {
    pub(crate) mesh: MeshEnv,
    pub(crate) trained: Trained,
    pub(crate) seeds: Range<u64>,
    /// What profiles earned: by agent, for each seed.
    played: BTreeMap<Profile, Vec<Vec<f64>>>,
}

impl Contest {
    pub(crate) fn new(trained: Trained, options: &Options) -> Self {
        Self {
            mesh: MeshEnv::shipped(),
            trained,
            seeds: options.held_out(),
            played: BTreeMap::new(),
        }
    }

    pub(crate) fn agent_name(&self, agent: usize) -> String {
        self.mesh.spec().agents[agent].name.to_string()
    }

    /// The controllers of an agent.
    pub(crate) fn controllers(&self, agent: usize) -> Vec<Player> {
        let names = controller_names(&self.mesh.spec().agents[agent].name);
        names.map(Player::Controlled).collect()
    }

    /// What acts for the agents of a profile.
    pub(crate) fn seats(&self, profile: Profile) -> Vec<Box<dyn Controller>> {
        let seats = profile.iter().enumerate();
        seats
            .map(|(agent, player)| self.seat(agent, *player))
            .collect()
    }

    fn seat(&self, agent: usize, player: Player) -> Box<dyn Controller> {
        let learned = |policy: &tars_learn::Policy| comparison::Trained::from(policy.clone());
        match player {
            Player::Untrained => Box::new(learned(&self.trained.before[agent])),
            Player::Trained => Box::new(learned(&self.trained.after[agent])),
            Player::Controlled(name) => {
                let space = &self.mesh.spec().agents[agent];
                let made = make_controller(name, space, self.mesh.calibration());
                made.expect("the controller is one of this agent")
            }
        }
    }

    /// What the agents of a profile earn: by agent, for each seed, the mean reward of a step.
    pub(crate) fn rewards(&mut self, profile: Profile) -> &[Vec<f64>] {
        if !self.played.contains_key(&profile) {
            let mut seats = self.seats(profile);
            let rewards = comparison::play(&mut self.mesh, &mut seats, self.seeds.clone());
            self.played.insert(profile, rewards);
        }
        &self.played[&profile]
    }

    pub(crate) fn mean(&mut self, profile: Profile, agent: usize) -> f64 {
        let rewards = &self.rewards(profile)[agent];
        rewards.iter().sum::<f64>() / rewards.len() as f64
    }

    /// By how much an agent earns more in one profile than in another.
    pub(crate) fn difference(&mut self, of: Profile, to: Profile, agent: usize) -> Difference {
        let of = self.rewards(of)[agent].clone();
        Difference::paired(&of, &self.rewards(to)[agent])
    }
}
