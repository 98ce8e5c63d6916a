//! Whether a version is as good as what it would replace: episodes in the agent's environment, on seeds that
//! nothing was trained on, in which the version, the incumbent and each of the agent's rules take the same
//! part. They play as they answer the live mesh: from each observation alone, and under the action shield. A
//! comparison is stored whatever it says, in the place of one that is not on more seeds.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, Answerer},
    learners::{Class, Owner},
    rules::Rule,
    shield::Shield,
    stage::{Against, Comparison, Incumbent},
    store::{self, VersionRow},
    versions::incumbent,
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars_learn::{
    comparison::{self, play},
    policy::Decision,
};
use tars_runtime::{page, tasks::to_the_end};
use tars_worlds::{Action, AgentSpace, Controller, MeshEnv, World, baseline};
use tokio::sync::oneshot;

/// The seed of the first episode. Trainings draw the seeds of their episodes otherwise.
const FIRST_SEED: u64 = 1 << 52;

/// Whoever takes the part of the agent, by name.
type Player = (String, Box<dyn Controller>);

/// Episodes in which different players take the part of one agent, and the default rules those of the others.
struct Contest {
    mesh: MeshEnv,
    agent: usize,
    /// The version, then the incumbent, then the rules.
    players: Vec<Player>,
    seeds: Range<u64>,
}

/// What the ends of a contest are.
#[derive(Debug, PartialEq)]
enum Played {
    /// The rewards of each player, seed by seed.
    Rewards(Vec<Vec<f64>>),
    Stopped,
}

impl Contest {
    fn play(mut self, stop: &AtomicBool) -> Played {
        let mut rewards = vec![Vec::new(); self.players.len()];
        let mut seats = self.others();
        for seed in self.seeds.clone() {
            for (at, rewards) in rewards.iter_mut().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return Played::Stopped;
                }
                std::mem::swap(&mut seats[self.agent], &mut self.players[at].1);
                let earned = play(&mut self.mesh, &mut seats, [seed]);
                std::mem::swap(&mut seats[self.agent], &mut self.players[at].1);
                rewards.extend(&earned[self.agent]);
            }
        }
        Played::Rewards(rewards)
    }

    /// A controller for each agent: its default rule.
    fn others(&self) -> Vec<Box<dyn Controller>> {
        let agents = self.mesh.spec().agents.iter();
        let rule = |space: &AgentSpace| {
            let found = baseline(&space.name).and_then(|name| Rule::find(space, name));
            let found = found.expect("every agent of the mesh has its default rule");
            Served::boxed(Answerer::Rule(found), Shield::of_mesh(space))
        };
        agents.map(rule).collect()
    }
}

/// What was played, as a comparison of the first player with the others; `None` where a reward is not finite.
fn compared(
    names: &[String],
    rewards: &[Vec<f64>],
    incumbent: Incumbent,
    calibration: String,
    at_us: i64,
) -> Option<Comparison> {
    if rewards.iter().flatten().any(|reward| !reward.is_finite()) {
        return None;
    }
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
    let (own, others) = rewards.split_first()?;
    let against = |(name, theirs): (&String, &Vec<f64>)| Against {
        name: name.clone(),
        mean: mean(theirs),
        difference: comparison::Difference::paired(own, theirs).into(),
    };
    let mut others = names.iter().skip(1).zip(others).map(against);
    Some(Comparison {
        incumbent,
        calibration,
        seeds: u32::try_from(own.len()).unwrap_or(u32::MAX),
        first_seed: FIRST_SEED,
        mean: mean(own),
        with_incumbent: others.next()?,
        with_rules: others.collect(),
        at_us,
    })
}

/// What answers for an agent, in its part of an episode: as it answers the live mesh.
struct Served {
    answerer: Answerer,
    shield: Shield,
}

impl Served {
    fn boxed(answerer: Answerer, shield: Shield) -> Box<dyn Controller> {
        Box::new(Self { answerer, shield })
    }
}

impl Controller for Served {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let decided = self.answerer.decide(observation);
        let Decision {
            action: wanted,
            values,
        } = decided;
        let blocked = self.shield.judge(observation, &wanted, &values);
        *action = blocked.map_or(wanted, |blocked| blocked.instead);
    }
}

impl Orchestration {
    /// Makes a comparison that goes on, and is stored, when its caller gives up: it may take longer than a call.
    /// The queue of the learners bounds how many of them one caller has.
    pub(crate) async fn compare_to_the_end(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        caller: String,
        version: i64,
        seeds: u32,
    ) -> Result<Comparison, OrchestrationError> {
        let (told, _waiting) = oneshot::channel::<()>();
        let this = Arc::clone(self);
        to_the_end(async move {
            let name = agent.id();
            let found = this.compare(agent, caller, version, seeds).await;
            if let (Err(error), true) = (&found, told.is_closed()) {
                tracing::warn!(agent = name, version, %error, "a comparison that nobody waits for failed");
            }
            found
        })
        .await
    }

