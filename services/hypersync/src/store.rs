//! HyperSync's SQL. What is searched for is in columns; the rest of a proposal is one document.

use crate::HyperSyncError;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use tars_proto::params::Params;
use tars_runtime::{
    audit,
    db::{Db, Step, Write},
};
use uuid::Uuid;

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    PendingApproval,
    Approved,
    Rejected,
    Applying,
    Verifying,
    Completed,
    RollingBack,
    RolledBack,
    Failed,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Applying => "applying",
            Self::Verifying => "verifying",
            Self::Completed => "completed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Rejected | Self::Completed | Self::RolledBack | Self::Failed
        )
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verification {
    pub(crate) seeds: Vec<u64>,
    pub(crate) baseline: Vec<f64>,
    pub(crate) candidate: Vec<f64>,
    pub(crate) improvement: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) steps: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) agent_type: String,
    pub(crate) environment: String,
    pub(crate) study_id: String,
    pub(crate) trial_number: u32,
    pub(crate) current_params: Params,
    pub(crate) new_params: Params,
    pub(crate) new_score: f64,
    pub(crate) state: State,
    pub(crate) proposed_by: String,
    pub(crate) proposer_owner: String,
    pub(crate) decided_by: String,
    pub(crate) applied_by: String,
    pub(crate) reason: String,
    pub(crate) base_version: u64,
    pub(crate) applied_version: u64,
    pub(crate) verification_seeds: u32,
    pub(crate) steps: u64,
    pub(crate) verification: Option<Verification>,
    pub(crate) error: String,
    pub(crate) traceparent: String,
    pub(crate) revision: i64,
    pub(crate) created_us: i64,
    pub(crate) decided_us: Option<i64>,
    pub(crate) applied_us: Option<i64>,
    pub(crate) ended_us: Option<i64>,
}

fn decode(text: &str) -> Result<Proposal, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

fn encode(proposal: &Proposal) -> Result<String, sqlx::Error> {
    serde_json::to_string(proposal).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, HyperSyncError> {
        Ok(self.db.write(name).await?)
    }

    pub(crate) async fn get(&self, id: Uuid) -> Result<Proposal, HyperSyncError> {
        let db = self.db.read("proposals.get");
        let query = "SELECT document FROM proposals WHERE id = $1";
        let text: Option<String> = sqlx::query_scalar(query)
            .bind(id)
            .fetch_optional(&*db)
            .await?;
        Ok(decode(&text.ok_or_else(|| {
            HyperSyncError::NotFound(id.to_string())
        })?)?)
    }

    /// Newest first; of one state, or of all when it is empty.
    pub(crate) async fn list(
        &self,
        state: &str,
        before: Uuid,
        limit: i64,
    ) -> Result<Vec<Proposal>, HyperSyncError> {
        let db = self.db.read("proposals.list");
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT document FROM proposals WHERE id < $1 AND ($2 = '' OR state = $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(before)
        .bind(state)
        .bind(limit)
        .fetch_all(&*db)
        .await?;
        Ok(rows.iter().map(|t| decode(t)).collect::<Result<_, _>>()?)
    }

    /// Proposals in the middle of being applied.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Proposal>, HyperSyncError> {
        let db = self.db.read("proposals.unfinished");
        let query = "SELECT document FROM proposals WHERE state IN ('applying', 'verifying', 'rolling_back')";
        let rows: Vec<String> = sqlx::query_scalar(query).fetch_all(&*db).await?;
        Ok(rows.iter().map(|t| decode(t)).collect::<Result<_, _>>()?)
    }
}

pub(crate) async fn insert(
    tx: &mut SqliteConnection,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    sqlx::query("INSERT INTO proposals VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(proposal.id)
        .bind(&proposal.agent_id)
        .bind(proposal.state.as_str())
        .bind(proposal.revision)
        .bind(&proposal.proposer_owner)
        .bind(encode(proposal)?)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn get_in(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<Proposal, HyperSyncError> {
    let query = "SELECT document FROM proposals WHERE id = $1";
    let text: Option<String> = sqlx::query_scalar(query)
        .bind(id)
        .fetch_optional(tx)
        .await?;
    Ok(decode(&text.ok_or_else(|| {
        HyperSyncError::NotFound(id.to_string())
    })?)?)
}

/// Writes a proposal whose revision must be the one before `proposal.revision`.
pub(crate) async fn update(
    tx: &mut SqliteConnection,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    let done = sqlx::query(
        "UPDATE proposals SET state = $1, revision = $2, document = $3 WHERE id = $4 AND revision = $5",
    )
    .bind(proposal.state.as_str())
    .bind(proposal.revision)
    .bind(encode(proposal)?)
    .bind(proposal.id)
    .bind(proposal.revision - 1)
    .execute(tx)
    .await?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(HyperSyncError::Conflict)
    }
}
