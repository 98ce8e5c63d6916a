//! Changes of an agent's live state.
//!
//! A governed change has three operations: apply takes a hold on the agent, apply again rolls back, and
//! settle records what was approved and releases the hold. While an agent is held nothing else changes
//! its live state: reloads and new trainings are refused, and a training that ends meanwhile waits with
//! its weights. The hold is a row that is written together with the change, so that it outlives both
//! processes. A person can release it, unless the change waits for a person's decision: it then holds
//! whatever is live until it is settled.
//!
//! The steps of a governed change carry the fencing token of the process that works on it. The largest
//! one is a row, so that a process which was suspended and replaced can do nothing any more, at whichever
//! replica and however late it calls.
//!
//! A change is committed first and then made live, even if the caller goes away in between or the answer
//! of the database is lost: whatever is committed is published. See [`turn`](crate::turn). It returns when
//! the other replicas serve it too. See [`serving`](crate::serving).

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    serving::{Made, Rollout},
    store::{self, ApprovalRow, HoldRow, Operation, WorkToken},
    turn::Turn,
};
use std::{collections::BTreeSet, sync::Arc};
use tars_learn::hyper::{Value, Values};
use tars_runtime::{
    audit::{self, Record, Severity},
    db::{DbError, Swap, Transaction},
    tasks::to_the_end,
};

/// A direct change of an agent, outside of governance.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub(crate) by: String,
    pub(crate) reason: String,
    pub(crate) expected_version: Option<i64>,
    /// The new values; other parameters are kept.
    pub(crate) values: Values,
}

/// The governed change that a call is a part of, and the process that works on it.
#[derive(Debug, Clone)]
pub(crate) struct Governed {
    pub(crate) by: String,
    pub(crate) on_behalf_of: String,
    pub(crate) change_id: String,
    pub(crate) token: i64,
}

/// An operation of a governed change, idempotent by its id.
#[derive(Debug, Clone)]
pub(crate) struct ApplyOperation {
    pub(crate) change: Governed,
    pub(crate) operation_id: String,
    pub(crate) expected_version: i64,
    pub(crate) values: Values,
}

/// The end of a governed change.
#[derive(Debug, Clone)]
pub(crate) struct Settle {
    pub(crate) by: String,
    pub(crate) on_behalf_of: String,
    pub(crate) change_id: String,
    /// The verified version, if the change is approved.
    pub(crate) approved_version: Option<i64>,
    /// An operation that is not to take effect, or was taken back.
    pub(crate) void_operation: Option<String>,
    /// Absent for a change that nobody works on any more.
    pub(crate) token: Option<i64>,
}

/// A person's request to release a hold.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) by: String,
    pub(crate) change_id: String,
    pub(crate) reason: String,
}

/// A parameter whose live value differs from the approved one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParameterDrift {
    pub(crate) name: String,
    pub(crate) approved: Option<Value>,
    pub(crate) live: Option<Value>,
}

impl Orchestration {
    /// Changes hyperparameters directly. Returns the new live state, and which replicas serve it. The
    /// change is made even where they do not yet: a caller who repeated it would make another.
    pub(crate) async fn reload(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        reload: Reload,
    ) -> Result<(Arc<LiveAgent>, Rollout), OrchestrationError> {
        agent.check(&reload.values)?;
        self.ensure_usable(&agent, &reload.values)?;
        let this = Arc::clone(self);
        let made = to_the_end(async move { this.do_reload(&agent, reload).await }).await?;
        let rollout = self.rollout(made.position).await?;
        Ok((made.live, rollout))
    }

