//! The decisions of the saga as pure functions, without calls or a clock.

use crate::{
    HyperSyncError,
    change::{Tuning, Verification},
    pauses::Pauses,
    store::{Proposal, State},
};
use tars_peers::Failure;
use tars_proto::params::Params;

/// The consequence of a failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Repeat the step after a delay.
    Retry,
    /// The step may have been committed: read the proposal and continue from there.
    Reload,
    /// Continue in another state.
    Advance(State),
}

/// What rolling back requires.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rollback {
    /// Nothing: the old values are live.
    AlreadyDone,
    /// Make these values live, if this is still the live version.
    Set { values: Params, expected: u64 },
    /// Neither the old nor the proposed values are live, so a person must decide.
    AskPerson(String),
}

/// Decides how to recover from a failed step. A proposal that is refused before anything was done is given up;
/// a failure that may have left the change live leads to a rollback, and a rollback that fails to a
/// person. Waiting for capacity is unbounded, waiting for an unreachable peer is not.
pub(crate) fn recovery(state: State, error: &HyperSyncError, pauses: &Pauses) -> Recovery {
    match error {
        HyperSyncError::Store(e) if e.is_transient() => Recovery::Reload,
        HyperSyncError::Conflict | HyperSyncError::NotOwned(_) => Recovery::Reload,
        HyperSyncError::Call(e) => after_call(state, e.failure(), pauses),
        _ => abandoned(state),
    }
}

fn after_call(state: State, failure: Failure, pauses: &Pauses) -> Recovery {
    match (failure, state) {
        (Failure::Busy, _) => Recovery::Retry,
        (Failure::Transient, _) if pauses.is_patient() => Recovery::Retry,
        // The live version changed between the read and the write: repeat the step.
        (Failure::VersionChanged, State::RollingBack) => Recovery::Retry,
        // This cannot be an earlier attempt whose response was lost: Orchestration acknowledges a
        // completed operation whatever is live by now.
        (Failure::VersionChanged | Failure::Refused, State::Applying) => {
            Recovery::Advance(State::GivingUp)
        }
        _ => abandoned(state),
    }
}

/// The state after a step that is not retried and may have taken effect.
fn abandoned(state: State) -> Recovery {
    match state {
        State::RollingBack => Recovery::Advance(State::NeedsAttention),
        _ => Recovery::Advance(State::RollingBack),
    }
}

/// Whether the measurement shows an improvement.
pub(crate) fn is_improvement(measured: &Verification) -> bool {
    measured.low > 0.0
}

