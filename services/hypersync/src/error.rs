//! HyperSync's errors, and the one table that maps them to gRPC statuses.

use crate::store::State;
use std::{io, time::Duration};
use tars_interceptors::{store, usage::QuotaRefusal};
use tars_learn::hyper::ParamViolation;
use tars_peers::{Failure, PeerError};
use tars_proto::{fault, params::NotScalar, reason, unavailable::Unavailable};
use tars_runtime::{
    db::DbError,
    lease::LeaseError,
    page::{BadToken, TOKEN_FIELD},
    tasks::Lost,
};
use tonic::{Code, Status};
use tonic_types::FieldViolation;
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HyperSyncError {
    #[error("there is no proposal {0}")]
    NotFound(String),
    #[error("the study has no finished trial to propose")]
    NothingFinished,
    #[error("the study belongs to no agent")]
    NoAgent,
    #[error("the proposal changes nothing: its values are already live")]
    NoChange,
    #[error("hyperparameters out of bounds")]
    OutOfBounds(Vec<ParamViolation>),
    #[error("it is already proposed, by {0}")]
    AlreadyOpen(Uuid),
    #[error(
        "the proposal is stale: it was made against version {base} of the agent, and version {live} is live; withdraw it and propose again"
    )]
    Stale { live: u64, base: u64 },
    #[error("the proposal is stale: {0}; withdraw it and propose again")]
    Moved(String),
    /// A gate of the ladder would not let the version pass.
    #[error("{text}")]
    Gate { reason: String, text: String },
    #[error(
        "the proposal's assessment is pending; wait for it with WatchProposal, or approve with without_assessment"
    )]
    AssessmentPending,
    #[error(
        "the proposal's assessment failed: {0}; approve with without_assessment, or withdraw it and propose again"
    )]
    AssessmentFailed(String),
    #[error("the change {0} of this agent is in progress")]
    ChangeInProgress(String),
    #[error("the proposal is not lost but {}: it ends on its own, or by ResolveProposal", .0.as_str())]
    NotLost(State),
    #[error("the agent is not held for the proposal {0}")]
    NotHeld(Uuid),
    #[error("only the proposer, or a caller who may approve, can withdraw it")]
    NotYours,
    #[error("a {from} proposal cannot become {to}", from = from.as_str(), to = to.as_str())]
    InvalidTransition { from: State, to: State },
    #[error("the proposer must not decide")]
    FourEyes,
    #[error("the proposal is {state}, not {needed}", state = now.as_str(), needed = needed.as_str())]
    State { now: State, needed: State },
    #[error(
        "a proposal that is {} cannot be withdrawn, only one that is pending_approval or approved",
        .0.as_str()
    )]
    NotWithdrawable(State),
    #[error("the proposal was changed concurrently")]
    Conflict,
    #[error(
        "another replica works on the proposal; if that replica is gone, a decision is possible in {} s",
        .0.as_secs()
    )]
    OwnedElsewhere(Duration),
    #[error(transparent)]
    NotOwned(LeaseError),
    #[error(transparent)]
    PageToken(#[from] BadToken),
    #[error(transparent)]
    NotScalar(#[from] NotScalar),
    #[error(transparent)]
    Quota(#[from] QuotaRefusal),
    #[error(transparent)]
    Call(#[from] PeerError),
    #[error("{}", store::summary(.0))]
    Store(#[from] DbError),
    #[error("file: {0}")]
    Io(#[from] io::Error),
    #[error("a response lacks {0}")]
    IncompleteResponse(&'static str),
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl HyperSyncError {
    /// The classification of a failed call to another service; `None` for other errors.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Call(error) => Some(error.failure()),
            _ => None,
        }
    }

    /// What a proposal says of the error that ended a step. What was refused for a reason names it.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Call(error) if error.failure() == Failure::Refused => match error.reason() {
                Some(reason) => format!("{reason}: {error}"),
                None => error.to_string(),
            },
            other => other.to_string(),
        }
    }
}

impl From<LeaseError> for HyperSyncError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Db(error) => error.into(),
            stale @ LeaseError::Stale { .. } => Self::NotOwned(stale),
        }
    }
}

