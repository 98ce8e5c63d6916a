//! What agents learn, where, and for how long. Fixed rules or frozen policies act for the other agents of their
//! environment, so that the same task always leads to the same outcome.

use crate::{
    OrchestrationError,
    hosts::External,
    size,
    store::{Plan, PlannedLearner, RunRow},
};
use std::{collections::BTreeMap, sync::Arc};
use tars_learn::{
    Extent, Policy, Size,
    algorithm::{self, Algorithm},
    hyper::Values,
    training::{Evaluation, Learned, MakeWorld, Member, Outcome, Player, Training},
};
use tars_worlds::{AgentSpace, WorldSpec, make_world};

/// A training of one agent, or of several together.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) environment: String,
    /// Those that learn, each in a place of its own.
    pub(crate) learners: Vec<Learning>,
    /// Policies for agents of the environment that do not learn, by agent. The others follow their rules.
    pub(crate) frozen: BTreeMap<String, Policy>,
    /// Determines everything that is random.
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    /// How many reports are spread evenly over the steps.
    pub(crate) reports: u64,
    /// Episodes of the evaluation at the end.
    pub(crate) evaluation_episodes: u32,
    /// The environment, when the caller lends it.
    pub(crate) external: Option<External>,
}

/// What one agent learns by.
#[derive(Debug, Clone)]
pub(crate) struct Learning {
    /// The agent of the environment that learns; the first one where the environment has no such agent.
    pub(crate) agent: String,
    pub(crate) algorithm: String,
    /// Hyperparameters; missing ones have their defaults.
    pub(crate) values: Values,
    /// What the agent continues from.
    pub(crate) start: Option<Policy>,
}

/// The position of an agent in an environment.
pub(crate) fn position(spec: &WorldSpec, agent: &str) -> usize {
    spec.agent(agent).unwrap_or(0)
}

/// What an agent observes in an environment and how it acts there.
pub(crate) fn space(environment: &str, agent: &str) -> Option<AgentSpace> {
    space_in(make_world(environment)?.spec(), agent)
}

fn space_in(spec: &WorldSpec, agent: &str) -> Option<AgentSpace> {
    spec.agents.get(position(spec, agent)).cloned()
}

fn find(name: &str) -> Result<&'static Algorithm, OrchestrationError> {
    algorithm::find(name).ok_or_else(|| OrchestrationError::Algorithm(name.to_owned()))
}

impl Task {
    /// The task of a run that was left or paused, with the policies that its agents began with. There is none in
    /// an environment that is lent.
    pub(crate) fn planned(
        plan: &Plan,
        row: &RunRow,
        mut policies: BTreeMap<String, Policy>,
    ) -> Self {
        let learning = |planned: &PlannedLearner| Learning {
            agent: planned.agent.clone(),
            algorithm: planned.algorithm.clone(),
            values: planned.values.clone(),
            start: policies.remove(&planned.agent),
        };
        Self {
            environment: plan.environment.clone(),
            learners: plan.learners.iter().map(learning).collect(),
            frozen: policies,
            seed: row.seed as u64,
            steps: u64::try_from(row.steps).unwrap_or_default(),
            reports: plan.reports,
            evaluation_episodes: plan.evaluation_episodes,
            external: None,
        }
    }

    /// What is stored of it, for the caller whose share of the learners it takes.
    pub(crate) fn plan(&self, caller: &str) -> Plan {
        let planned = |learning: &Learning| PlannedLearner {
            agent: learning.agent.clone(),
            algorithm: learning.algorithm.clone(),
            values: learning.values.clone(),
        };
        Plan {
            environment: self.environment.clone(),
            learners: self.learners.iter().map(planned).collect(),
            reports: self.reports,
            evaluation_episodes: self.evaluation_episodes,
            caller: caller.to_owned(),
        }
    }

