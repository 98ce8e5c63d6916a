//! The states that the saga drives: how each is entered, left, fails and is resumed.

use super::*;
use crate::{
    change::Verification,
    fake::{AgentRecord, Call, Fault, Rig, busy, gamma, refused, unavailable},
    store::tests::trial,
};
use tonic::Code;

mod resume;

/// The saga's parts under a lease of the test.
impl Rig {
    async fn fence(&self) -> Fence {
        let mut leases = self.leases.lock().await;
        if leases.is_empty() {
            leases.push(self.take("test").await);
        }
        leases[0].fence()
    }

    pub(crate) async fn run(&self, proposal: Proposal) {
        self.service.run(proposal, &self.fence().await).await;
    }

    pub(crate) async fn step(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        self.service.step(proposal, &self.fence().await).await
    }

    async fn apply(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        assert_eq!(proposal.state, State::Applying);
        self.step(proposal).await
    }

    pub(crate) async fn advance(
        &self,
        proposal: &mut Proposal,
        next: State,
    ) -> Result<(), HyperSyncError> {
        let fence = self.fence().await;
        self.service.advance(proposal, next, &fence).await
    }

    async fn recover(
        &self,
        committed: Proposal,
        error: &HyperSyncError,
        pauses: &mut Pauses,
    ) -> Proposal {
        let fence = self.fence().await;
        let recover = self.service.recover(committed, error, pauses, &fence);
        recover.await.expect("it is stored")
    }
}

#[tokio::test]
async fn a_proposal_that_went_on_before_its_lease_was_had_is_read_again() {
    let (rig, before) = applying().await;
    rig.run(before.clone()).await;
    assert_eq!(rig.state(before.id).await, State::Completed);
    let calls = rig.world.calls();
    let lease = rig.take("another").await;
    rig.service.run_owned(before.id, &lease).await;
    assert_eq!(rig.world.calls(), calls, "there is nothing left to do");
}

fn verification(proposal: &Proposal) -> Option<Verification> {
    match &proposal.change {
        Change::Tuning(tuning) => tuning.verification.clone(),
        Change::Promotion { .. } => None,
    }
}

/// A proposal whose application has just started.
async fn applying() -> (Rig, Proposal) {
    let rig = Rig::start().await;
    let proposal = rig.put(State::Applying).await;
    (rig, proposal)
}

/// A proposal whose change is live.
async fn verifying() -> (Rig, Proposal) {
    let (rig, mut proposal) = applying().await;
    rig.apply(&mut proposal).await.unwrap();
    (rig, proposal)
}

/// A proposal whose change is live and is to be rolled back.
async fn rolling_back() -> (Rig, Proposal) {
    let (rig, mut proposal) = verifying().await;
    let next = State::RollingBack;
    rig.advance(&mut proposal, next).await.unwrap();
    (rig, proposal)
}

/// Drives a proposal until the saga is done with it.
pub(crate) async fn driven(rig: &Rig, proposal: Proposal) -> Proposal {
    let id = proposal.id;
    rig.run(proposal).await;
    rig.service.get(id).await.unwrap()
}

fn is_untouched(agent: &AgentRecord) -> bool {
    agent.live == gamma(0.95) && agent.version == 1 && agent.hold.is_none()
}

/// As before the change, and not held.
fn is_taken_back(agent: &AgentRecord) -> bool {
    agent.live == gamma(0.95) && agent.hold.is_none() && agent.approved == 1
}

fn is_approved(agent: &AgentRecord) -> bool {
    let live = agent.live == gamma(0.99) && agent.version == 2;
    live && agent.approved == 2 && agent.hold.is_none()
}

// === Applying ===

#[tokio::test]
async fn applying_makes_the_change_live_and_holds_the_agent() {
    let (rig, mut proposal) = applying().await;
    rig.step(&mut proposal).await.unwrap();
    let agent = rig.world.agent();
    assert_eq!(agent.hold, Some((proposal.id.to_string(), false)));
    assert_eq!((agent.live, agent.version), (gamma(0.99), 2));
    let written = rig.service.get(proposal.id).await.unwrap();
    assert_eq!(written, proposal);
    assert_eq!(
        (written.state, written.applied_version, written.applied_us),
        (State::Verifying, 2, Some(rig.clock.now_us()))
    );
}

