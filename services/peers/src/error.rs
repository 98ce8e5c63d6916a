//! Why a call of another service failed, by what whoever repeats it may expect.
//!
//! Every retry in AutoML and HyperSync is decided on [`Failure`]. The status stays beside it, since a
//! client whose call led to the failed one is told what the peer said.

use tars_proto::fault;
use tonic::{Code, Status};

/// What a failed call means for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no room now. Nothing was done, and the peer is there and answers.
    Busy,
    /// The peer is away, or its answer was lost. Whether the call was done is not known.
    Transient,
    /// The version that the call names is no longer the live one. Nothing was done.
    VersionChanged,
    /// The call is wrong as it stands. Nothing was done.
    Refused,
    /// The same call does not succeed later, and what it did is not known.
    Failed,
}

impl Failure {
    fn of(status: &Status) -> Self {
        match status.code() {
            _ if fault::is_busy(status) => Self::Busy,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                Self::Transient
            }
            _ if fault::reason(status).is_some_and(|r| r == "VERSION_CHANGED") => {
                Self::VersionChanged
            }
            Code::InvalidArgument | Code::NotFound => Self::Refused,
            _ => Self::Failed,
        }
    }

    /// Whether the same call may succeed later, by waiting alone.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::Transient)
    }
}

/// A call of another service that failed.
#[derive(Debug, thiserror::Error)]
#[error("{}", status.message())]
pub struct PeerError {
    failure: Failure,
    status: Box<Status>,
}

impl PeerError {
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// What the peer said, for people.
    pub fn message(&self) -> &str {
        self.status.message()
    }
}

impl From<Status> for PeerError {
    fn from(status: Status) -> Self {
        Self {
            failure: Failure::of(&status),
            status: Box::new(status),
        }
    }
}

impl From<PeerError> for Status {
    fn from(error: PeerError) -> Self {
        *error.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn failure(status: Status) -> Failure {
        PeerError::from(status).failure()
    }

    #[test]
    fn what_is_full_is_busy_whatever_its_code() {
        let soon = Duration::from_secs(1);
        for status in [
            fault::spent("LEARNERS_BUSY", "learners", "too many runs wait", soon),
            fault::share_full("peer", "calls", soon),
            fault::overloaded("too many calls are in flight", soon),
            fault::exhausted("RATE_LIMITED", "caller", soon),
        ] {
            assert_eq!(failure(status), Failure::Busy);
        }
        let other = Status::resource_exhausted("a message is too large");
        assert_eq!(failure(other), Failure::Failed);
    }

    #[test]
    fn a_lost_answer_passes_and_a_refusal_does_not() {
        for (code, expected) in [
            (Code::Unavailable, Failure::Transient),
            (Code::Unknown, Failure::Transient),
            (Code::Cancelled, Failure::Transient),
            (Code::DeadlineExceeded, Failure::Transient),
            (Code::InvalidArgument, Failure::Refused),
            (Code::NotFound, Failure::Refused),
            (Code::PermissionDenied, Failure::Failed),
            (Code::FailedPrecondition, Failure::Failed),
            (Code::Aborted, Failure::Failed),
            (Code::Internal, Failure::Failed),
            (Code::DataLoss, Failure::Failed),
        ] {
            let failure = failure(fault::status(code, "X", "test"));
            assert_eq!(failure, expected, "{code:?}");
            assert_eq!(failure.is_retryable(), expected == Failure::Transient);
        }
    }

    #[test]
    fn a_version_that_moved_is_told_apart_from_other_aborted_calls() {
        let moved = fault::status(Code::Aborted, "VERSION_CHANGED", "version 3 is live");
        assert_eq!(failure(moved), Failure::VersionChanged);
    }

    #[test]
    fn a_client_is_told_what_the_peer_said() {
        let error = PeerError::from(fault::not_found("agent", "nobody"));
        assert_eq!(error.to_string(), error.message());
        let status = Status::from(error);
        assert_eq!(fault::reason(&status).as_deref(), Some("NOT_FOUND"));
    }
}
