//! The states of a proposal and the transitions between them.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Waiting for a decision by someone other than the proposer.
    PendingApproval,
    /// Waiting to be applied.
    Approved,
    /// Final: somebody decided against it.
    Rejected,
    /// Final: taken back before it was applied.
    Withdrawn,
    /// The new values are being made live, which holds the agent.
    Applying,
    /// Applying was refused; an attempt of which nothing was heard is made void, since it may still be under way.
    GivingUp,
    /// The new values are live and are being measured against the old ones.
    Verifying,
    /// Final: the new values were verified and approved.
    Completed,
    /// The old values are being restored.
    RollingBack,
    /// Final: the old values are live again.
    RolledBack,
    /// Final: applying was refused and had no effect.
    Failed,
    /// The rollback could not be done; the agent is held until a person decides.
    NeedsAttention,
    /// Final: a person decided to keep what is live.
    Kept,
}

impl State {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 13] = [
        Self::PendingApproval,
        Self::Approved,
        Self::Rejected,
        Self::Withdrawn,
        Self::Applying,
        Self::GivingUp,
        Self::Verifying,
        Self::Completed,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
        Self::NeedsAttention,
        Self::Kept,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
            Self::Applying => "applying",
            Self::GivingUp => "giving_up",
            Self::Verifying => "verifying",
            Self::Completed => "completed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::NeedsAttention => "needs_attention",
            Self::Kept => "kept",
        }
    }

    pub(crate) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Rejected
                | Self::Withdrawn
                | Self::Completed
                | Self::RolledBack
                | Self::Failed
                | Self::Kept
        )
    }

    /// Whether the proposal waits for a decision or to be applied.
    pub(crate) fn is_waiting(self) -> bool {
        matches!(self, Self::PendingApproval | Self::Approved)
    }

    /// Whether the saga continues the proposal without a person.
    pub(crate) fn is_driven(self) -> bool {
        matches!(
            self,
            Self::Applying | Self::GivingUp | Self::Verifying | Self::RollingBack
        )
    }

    /// Whether the proposal excludes other changes of its agent.
    pub(crate) fn changes_agent(self) -> bool {
        self.is_driven() || self == Self::NeedsAttention
    }

    /// Whether a transition is allowed. Once the change may be live there is none to `Failed`: it is
    /// verified, rolled back, or left to a person.
    pub(crate) fn can_become(self, next: Self) -> bool {
        match self {
            Self::PendingApproval => {
                matches!(next, Self::Approved | Self::Rejected | Self::Withdrawn)
            }
            Self::Approved => matches!(next, Self::Applying | Self::Withdrawn),
            Self::Applying => {
                matches!(next, Self::GivingUp | Self::Verifying | Self::RollingBack)
            }
            // What could not be made void may be live.
            Self::GivingUp => matches!(next, Self::Failed | Self::RollingBack),
            // The measurement is written, in the same state, before it is evaluated.
            Self::Verifying => {
                matches!(next, Self::Verifying | Self::Completed | Self::RollingBack)
            }
            Self::RollingBack => matches!(next, Self::RolledBack | Self::NeedsAttention),
            Self::NeedsAttention => matches!(next, Self::RollingBack | Self::Kept),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_either_final_or_waiting_or_changing_the_agent() {
        for state in State::ALL {
            let kinds = [state.is_final(), state.is_waiting(), state.changes_agent()];
            assert_eq!(kinds.iter().filter(|k| **k).count(), 1, "{state:?}");
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(
                text,
                format!("{:?}", state.as_str()),
                "column and document agree"
            );
        }
    }

    #[test]
    fn exactly_the_final_states_have_no_transition() {
        for state in State::ALL {
            let next = State::ALL.into_iter().filter(|n| state.can_become(*n));
            assert_eq!(next.count() == 0, state.is_final(), "{state:?}");
        }
    }

    #[test]
    fn only_what_was_given_up_becomes_failed() {
        let to_failed = State::ALL
            .into_iter()
            .filter(|state| state.can_become(State::Failed));
        assert_eq!(to_failed.collect::<Vec<_>>(), [State::GivingUp]);
        assert!(State::GivingUp.can_become(State::RollingBack));
        assert!(
            !State::GivingUp.can_become(State::Applying),
            "it is not tried again"
        );
    }

    #[test]
    fn a_change_that_may_be_live_never_becomes_failed() {
        for state in [State::Verifying, State::RollingBack, State::NeedsAttention] {
            assert!(!state.can_become(State::Failed), "{state:?}");
        }
    }
}