#[tokio::test]
async fn applying_that_is_refused_fails_without_an_effect() {
    for code in [Code::InvalidArgument, Code::NotFound] {
        let (rig, proposal) = applying().await;
        rig.world.fail(1, Call::Apply, &refused(code));
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::Failed, "{code:?}");
        assert_eq!(ended.error, "refused by a test");
        assert!(is_untouched(&rig.world.agent()));
    }
    let (rig, proposal) = applying().await;
    rig.world.inject(Call::Apply, Fault::Overtake(0.9));
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::Failed, "another version is live");
    assert_eq!(rig.world.agent().live, gamma(0.9));
}

#[tokio::test]
async fn applying_whose_response_is_lost_takes_effect_once() {
    let (rig, proposal) = applying().await;
    rig.world.inject(Call::Apply, Fault::LoseResponse);
    let ended = driven(&rig, proposal).await;
    assert_eq!((ended.state, ended.applied_version), (State::Completed, 2));
    assert!(is_approved(&rig.world.agent()));
}

#[tokio::test]
async fn applying_that_may_have_taken_effect_is_rolled_back() {
    let (rig, proposal) = applying().await;
    rig.world.inject(Call::Apply, Fault::LoseResponse);
    rig.world.fail(1, Call::Apply, &refused(Code::Internal));
    let ended = driven(&rig, proposal).await;
    assert_eq!((ended.state, ended.applied_version), (State::RolledBack, 0));
    let agent = rig.world.agent();
    assert!(is_taken_back(&agent) && agent.version == 3, "set back once");
}

#[tokio::test]
async fn applying_that_can_neither_be_confirmed_nor_rolled_back_needs_attention() {
    let (rig, proposal) = applying().await;
    rig.world.inject(Call::Apply, Fault::LoseResponse);
    rig.world.fail(20, Call::Apply, &refused(Code::Internal));
    let mut proposal = proposal;
    let error = rig.step(&mut proposal).await.unwrap_err();
    assert!(error.failure().is_some());
    rig.run(proposal.clone()).await;
    let stuck = rig.service.get(proposal.id).await.unwrap();
    assert_eq!(stuck.state, State::NeedsAttention, "nor can it be set back");
    assert!(stuck.attention.contains("could not be restored"));
}

#[tokio::test]
async fn applying_is_retried_after_busy_and_unreachable_peers() {
    let (rig, proposal) = applying().await;
    rig.world.fail(20, Call::Apply, &busy());
    rig.world.fail(2, Call::Apply, &unavailable());
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::Completed);
    assert_eq!(rig.world.count(Call::Apply), 24, "22 tries, and two steps");
}

#[tokio::test]
async fn applying_is_rolled_back_when_orchestration_stays_unreachable() {
    let (rig, proposal) = applying().await;
    rig.world.fail(6, Call::Apply, &unavailable());
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    assert!(is_untouched(&rig.world.agent()));
}

// === Verifying ===

#[tokio::test]
async fn verifying_writes_its_measurement_before_it_evaluates_it() {
    let (rig, mut proposal) = verifying().await;
    rig.step(&mut proposal).await.unwrap();
    let written = rig.service.get(proposal.id).await.unwrap();
    assert_eq!(written.state, State::Verifying);
    let measured = verification(&written).expect("measured");
    assert_eq!((measured.improvement, measured.seeds.len()), (1.0, 2));
    assert_eq!(rig.world.count(Call::Settle), 0, "not judged yet");
    rig.step(&mut proposal).await.unwrap();
    assert_eq!(rig.state(proposal.id).await, State::Completed);
    assert!(is_approved(&rig.world.agent()));
}

