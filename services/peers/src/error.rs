//! Failed calls to another service, classified by what a retry may expect.
//!
//! Every retry in AutoML and HyperSync is decided on [`Failure`]. The status is kept beside it,
//! because it is returned to the client whose call led to the failed one.

use tars_proto::{fault, reason};
use tonic::{Code, Status};

/// What a failed call means for a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer is reachable but has no capacity. The call had no effect.
    Busy,
    /// The peer is unreachable, or its response was lost. The call may have taken effect.
    Transient,
    /// What is live is not what the call takes for granted. The call had no effect.
    VersionChanged,
    /// Another process has taken over the work that the call is a part of. The call had no effect.
    Superseded,
    /// The request is invalid, or a gate of the ladder does not let it pass. The call had no effect.
    Refused,
    /// A retry would fail too. The call may have taken effect.
    Failed,
}

impl Failure {
    fn of(status: &Status) -> Self {
        match status.code() {
            _ if fault::is_busy(status) => Self::Busy,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                Self::Transient
            }
            Code::Aborted => Self::of_aborted(status),
            Code::InvalidArgument | Code::NotFound => Self::Refused,
            Code::FailedPrecondition if is_gate(status) => Self::Refused,
            _ => Self::Failed,
        }
    }

    fn of_aborted(status: &Status) -> Self {
        match fault::reason(status).as_deref() {
            Some(reason::VERSION_CHANGED) => Self::VersionChanged,
            Some(reason::SUPERSEDED) => Self::Superseded,
            _ => Self::Failed,
        }
    }

    /// Whether the same call may succeed after waiting.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::Transient)
    }
}

/// Whether the ladder, or what is known of a version, is in the way.
fn is_gate(status: &Status) -> bool {
    const GATES: [&str; 7] = [
        reason::UNCALIBRATED,
        reason::NOT_COMPARED,
        reason::NOT_BETTER,
        reason::CANARY_UNPROVEN,
        reason::STAGE_ORDER,
        reason::NOT_BOUND,
        reason::UNUSABLE_VERSION,
    ];
    fault::reason(status).is_some_and(|reason| GATES.contains(&reason.as_str()))
}

/// A failed call to another service. Its message is that of the status.
#[derive(Debug, thiserror::Error)]
#[error("{}", status.message())]
pub struct PeerError {
    failure: Failure,
    status: Box<Status>,
}

impl PeerError {
    /// What the failure means for a retry.
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// The peer's reason, if it gave one.
    pub fn reason(&self) -> Option<String> {
        fault::reason(&self.status)
    }

    /// The peer's message.
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
    fn exhausted_capacity_is_busy_whatever_the_code() {
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
    fn only_unreachable_peers_and_lost_responses_are_transient() {
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
    fn what_a_gate_of_the_ladder_refuses_had_no_effect() {
        for (reason, expected) in [
            ("UNCALIBRATED", Failure::Refused),
            ("NOT_COMPARED", Failure::Refused),
            ("NOT_BETTER", Failure::Refused),
            ("CANARY_UNPROVEN", Failure::Refused),
            ("STAGE_ORDER", Failure::Refused),
            ("NOT_BOUND", Failure::Refused),
            ("UNUSABLE_VERSION", Failure::Refused),
            ("CHANGE_IN_PROGRESS", Failure::Failed),
        ] {
            let gate = PeerError::from(fault::precondition(reason, "version", "a test"));
            assert_eq!(gate.failure(), expected, "{reason}");
            assert_eq!(gate.reason().as_deref(), Some(reason));
        }
    }

    #[test]
    fn a_changed_version_and_a_lost_piece_of_work_are_distinguished_from_other_aborted_calls() {
        for (reason, expected) in [
            ("VERSION_CHANGED", Failure::VersionChanged),
            ("SUPERSEDED", Failure::Superseded),
            ("CONFLICT", Failure::Failed),
        ] {
            let aborted = fault::status(Code::Aborted, reason, "a test");
            assert_eq!(failure(aborted), expected, "{reason}");
            assert!(!expected.is_retryable());
        }
    }

    #[test]
    fn the_peers_status_reaches_the_client() {
        let error = PeerError::from(fault::not_found("agent", "nobody"));
        assert_eq!(error.to_string(), error.message());
        let status = Status::from(error);
        assert_eq!(fault::reason(&status).as_deref(), Some("NOT_FOUND"));
    }
}
