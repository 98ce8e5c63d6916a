//! What requests make of a run's state.

use crate::{OrchestrationError, store::RunState};

/// What somebody wants of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Cancel,
    Pause,
    Resume,
}

impl Request {
    fn done(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }

    /// The next state of a run in a state; `None` when the request changes nothing.
    ///
    /// # Errors
    ///
    /// [`OrchestrationError::WrongState`] when the state does not allow it.
    pub(super) fn next(self, state: RunState) -> Result<Option<RunState>, OrchestrationError> {
        use RunState as S;
        match (self, state) {
            (Self::Cancel, S::Queued | S::Running | S::Pausing) => Ok(Some(S::Cancelling)),
            // Nobody follows it, who would end it.
            (Self::Cancel, S::Paused) => Ok(Some(S::Cancelled)),
            // What has ended, or has weights that are live, stays.
            (Self::Cancel, _) => Ok(None),
            (Self::Pause, S::Queued | S::Running) => Ok(Some(S::Pausing)),
            (Self::Pause, S::Pausing | S::Paused) => Ok(None),
            (Self::Resume, S::Paused) => Ok(Some(S::Queued)),
            (Self::Resume, S::Queued | S::Running) => Ok(None),
            (Self::Pause | Self::Resume, _) => {
                Err(OrchestrationError::WrongState(state.as_str(), self.done()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each request makes of a state: another state, nothing (`=`), or a refusal (`!`).
    const TABLE: &[(RunState, [&str; 3])] = &[
        (RunState::Queued, ["cancelling", "pausing", "="]),
        (RunState::Running, ["cancelling", "pausing", "="]),
        (RunState::Pausing, ["cancelling", "=", "!"]),
        (RunState::Paused, ["cancelled", "=", "queued"]),
        (RunState::Cancelling, ["=", "!", "!"]),
        (RunState::Installing, ["=", "!", "!"]),
        (RunState::Completed, ["=", "!", "!"]),
        (RunState::Cancelled, ["=", "!", "!"]),
        (RunState::Failed, ["=", "!", "!"]),
        (RunState::Interrupted, ["=", "!", "!"]),
    ];

    #[test]
    fn each_request_has_an_answer_in_each_state() {
        assert_eq!(TABLE.len(), RunState::ALL.len());
        for (state, expected) in TABLE {
            let requests = [Request::Cancel, Request::Pause, Request::Resume];
            let answers = requests.map(|request| match request.next(*state) {
                Ok(Some(next)) => next.as_str(),
                Ok(None) => "=",
                Err(OrchestrationError::WrongState(named, _)) => {
                    assert_eq!(named, state.as_str());
                    "!"
                }
                Err(other) => panic!("{other}"),
            });
            assert_eq!(answers, *expected, "{state:?}");
        }
    }
}
