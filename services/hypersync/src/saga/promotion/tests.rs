//! The states of a promotion that the saga drives: how each is entered, left, fails and is resumed.

use super::*;
use crate::{
    change::Stage,
    fake::{
        AgentRecord, Call, Death, FELL, Fault, Rig, WATCH, busy, caller, reason, refused, step,
        unavailable,
    },
    saga::tests::driven,
    store::tests::proposal,
};
use std::collections::BTreeSet;
use tars_proto::fault;
use tonic::Code;
use uuid::Uuid;

/// A promotion whose step is about to be taken.
async fn put(rig: &Rig, from: Stage, to: Stage) -> Proposal {
    rig.world.stored.lock().ladder.stage = from;
    rig.insert(Proposal {
        change: Change::Promotion {
            promotion: step(from, to),
        },
        applied_by: "user:ada".into(),
        ..proposal(State::Applying)
    })
    .await
}

/// A promotion to CANARY whose step is about to be taken.
async fn applying() -> (Rig, Proposal) {
    let rig = Rig::start().await;
    let proposal = put(&rig, Stage::Shadow, Stage::Canary).await;
    (rig, proposal)
}

async fn verifying() -> (Rig, Proposal) {
    let (rig, mut proposal) = applying().await;
    rig.step(&mut proposal).await.unwrap();
    assert_eq!(proposal.state, State::Verifying);
    (rig, proposal)
}

async fn rolling_back() -> (Rig, Proposal) {
    let (rig, mut proposal) = verifying().await;
    rig.advance(&mut proposal, State::RollingBack)
        .await
        .unwrap();
    (rig, proposal)
}

fn of(proposal: &Proposal) -> &Promotion {
    match &proposal.change {
        Change::Promotion { promotion } => promotion,
        Change::Tuning(_) => panic!("it is a promotion"),
    }
}

/// What the ladder has become: where the version stands, what is live, and whether the agent is free.
fn became(agent: &AgentRecord) -> (Stage, u64, bool) {
    (agent.ladder.stage, agent.ladder.live, agent.hold.is_none())
}

fn gate(reason: &str) -> tonic::Status {
    fault::precondition(reason, "version", "a gate does not let it pass")
}

// === Applying ===

#[tokio::test]
async fn a_step_is_taken_and_holds_the_agent() {
    let (rig, mut proposal) = applying().await;
    rig.step(&mut proposal).await.unwrap();
    let agent = rig.world.agent();
    assert_eq!(agent.hold, Some((proposal.id.to_string(), false)));
    assert_eq!((agent.ladder.stage, agent.ladder.moves), (Stage::Canary, 1));
    let written = rig.service.get(proposal.id).await.unwrap();
    assert_eq!(written.state, State::Verifying);
    assert_eq!(written.applied_us, Some(rig.clock.now_us()));
    let placement = of(&written).placement.unwrap();
    assert_eq!(
        (placement.stage, placement.version, placement.trial),
        (Stage::Canary, 2, 1)
    );
}

#[tokio::test]
async fn each_gate_that_refuses_fails_the_proposal_before_anything_changed() {
    for why in [
        "UNCALIBRATED",
        "NOT_COMPARED",
        "NOT_BETTER",
        "CANARY_UNPROVEN",
        "STAGE_ORDER",
    ] {
        let (rig, proposal) = applying().await;
        rig.world.stored.lock().ladder.refusal = Some(why);
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::Failed, "{why}");
        assert!(ended.error.starts_with(why), "{}", ended.error);
        assert_eq!(became(&rig.world.agent()), (Stage::Shadow, 1, true));
        assert_eq!(rig.world.agent().ladder.moves, 0);
    }
}

#[tokio::test]
async fn a_step_against_another_live_version_fails() {
    let (rig, proposal) = applying().await;
    rig.world.stored.lock().ladder.live = 5;
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::Failed);
    assert_eq!(rig.world.agent().ladder.moves, 0);
}

#[tokio::test]
async fn a_step_whose_response_is_lost_is_taken_once() {
    let (rig, proposal) = applying().await;
    rig.world.inject(Call::StepUp, Fault::LoseResponse);
    let ended = driven(&rig, proposal).await;
    assert_eq!((ended.state, ended.applied_version), (State::Completed, 2));
    let agent = rig.world.agent();
    assert_eq!(became(&agent), (Stage::Canary, 1, true));
    assert_eq!(agent.ladder.moves, 1);
}