impl From<HyperSyncError> for Status {
    fn from(error: HyperSyncError) -> Self {
        use HyperSyncError as E;
        let text = error.to_string();
        let of_proposal = |reason| fault::precondition(reason, "proposal", &text);
        match error {
            E::NotFound(id) => fault::not_found("proposal", &id),
            E::NothingFinished => fault::precondition(reason::NO_FINISHED_TRIAL, "study", &text),
            E::NoAgent => fault::precondition(reason::NO_AGENT, "study", &text),
            E::NoChange => of_proposal(reason::NO_CHANGE),
            E::OutOfBounds(wrong) => out_of_bounds(wrong),
            E::AlreadyOpen(id) => fault::exists("proposal", &id.to_string(), &text),
            E::Stale { .. } | E::Moved(_) => of_proposal(reason::STALE),
            E::Gate { reason, text } => fault::precondition(&reason, "version", &text),
            E::NotLost(_) => of_proposal(reason::NOT_LOST),
            E::NotHeld(_) => fault::precondition(reason::NOT_HELD, "agent", &text),
            E::AssessmentPending => of_proposal(reason::ASSESSMENT_PENDING),
            E::AssessmentFailed(_) => of_proposal(reason::ASSESSMENT_FAILED),
            E::ChangeInProgress(id) => {
                fault::held(reason::CHANGE_IN_PROGRESS, "proposal", &id, &text)
            }
            E::NotYours => fault::status(Code::PermissionDenied, reason::NOT_YOURS, &text),
            E::FourEyes => fault::status(Code::PermissionDenied, reason::FOUR_EYES, &text),
            E::State { .. } | E::NotWithdrawable(_) => of_proposal(reason::WRONG_STATE),
            E::Conflict | E::NotOwned(_) => fault::status(Code::Aborted, reason::CONFLICT, &text),
            E::OwnedElsewhere(wait) => fault::unavailable(Unavailable::OwnedElsewhere, &text, wait),
            E::PageToken(_) => fault::invalid_field(TOKEN_FIELD, &text),
            E::Quota(refusal) => refusal.status(),
            E::Call(error) => error.into(),
            E::Store(e) => store::failed(&e),
            E::Io(_)
            | E::IncompleteResponse(_)
            | E::NotScalar(_)
            | E::InvalidTransition { .. }
            | E::Lost(_) => {
                tracing::error!(error = text, "hypersync failed");
                fault::internal()
            }
        }
    }
}

fn out_of_bounds(wrong: Vec<ParamViolation>) -> Status {
    let violation =
        |w: ParamViolation| FieldViolation::new(format!("new_params[{}]", w.name), w.problem);
    fault::invalid(wrong.into_iter().map(violation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_database_does_not_reveal_its_query() {
        let secret = "SELECT * FROM proposals at /var/lib/tars/hypersync.db";
        let error = HyperSyncError::from(DbError::Failed(secret.to_owned()));
        assert_eq!(error.to_string(), "the database failed");
        assert!(
            format!("{error:?}").contains(secret),
            "the log has the details"
        );
        assert_eq!(Status::from(error).code(), Code::Internal);
    }

    #[test]
    fn a_late_withdrawal_names_the_states_that_can_be_withdrawn() {
        for state in [State::Applying, State::Completed, State::Withdrawn] {
            let status = Status::from(HyperSyncError::NotWithdrawable(state));
            assert_eq!(fault::reason(&status).as_deref(), Some("WRONG_STATE"));
            let message = status.message();
            for named in [state, State::PendingApproval, State::Approved] {
                assert!(message.contains(named.as_str()), "{message}");
            }
        }
    }
}
