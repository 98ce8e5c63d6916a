//! What an agent answers by: how a version of it is written, restored and loaded.

use super::{Agent, Agents, Answerer, Candidate, Definition, LiveAgent};
use crate::{
    OrchestrationError,
    rules::Rule,
    stage::Attempt,
    store::{self, AgentRow, VersionRow},
};
use tars_learn::Policy;
use tars_runtime::{
    blobs::{BlobError, Blobs},
    db::Transaction,
};
use uuid::Uuid;

/// What a training leaves to its agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installed<'a> {
    pub(crate) run: Uuid,
    pub(crate) policy: &'a Policy,
    /// The mean return of the evaluation at the end.
    pub(crate) final_return: f64,
    pub(crate) steps: i64,
    pub(crate) episodes: i64,
    /// Whether the environment was lent by a caller, who says what is rewarded there.
    pub(crate) is_lent: bool,
}

impl Agents {
    /// Writes new weights, and the row that refers to them. Of an agent that is bound to the live mesh they
    /// enter the ladder, and do not answer. Those from a lent environment do not answer either, until a person
    /// promotes them: they are what its owner rewarded. Returns the number of the version too. The caller commits and
    /// publishes.
    pub(crate) async fn install(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        installed: Installed<'_>,
    ) -> Result<(LiveAgent, i64), OrchestrationError> {
        let blob = self.blobs.put(tx, installed.policy.to_bytes()).await?;
        let mut next = LiveAgent::clone(&agent.live());
        let served = !agent.is_bound() && !installed.is_lent;
        let number = next_version(tx, &next.row).await?;
        if served {
            next.row.weights = Some(blob.clone());
            next.row.rule = None;
            next.row.weights_version = number;
            next.row.last_return = Some(installed.final_return);
            next.answer_by(Answerer::Policy(installed.policy.clone()));
        }
        next.row.total_steps += installed.steps;
        next.row.total_episodes += installed.episodes;
        next.row.updated_us = self.clock.now_us();
        let version = VersionRow {
            version: number,
            blob: Some(blob),
            rule: None,
            at_us: next.row.updated_us,
            algorithm: installed.policy.algorithm().to_owned(),
            run_id: Some(installed.run),
            mean_return: Some(installed.final_return),
            restored_from: None,
            served,
            climbed: false,
            fell: false,
        };
        store::update_weights(tx, &next.row).await?;
        store::insert_version(tx, agent.id(), &version).await?;
        Ok((next, number))
    }

    /// Makes what a retained version answers by the next version, as [`install`](Self::install) does.
    pub(crate) async fn restore(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        from: &VersionRow,
    ) -> Result<LiveAgent, OrchestrationError> {
        let answerer = self.answerer_of(agent, from).await?;
        let origin = VersionRow {
            restored_from: Some(from.restored_from.unwrap_or(from.version)),
            ..from.clone()
        };
        self.replace(tx, agent, answerer, origin).await
    }

    /// Makes one of the agent's rules the next version.
    pub(crate) async fn follow(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        rule: Rule,
    ) -> Result<LiveAgent, OrchestrationError> {
        let origin = VersionRow::of_rule(rule.name());
        self.replace(tx, agent, Answerer::Rule(rule), origin).await
    }

    /// Writes the next version, which answers from now on.
    async fn replace(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        answerer: Answerer,
        origin: VersionRow,
    ) -> Result<LiveAgent, OrchestrationError> {
        let mut next = LiveAgent::clone(&agent.live());
        next.row.weights = origin.blob.clone();
        next.row.rule = origin.rule.clone();
        next.row.weights_version = next_version(tx, &next.row).await?;
        next.row.last_return = origin.mean_return;
        next.row.updated_us = self.clock.now_us();
        next.answer_by(answerer);
        next.row.leave(origin.version);
        self.arrange(tx, agent, &mut next).await?;
        let version = VersionRow {
            version: next.row.weights_version,
            at_us: next.row.updated_us,
            served: true,
            fell: false,
            ..origin
        };
        store::update_weights(tx, &next.row).await?;
        store::insert_version(tx, agent.id(), &version).await?;
        Ok(next)
    }