    /// Checks everything that can be checked before the training begins.
    pub(crate) fn check(&self) -> Result<(), OrchestrationError> {
        let extent = Extent {
            copies: self.copies()?,
            steps: self.steps,
        };
        let mut sizes = Vec::with_capacity(self.learners.len());
        for learning in &self.learners {
            let size = self.check_learning(learning, extent)?;
            sizes.push((learning.agent.as_str(), size));
        }
        size::check(&sizes).map_err(OrchestrationError::Hyperparameters)
    }

    /// Returns what the learner may come to.
    fn check_learning(
        &self,
        learning: &Learning,
        extent: Extent,
    ) -> Result<Size, OrchestrationError> {
        let algorithm = find(&learning.algorithm)?;
        let checked = algorithm.spec.check(&learning.values);
        checked.map_err(OrchestrationError::Hyperparameters)?;
        let space = match &self.external {
            Some(external) => space_in(&external.spec, &learning.agent),
            None => space(&self.environment, &learning.agent),
        };
        let unknown = || OrchestrationError::Environment(self.environment.clone());
        let space = space.ok_or_else(unknown)?;
        algorithm.fits(&space)?;
        let size = algorithm.size(&space, &learning.values, extent);
        size.map_err(OrchestrationError::Hyperparameters)
    }

    /// How many copies of the environment are stepped together: what the most demanding learner is meant
    /// for.
    fn copies(&self) -> Result<usize, OrchestrationError> {
        let algorithms = self.learners.iter().map(|l| find(&l.algorithm));
        let copies = algorithms.map(|found| found.map(|algorithm| algorithm.copies));
        let copies = copies.collect::<Result<Vec<usize>, _>>()?;
        Ok(copies.into_iter().max().unwrap_or(1))
    }

    /// How to make the environment, and how many copies of it are stepped together. An evaluation needs
    /// one more.
    fn world(&self) -> Result<(WorldSpec, MakeWorld, usize), OrchestrationError> {
        let copies = self.copies()?;
        if let Some(external) = &self.external {
            let most = external.free_copies.saturating_sub(1);
            let copies = copies.min(most);
            if copies == 0 {
                return Err(OrchestrationError::HostFull(self.environment.clone()));
            }
            return Ok((external.spec.clone(), Arc::clone(&external.make), copies));
        }
        let environment = self.environment.clone();
        let world = make_world(&environment)
            .ok_or_else(|| OrchestrationError::Environment(environment.clone()))?;
        let make = move || make_world(&environment).expect("the environment exists");
        Ok((world.spec().clone(), Arc::new(make), copies))
    }

    /// The training, and the positions of the agents that learn.
    pub(crate) fn training(mut self) -> Result<(Training, Vec<usize>), OrchestrationError> {
        let (spec, world, copies) = self.world()?;
        let agents = spec.agents.iter();
        let mut members: Vec<Member> = agents
            .map(|space| match self.frozen.remove(&*space.name) {
                Some(policy) => Member::Plays(Player::Policy(policy)),
                None => Member::Plays(Player::baseline(space)),
            })
            .collect();
        let mut positions = Vec::with_capacity(self.learners.len());
        for learning in self.learners {
            let at = position(&spec, &learning.agent);
            positions.push(at);
            members[at] = Member::Learns {
                algorithm: learning.algorithm,
                values: learning.values,
                start: learning.start,
            };
        }
        let training = Training {
            world,
            members,
            copies,
            seed: self.seed,
            steps: self.steps,
            reports: self.reports,
            evaluate_every: 0,
            evaluation_episodes: self.evaluation_episodes,
        };
        Ok((training, positions))
    }
}

/// The name of what acts for an agent that has no rule.
pub(crate) const FIRST_ACTION: &str = "first_action";

/// What the only agent that learned has learned, and the evaluation of it.
pub(crate) fn result(outcome: &Outcome) -> Option<(&Learned, &Evaluation)> {
    Some((outcome.learned.first()?, outcome.evaluations.last()?))
}

#[cfg(test)]
impl Task {
    /// DQN on the grid.
    pub(crate) fn for_tests(steps: u64) -> Self {
        Self {
            environment: "gridworld".to_owned(),
            learners: vec![Learning::of("dqn", "policy")],
            frozen: BTreeMap::new(),
            seed: 1,
            steps,
            reports: 1,
            evaluation_episodes: 1,
            external: None,
        }
    }
}

