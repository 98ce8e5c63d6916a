//! AutoML's errors, and the one table that maps them to gRPC statuses.

use std::{io, time::Duration};
use tars_interceptors::{store, usage::QuotaRefusal};
use tars_peers::{Failure, PeerError};
use tars_proto::{fault, params::NotScalar, reason};
use tars_runtime::{
    db::DbError,
    events::Trimmed,
    lease::LeaseError,
    page::{BadToken, TOKEN_FIELD},
    tasks::Lost,
};
use tars_search::SpaceError;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub(crate) enum AutomlError {
    #[error("there is no {0} {1}")]
    NotFound(&'static str, String),
    #[error("{field}: {problem}")]
    Invalid {
        field: &'static str,
        problem: String,
    },
    #[error(transparent)]
    PageToken(#[from] BadToken),
    #[error(transparent)]
    Space(#[from] SpaceError),
    #[error(transparent)]
    NotScalar(#[from] NotScalar),
    #[error("the study is {0}")]
    StudyEnded(&'static str),
    #[error("the study has all its trials")]
    StudyFull,
    #[error("the trials of this study are run by the server")]
    ServerRun,
    #[error("the trial is {0}")]
    TrialEnded(&'static str),
    #[error("too many studies are running")]
    Busy,
    #[error(
        "the caller has {0} studies that have not ended, which is as many as there may be; cancel one that is not needed"
    )]
    RunningFull(i64),
    #[error("the caller has {0} studies, which is as many as there may be")]
    StudiesFull(i64),
    #[error(transparent)]
    Quota(#[from] QuotaRefusal),
    #[error("the study was changed concurrently")]
    Conflict,
    #[error(transparent)]
    Trimmed(#[from] Trimmed),
    #[error(transparent)]
    NotOwned(LeaseError),
    #[error("orchestration: {0}")]
    Call(#[from] PeerError),
    #[error("{}", store::summary(.0))]
    Store(#[from] DbError),
    #[error("file: {0}")]
    Io(#[from] io::Error),
    #[error("a worker stopped")]
    Worker,
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl AutomlError {
    /// Whether another process has taken over the study.
    pub(crate) fn is_superseded(&self) -> bool {
        match self {
            Self::NotOwned(_) => true,
            Self::Call(error) => error.failure() == Failure::Superseded,
            _ => false,
        }
    }
}

impl From<LeaseError> for AutomlError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Db(error) => error.into(),
            stale @ LeaseError::Stale { .. } => Self::NotOwned(stale),
        }
    }
}

impl From<AutomlError> for Status {
    fn from(error: AutomlError) -> Self {
        let text = error.to_string();
        match error {
            AutomlError::NotFound(kind, name) => fault::not_found(kind, &name),
            AutomlError::Invalid { field, problem } => fault::invalid_field(field, &problem),
            AutomlError::PageToken(_) => fault::invalid_field(TOKEN_FIELD, &text),
            AutomlError::Space(_) | AutomlError::NotScalar(_) => {
                fault::invalid_field("search_space", &text)
            }
            AutomlError::StudyEnded(_) => fault::precondition(reason::STUDY_ENDED, "study", &text),
            AutomlError::StudyFull => fault::precondition(reason::STUDY_FULL, "study", &text),
            AutomlError::ServerRun => fault::precondition(reason::SERVER_RUN, "study", &text),
            AutomlError::TrialEnded(_) => fault::precondition(reason::TRIAL_ENDED, "trial", &text),
            AutomlError::Quota(refusal) => refusal.status(),
            AutomlError::Busy => fault::spent(
                reason::STUDIES_BUSY,
                "studies",
                &text,
                Duration::from_secs(10),
            ),
            AutomlError::RunningFull(_) | AutomlError::StudiesFull(_) => {
                fault::status(Code::ResourceExhausted, reason::STUDIES_FULL, &text)
            }
            AutomlError::Conflict | AutomlError::NotOwned(_) => {
                fault::status(Code::Aborted, reason::CONFLICT, &text)
            }
            AutomlError::Trimmed(_) => fault::status(Code::OutOfRange, reason::TRIMMED, &text),
            AutomlError::Call(error) => error.into(),
            AutomlError::Store(e) => store::failed(&e),
            AutomlError::Io(_) | AutomlError::Worker | AutomlError::Lost(_) => {
                tracing::error!(error = text, "automl failed");
                fault::internal()
            }
        }
    }
}
