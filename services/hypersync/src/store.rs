//! HyperSync's SQL. Searchable fields are columns; the rest of a proposal is one JSON document.
//!
//! Two unique columns are claims: the trial, or the version, of an open proposal, and the agent of a proposal that is
//! changing it. They decide which of two racing proposals wins.

mod measured;
mod state;
mod unrecorded;

pub(crate) use measured::{charged_steps, open_measurement, promised_steps, put_charged_steps};
pub(crate) use state::State;

use crate::{HyperSyncError, change::Change};
use serde::{Deserialize, Serialize};
use tars_runtime::{
    audit, changes,
    db::{
        Db, DbError, Fetch, FromRow, Isolation, Migration, Query, Row, Swap, Transaction, Write,
        json,
    },
    lease::{self, Fence},
    page::{Page, Size},
    usage,
};
use uuid::Uuid;

pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "initial", include_str!("../migrations/0001_initial.sql")),
    Migration::new(2, "audit outbox", audit::MIGRATION),
    Migration::new(3, "claims", include_str!("../migrations/0003_claims.sql")),
    Migration::new(4, "leases", lease::MIGRATION),
    Migration::new(5, "change numbers", changes::MIGRATION),
    Migration::new(6, "usage outbox", usage::MIGRATION),
    Migration::new(
        7,
        "measured steps",
        include_str!("../migrations/0007_measured_steps.sql"),
    ),
    Migration::new(8, "usage set aside", usage::SET_ASIDE),
    Migration::new(
        9,
        "giving up",
        include_str!("../migrations/0009_giving_up.sql"),
    ),
    Migration::new(
        10,
        "unrecorded decisions",
        include_str!("../migrations/0010_unrecorded_decisions.sql"),
    ),
];

/// The state of a proposal's assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assessment {
    Pending,
    Completed,
    Failed,
    /// The proposal left the waiting states before it was assessed.
    NotMade,
}

impl Assessment {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::NotMade => "not_made",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) agent_type: String,
    pub(crate) environment: String,
    #[serde(flatten)]
    pub(crate) change: Change,
    pub(crate) state: State,
    pub(crate) proposed_by: String,
    pub(crate) proposer_owner: String,
    pub(crate) decided_by: String,
    pub(crate) applied_by: String,
    /// The user behind whoever applied it; empty before.
    #[serde(default)]
    pub(crate) applier_owner: String,
    #[serde(default)]
    pub(crate) note: String,
    pub(crate) reason: String,
    pub(crate) base_version: u64,
    /// The version that applying made; zero before.
    pub(crate) applied_version: u64,
    #[serde(default)]
    pub(crate) assessment_error: String,
    #[serde(default)]
    pub(crate) approved_without_assessment: bool,
    pub(crate) error: String,
    /// What a person has to decide, in `NeedsAttention`.
    #[serde(default)]
    pub(crate) attention: String,
    /// Who withdrew it after its approval, or decided how it continues once it needed attention.
    #[serde(default)]
    pub(crate) resolved_by: String,
    #[serde(default)]
    pub(crate) resolution_reason: String,
    /// Whether a person decided to restore the old values, whatever is live.
    #[serde(default)]
    pub(crate) forced: bool,
    pub(crate) traceparent: String,
    pub(crate) revision: i64,
    pub(crate) created_us: i64,
    pub(crate) decided_us: Option<i64>,
    pub(crate) applied_us: Option<i64>,
    pub(crate) ended_us: Option<i64>,
}

impl Proposal {
    /// Whether both are the same revision, by the same caller. Racing callers write the same number.
    pub(crate) fn is_revision_of(&self, other: &Self) -> bool {
        let names = |p: &Self| (p.id, p.revision, p.state, p.decided_us, p.ended_us);
        names(self) == names(other)
            && self.applied_by == other.applied_by
            && self.decided_by == other.decided_by
            && self.traceparent == other.traceparent
            && self.reason == other.reason
    }

    /// Records the reason of a withdrawal or a resolution; the reason of an approval stays.
    pub(crate) fn give_reason(&mut self, by: &str, reason: String) {
        if self.state == State::PendingApproval {
            self.reason = reason;
        } else {
            by.clone_into(&mut self.resolved_by);
            self.resolution_reason = reason;
        }
    }

    /// The reason of the last decision about it.
    pub(crate) fn last_reason(&self) -> &str {
        match self.resolved_by.is_empty() {
            true => &self.reason,
            false => &self.resolution_reason,
        }
    }

    /// What only one open proposal may be about.
    fn claim(&self) -> String {
        self.change.claim(&self.agent_id)
    }

    fn open_trial(&self) -> Option<String> {
        (!self.state.is_final()).then(|| self.claim())
    }