    /// Loads the versions of a bound agent that its row puts into SHADOW and CANARY. One that cannot act is
    /// not asked.
    pub(crate) async fn arrange(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        next: &mut LiveAgent,
    ) -> Result<(), OrchestrationError> {
        next.shadow = self.candidate(tx, agent, next.row.shadow).await?;
        next.canary = self.candidate(tx, agent, next.row.canary).await?;
        Ok(())
    }

    async fn candidate(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        version: Option<i64>,
    ) -> Result<Option<Candidate>, OrchestrationError> {
        let Some(version) = version.filter(|_| agent.is_bound()) else {
            return Ok(None);
        };
        let trial = store::trial_number(tx, agent.id(), version).await?;
        let attempt = Attempt { version, trial };
        let live = agent.live();
        let mut loaded = live.canary.iter().chain(&live.shadow);
        if let Some(found) = loaded.find(|candidate| candidate.attempt.version == version) {
            let answerer = found.answerer.clone();
            return Ok(Some(Candidate { attempt, answerer }));
        }
        let Some(row) = store::version(tx, agent.id(), version).await? else {
            return Ok(None);
        };
        match self.answerer_of(agent, &row).await {
            Ok(answerer) => Ok(Some(Candidate { attempt, answerer })),
            Err(error @ OrchestrationError::UnusableVersion { .. }) => {
                tracing::error!(%error, "a version on the ladder is not asked");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a retained version answers by, if the agent can act by it.
    pub(crate) async fn answerer_of(
        &self,
        agent: &Agent,
        version: &VersionRow,
    ) -> Result<Answerer, OrchestrationError> {
        match &version.blob {
            Some(blob) => Ok(Answerer::Policy(
                self.policy_of(agent, version, blob).await?,
            )),
            None => {
                let rule = version.rule.as_deref().unwrap_or_default();
                Ok(Answerer::Rule(agent.definition.rule(rule)?))
            }
        }
    }

    async fn policy_of(
        &self,
        agent: &Agent,
        version: &VersionRow,
        blob: &str,
    ) -> Result<Policy, OrchestrationError> {
        let read = read(&self.blobs, &agent.definition, blob).await?;
        read.map_err(|why| OrchestrationError::UnusableVersion {
            agent: agent.id(),
            version: version.version,
            why,
        })
    }
}

/// The number of the next version. Those on the ladder have larger ones than the live one.
async fn next_version(tx: &mut Transaction, row: &AgentRow) -> Result<i64, OrchestrationError> {
    let newest = store::newest_version(tx, &row.id).await?;
    Ok(newest.max(row.weights_version) + 1)
}

/// The weights of a row.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) policy: Option<Policy>,
    /// Why there are none, though the row names some.
    pub(super) unusable: Option<String>,
}

/// Loads the weights that a row names. An agent whose weights are damaged or lost answers nothing by them; the
/// others go on.
pub(super) async fn load(
    blobs: &Blobs,
    definition: &Definition,
    row: &AgentRow,
) -> Result<Loaded, OrchestrationError> {
    let Some(blob) = &row.weights else {
        return Ok(Loaded::default());
    };
    Ok(match read(blobs, definition, blob).await? {
        Ok(policy) => Loaded {
            policy: Some(policy),
            unusable: None,
        },
        Err(why) => {
            let (agent, version) = (definition.id, row.weights_version);
            tracing::error!(
                agent,
                version,
                why,
                "the live weights of an agent cannot be used: promote another version of it, or roll it back"
            );
            Loaded {
                policy: None,
                unusable: Some(why),
            }
        }
    })
}

/// Reads a policy of an agent, or says why it cannot act by it.
async fn read(
    blobs: &Blobs,
    definition: &Definition,
    blob: &str,
) -> Result<Result<Policy, String>, OrchestrationError> {
    let bytes = match blobs.get(blob).await {
        Ok(bytes) => bytes,
        Err(e @ (BlobError::Db(_) | BlobError::Io { .. })) => return Err(e.into()),
        Err(e) => return Ok(Err(e.to_string())),
    };
    let policy = match Policy::from_bytes(&bytes) {
        Ok(policy) => policy,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let fits = policy.fits(&definition.space);
    Ok(fits.map(|()| policy).map_err(|e| e.to_string()))
}
