//! What a saga does next, decided from what it knows: no calls, no clock.

use crate::{
    HyperSyncError,
    store::{Proposal, State, Verification},
};
use tars_proto::{fault, params::Params};
use tonic::{Code, Status};

/// Where a step that failed leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The same step again, after a while.
    Wait,
    /// Whether the step was committed is not known: look, then go on.
    LookAgain,
    Go(State),
}

/// What is done to take a change back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rollback {
    /// The old values are live.
    Nothing,
    Set {
        values: Params,
        expected: u64,
    },
    /// Neither the old values nor the proposed ones are live: somebody must decide.
    Ask(String),
}

/// What a refusal before anything was done ends as fails the proposal; anything that may have left
/// the change live leads to a rollback, and a rollback that cannot be done to a person.
pub(crate) fn after(state: State, error: &HyperSyncError) -> Then {
    match error {
        HyperSyncError::Store(_) | HyperSyncError::Conflict => Then::LookAgain,
        HyperSyncError::Call(status) if is_passing(status) => Then::Wait,
        // The live version moved between the look and the step: look anew.
        HyperSyncError::Call(status) if state == State::RollingBack && is_lost_version(status) => {
            Then::Wait
        }
        HyperSyncError::Call(status) if state == State::Applying && is_refusal(status) => {
            Then::Go(State::Failed)
        }
        _ if state == State::RollingBack => Then::Go(State::NeedsAttention),
        _ => Then::Go(State::RollingBack),
    }
}

/// Whether the measurement shows an improvement.
pub(crate) fn is_better(measured: &Verification) -> bool {
    measured.low > 0.0
}

/// How the agent gets its old values back. Changes that somebody else made of other parameters stay.
pub(crate) fn rollback(proposal: &Proposal, live: &Params, live_version: u64) -> Rollback {
    let set = |values: Params| Rollback::Set {
        values,
        expected: live_version,
    };
    if holds(live, &proposal.current_params) {
        return Rollback::Nothing;
    }
    if proposal.forced || live_version == proposal.applied_version {
        return set(proposal.current_params.clone());
    }
    if holds(live, &proposal.new_params) {
        let proposed = |name: &String| proposal.new_params.contains_key(name);
        let old = proposal.current_params.iter();
        return set(old
            .filter(|(name, _)| proposed(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect());
    }
    Rollback::Ask(format!(
        "somebody changed {} while it was being verified: version {live_version} is live, this change was {}; \
         compare `changes`, then resolve by RESOLUTION_ROLL_BACK or RESOLUTION_KEEP_LIVE",
        proposal.agent_id, proposal.applied_version
    ))
}

/// Whether all wanted values are live.
pub(crate) fn holds(live: &Params, wanted: &Params) -> bool {
    wanted
        .iter()
        .all(|(name, value)| live.get(name) == Some(value))
}

fn is_lost_version(status: &Status) -> bool {
    fault::reason(status).is_some_and(|r| r == "VERSION_CHANGED")
}

/// Whether the learners or a limit ask to come again.
pub(crate) fn is_busy(status: &Status) -> bool {
    fault::reason(status).is_some_and(|r| r == "LEARNERS_BUSY" || r == "RATE_LIMITED")
}

pub(crate) fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
    ) || is_busy(status)
}

