//! Why a session of a host was refused, or ended.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the host speaks version {given} of the protocol; {required} is required")]
    Version { given: u32, required: u32 },
    /// A field of the hello cannot be accepted.
    #[error("{field}: {problem}")]
    Offer { field: String, problem: String },
    #[error("the caller lends an environment {0:?} already")]
    NameTaken(String),
    #[error("the caller lends as many environments as one may")]
    CallerFull,
    #[error("as many environments are lent as this replica allows")]
    Full,
    /// A request that the state of the session does not allow.
    #[error("{0}")]
    Unexpected(&'static str),
    /// An answer that cannot be read, or is impossible.
    #[error("{field} {problem}")]
    Answer { field: String, problem: String },
    #[error("the host did not answer within {0:?}")]
    Late(Duration),
}

impl Fault {
    pub(super) fn answer(field: &str, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.to_owned(), problem.into());
        Self::Answer { field, problem }
    }

    pub(super) fn offer(field: impl Into<String>, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.into(), problem.into());
        Self::Offer { field, problem }
    }
}