#[cfg(test)]
impl Learning {
    fn of(algorithm: &str, agent: &str) -> Self {
        Self {
            agent: agent.to_owned(),
            algorithm: algorithm.to_owned(),
            values: Values::new(),
            start: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_learn::{
        hyper::Value,
        training::{Control, Progress},
    };

    struct Ignore;

    impl Control for Ignore {
        fn report(&mut self, _: Progress) {}
    }

    fn task(algorithm: &str, environment: &str, agent: &str) -> Task {
        Task {
            environment: environment.to_owned(),
            learners: vec![Learning::of(algorithm, agent)],
            ..Task::for_tests(400)
        }
    }

    #[test]
    fn each_agent_of_the_mesh_learns_against_the_rules_of_the_others() {
        for (at, (algorithm, agent)) in [
            ("dqn", "policy"),
            ("a2c", "consensus"),
            ("ppo", "ethical"),
            ("ddpg", "resource"),
        ]
        .into_iter()
        .enumerate()
        {
            let task = task(algorithm, "mesh", agent);
            task.check().unwrap();
            let (training, positions) = task.training().unwrap();
            assert_eq!(positions, [at]);
            let run = || training.execute(None, &mut Ignore).unwrap().unwrap();
            let outcome = run();
            let (learned, evaluation) = result(&outcome).unwrap();
            assert_eq!(learned.agent, at);
            assert!(evaluation.mean(at).is_finite());
            assert_eq!(outcome, run(), "{agent}: the seed determines everything");
        }
    }

    #[test]
    fn an_agent_with_another_name_is_the_first_of_its_environment() {
        let (_, positions) = task("dqn", "cartpole", "consensus").training().unwrap();
        assert_eq!(positions, [0]);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_before_it_begins() {
        use OrchestrationError as E;
        let refused = |task: Task| task.check().unwrap_err();
        let unknown = refused(task("sarsa", "cartpole", "policy"));
        assert!(matches!(unknown, E::Algorithm(_)), "{unknown}");
        let unknown = refused(task("dqn", "nowhere", "policy"));
        assert!(matches!(unknown, E::Environment(_)), "{unknown}");
        let unfit = refused(task("dqn", "mesh", "resource"));
        assert!(matches!(unfit, E::Mismatch(_)), "{unfit}");
        let mut wrong = task("dqn", "cartpole", "policy");
        wrong.learners[0].values = Values::from([("gamma".to_owned(), Value::Number(7.0))]);
        let wrong = refused(wrong);
        assert!(matches!(wrong, E::Hyperparameters(_)), "{wrong}");
    }

    #[test]
    fn a_state_that_could_not_be_stored_is_refused_before_it_begins() {
        let number = |name: &str, n: f64| Values::from([(name.to_owned(), Value::Number(n))]);
        let large = |algorithm: &str, agent: &str, values: Values| {
            let mut task = task(algorithm, "mesh", agent);
            task.steps = 10_000_000;
            task.learners[0].values = values;
            task
        };
        for (algorithm, agent, name, most) in [
            ("dqn", "policy", "buffer_size", 1e7),
            ("ddpg", "resource", "buffer_size", 1e7),
        ] {
            let refused = large(algorithm, agent, number(name, most)).check();
            let OrchestrationError::Hyperparameters(wrong) = refused.unwrap_err() else {
                panic!("{algorithm}");
            };
            assert_eq!(wrong[0].name, name);
            let few = Task {
                steps: 1_000,
                ..large(algorithm, agent, number(name, most))
            };
            few.check().unwrap();
            large(algorithm, agent, Values::new()).check().unwrap();
        }
        let mut wide = number("n_steps", 1e4);
        wide.extend(number("hidden_dim", 512.0));
        let refused = large("a2c", "consensus", wide).check().unwrap_err();
        assert!(
            matches!(refused, OrchestrationError::Hyperparameters(_)),
            "{refused}"
        );
    }
}