/// Refused, and not done by an earlier try whose answer was lost: a step that was done is told so
/// whatever is live by now.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::NotFound) || is_lost_version(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::proposal;
    use tars_proto::params::Param;

    const DRIVEN: [State; 3] = [State::Applying, State::Verifying, State::RollingBack];

    fn call(code: Code, reason: &str) -> HyperSyncError {
        fault::status(code, reason, "test").into()
    }

    fn params(pairs: &[(&str, f64)]) -> Params {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Param::Number(*value)))
            .collect()
    }

    fn applied() -> Proposal {
        Proposal {
            current_params: params(&[("gamma", 0.95), ("tau", 0.1)]),
            new_params: params(&[("gamma", 0.99)]),
            base_version: 1,
            applied_version: 2,
            ..proposal(State::RollingBack)
        }
    }

    #[test]
    fn what_passes_is_waited_for_in_every_state() {
        for state in DRIVEN {
            for code in [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::DeadlineExceeded,
            ] {
                assert_eq!(
                    after(state, &call(code, "X")),
                    Then::Wait,
                    "{state:?} {code:?}"
                );
            }
            let busy = call(Code::ResourceExhausted, "LEARNERS_BUSY");
            assert_eq!(after(state, &busy), Then::Wait);
            assert_eq!(after(state, &HyperSyncError::Conflict), Then::LookAgain);
        }
    }

    #[test]
    fn a_lost_version_never_ends_as_failed_once_the_change_was_live() {
        let lost = call(Code::Aborted, "VERSION_CHANGED");
        assert_eq!(after(State::Applying, &lost), Then::Go(State::Failed));
        assert_eq!(after(State::Verifying, &lost), Then::Go(State::RollingBack));
        assert_eq!(after(State::RollingBack, &lost), Then::Wait);
    }

    #[test]
    fn every_way_that_an_error_leads_is_allowed() {
        let codes = [
            Code::InvalidArgument,
            Code::NotFound,
            Code::Aborted,
            Code::FailedPrecondition,
            Code::PermissionDenied,
            Code::Internal,
            Code::DataLoss,
            Code::ResourceExhausted,
            Code::OutOfRange,
        ];
        for state in DRIVEN {
            let errors = codes.iter().map(|code| call(*code, "X"));
            for error in errors.chain([HyperSyncError::Answer("something")]) {
                let Then::Go(next) = after(state, &error) else {
                    panic!("{error:?} is not waited for");
                };
                assert!(state.may_become(next), "{state:?} to {next:?}");
            }
        }
    }

    #[test]
    fn what_may_have_been_done_is_taken_back() {
        for code in [
            Code::Internal,
            Code::DataLoss,
            Code::ResourceExhausted,
            Code::PermissionDenied,
            Code::FailedPrecondition,
        ] {
            let next = after(State::Applying, &call(code, "X"));
            assert_eq!(next, Then::Go(State::RollingBack), "{code:?}");
        }
    }

    #[test]
    fn old_values_that_are_live_need_nothing() {
        let live = params(&[("gamma", 0.95), ("tau", 0.1), ("other", 1.0)]);
        for version in [1, 2, 3, 9] {
            assert_eq!(rollback(&applied(), &live, version), Rollback::Nothing);
        }
    }

    #[test]
    fn the_change_is_taken_back_whole_where_it_is_the_last() {
        let live = params(&[("gamma", 0.99), ("tau", 0.1)]);
        let expected = Rollback::Set {
            values: applied().current_params,
            expected: 2,
        };
        assert_eq!(rollback(&applied(), &live, 2), expected);
    }

    #[test]
    fn a_candidate_that_is_still_live_goes_and_what_others_changed_stays() {
        let live = params(&[("gamma", 0.99), ("tau", 0.2)]);
        let expected = Rollback::Set {
            values: params(&[("gamma", 0.95)]),
            expected: 5,
        };
        assert_eq!(rollback(&applied(), &live, 5), expected);
    }

    #[test]
    fn what_somebody_else_made_live_is_asked_about_unless_a_person_has_decided() {
        let live = params(&[("gamma", 0.91), ("tau", 0.1)]);
        let Rollback::Ask(text) = rollback(&applied(), &live, 3) else {
            panic!("not asked");
        };
        assert!(
            text.contains("version 3") && text.contains("RESOLUTION_ROLL_BACK"),
            "{text}"
        );
        let decided = Proposal {
            forced: true,
            ..applied()
        };
        let expected = Rollback::Set {
            values: applied().current_params,
            expected: 3,
        };
        assert_eq!(rollback(&decided, &live, 3), expected);
    }
}
