//! A step: each agent's preferred action in its state, the conflicts among them, and their resolution.
//!
//! Without a world to measure them in, the payoffs of a joint action are each agent's own action values. They measure what an agent gives
//! up by another action; costs to the other agents are expressed by constraints.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Action, Asker},
    choices::{Choice, Choices},
    conflicts::{self, Constraint, Dispute, Party, Resolution, ResolutionRule},
    rewards::weight,
    store::{self, ConflictBody, ConflictRow, Met},
};
use std::collections::BTreeMap;
use tars_games::Game;
use uuid::Uuid;

/// Joint actions up to which a dispute is resolved on the serving thread.
const AT_ONCE: usize = 64;
/// Conflicts that a list returns.
const SHOWN: i64 = 50;

#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) agent: &'static str,
    pub(crate) agent_type: Option<String>,
    /// In the precision of the networks: a number that is too large for it is infinite.
    pub(crate) observation: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct StepOutcome {
    pub(crate) step_id: String,
    pub(crate) at_us: i64,
    pub(crate) raw: Vec<Action>,
    pub(crate) resolved: Vec<Action>,
    pub(crate) dispute: Dispute,
    pub(crate) resolution: Resolution,
}

impl Orchestration {
    pub(crate) async fn step(
        &self,
        asker: Asker<'_>,
        observed: Vec<Observed>,
        constraints: Vec<Constraint>,
        rule: ResolutionRule,
    ) -> Result<StepOutcome, OrchestrationError> {
        if observed.is_empty() {
            return Err(OrchestrationError::NoState);
        }
        let tenure = self.tenure()?;
        let raw = observed
            .iter()
            .map(|o| {
                self.agents
                    .get(o.agent)?
                    .answer(asker, o.agent_type.as_deref(), &o.observation)
            })
            .collect::<Result<Vec<Action>, _>>()?;
        Self::confirm(&tenure)?;
        let choices = raw
            .iter()
            .map(|acted| Ok(self.agents.get(acted.agent)?.choices(acted)))
            .collect::<Result<Vec<Choices>, OrchestrationError>>()?;
        let stakes = Stakes::own_values(&choices)?;
        let dispute = dispute(&raw, &choices, stakes, constraints, rule);
        let (dispute, resolution) = resolve(dispute).await?;
        let resolved = resolved(&raw, &choices, &resolution).into_iter();
        let allowed = resolved.zip(&observed).map(|(action, seen)| {
            let agent = self.agents.get(action.agent)?;
            Ok(agent.settle_for(&seen.observation, action))
        });
        let resolved = allowed.collect::<Result<_, OrchestrationError>>()?;
        let stepped = StepOutcome {
            step_id: Uuid::now_v7().to_string(),
            at_us: self.clock.now_us(),
            raw,
            resolved,
            dispute,
            resolution,
        };
        if !stepped.resolution.conflicts.is_empty() {
            self.store_conflict(asker.owner, &stepped).await?;
        }
        Ok(stepped)
    }

    async fn store_conflict(
        &self,
        owner: &str,
        stepped: &StepOutcome,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin("conflicts.insert").await?;
        store::insert_conflict(&mut tx, owner, &conflict_row(stepped)).await?;
        Ok(tx.commit().await?)
    }

    /// The latest conflicts, and the number of all that were ever met.
    pub(crate) async fn conflicts(
        &self,
        met: Met<'_>,
    ) -> Result<(Vec<ConflictRow>, i64), OrchestrationError> {
        self.store.conflicts(met, SHOWN).await
    }
}

/// What the agents are to do.
pub(crate) fn resolved(
    raw: &[Action],
    choices: &[Choices],
    resolution: &Resolution,
) -> Vec<Action> {
    let all = raw.iter().zip(choices).zip(&resolution.resolved);
    all.map(|((acted, choices), at)| replaced(acted, choices, *at))
        .collect()
}

/// The same decision with another of the agent's choices.
fn replaced(acted: &Action, choices: &Choices, at: usize) -> Action {
    if at == choices.own {
        return acted.clone();
    }
    let Choice { action, name, .. } = choices.all[at].clone();
    Action {
        action,
        name,
        shielded: None,
        ..acted.clone()
    }
}

/// An agent as a party to a dispute.
fn party(acted: &Action, choices: &Choices) -> Party {
    let actions = choices.all.iter().map(|c| (c.name.clone(), c.number));
    Party {
        name: acted.agent.to_owned(),
        actions: actions.collect(),
        raw: choices.own,
    }
}

/// What a dispute is about.
pub(crate) struct Stakes {
    pub(crate) game: Game,
    /// What each agent has without an agreement.
    pub(crate) disagreement: Vec<f64>,
    /// The regret up to which an agent is content, as a share of the range of its payoffs.
    pub(crate) tolerance: f64,
}

impl Stakes {
    /// Payoffs that are each agent's own values of its actions. Without an agreement each has the worst.
    pub(crate) fn own_values(choices: &[Choices]) -> Result<Self, OrchestrationError> {
        let payoffs = |own: &Choices| own.all.iter().map(|c| c.payoff).collect();
        let values: Vec<Vec<f64>> = choices.iter().map(payoffs).collect();
        let worst = |own: &Vec<f64>| own.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Self {
            game: conflicts::own_values(&values)?,
            disagreement: values.iter().map(worst).collect(),
            tolerance: conflicts::EXACT,
        })
    }
}

/// The dispute of agents with these choices, under the built-in constraints and others.
pub(crate) fn dispute(
    raw: &[Action],
    choices: &[Choices],
    stakes: Stakes,
    constraints: Vec<Constraint>,
    rule: ResolutionRule,
) -> Dispute {
    let parties = raw.iter().zip(choices);
    let built_in = conflicts::built_in().into_iter();
    Dispute {
        parties: parties.map(|(acted, own)| party(acted, own)).collect(),
        game: stakes.game,
        constraints: built_in.chain(constraints).collect(),
        rule,
        tolerance: stakes.tolerance,
        disagreement: Some(stakes.disagreement),
        weights: Some(raw.iter().map(|a| weight(a.agent)).collect()),
    }
}

/// A step with a conflict as it is stored, with names instead of numbers.
pub(crate) fn conflict_row(stepped: &StepOutcome) -> ConflictRow {
    let StepOutcome {
        dispute,
        resolution,
        ..
    } = stepped;
    ConflictRow {
        step_id: stepped.step_id.clone(),
        at_us: stepped.at_us,
        body: ConflictBody {
            conflicts: resolution.conflicts.clone(),
            method: resolution.method().to_owned(),
            raw: named(dispute, &resolution.raw),
            resolved: named(dispute, &resolution.resolved),
            explanation: resolution.explanation.clone(),
        },
    }
}

/// The name of each party's action.
fn named(dispute: &Dispute, joint: &[usize]) -> BTreeMap<String, String> {
    let parties = dispute.parties.iter().enumerate().zip(joint);
    let name = |((i, party), action): ((usize, &Party), &usize)| {
        (party.name.clone(), dispute.name(i, *action).to_owned())
    };
    parties.map(name).collect()
}

/// Resolves a small dispute directly, and a large one on a blocking thread.
async fn resolve(dispute: Dispute) -> Result<(Dispute, Resolution), OrchestrationError> {
    let few = dispute.game.cells() <= AT_ONCE;
    let work = move || {
        let resolution = dispute.resolve()?;
        Ok((dispute, resolution))
    };
    if few {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| OrchestrationError::Worker("resolving a conflict"))?
}

#[cfg(test)]
mod tests;