    pub(crate) fn assessed(&self) -> Assessment {
        match self.change.is_assessed() {
            true => Assessment::Completed,
            false if !self.assessment_error.is_empty() => Assessment::Failed,
            false if self.state.is_waiting() => Assessment::Pending,
            false => Assessment::NotMade,
        }
    }

    fn changing_agent(&self) -> Option<&str> {
        self.state.changes_agent().then_some(self.agent_id.as_str())
    }
}

impl FromRow for Proposal {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let stored: Stored = row.named("proposals", id).json("document")?;
        Ok(stored.proposal())
    }
}

/// The document of a proposal. Replicas of earlier versions may still write that it is given up beside the state.
#[derive(Debug, Deserialize)]
struct Stored {
    #[serde(flatten)]
    proposal: Proposal,
    #[serde(default)]
    given_up: bool,
}

impl Stored {
    fn proposal(mut self) -> Proposal {
        if self.given_up && self.proposal.state == State::Applying {
            self.proposal.state = State::GivingUp;
        }
        self.proposal
    }
}

const GET: &str = "SELECT id, document FROM proposals WHERE id = $1";
const LIST: &str = "SELECT id, document FROM proposals WHERE id < $1 ORDER BY id DESC LIMIT $2";
const LIST_PENDING: &str = "SELECT id, document FROM proposals WHERE id < $1 \
                            AND state = 'pending_approval' ORDER BY id DESC LIMIT $2";
const LIST_OPEN: &str = "SELECT id, document FROM proposals WHERE id < $1 AND state NOT IN \
                         ('rejected', 'withdrawn', 'completed', 'rolled_back', 'failed', 'kept') \
                         ORDER BY id DESC LIMIT $2";
const UNFINISHED: &str = "SELECT id, document FROM proposals WHERE state IN \
                          ('pending_approval', 'approved', 'applying', 'giving_up', 'verifying', \
                          'rolling_back')";
const NEEDING_ATTENTION: &str =
    "SELECT id, document FROM proposals WHERE state = 'needs_attention'";
const UNCLAIMED: &str = "SELECT id, document FROM proposals WHERE open_trial IS NULL AND state NOT IN \
                         ('rejected', 'withdrawn', 'completed', 'rolled_back', 'failed', 'kept') \
                         ORDER BY id";
const CLAIM: &str = "UPDATE proposals SET open_trial = $1, changing_agent = $2 WHERE id = $3";
const BY_OPEN_TRIAL: &str = "SELECT id FROM proposals WHERE open_trial = $1";
const BY_CHANGING_AGENT: &str = "SELECT id FROM proposals WHERE changing_agent = $1";
const INSERT: &str = "INSERT INTO proposals (id, agent_id, state, revision, proposer_owner, document, \
                      open_trial, changing_agent) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const UPDATE: &str = "UPDATE proposals SET state = $1, revision = $2, document = $3, open_trial = $4, \
                      changing_agent = $5 WHERE id = $6 AND revision = $7";

/// The proposals of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// Those that wait for a decision.
    Pending,
    /// Those that are in no final state.
    Open,
}

impl Which {
    fn query(self) -> &'static str {
        match self {
            Self::All => LIST,
            Self::Pending => LIST_PENDING,
            Self::Open => LIST_OPEN,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) async fn open(db: Db) -> Result<Self, HyperSyncError> {
        let store = Self { db };
        store.claim_what_is_open().await?;
        Ok(store)
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, HyperSyncError> {
        Ok(self.db.write(name, Isolation::Exclusive).await?)
    }

    /// Begins a transaction of whoever owns the work.
    pub(crate) async fn begin_owned(
        &self,
        name: &'static str,
        fence: &Fence,
    ) -> Result<Write, HyperSyncError> {
        Ok(fence.begin(&self.db, name, Isolation::Exclusive).await?)
    }

    /// Adds claims to proposals that were written before the claims existed. The older of two
    /// proposals gets a claim.
    async fn claim_what_is_open(&self) -> Result<(), HyperSyncError> {
        let mut tx = self.begin("proposals.claim").await?;
        let rows = tx.all(Query::new(UNCLAIMED)).await?;
        for proposal in readable(rows).filter(|p| !p.state.is_final()) {
            let free = open_trial(&mut tx, &proposal.claim()).await?.is_none();
            let trial = proposal.open_trial().filter(|_| free);
            let free = changing(&mut tx, &proposal.agent_id).await?.is_none();
            let agent = proposal.changing_agent().filter(|_| free);
            let claim = Query::new(CLAIM).bind(trial).bind(agent).bind(proposal.id);
            tx.execute(claim).await?.one()?;
        }
        Ok(tx.commit().await?)
    }

    pub(crate) async fn get(&self, id: Uuid) -> Result<Proposal, HyperSyncError> {
        find(&mut self.db.read("proposals.get"), id).await
    }

    /// Proposals, newest first.
    pub(crate) async fn list(
        &self,
        which: Which,
        before: Uuid,
        size: Size,
    ) -> Result<Page<Proposal>, HyperSyncError> {
        let query = Query::new(which.query()).bind(before).bind(size.limit());
        Ok(self.db.read("proposals.list").page(query, size).await?)
    }

    /// Proposals that this service works on: those that are being applied or wait for a decision.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Proposal>, HyperSyncError> {
        self.all_of("proposals.unfinished", UNFINISHED).await
    }

