//! What a saga does next, decided from what it knows: no calls, no clock.

use crate::{
    HyperSyncError,
    pauses::Pauses,
    store::{Proposal, State, Verification},
};
use tars_peers::Failure;
use tars_proto::params::Params;

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
/// the change live leads to a rollback, and a rollback that cannot be done to a person. There is no
/// end to waiting for room, and there is one to waiting for what is away.
pub(crate) fn after(state: State, error: &HyperSyncError, pauses: &Pauses) -> Then {
    match error {
        HyperSyncError::Store(e) if e.is_transient() => Then::LookAgain,
        HyperSyncError::Conflict => Then::LookAgain,
        HyperSyncError::Call(e) => after_call(state, e.failure(), pauses),
        _ => given_up(state),
    }
}

fn after_call(state: State, failure: Failure, pauses: &Pauses) -> Then {
    match (failure, state) {
        (Failure::Busy, _) => Then::Wait,
        (Failure::Transient, _) if pauses.is_patient() => Then::Wait,
        // The live version moved between the look and the step: look anew.
        (Failure::VersionChanged, State::RollingBack) => Then::Wait,
        // Not done by an earlier try whose answer was lost: a step that was done is told so whatever
        // is live by now.
        (Failure::VersionChanged | Failure::Refused, State::Applying) => Then::Go(State::Failed),
        _ => given_up(state),
    }
}

/// Where a step goes that is not tried again and may have been done.
fn given_up(state: State) -> Then {
    match state {
        State::RollingBack => Then::Go(State::NeedsAttention),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pauses::Pacing, store::tests::proposal};
    use std::time::Duration;
    use tars_peers::PeerError;
    use tars_proto::{fault, params::Param};
    use tars_runtime::db::DbError;
    use tonic::{Code, Status};

    const DRIVEN: [State; 3] = [State::Applying, State::Verifying, State::RollingBack];

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

    fn fresh(state: State, error: &HyperSyncError) -> Then {
        after(state, error, &pauses())
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
                    fresh(state, &call(code, "X")),
                    Then::Wait,
                    "{state:?} {code:?}"
                );
            }
            assert_eq!(fresh(state, &busy()), Then::Wait);
            assert_eq!(fresh(state, &HyperSyncError::Conflict), Then::LookAgain);
            let passing = DbError::Unavailable("busy".to_owned()).into();
            assert_eq!(fresh(state, &passing), Then::LookAgain);
        }
    }

    #[test]
    fn what_is_away_for_too_long_ends_with_a_person() {
        let away = call(Code::Unavailable, "UNREACHABLE");
        for (state, next) in [
            (State::Applying, State::RollingBack),
            (State::Verifying, State::RollingBack),
            (State::RollingBack, State::NeedsAttention),
        ] {
            let (mut pauses, mut tries) = (pauses(), 0);
            while after(state, &away, &pauses) == Then::Wait {
                assert!(pauses.after(&away) <= Pacing::default().longest);
                tries += 1;
                assert!(tries < 1000, "{state:?} waits for ever");
            }
            assert_eq!(after(state, &away, &pauses), Then::Go(next));
        }
    }

    #[test]
    fn room_is_waited_for_however_long_it_takes() {
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
                assert_eq!(after(state, error, &pauses), Then::Wait, "{error:?}");
                pauses.after(error);
            }
            assert!(pauses.is_patient());
        }
    }

    #[test]
    fn a_database_that_refuses_for_good_is_not_asked_for_ever() {
        let broken = DbError::Failed("no such column".to_owned()).into();
        let next = [State::Applying, State::Verifying, State::RollingBack]
            .map(|state| fresh(state, &broken));
        let back = Then::Go(State::RollingBack);
        assert_eq!(next, [back, back, Then::Go(State::NeedsAttention)]);
    }

    #[test]
    fn a_lost_version_never_ends_as_failed_once_the_change_was_live() {
        let lost = call(Code::Aborted, "VERSION_CHANGED");
        assert_eq!(fresh(State::Applying, &lost), Then::Go(State::Failed));
        assert_eq!(fresh(State::Verifying, &lost), Then::Go(State::RollingBack));
        assert_eq!(fresh(State::RollingBack, &lost), Then::Wait);
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
                let Then::Go(next) = fresh(state, &error) else {
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
            let next = fresh(State::Applying, &call(code, "X"));
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