#[tokio::test]
async fn a_step_that_may_have_been_taken_is_taken_back() {
    for (lost, moves) in [(true, 2), (false, 0)] {
        let (rig, proposal) = applying().await;
        if lost {
            rig.world.inject(Call::StepUp, Fault::LoseResponse);
        }
        rig.world.fail(1, Call::StepUp, &refused(Code::Internal));
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::RolledBack);
        let agent = rig.world.agent();
        assert_eq!(became(&agent), (Stage::Shadow, 1, true));
        assert_eq!(agent.ladder.moves, moves);
    }
}

#[tokio::test]
async fn a_step_is_retried_after_busy_and_unreachable_peers() {
    let (rig, proposal) = applying().await;
    rig.world.fail(20, Call::StepUp, &busy());
    rig.world.fail(2, Call::StepUp, &unavailable());
    assert_eq!(driven(&rig, proposal).await.state, State::Completed);
}

// === Verifying ===

#[tokio::test]
async fn a_version_that_answered_enough_steps_is_verified_and_the_agent_released() {
    for (from, to, version) in [
        (Stage::Shadow, Stage::Canary, 2),
        (Stage::Canary, Stage::Active, 3),
    ] {
        let rig = Rig::start().await;
        let proposal = put(&rig, from, to).await;
        let ended = driven(&rig, proposal).await;
        assert_eq!(
            (ended.state, ended.applied_version),
            (State::Completed, version)
        );
        let watched = of(&ended).verification.unwrap();
        assert_eq!((watched.steps, watched.blocked), (10, 1));
        let agent = rig.world.agent();
        assert_eq!((agent.ladder.stage, agent.hold), (to, None));
    }
}

#[tokio::test]
async fn a_version_in_shadow_answers_nothing_and_is_not_watched() {
    let rig = Rig::start().await;
    let proposal = put(&rig, Stage::Sim, Stage::Shadow).await;
    rig.world.stored.lock().ladder.steps = 0;
    assert_eq!(driven(&rig, proposal).await.state, State::Completed);
    assert_eq!(rig.world.count(Call::Standing), 1);
}

#[tokio::test]
async fn a_version_that_answers_few_steps_is_watched_until_the_time_is_over() {
    let (rig, proposal) = verifying().await;
    rig.world.stored.lock().ladder.steps = 9;
    let (id, lease) = (proposal.id, rig.take("saga").await);
    let mut watching = std::pin::pin!(rig.service.run_owned(id, &lease));
    let looked = async {
        while rig.world.count(Call::Standing) < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = &mut watching => panic!("it was not watched"),
        () = looked => {}
    }
    assert_eq!(rig.state(id).await, State::Verifying);
    rig.clock.advance(WATCH.longest);
    watching.await;
    let ended = rig.service.get(id).await.unwrap();
    assert_eq!(ended.state, State::Completed);
    let watched = of(&ended).verification.unwrap();
    assert_eq!(watched.steps, 9);
    assert_eq!(Duration::from_micros(watched.micros), WATCH.longest);
}

#[tokio::test]
async fn a_version_that_fell_is_rolled_back_with_the_reason() {
    for (from, to, after) in [
        (Stage::Shadow, Stage::Canary, (Stage::Shadow, 1, true)),
        (Stage::Canary, Stage::Active, (Stage::Sim, 9, true)),
    ] {
        let rig = Rig::start().await;
        let proposal = put(&rig, from, to).await;
        rig.world.inject(Call::Standing, Fault::Fall);
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::RolledBack);
        assert!(ended.error.contains(FELL), "{}", ended.error);
        let agent = rig.world.agent();
        assert_eq!(became(&agent), after);
        assert_eq!(agent.ladder.moves, 1, "it had gone down by itself");
    }
}

#[tokio::test]
async fn a_version_that_fell_at_the_end_is_not_completed() {
    let (rig, mut proposal) = verifying().await;
    rig.step(&mut proposal).await.unwrap();
    assert!(of(&proposal).verification.is_some());
    rig.world.inject(Call::SettleStep, Fault::Fall);
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    assert_eq!(became(&rig.world.agent()), (Stage::Shadow, 1, true));
}

#[tokio::test]
async fn a_version_that_cannot_be_watched_is_taken_back() {
    for (times, status) in [(1, refused(Code::Internal)), (100, unavailable())] {
        let (rig, proposal) = verifying().await;
        rig.world.fail(times, Call::Standing, &status);
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::RolledBack, "{status}");
        let agent = rig.world.agent();
        assert_eq!(became(&agent), (Stage::Shadow, 1, true));
        assert_eq!(agent.ladder.moves, 2);
    }
}

