//! A process that is killed, and the next one that goes on.

use super::*;
use crate::{fake::Death, saga::measure::Purpose};
use std::collections::BTreeSet;

/// The course of a proposal's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Improves,
    Worsens,
    Overtaken,
    /// Another version is live than the one that it was proposed against.
    Refused,
}

impl Way {
    async fn begin(self, death: Option<Death>) -> (Rig, Proposal) {
        let rig = Rig::start_dying(death).await;
        let proposal = rig.put(State::Applying).await;
        if self == Self::Worsens {
            *rig.world.improvement.lock() = -1.0;
        }
        if self == Self::Overtaken {
            rig.world.inject(Call::Read, Fault::Overtake(0.9));
        }
        if self == Self::Refused {
            rig.world.stored.lock().version = 7;
        }
        (rig, proposal)
    }

    fn end(self) -> State {
        match self {
            Self::Improves => State::Completed,
            Self::Worsens => State::RolledBack,
            Self::Overtaken => State::NeedsAttention,
            Self::Refused => State::Failed,
        }
    }

    fn check(self, agent: &AgentRecord, id: Uuid) {
        match self {
            Self::Improves => assert!(is_approved(agent), "{agent:?}"),
            Self::Worsens => assert!(is_taken_back(agent) && agent.version == 3, "{agent:?}"),
            Self::Overtaken => {
                assert_eq!(agent.live, gamma(0.9));
                assert_eq!(agent.hold, Some((id.to_string(), true)));
            }
            Self::Refused => {
                assert_eq!((agent.version, &agent.hold), (7, &None));
                assert!(agent.is_void(&id.to_string()), "no late attempt is taken");
            }
        }
    }
}

/// Runs until the process is killed. Returns the state that it leaves behind.
async fn killed(rig: &Rig, proposal: &Proposal) -> State {
    tokio::select! {
        () = rig.run(proposal.clone()) => panic!("it was not killed"),
        () = rig.world.died() => {}
    }
    rig.state(proposal.id).await
}

/// Kills the process before and after every call that applying makes and checks that the next one
/// resumes on its own, to the same end. Returns the states in which it was killed.
async fn killed_at_every_call(way: Way) -> BTreeSet<&'static str> {
    let (rig, proposal) = way.begin(None).await;
    assert_eq!(driven(&rig, proposal.clone()).await.state, way.end());
    way.check(&rig.world.agent(), proposal.id);
    let calls = rig.world.calls();
    let mut states = BTreeSet::new();
    for death in (0..calls).flat_map(|n| [Death::Before(n), Death::After(n)]) {
        let (rig, proposal) = way.begin(Some(death)).await;
        let state = killed(&rig, &proposal).await;
        states.insert(state.as_str());
        let overtaken = rig.world.agent().live == gamma(0.9);
        let rig = rig.restart().await;
        if way == Way::Overtaken && !overtaken {
            rig.world.inject(Call::Read, Fault::Overtake(0.9));
        }
        assert_eq!(rig.resume().await, 1, "{death:?}");
        let ended = rig.until_state(proposal.id, way.end()).await;
        let applied = if way == Way::Refused { 0 } else { 2 };
        assert!(ended.applied_version == applied, "{death:?}: applied once");
        way.check(&rig.world.agent(), proposal.id);
    }
    states
}

#[tokio::test]
async fn a_change_that_is_refused_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Refused).await;
    assert_eq!(states, BTreeSet::from(["applying", "giving_up"]));
}

#[tokio::test]
async fn a_refused_change_is_given_up_before_it_has_failed() {
    let (rig, proposal) = applying().await;
    rig.world.stored.lock().version = 7;
    rig.world.inject(Call::Settle, Fault::Hang);
    let (id, lease) = (proposal.id, rig.take("saga").await);
    tokio::select! {
        () = rig.service.run_owned(id, &lease) => panic!("it hangs"),
        given_up = rig.until_state(id, State::GivingUp) => {
            assert_eq!(given_up.error, "version 7 is live");
            assert!(!given_up.awaits(Purpose::Verification), "its promise is free");
        }
    }
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    let ended = rig.until_state(id, State::Failed).await;
    assert_eq!(ended.error, "version 7 is live", "why it was refused");
    assert_eq!(rig.world.count(Call::Apply), 0, "it is not tried again");
}

/// The call that gives up takes place after an attempt of which nothing was heard has been carried out.
#[tokio::test]
async fn a_refused_change_whose_earlier_attempt_was_carried_out_late_is_rolled_back() {
    let (rig, proposal) = applying().await;
    rig.world
        .fail(1, Call::Apply, &refused(Code::FailedPrecondition));
    rig.world.inject(Call::Settle, Fault::Arrive);
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    assert!(is_taken_back(&rig.world.agent()));
}

#[tokio::test]
async fn a_change_that_improves_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Improves).await;
    assert_eq!(states, BTreeSet::from(["applying", "verifying"]));
}

#[tokio::test]
async fn a_change_that_is_rolled_back_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Worsens).await;
    let driven = ["applying", "rolling_back", "verifying"];
    assert_eq!(states, BTreeSet::from(driven));
}

#[tokio::test]
async fn a_change_that_is_overtaken_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Overtaken).await;
    let driven = ["applying", "rolling_back", "verifying"];
    assert_eq!(states, BTreeSet::from(driven));
}

#[tokio::test]
async fn a_written_measurement_is_not_repeated_after_a_restart() {
    let (rig, mut proposal) = verifying().await;
    rig.step(&mut proposal).await.unwrap();
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    rig.until_state(proposal.id, State::Completed).await;
    assert_eq!(rig.world.count(Call::Evaluate), 0);
}

#[tokio::test]
async fn ended_proposals_are_not_resumed() {
    let rig = Rig::start().await;
    for (trial_number, state) in (0..).zip(State::ALL.into_iter().filter(|s| s.is_final())) {
        rig.insert(Proposal {
            change: trial(trial_number),
            ..crate::store::tests::proposal(state)
        })
        .await;
    }
    assert_eq!(rig.resume().await, 0);
    assert_eq!(rig.world.calls(), 0);
}
