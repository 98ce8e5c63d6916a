//! How a run begins: with the leases of all its learners, its rows, and a place in the queue.

use super::{
    EVAL_EPISODES, MOST_STEPS_A_REPORT, OwnedRun, REPORTED, REPORTS, RunView,
    team::{Place, Team},
};
use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    changes::ensure_not_held,
    learners::{Class, Durable, Follows, Owner, Running},
    leases::LearnerLeases,
    store::{self, MemberRow, Others, PlanRow, RunRow, RunState},
    task::{Learning, Task},
    turn::{Guards, JointTurn},
};
use std::sync::Arc;
use tars_interceptors::{call::in_current_trace, usage::Allowance};
use tars_learn::Policy;
use tars_runtime::{
    audit::{self, Record},
    tasks::to_the_end,
};
use uuid::Uuid;

pub(super) const DEFAULT_STEPS: u64 = 20_000;

/// A request to train agents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) by: String,
    /// Whose share of the learners the run takes.
    pub(crate) owner: String,
    /// What that owner may use.
    pub(crate) allowance: Allowance,
    /// Those that learn together; all of the mesh when empty.
    pub(crate) agents: Vec<String>,
    /// Where they learn; where they live when empty.
    pub(crate) environment: String,
    pub(crate) others: Others,
    pub(crate) steps: Option<u64>,
    pub(crate) seed: Option<u64>,
}

/// What is drawn up for a run before it is written.
struct Draft {
    row: RunRow,
    members: Vec<MemberRow>,
    plan: PlanRow,
    task: Task,
}

impl Orchestration {
    pub(crate) async fn start_training(
        self: &Arc<Self>,
        start: Start,
    ) -> Result<RunView, OrchestrationError> {
        let elsewhere = match start.environment.as_str() {
            "" => None,
            name => Some(Place::named(&self.hosts, &start.owner, name)?),
        };
        let team = Team::of(&self.agents, &start.agents, elsewhere)?;
        let seed = start.seed.unwrap_or_else(|| self.seeds.draw());
        let this = Arc::clone(self);
        to_the_end(async move { this.enqueue(start, team, seed).await }).await
    }

    async fn enqueue(
        self: &Arc<Self>,
        start: Start,
        team: Team,
        seed: u64,
    ) -> Result<RunView, OrchestrationError> {
        // The policies of the others are read.
        let frozen: &[Arc<Agent>] = match start.others {
            Others::Live => &team.others,
            Others::Rules => &[],
        };
        let all = [&team.learners, frozen].concat();
        let guards = Guards::lock(&all).await;
        let leases = LearnerLeases::acquire(&self.leases, team.names()).await;
        let tx = self.store.begin("training_runs.start").await?;
        let mut turn = self.joint_turn(&all, guards, tx).await?;
        for agent in &team.learners {
            ensure_not_held(&mut turn, agent.id(), None).await?;
        }
        let leases = leases?;
        leases.fences().enforce(&mut turn).await?;
        let draft = self.draft(&start, &team, frozen, seed);
        draft.task.check()?;
        self.ensure_within_quota(&mut turn, &start, &draft.row)
            .await?;
        self.write_run(&mut turn, &draft, &start.by).await?;
        let Draft {
            row,
            members,
            plan,
            task,
        } = draft;
        let running = self.launch(task, &plan, &team.learners, None)?;
        // Dropped when the run was not written; driven when it was, whoever has heard of it.
        let (tx, guards) = turn.into_parts();
        tx.commit_with_proof(store::proof_of_run(row.id)).await?;
        drop(guards);
        let (stop, fences) = (running.stop(), leases.fences());
        let position = stop.position();
        let owned = OwnedRun::new(Arc::clone(self), team.learners, &row, fences, stop);
        tokio::spawn(in_current_trace(owned.follow(running, leases)));
        Ok(RunView {
            row,
            members,
            position,
        })
    }

    /// Refuses a run whose steps do not fit into what its owner has left. What their other runs may still take is
    /// promised to these.
    async fn ensure_within_quota(
        &self,
        tx: &mut JointTurn<'_>,
        start: &Start,
        row: &RunRow,
    ) -> Result<(), OrchestrationError> {
        let promised = store::promised_steps(&mut **tx, &start.owner).await?;
        let steps = u64::try_from(row.steps).unwrap_or(u64::MAX);
        let (usage, allowance) = (&self.usage, &start.allowance);
        usage
            .ensure_steps(&mut **tx, allowance, promised, steps)
            .await
    }