    async fn do_reload(&self, agent: &Agent, reload: Reload) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "agents.reload").await?;
        ensure_not_held(&mut tx, agent.id(), None).await?;
        let live = agent.live();
        let expected = reload.expected_version.unwrap_or(live.row.version);
        let changed: Vec<String> = reload.values.keys().cloned().collect();
        let next = self.write(&mut tx, &live, expected, reload.values).await?;
        let record = self
            .record("admin.agent.reload", &reload.by, &next)
            .detail("changed", changed.join(","))
            .detail("reason", &reload.reason);
        audit::insert(&mut tx, &record).await?;
        let drifted = next.drift();
        if !drifted.is_empty() {
            let names: Vec<&str> = drifted.iter().map(|d| d.name.as_str()).collect();
            let record = self
                .record("agent.drift", &reload.by, &next)
                .severity(Severity::Warning)
                .detail("approved_version", next.approved.version)
                .detail("parameters", names.join(","));
            audit::insert(&mut tx, &record).await?;
        }
        tx.commit(next).await
    }

    /// Applies values for a governed change and holds the agent. Returns the version that the operation
    /// made.
    pub(crate) async fn apply(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        step: ApplyOperation,
    ) -> Result<i64, OrchestrationError> {
        agent.check(&step.values)?;
        let this = Arc::clone(self);
        let applied = to_the_end(async move { this.do_apply(&agent, step).await });
        let (version, made) = applied.await?;
        self.served_everywhere(made.position).await?;
        Ok(version)
    }

    async fn do_apply(
        &self,
        agent: &Agent,
        step: ApplyOperation,
    ) -> Result<(i64, Made), OrchestrationError> {
        let mut tx = self.turn(agent, "agents.reload").await?;
        let held = step.change.admit(&mut tx, agent).await?;
        let live = agent.live();
        let (next, version) = match store::operation(&mut tx, &step.operation_id).await? {
            Some(Operation::Void) => {
                return Err(OrchestrationError::Superseded(step.change.change_id));
            }
            // Done before. The hold is renewed if it was released and nothing else is live by now.
            Some(Operation::Done(version)) if held || version != live.row.version => {
                return Ok((version, tx.commit_unchanged().await?));
            }
            Some(Operation::Done(version)) => (LiveAgent::clone(&live), version),
            None => {
                let next = self
                    .write(&mut tx, &live, step.expected_version, step.values)
                    .await?;
                let (id, version) = (&step.operation_id, next.row.version);
                let (done, now_us) = (Operation::Done(version), next.row.updated_us);
                store::insert_operation(&mut tx, id, agent.id(), done, now_us).await?;
                (next, version)
            }
        };
        let operation = &step.operation_id;
        let made = self.commit_applied(tx, next, &step.change, operation);
        Ok((version, made.await?))
    }

    /// Holds an agent for a change of which an operation is done, and makes what that left live.
    pub(crate) async fn commit_applied(
        &self,
        mut tx: Turn<'_>,
        mut next: LiveAgent,
        change: &Governed,
        operation: &str,
    ) -> Result<Made, OrchestrationError> {
        let hold = self.hold_of(change, &mut next.hold);
        // A change that waited for a person continues, so its hold can be released again.
        hold.awaits_person = false;
        store::put_hold(&mut tx, &next.row.id, hold).await?;
        let record = self
            .record("agent.applied", &change.by, &next)
            .detail("on_behalf_of", &change.on_behalf_of)
            .detail("change", &change.change_id)
            .detail("operation", operation);
        audit::insert(&mut tx, &record).await?;
        tx.commit(next).await
    }

    /// The hold of a change, which begins now where there is none.
    fn hold_of<'a>(&self, change: &Governed, hold: &'a mut Option<HoldRow>) -> &'a mut HoldRow {
        hold.get_or_insert_with(|| HoldRow {
            change_id: change.change_id.clone(),
            on_behalf_of: change.on_behalf_of.clone(),
            since_us: self.clock.now_us(),
            awaits_person: false,
        })
    }

    /// Holds an agent with whatever is live until the change is settled. Returns the live version.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        waiting: Governed,
    ) -> Result<i64, OrchestrationError> {
        let this = Arc::clone(self);
        let made = to_the_end(async move { this.do_hold(&agent, waiting).await }).await?;
        self.shown_everywhere(made.position).await;
        Ok(made.live.row.version)
    }

    async fn do_hold(&self, agent: &Agent, waiting: Governed) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "agents.hold").await?;
        waiting.admit(&mut tx, agent).await?;
        let mut next = LiveAgent::clone(&agent.live());
        let hold = self.hold_of(&waiting, &mut next.hold);
        if hold.awaits_person {
            return tx.commit_unchanged().await;
        }
        hold.awaits_person = true;
        store::put_hold(&mut tx, agent.id(), hold).await?;
        let record = self
            .record("agent.held", &waiting.by, &next)
            .severity(Severity::Warning)
            .detail("on_behalf_of", &waiting.on_behalf_of)
            .detail("change", &waiting.change_id);
        audit::insert(&mut tx, &record).await?;
        tx.commit(next).await
    }

    /// Ends a governed change. Returns the live version.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        settle: Settle,
    ) -> Result<i64, OrchestrationError> {
        let this = Arc::clone(self);
        let made = to_the_end(async move { this.do_settle(&agent, settle).await }).await?;
        self.shown_everywhere(made.position).await;
        Ok(made.live.row.version)
    }

    async fn do_settle(&self, agent: &Agent, settle: Settle) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "agents.settle").await?;
        if let Some(token) = settle.token {
            store::admit(&mut tx, &work_of(&settle.change_id, token)).await?;
        }
        let mut next = LiveAgent::clone(&agent.live());
        if let Some(operation) = &settle.void_operation {
            self.make_void(&mut tx, operation, &next).await?;
        }
        let change = settle.change_id.as_str();
        let mut released = store::delete_hold(&mut tx, agent.id(), change)
            .await?
            .is_done();
        if let Some(version) = settle.approved_version
            && !(next.approved.change_id == change && next.approved.version == version)
        {
            ensure_not_held(&mut tx, agent.id(), None).await?;
            expect(version, next.row.version)?;
            next.approved = ApprovalRow {
                hyperparameters: next.row.hyperparameters.clone(),
                version,
                change_id: settle.change_id.clone(),
            };
            store::put_approval(&mut tx, agent.id(), &next.approved, self.clock.now_us()).await?;
            released = true;
        }
        if !released {
            return tx.commit_unchanged().await;
        }
        next.hold = store::hold(&mut tx, agent.id()).await?;
        let approved = settle.approved_version.is_some();
        let by = (settle.by.as_str(), settle.on_behalf_of.as_str());
        self.commit_settled(tx, next, change, by, approved).await
    }

    /// Makes live what the end of a change has left of an agent and its hold. It was ended by a process, on behalf of
    /// a person.
    pub(crate) async fn commit_settled(
        &self,
        mut tx: Turn<'_>,
        next: LiveAgent,
        change: &str,
        (by, on_behalf_of): (&str, &str),
        approved: bool,
    ) -> Result<Made, OrchestrationError> {
        let record = self
            .record("agent.settled", by, &next)
            .detail("on_behalf_of", on_behalf_of)
            .detail("change", change)
            .detail("approved", approved);
        audit::insert(&mut tx, &record).await?;
        tx.commit(next).await
    }

    /// Sees to it that an operation does not take effect any more. Refused where what it made is live.
    async fn make_void(
        &self,
        tx: &mut Transaction,
        operation: &str,
        live: &LiveAgent,
    ) -> Result<(), OrchestrationError> {
        match store::operation(tx, operation).await? {
            None => {
                let (agent, now_us) = (&live.row.id, self.clock.now_us());
                store::insert_operation(tx, operation, agent, Operation::Void, now_us).await
            }
            Some(Operation::Done(version)) if version == live.row.version => {
                Err(OrchestrationError::StillLive {
                    version,
                    operation: operation.to_owned(),
                })
            }
            Some(_) => Ok(()),
        }
    }

    /// Releases the hold of a change.
    pub(crate) async fn release(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        release: Release,
    ) -> Result<(), OrchestrationError> {
        let this = Arc::clone(self);
        let made = to_the_end(async move { this.do_release(&agent, release).await }).await?;
        self.shown_everywhere(made.position).await;
        Ok(())
    }

    async fn do_release(
        &self,
        agent: &Agent,
        release: Release,
    ) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "agents.release").await?;
        let hold = store::hold(&mut tx, agent.id()).await?;
        if hold.is_some_and(|h| h.awaits_person && h.change_id == release.change_id) {
            return Err(OrchestrationError::AwaitsPerson(release.change_id));
        }
        let deleted = store::delete_hold(&mut tx, agent.id(), &release.change_id).await?;
        if deleted == Swap::Lost {
            return Err(OrchestrationError::NotHeld(release.change_id));
        }
        let mut next = LiveAgent::clone(&agent.live());
        next.hold = None;
        let record = self
            .record("admin.agent.release", &release.by, &next)
            .severity(Severity::Critical)
            .detail("change", &release.change_id)
            .detail("reason", &release.reason);
        audit::insert(&mut tx, &record).await?;
        tx.commit(next).await
    }

    /// Waits for a bounded time until every replica shows a change of an agent's hold or approval, which
    /// change nothing of what is live: each change checks them in the database.
    pub(crate) async fn shown_everywhere(&self, position: u64) {
        match self.rollout(position).await {
            Ok(Rollout::Everywhere) => {}
            waited => tracing::info!(?waited, "a hold is not shown by every replica yet"),
        }
    }

    /// Writes the next version of an agent's hyperparameters.
    async fn write(
        &self,
        tx: &mut Transaction,
        live: &LiveAgent,
        expected: i64,
        values: Values,
    ) -> Result<LiveAgent, OrchestrationError> {
        expect(expected, live.row.version)?;
        let mut next = LiveAgent::clone(live);
        next.row.hyperparameters.extend(values);
        next.row.version += 1;
        next.row.updated_us = self.clock.now_us();
        // What is live was read in this transaction.
        let lost = DbError::Conflict(format!("{} changed in its own turn", next.row.id));
        let written = store::update_hyperparameters(tx, &next.row).await?;
        written.or(lost)?;
        Ok(next)
    }

    pub(crate) fn record(&self, kind: &str, by: &str, live: &LiveAgent) -> Record {
        Record::new(&self.clock, "orchestration", kind)
            .caller(by)
            .resource(&live.row.id)
            .detail("version", live.row.version)
    }
}