#[tokio::test]
async fn a_hold_that_was_released_is_renewed() {
    let (rig, mut proposal) = verifying().await;
    rig.world.stored.lock().hold = None;
    rig.step(&mut proposal).await.unwrap();
    let hold = rig.world.agent().hold;
    assert_eq!(hold, Some((proposal.id.to_string(), false)));
}

// === RollingBack ===

#[tokio::test]
async fn a_step_is_taken_back_once_whatever_is_lost() {
    let (rig, proposal) = rolling_back().await;
    for call in [Call::StepBack, Call::SettleStep] {
        rig.world.inject(call, Fault::LoseResponse);
    }
    assert_eq!(driven(&rig, proposal).await.state, State::RolledBack);
    let agent = rig.world.agent();
    assert_eq!(became(&agent), (Stage::Shadow, 1, true));
    assert_eq!(agent.ladder.moves, 2);
}

#[tokio::test]
async fn a_step_that_cannot_be_taken_back_needs_attention_until_a_person_decides() {
    let (rig, proposal) = rolling_back().await;
    rig.world.fail(1, Call::StepBack, &gate("UNUSABLE_VERSION"));
    let asked = driven(&rig, proposal).await;
    assert_eq!(asked.state, State::NeedsAttention);
    for part in [
        "the step up could not be taken back",
        "RESOLUTION_ROLL_BACK",
    ] {
        assert!(asked.attention.contains(part), "{}", asked.attention);
    }
    let ada = caller("ada", &[]);
    let again = crate::attention::Resolution::RollBack;
    let resolved = rig.service.resolve(&ada, asked.id, again, "again".into());
    resolved.await.unwrap();
    rig.until_state(asked.id, State::RolledBack).await;
    assert_eq!(became(&rig.world.agent()), (Stage::Shadow, 1, true));
}

/// The mesh was configured anew between the approval and the step.
#[tokio::test]
async fn a_step_of_an_agent_that_is_not_bound_any_more_asks_a_person() {
    let (rig, proposal) = applying().await;
    rig.world.stored.lock().ladder.bound = false;
    let asked = driven(&rig, proposal).await;
    assert_eq!(asked.state, State::NeedsAttention);
    for part in ["a gate does not let it pass", "RESOLUTION_KEEP_LIVE"] {
        assert!(asked.attention.contains(part), "{}", asked.attention);
    }
    assert_eq!(rig.world.count(Call::StepUp), 1, "it is not tried again");
    rig.service.take_missing_holds().await.unwrap();
    let hold = Some((asked.id.to_string(), true));
    assert_eq!(rig.world.agent().hold, hold);
    let ada = caller("ada", &[]);
    let keep = crate::attention::Resolution::KeepLive;
    let resolved = rig.service.resolve(&ada, asked.id, keep, "unbound".into());
    assert_eq!(resolved.await.unwrap().state, State::Kept);
    assert_eq!(rig.world.agent().hold, None);
}

/// It is bound again by the time that the person decides.
#[tokio::test]
async fn a_step_of_an_agent_that_is_bound_again_is_rolled_back_as_decided() {
    let (rig, proposal) = applying().await;
    rig.world.stored.lock().ladder.bound = false;
    let asked = driven(&rig, proposal).await;
    rig.world.stored.lock().ladder.bound = true;
    let ada = caller("ada", &[]);
    let back = crate::attention::Resolution::RollBack;
    let resolved = rig.service.resolve(&ada, asked.id, back, "bound".into());
    resolved.await.unwrap();
    rig.until_state(asked.id, State::RolledBack).await;
    let agent = rig.world.agent();
    assert_eq!(became(&agent), (Stage::Shadow, 1, true));
    assert!(
        agent.is_void(&asked.id.to_string()),
        "no late attempt is taken"
    );
}

// === Resume ===

/// The course of a promotion to ACTIVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Stays,
    Falls,
    CannotBeWatched,
    Refused,
}

impl Way {
    async fn begin(self, death: Option<Death>) -> (Rig, Proposal) {
        let rig = Rig::start_dying(death).await;
        let proposal = put(&rig, Stage::Canary, Stage::Active).await;
        self.spoil(&rig);
        (rig, proposal)
    }