#[tokio::test]
async fn verifying_without_an_improvement_is_rolled_back() {
    for improvement in [0.0, -1.0] {
        let (rig, proposal) = verifying().await;
        *rig.world.improvement.lock() = improvement;
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::RolledBack);
        assert!(ended.error.contains("interval"), "{}", ended.error);
        assert!(is_taken_back(&rig.world.agent()));
    }
}

#[tokio::test]
async fn verifying_renews_a_hold_that_was_released() {
    let (rig, mut proposal) = verifying().await;
    rig.world.stored.lock().hold = None;
    rig.step(&mut proposal).await.unwrap();
    let hold = rig.world.agent().hold;
    assert_eq!(hold, Some((proposal.id.to_string(), false)));
}

#[tokio::test]
async fn verifying_a_value_that_somebody_changed_needs_attention() {
    let (rig, proposal) = verifying().await;
    rig.world.inject(Call::Read, Fault::Overtake(0.9));
    let asked = driven(&rig, proposal).await;
    assert_eq!(asked.state, State::NeedsAttention);
    assert!(asked.attention.contains("version 3"), "{}", asked.attention);
    let agent = rig.world.agent();
    assert_eq!(agent.live, gamma(0.9), "nothing was taken from anybody");
    assert_eq!(agent.hold, Some((asked.id.to_string(), true)));
}

#[tokio::test]
async fn verifying_waits_for_a_learner_without_a_bound() {
    let (rig, proposal) = verifying().await;
    rig.world.fail(50, Call::Evaluate, &busy());
    assert_eq!(driven(&rig, proposal).await.state, State::Completed);
}

#[tokio::test]
async fn verifying_that_cannot_be_measured_is_rolled_back() {
    for (times, status) in [(1, refused(Code::Aborted)), (100, unavailable())] {
        let (rig, proposal) = verifying().await;
        rig.world.fail(times, Call::Evaluate, &status);
        let ended = driven(&rig, proposal).await;
        assert_eq!(ended.state, State::RolledBack, "{status}");
        assert_eq!(ended.error, status.message());
        assert!(is_taken_back(&rig.world.agent()));
    }
}

#[tokio::test]
async fn a_verified_proposal_completes_only_after_the_agent_is_settled() {
    let (rig, proposal) = verifying().await;
    rig.world.inject(Call::Settle, Fault::LoseResponse);
    rig.world.fail(1, Call::Settle, &unavailable());
    assert_eq!(driven(&rig, proposal).await.state, State::Completed);
    assert!(is_approved(&rig.world.agent()));
}

// === RollingBack ===

#[tokio::test]
async fn rolling_back_restores_the_old_values_and_releases_the_agent() {
    let (rig, proposal) = rolling_back().await;
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    assert_eq!(ended.ended_us, Some(rig.clock.now_us()));
    let agent = rig.world.agent();
    assert!(is_taken_back(&agent));
    assert_eq!(agent.version, 3, "set once");
}

#[tokio::test]
async fn rolling_back_a_change_that_is_not_live_only_releases_the_agent() {
    let rig = Rig::start().await;
    let proposal = rig.put(State::RollingBack).await;
    rig.world.stored.lock().hold = Some((proposal.id.to_string(), false));
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    assert!(is_untouched(&rig.world.agent()));
}

#[tokio::test]
async fn rolling_back_is_repeated_when_the_version_changes_concurrently() {
    let (rig, proposal) = rolling_back().await;
    rig.world.inject(Call::Apply, Fault::Overtake(0.99));
    let ended = driven(&rig, proposal).await;
    assert_eq!(ended.state, State::RolledBack);
    let agent = rig.world.agent();
    assert_eq!((agent.live, agent.version), (gamma(0.95), 4));
}

#[tokio::test]
async fn rolling_back_that_fails_needs_attention() {
    for (times, status) in [(1, refused(Code::Internal)), (100, unavailable())] {
        let (rig, proposal) = rolling_back().await;
        rig.world.fail(times, Call::Apply, &status);
        let asked = driven(&rig, proposal).await;
        assert_eq!(asked.state, State::NeedsAttention, "{status}");
        for part in [status.message(), "RESOLUTION_ROLL_BACK"] {
            assert!(asked.attention.contains(part), "{}", asked.attention);
        }
    }
}