/// How to restore the agent's old values. Other parameters that somebody changed meanwhile are kept.
pub(crate) fn rollback(
    proposal: &Proposal,
    tuning: &Tuning,
    live: &Params,
    live_version: u64,
) -> Rollback {
    let set = |values: Params| Rollback::Set {
        values,
        expected: live_version,
    };
    if holds(live, &tuning.current_params) {
        return Rollback::AlreadyDone;
    }
    if proposal.forced || live_version == proposal.applied_version {
        return set(tuning.current_params.clone());
    }
    if holds(live, &tuning.new_params) {
        let proposed = |name: &String| tuning.new_params.contains_key(name);
        let old = tuning.current_params.iter();
        return set(old
            .filter(|(name, _)| proposed(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect());
    }
    Rollback::AskPerson(format!(
        "{} was changed while it was being verified: version {live_version} is live, and this change made version {}; \
         compare `changes`, then resolve with RESOLUTION_ROLL_BACK or RESOLUTION_KEEP_LIVE",
        proposal.agent_id, proposal.applied_version
    ))
}

/// Whether all of these values are live.
pub(crate) fn holds(live: &Params, wanted: &Params) -> bool {
    wanted
        .iter()
        .all(|(name, value)| live.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::Change,
        pauses::Pacing,
        store::tests::{proposal, tuning},
    };
    use std::time::Duration;
    use tars_peers::PeerError;
    use tars_proto::{fault, params::Param};
    use tars_runtime::db::DbError;
    use tonic::{Code, Status};

    const DRIVEN: [State; 4] = [
        State::Applying,
        State::GivingUp,
        State::Verifying,
        State::RollingBack,
    ];

    fn failed(status: Status) -> HyperSyncError {
        PeerError::from(status).into()
    }

    fn call(code: Code, reason: &str) -> HyperSyncError {
        failed(fault::status(code, reason, "test"))
    }

    fn pauses() -> Pauses {
        Pauses::new(Pacing::default())
    }

    fn busy() -> HyperSyncError {
        let soon = Duration::from_secs(1);
        failed(fault::spent(
            "LEARNERS_BUSY",
            "learners",
            "too many runs wait",
            soon,
        ))
    }

    fn fresh(state: State, error: &HyperSyncError) -> Recovery {
        recovery(state, error, &pauses())
    }

    fn params(pairs: &[(&str, f64)]) -> Params {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Param::Number(*value)))
            .collect()
    }

    fn tuned() -> Tuning {
        Tuning {
            current_params: params(&[("gamma", 0.95), ("tau", 0.1)]),
            new_params: params(&[("gamma", 0.99)]),
            ..tuning()
        }
    }

    fn applied() -> Proposal {
        Proposal {
            change: Change::Tuning(tuned()),
            base_version: 1,
            applied_version: 2,
            ..proposal(State::RollingBack)
        }
    }

    #[test]
    fn retryable_failures_are_retried_in_every_state() {
        for state in DRIVEN {
            for code in [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::DeadlineExceeded,
            ] {
                assert_eq!(
                    fresh(state, &call(code, "X")),
                    Recovery::Retry,
                    "{state:?} {code:?}"
                );
            }
            assert_eq!(fresh(state, &busy()), Recovery::Retry);
            assert_eq!(fresh(state, &HyperSyncError::Conflict), Recovery::Reload);
            let passing = DbError::Unavailable("busy".to_owned()).into();
            assert_eq!(fresh(state, &passing), Recovery::Reload);
        }
    }

    #[test]
    fn a_peer_that_stays_unreachable_leads_to_a_rollback_and_then_to_a_person() {
        let away = call(Code::Unavailable, "UNREACHABLE");
        for (state, next) in [
            (State::Applying, State::RollingBack),
            (State::GivingUp, State::RollingBack),
            (State::Verifying, State::RollingBack),
            (State::RollingBack, State::NeedsAttention),
        ] {
            let (mut pauses, mut tries) = (pauses(), 0);
            while recovery(state, &away, &pauses) == Recovery::Retry {
                assert!(pauses.after(&away) <= Pacing::default().longest);
                tries += 1;
                assert!(tries < 1000, "{state:?} waits for ever");
            }
            assert_eq!(recovery(state, &away, &pauses), Recovery::Advance(next));
        }
    }

    #[test]
    fn waiting_for_capacity_is_unbounded() {
        let soon = Duration::from_secs(1);
        let full = [
            busy(),
            failed(fault::share_full("peer", "calls", soon)),
            failed(fault::overloaded("too many calls are in flight", soon)),
            failed(fault::exhausted("RATE_LIMITED", "caller", soon)),
        ];
        for state in DRIVEN {
            let mut pauses = pauses();
            for error in full.iter().cycle().take(1000) {
                assert_eq!(
                    recovery(state, error, &pauses),
                    Recovery::Retry,
                    "{error:?}"
                );
                pauses.after(error);
            }
            assert!(pauses.is_patient());
        }
    }

    #[test]
    fn a_permanent_database_failure_is_not_retried_for_ever() {
        let broken = DbError::Failed("no such column".to_owned()).into();
        let next = DRIVEN.map(|state| fresh(state, &broken));
        let back = Recovery::Advance(State::RollingBack);
        let asks = Recovery::Advance(State::NeedsAttention);
        assert_eq!(next, [back, back, back, asks]);
    }

    #[test]
    fn a_lost_version_never_ends_as_failed_once_the_change_was_live() {
        let lost = call(Code::Aborted, "VERSION_CHANGED");
        assert_eq!(
            fresh(State::Applying, &lost),
            Recovery::Advance(State::GivingUp)
        );
        assert_eq!(
            fresh(State::GivingUp, &lost),
            Recovery::Advance(State::RollingBack),
            "an attempt of which nothing was heard is live"
        );
        assert_eq!(
            fresh(State::Verifying, &lost),
            Recovery::Advance(State::RollingBack)
        );
        assert_eq!(fresh(State::RollingBack, &lost), Recovery::Retry);
    }

    #[test]
    fn every_recovery_is_an_allowed_transition() {
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
            for error in errors.chain([HyperSyncError::IncompleteResponse("something")]) {
                let Recovery::Advance(next) = fresh(state, &error) else {
                    panic!("{error:?} is not waited for");
                };
                assert!(state.can_become(next), "{state:?} to {next:?}");
            }
        }
    }

    #[test]
    fn a_step_that_may_have_taken_effect_is_rolled_back() {
        for code in [
            Code::Internal,
            Code::DataLoss,
            Code::ResourceExhausted,
            Code::PermissionDenied,
            Code::FailedPrecondition,
        ] {
            let next = fresh(State::Applying, &call(code, "X"));
            assert_eq!(next, Recovery::Advance(State::RollingBack), "{code:?}");
        }
    }

    #[test]
    fn nothing_is_restored_when_the_old_values_are_live() {
        let live = params(&[("gamma", 0.95), ("tau", 0.1), ("other", 1.0)]);
        for version in [1, 2, 3, 9] {
            assert_eq!(
                rollback(&applied(), &tuned(), &live, version),
                Rollback::AlreadyDone
            );
        }
    }

    #[test]
    fn the_whole_change_is_rolled_back_when_it_is_the_latest() {
        let live = params(&[("gamma", 0.99), ("tau", 0.1)]);
        let expected = Rollback::Set {
            values: tuned().current_params,
            expected: 2,
        };
        assert_eq!(rollback(&applied(), &tuned(), &live, 2), expected);
    }

    #[test]
    fn only_the_proposed_parameters_are_restored_when_others_changed() {
        let live = params(&[("gamma", 0.99), ("tau", 0.2)]);
        let expected = Rollback::Set {
            values: params(&[("gamma", 0.95)]),
            expected: 5,
        };
        assert_eq!(rollback(&applied(), &tuned(), &live, 5), expected);
    }

    #[test]
    fn a_value_of_somebody_else_needs_a_person_unless_one_has_decided() {
        let live = params(&[("gamma", 0.91), ("tau", 0.1)]);
        let Rollback::AskPerson(text) = rollback(&applied(), &tuned(), &live, 3) else {
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
            values: tuned().current_params,
            expected: 3,
        };
        assert_eq!(rollback(&decided, &tuned(), &live, 3), expected);
    }
}