    /// Compares a version with what answers now, and with the agent's rules, on a learner's thread; stores
    /// and returns what was found. It ends when it is dropped.
    pub(crate) async fn compare(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        caller: String,
        version: i64,
        seeds: u32,
    ) -> Result<Comparison, OrchestrationError> {
        let row = self.retained(&agent, version).await?;
        let live = agent.live();
        let incumbent = incumbent(&agent, &live);
        let candidate = self.agents.answerer_of(&agent, &row).await?;
        let present = match live.answerer() {
            Some(answerer) => answerer,
            None => Answerer::Rule(agent.definition.baseline()?),
        };
        let contest = contest(&agent, &candidate, (&incumbent, &present), seeds)?;
        let names: Vec<String> = contest
            .players
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        let calibration = contest.mesh.calibration().name.clone();
        let owner = Owner {
            class: Class::Search,
            caller,
        };
        let played = self
            .learners
            .compute(owner, move |stop| contest.play(stop))?;
        let Played::Rewards(rewards) = played.result().await? else {
            return Err(OrchestrationError::Worker("a comparison was stopped"));
        };
        let at_us = self.clock.now_us();
        let found = compared(&names, &rewards, incumbent, calibration, at_us);
        let found = found.ok_or(OrchestrationError::NotComparable(version))?;
        let (this, kept) = (Arc::clone(self), found.clone());
        to_the_end(async move { this.store_comparison(&agent, version, &kept).await }).await?;
        Ok(found)
    }

    /// Keeps what says more: another comparison with the same incumbent takes at least as many seeds to replace
    /// one, or whoever compares could choose the seeds by what they show.
    async fn store_comparison(
        &self,
        agent: &Agent,
        version: i64,
        found: &Comparison,
    ) -> Result<(), OrchestrationError> {
        let _turn = agent.changing().lock().await;
        let mut tx = self.store.begin("comparisons.put").await?;
        let stored = store::comparison(&mut tx, agent.id(), version).await?;
        let says_more =
            |stored: Comparison| stored.incumbent == found.incumbent && stored.seeds > found.seeds;
        if !stored.is_some_and(says_more) {
            store::put_comparison(&mut tx, agent.id(), version, found).await?;
        }
        Ok(tx.commit().await?)
    }

    /// A retained version of an agent.
    async fn retained(
        &self,
        agent: &Agent,
        version: i64,
    ) -> Result<VersionRow, OrchestrationError> {
        let rows = self
            .store
            .versions(agent.id(), version.saturating_add(1), page::size(1))
            .await?;
        let found = rows.rows.into_iter().map(|listed| listed.row);
        let found = found.into_iter().find(|row| row.version == version);
        found.ok_or_else(|| OrchestrationError::NotFound("version", version.to_string()))
    }

    /// The stored comparison of a version.
    pub(crate) async fn comparison(
        &self,
        agent: &Agent,
        version: i64,
    ) -> Result<Comparison, OrchestrationError> {
        let stored = self.store.comparison(agent.id(), version).await?;
        stored.ok_or_else(|| {
            OrchestrationError::NotFound("comparison of version", version.to_string())
        })
    }
}

/// The version, the incumbent and the rules of an agent in the mesh.
fn contest(
    agent: &Agent,
    candidate: &Answerer,
    (incumbent, present): (&Incumbent, &Answerer),
    seeds: u32,
) -> Result<Contest, OrchestrationError> {
    let mesh = MeshEnv::shipped();
    let definition = &agent.definition;
    let at = mesh.spec().agent(agent.id());
    let at = at.filter(|_| !definition.rules.is_empty());
    let at = at.ok_or(OrchestrationError::NothingToCompare(agent.id()))?;
    let served = |answerer| Served::boxed(answerer, definition.shield.clone());
    let mut players: Vec<Player> = vec![
        ("version".to_owned(), served(candidate.clone())),
        (incumbent.to_string(), served(present.clone())),
    ];
    for name in &definition.rules {
        let rule = Answerer::Rule(definition.rule(name)?);
        players.push(((*name).to_owned(), served(rule)));
    }
    Ok(Contest {
        mesh,
        agent: at,
        players,
        seeds: FIRST_SEED..FIRST_SEED + u64::from(seeds),
    })
}

#[cfg(test)]
mod tests;