#[tokio::test]
async fn rolling_back_whose_responses_are_lost_takes_effect_once() {
    let (rig, proposal) = rolling_back().await;
    for call in [Call::Apply, Call::Settle] {
        rig.world.inject(call, Fault::LoseResponse);
    }
    assert_eq!(driven(&rig, proposal).await.state, State::RolledBack);
    assert_eq!(rig.world.agent().version, 3);
}

// === Writes that fail ===

/// Does a step whose result cannot be written, then drives the proposal with a working database.
async fn driven_after_a_failed_write((rig, committed): (Rig, Proposal)) -> (Rig, Proposal) {
    rig.refuse_writes().await;
    let mut pauses = Pauses::new(rig.service.pacing);
    let error = rig.step(&mut committed.clone()).await.unwrap_err();
    let left = rig.recover(committed.clone(), &error, &mut pauses).await;
    assert_eq!(left, committed, "the proposal is as it was committed");
    rig.accept_writes().await;
    let ended = driven(&rig, left).await;
    (rig, ended)
}

#[tokio::test]
async fn applying_whose_result_cannot_be_written_is_repeated_without_an_effect() {
    let (rig, ended) = driven_after_a_failed_write(applying().await).await;
    assert_eq!((ended.state, ended.applied_version), (State::Completed, 2));
    assert!(is_approved(&rig.world.agent()), "applied once");
}

#[tokio::test]
async fn verifying_whose_measurement_cannot_be_written_is_repeated() {
    let (rig, ended) = driven_after_a_failed_write(verifying().await).await;
    assert_eq!(ended.state, State::Completed);
    assert_eq!(rig.world.count(Call::Evaluate), 8, "measured twice");
    assert!(is_approved(&rig.world.agent()));
}

#[tokio::test]
async fn rolling_back_whose_result_cannot_be_written_is_repeated_without_an_effect() {
    let (rig, ended) = driven_after_a_failed_write(rolling_back().await).await;
    assert_eq!(ended.state, State::RolledBack);
    let agent = rig.world.agent();
    assert!(is_taken_back(&agent) && agent.version == 3, "set back once");
}

#[tokio::test]
async fn a_step_that_was_committed_already_continues_from_the_committed_state() {
    let (rig, stale) = applying().await;
    rig.step(&mut stale.clone()).await.unwrap();
    let ended = driven(&rig, stale).await;
    assert_eq!((ended.state, ended.applied_version), (State::Completed, 2));

    let (rig, stale) = verifying().await;
    rig.step(&mut stale.clone()).await.unwrap();
    assert_eq!(driven(&rig, stale).await.state, State::Completed);

    let (rig, stale) = rolling_back().await;
    rig.step(&mut stale.clone()).await.unwrap();
    assert_eq!(driven(&rig, stale).await.state, State::RolledBack);
    assert_eq!(rig.world.agent().version, 3, "set back once");
}

// === Reading ===

#[tokio::test]
async fn a_proposal_that_cannot_be_read_is_not_applied_as_it_was_listed() {
    let (rig, proposal) = applying().await;
    let (id, lease) = (proposal.id, rig.take("saga").await);
    rig.service.run_owned(id, &lease).await;
    let (ended, calls) = (rig.state(id).await, rig.world.calls());
    assert!(ended.is_final(), "{ended:?}");
    let mut again = std::pin::pin!(rig.service.run_owned(id, &lease));
    rig.service.store.db().cut_off(true);
    for _ in 0..100 {
        tokio::select! {
            biased;
            () = &mut again => panic!("it went on without the proposal"),
            () = tokio::task::yield_now() => {}
        }
    }
    rig.service.store.db().cut_off(false);
    again.await;
    assert_eq!(rig.world.calls(), calls, "nothing was left to do");
    let unknown = rig.service.run_owned(Uuid::now_v7(), &lease);
    unknown.await;
    assert_eq!(rig.world.calls(), calls);
}