    fn spoil(self, rig: &Rig) {
        match self {
            Self::Stays => {}
            Self::Falls => rig.world.inject(Call::Standing, Fault::Fall),
            Self::CannotBeWatched => rig.world.fail(1, Call::Standing, &refused(Code::Internal)),
            Self::Refused => rig.world.stored.lock().ladder.refusal = Some("NOT_BETTER"),
        }
    }

    fn end(self) -> (State, (Stage, u64, bool), usize) {
        match self {
            Self::Stays => (State::Completed, (Stage::Active, 3, true), 1),
            Self::Falls => (State::RolledBack, (Stage::Sim, 9, true), 1),
            Self::CannotBeWatched => (State::RolledBack, (Stage::Sim, 4, true), 2),
            Self::Refused => (State::Failed, (Stage::Canary, 1, true), 0),
        }
    }

    fn check(self, agent: &AgentRecord) {
        let (_, after, moves) = self.end();
        assert_eq!((became(agent), agent.ladder.moves), (after, moves));
    }

    /// Whether it has gone its way already, so that the next process meets no other fault.
    async fn is_gone(self, rig: &Rig, id: Uuid) -> bool {
        let fell = !rig.world.agent().ladder.fell.is_empty();
        fell || rig.state(id).await == State::RollingBack
    }
}

/// Kills the process before and after every call, and checks that the next one resumes on its own, to the same
/// end. Returns the states in which it was killed.
async fn killed_at_every_call(way: Way) -> BTreeSet<&'static str> {
    let (rig, proposal) = way.begin(None).await;
    assert_eq!(driven(&rig, proposal).await.state, way.end().0);
    way.check(&rig.world.agent());
    let calls = rig.world.calls();
    let mut states = BTreeSet::new();
    for death in (0..calls).flat_map(|n| [Death::Before(n), Death::After(n)]) {
        let (rig, proposal) = way.begin(Some(death)).await;
        tokio::select! {
            () = rig.run(proposal.clone()) => panic!("it was not killed"),
            () = rig.world.died() => {}
        }
        states.insert(rig.state(proposal.id).await.as_str());
        let gone = way.is_gone(&rig, proposal.id).await;
        let rig = rig.restart().await;
        if !gone {
            way.spoil(&rig);
        }
        assert_eq!(rig.resume().await, 1, "{death:?}");
        let ended = rig.until_state(proposal.id, way.end().0).await;
        way.check(&rig.world.agent());
        if way == Way::Refused {
            assert!(ended.error.starts_with("NOT_BETTER"), "{}", ended.error);
            let operation = proposal.id.to_string();
            assert!(rig.world.agent().is_void(&operation), "{death:?}");
        }
    }
    states
}

#[tokio::test]
async fn a_promotion_that_stays_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Stays).await;
    assert_eq!(states, BTreeSet::from(["applying", "verifying"]));
}

#[tokio::test]
async fn a_promotion_that_is_refused_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Refused).await;
    assert_eq!(states, BTreeSet::from(["applying", "giving_up"]));
}

#[tokio::test]
async fn a_promotion_that_falls_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::Falls).await;
    let driven = ["applying", "rolling_back", "verifying"];
    assert_eq!(states, BTreeSet::from(driven));
}

#[tokio::test]
async fn a_promotion_that_is_taken_back_survives_being_killed_at_every_call() {
    let states = killed_at_every_call(Way::CannotBeWatched).await;
    let driven = ["applying", "rolling_back", "verifying"];
    assert_eq!(states, BTreeSet::from(driven));
}

// === Before it is applied ===

#[tokio::test]
async fn a_proposal_that_is_about_another_stage_or_incumbent_is_stale() {
    type Spoil = fn(&Rig);
    let cases: [Spoil; 2] = [
        |rig| rig.world.stored.lock().ladder.stage = Stage::Sim,
        |rig| rig.world.stored.lock().ladder.live = 5,
    ];
    for spoil in cases {
        let rig = Rig::start().await;
        let promotion = step(Stage::Shadow, Stage::Canary);
        let waiting = rig
            .insert(Proposal {
                change: Change::Promotion { promotion },
                ..proposal(State::Approved)
            })
            .await;
        let fresh = rig.service.view(waiting.clone()).await;
        assert_eq!(fresh.is_stale(), Some(false));
        spoil(&rig);
        let view = rig.service.view(waiting.clone()).await;
        assert_eq!(view.is_stale(), Some(true));
        let ada = caller("ada", &[]);
        let applied = rig.service.apply_approved(&ada, waiting.id).await;
        assert_eq!(reason(applied), "STALE");
        assert_eq!(rig.state(waiting.id).await, State::Approved);
    }
}