/// A governed change, as work that one process of HyperSync does at a time.
fn work_of(change: &str, token: i64) -> WorkToken {
    WorkToken {
        work: format!("change/{change}"),
        token,
    }
}

impl Governed {
    pub(crate) fn work(&self) -> WorkToken {
        work_of(&self.change_id, self.token)
    }

    /// Refuses a process that another one has taken the place of, and any while another change holds the agent.
    /// Returns whether this one does.
    pub(crate) async fn admit(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
    ) -> Result<bool, OrchestrationError> {
        store::admit(tx, &self.work()).await?;
        ensure_not_held(tx, agent.id(), Some(&self.change_id)).await
    }
}

fn expect(expected: i64, live: i64) -> Result<(), OrchestrationError> {
    if expected == live {
        Ok(())
    } else {
        Err(OrchestrationError::Version { live, expected })
    }
}

/// Refuses while another change holds the agent; returns whether this one does.
pub(crate) async fn ensure_not_held(
    tx: &mut Transaction,
    agent: &str,
    change: Option<&str>,
) -> Result<bool, OrchestrationError> {
    match store::hold(tx, agent).await? {
        None => Ok(false),
        Some(hold) if change == Some(hold.change_id.as_str()) => Ok(true),
        Some(hold) => Err(OrchestrationError::ChangeInProgress {
            agent: agent.to_owned(),
            change: hold.change_id,
            on_behalf_of: hold.on_behalf_of,
            awaits_person: hold.awaits_person,
        }),
    }
}

impl LiveAgent {
    /// The parameters whose live values differ from the approved ones.
    pub(crate) fn drift(&self) -> Vec<ParameterDrift> {
        let (approved, live) = (&self.approved.hyperparameters, &self.row.hyperparameters);
        let names: BTreeSet<&String> = approved.keys().chain(live.keys()).collect();
        names
            .into_iter()
            .filter(|name| approved.get(*name) != live.get(*name))
            .map(|name| ParameterDrift {
                name: name.clone(),
                approved: approved.get(name).copied(),
                live: live.get(name).copied(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