    fn draft(&self, start: &Start, team: &Team, frozen: &[Arc<Agent>], seed: u64) -> Draft {
        let steps = start.steps.unwrap_or(DEFAULT_STEPS);
        let task = task_of(team, frozen, steps, seed);
        let row = RunRow {
            owner: start.owner.clone(),
            ..queued(team, start.others, steps, seed, self.clock.now_us())
        };
        let has_begun_from = |id: &str| {
            let continues = |l: &Learning| l.agent == id && l.start.is_some();
            task.frozen.contains_key(id) || task.learners.iter().any(continues)
        };
        let all = team.learners.iter().chain(frozen);
        let policies = all
            .filter(|agent| has_begun_from(agent.id()))
            .filter_map(|agent| {
                let blob = agent.live().row.weights.clone()?;
                Some((agent.id().to_owned(), blob))
            });
        let plan = PlanRow {
            run_id: row.id,
            plan: task.plan(&start.owner),
            policies: policies.collect(),
            checkpoint: None,
            reported: 0,
            versions: team.learners.iter().map(|a| a.live().row.version).collect(),
        };
        Draft {
            members: team.learners.iter().map(|agent| member(agent)).collect(),
            row,
            plan,
            task,
        }
    }

    async fn write_run(
        &self,
        tx: &mut JointTurn<'_>,
        draft: &Draft,
        by: &str,
    ) -> Result<(), OrchestrationError> {
        store::insert_run(tx, &draft.row).await?;
        store::insert_members(tx, draft.row.id, &draft.members).await?;
        store::drop_old_reports(tx, REPORTED).await?;
        store::insert_plan(tx, &draft.plan).await?;
        for member in &draft.members {
            let record = self.run_record("training.started", by, &draft.row, &member.agent);
            audit::insert(tx, &record.detail("steps", draft.row.steps)).await?;
        }
        Ok(())
    }

    /// A record of what happened to one agent's part in a run.
    pub(crate) fn run_record(
        &self,
        event: &'static str,
        by: &str,
        row: &RunRow,
        agent: &str,
    ) -> Record {
        Record::new(&self.clock, "orchestration", event)
            .caller(by)
            .resource(agent)
            .detail("run", row.id)
    }

    /// Starts the learner of a planned run, or queues it.
    pub(crate) fn launch(
        &self,
        task: Task,
        plan: &PlanRow,
        agents: &[Arc<Agent>],
        checkpoint: Option<Vec<u8>>,
    ) -> Result<Running, OrchestrationError> {
        let owner = Owner {
            class: Class::Training,
            caller: plan.plan.caller.clone(),
        };
        let follows = agents.iter().zip(&plan.versions);
        let durable = Durable {
            follows: follows
                .map(|(agent, version)| Follows {
                    live: agent.followed(),
                    version: *version,
                })
                .collect(),
            checkpoint,
            every: self.checkpoint_every,
            clock: self.clock.clone(),
        };
        self.learners.start(owner, task, Some(durable))
    }
}

/// A new run, which waits for a learner.
fn queued(team: &Team, others: Others, steps: u64, seed: u64, now_us: i64) -> RunRow {
    RunRow {
        id: Uuid::now_v7(),
        agent_id: team.names().next().unwrap_or_default().to_owned(),
        environment: team.place.spec.name.to_string(),
        others,
        state: RunState::Queued,
        steps: i64::try_from(steps).unwrap_or(i64::MAX),
        steps_done: 0,
        episodes_done: 0,
        seed: seed as i64,
        final_return: None,
        error: String::new(),
        error_reason: String::new(),
        queued_us: now_us,
        running_us: None,
        ended_us: None,
        last_report: 0,
        rate: None,
        owner: String::new(),
        checkpoint_step: None,
    }
}

fn member(agent: &Agent) -> MemberRow {
    MemberRow {
        agent: agent.id().to_owned(),
        algorithm: agent.definition.algorithm.name.to_owned(),
        final_return: None,
        weights_version: None,
    }
}

/// A run of agents that each continue from their live policy, if a learner with the live hyperparameters can.
fn task_of(team: &Team, frozen: &[Arc<Agent>], steps: u64, seed: u64) -> Task {
    Task {
        environment: team.place.spec.name.to_string(),
        learners: team.learners.iter().map(|agent| learning(agent)).collect(),
        frozen: frozen.iter().filter_map(|agent| policy_of(agent)).collect(),
        seed,
        steps,
        reports: REPORTS.max(steps / MOST_STEPS_A_REPORT),
        evaluation_episodes: EVAL_EPISODES,
        external: team.place.external.clone(),
    }
}

fn learning(agent: &Agent) -> Learning {
    let live = agent.live();
    let continues = |policy: &&Policy| agent.continues_from(policy, &live.row.hyperparameters);
    Learning {
        agent: agent.id().to_owned(),
        algorithm: agent.definition.algorithm.name.to_owned(),
        values: live.row.hyperparameters.clone(),
        start: live.policy.as_ref().filter(continues).cloned(),
    }
}

/// An agent with its live policy, if it has one that it can act by.
fn policy_of(agent: &Agent) -> Option<(String, Policy)> {
    let policy = agent.live().policy.clone()?;
    let fits = policy.fits(&agent.definition.space).is_ok();
    fits.then(|| (agent.id().to_owned(), policy))
}

#[cfg(test)]
impl Start {
    /// A developer's request to train one agent.
    pub(crate) fn of(agent: &str, steps: u64, seed: Option<u64>) -> Self {
        Self {
            by: "user:dev".to_owned(),
            owner: "dev".to_owned(),
            agents: vec![agent.to_owned()],
            steps: Some(steps),
            seed,
            ..Self::default()
        }
    }
}