    /// Proposals that wait for a person while their agents are held.
    pub(crate) async fn needing_attention(&self) -> Result<Vec<Proposal>, HyperSyncError> {
        self.all_of("proposals.attention", NEEDING_ATTENTION).await
    }

    /// The readable proposals of a query. A damaged row must not stop the others.
    async fn all_of(
        &self,
        name: &'static str,
        query: &'static str,
    ) -> Result<Vec<Proposal>, HyperSyncError> {
        let rows = self.db.read(name).all(Query::new(query)).await?;
        Ok(readable(rows).collect())
    }
}

fn readable(rows: Vec<Result<Proposal, DbError>>) -> impl Iterator<Item = Proposal> {
    rows.into_iter().filter_map(|row| match row {
        Ok(proposal) => Some(proposal),
        Err(e) => {
            tracing::error!(error = %e, "skipping a proposal that cannot be decoded");
            None
        }
    })
}

async fn find(db: &mut impl Fetch, id: Uuid) -> Result<Proposal, HyperSyncError> {
    let found = db.optional(Query::new(GET).bind(id)).await?;
    found.ok_or_else(|| HyperSyncError::NotFound(id.to_string()))
}

/// The open proposal of a trial.
async fn open_trial(tx: &mut Transaction, trial: &str) -> Result<Option<Uuid>, DbError> {
    let query = Query::new(BY_OPEN_TRIAL).bind(trial);
    tx.optional_value(query, "id").await
}

/// The proposal that is changing an agent.
async fn changing(tx: &mut Transaction, agent: &str) -> Result<Option<Uuid>, DbError> {
    let query = Query::new(BY_CHANGING_AGENT).bind(agent);
    tx.optional_value(query, "id").await
}

/// Refuses while another proposal is changing the agent, even if the agent was released in the
/// meantime: what is live then is not verified.
pub(crate) async fn unchanged(
    tx: &mut Transaction,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    match changing(tx, &proposal.agent_id).await? {
        Some(other) if other != proposal.id => {
            Err(HyperSyncError::ChangeInProgress(other.to_string()))
        }
        _ => Ok(()),
    }
}

/// Inserts a proposal, unless its trial has an open one or another is changing its agent. The lookups
/// give the error its details; the unique columns decide.
pub(crate) async fn insert(
    tx: &mut Transaction,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    if let Some(open) = open_trial(tx, &proposal.claim()).await? {
        return Err(HyperSyncError::AlreadyOpen(open));
    }
    unchanged(tx, proposal).await?;
    let insert = Query::new(INSERT)
        .bind(proposal.id)
        .bind(&proposal.agent_id)
        .bind(proposal.state.as_str())
        .bind(proposal.revision)
        .bind(&proposal.proposer_owner)
        .bind(json(proposal)?)
        .bind(proposal.open_trial())
        .bind(proposal.changing_agent());
    let inserted = tx.execute(insert).await.map_err(lost_claim)?;
    Ok(inserted.one()?)
}

/// Finds a proposal, if it was written.
pub(crate) fn proof_of(id: Uuid) -> Query<'static> {
    Query::new(GET).bind(id)
}

/// Reads a proposal in a transaction.
pub(crate) async fn get_in(tx: &mut Transaction, id: Uuid) -> Result<Proposal, HyperSyncError> {
    find(tx, id).await
}

/// Updates a proposal if its stored revision is the one before `proposal.revision`. Only one proposal
/// may be changing an agent.
pub(crate) async fn update(
    tx: &mut Transaction,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    if proposal.changing_agent().is_some() {
        unchanged(tx, proposal).await?;
    }
    let update = Query::new(UPDATE)
        .bind(proposal.state.as_str())
        .bind(proposal.revision)
        .bind(json(proposal)?)
        .bind(proposal.open_trial())
        .bind(proposal.changing_agent())
        .bind(proposal.id)
        .bind(proposal.revision - 1);
    let updated = tx.execute(update).await.map_err(lost_claim)?;
    match updated.swap() {
        Swap::Done => {
            unrecorded::note(tx, proposal).await?;
            measured::close_measurements(tx, proposal).await
        }
        Swap::Lost => Err(HyperSyncError::Conflict),
    }
}

/// A claim that a concurrent transaction took is a conflict.
fn lost_claim(error: DbError) -> HyperSyncError {
    if error.is_unique_violation() {
        HyperSyncError::Conflict
    } else {
        error.into()
    }
}

#[cfg(test)]
pub(crate) mod tests;
