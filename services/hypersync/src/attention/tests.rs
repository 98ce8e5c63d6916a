//! A proposal that needs attention: how the state is entered, left, fails and is resumed.

use super::*;
use crate::{
    fake::{Call, Fault, Rig, caller, gamma, reason, unavailable},
    store::tests::trial,
};
use Resolution::{KeepLive, RollBack};

/// A proposal that waits for a person: 0.9 is live, which is neither its old nor its new value.
async fn asking() -> (Rig, Proposal) {
    let rig = Rig::start().await;
    let proposal = rig.put(State::NeedsAttention).await;
    {
        let mut agent = rig.world.stored.lock();
        agent.live = gamma(0.9);
        agent.version = 3;
        agent.hold = Some((proposal.id.to_string(), true));
    }
    (rig, proposal)
}

async fn decide(rig: &Rig, id: Uuid, resolution: Resolution) -> Result<Proposal, HyperSyncError> {
    let ada = caller("ada", &[]);
    let reason = "a reason".to_owned();
    rig.service.resolve(&ada, id, resolution, reason).await
}

#[tokio::test]
async fn keeping_what_is_live_ends_the_change_and_releases_the_agent() {
    let (rig, proposal) = asking().await;
    let kept = decide(&rig, proposal.id, KeepLive).await.unwrap();
    assert_eq!(kept.state, State::Kept);
    let resolved = (kept.resolved_by.as_str(), kept.resolution_reason.as_str());
    assert_eq!(resolved, ("user:ada", "a reason"));
    assert_eq!(kept.reason, proposal.reason, "the approval's stays");
    assert!(kept.attention.is_empty());
    let agent = rig.world.agent();
    assert_eq!((agent.live, agent.hold), (gamma(0.9), None));
    assert_eq!(agent.approved, 1, "kept is not approved");
}

#[tokio::test]
async fn rolling_back_restores_the_old_values_whatever_is_live() {
    let (rig, proposal) = asking().await;
    let decided = decide(&rig, proposal.id, RollBack).await.unwrap();
    assert_eq!((decided.state, decided.forced), (State::RollingBack, true));
    rig.until_state(proposal.id, State::RolledBack).await;
    let agent = rig.world.agent();
    assert_eq!((agent.live, agent.hold), (gamma(0.95), None));
}

#[tokio::test]
async fn a_decision_that_fails_leaves_the_agent_held() {
    let (rig, proposal) = asking().await;
    rig.service.keep_agents_held();
    rig.world.inject(Call::Settle, Fault::LoseResponse);
    let failed = decide(&rig, proposal.id, KeepLive).await;
    assert!(failed.is_err());
    assert_eq!(rig.state(proposal.id).await, State::NeedsAttention);
    rig.until_held(Some((proposal.id, true))).await;
    decide(&rig, proposal.id, KeepLive).await.unwrap();
    rig.until_held(None).await;
}

#[tokio::test]
async fn only_a_proposal_that_needs_attention_can_be_resolved() {
    let others = State::ALL
        .into_iter()
        .filter(|s| *s != State::NeedsAttention);
    for state in others {
        let rig = Rig::start().await;
        let id = rig.put(state).await.id;
        for resolution in [KeepLive, RollBack] {
            let refused = decide(&rig, id, resolution).await;
            assert_eq!(reason(refused), "WRONG_STATE", "{state:?}");
        }
        assert_eq!((rig.state(id).await, rig.world.calls()), (state, 0));
    }
}

#[tokio::test]
async fn the_next_process_holds_the_agent_until_a_decision() {
    let (rig, proposal) = asking().await;
    rig.world.stored.lock().hold = None;
    let rig = rig.restart().await;
    rig.world.fail(5, Call::Hold, &unavailable());
    assert_eq!(rig.resume().await, 0, "nothing is driven");
    rig.until_held(Some((proposal.id, true))).await;
    decide(&rig, proposal.id, KeepLive).await.unwrap();
    rig.until_held(None).await;
}

#[tokio::test]
async fn an_agent_that_cannot_be_held_does_not_block_other_agents() {
    let rig = Rig::start().await;
    rig.put(State::NeedsAttention).await;
    let other = Proposal {
        id: Uuid::now_v7(),
        agent_id: "other".into(),
        change: trial(4),
        ..rig
            .service
            .store
            .needing_attention()
            .await
            .unwrap()
            .remove(0)
    };
    rig.insert(other).await;
    rig.world.inject(Call::Hold, Fault::Hang);
    rig.service.keep_agents_held();
    let held = async {
        loop {
            if let Some((change, true)) = rig.world.agent().hold {
                return Uuid::try_parse(&change).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let limit = std::time::Duration::from_secs(20);
    let id = tokio::time::timeout(limit, held).await.expect("is held");
    let decided = tokio::time::timeout(limit, decide(&rig, id, KeepLive)).await;
    assert_eq!(decided.expect("in time").unwrap().state, State::Kept);
    rig.until_held(None).await;
}

#[tokio::test]
async fn one_of_two_concurrent_decisions_wins() {
    let (rig, proposal) = asking().await;
    let (keep, back) = tokio::join!(
        decide(&rig, proposal.id, KeepLive),
        decide(&rig, proposal.id, RollBack)
    );
    assert!(keep.is_ok() != back.is_ok());
}

#[tokio::test]
async fn a_hold_that_is_missing_is_not_taken_for_a_proposal_that_was_decided_meanwhile() {
    let (rig, proposal) = asking().await;
    decide(&rig, proposal.id, KeepLive).await.unwrap();
    rig.service.take_hold(&proposal).await.unwrap();
    assert_eq!(rig.world.count(Call::Hold), 0);
    assert_eq!(rig.world.agent().hold, None);
}

#[tokio::test]
async fn a_decision_that_waited_for_another_replicas_releases_nothing() {
    let one = Rig::replica("one").await;
    let two = one.beside("two").await;
    let proposal = one.put(State::NeedsAttention).await;
    let deciding = two.take(&saga_lease(proposal.id)).await;
    let mut late = std::pin::pin!(decide(&one, proposal.id, KeepLive));
    let waits = tokio::time::timeout(5 * LOOK, &mut late).await;
    assert!(waits.is_err(), "the other has the lease");
    let (reason, fence) = ("a reason".to_owned(), deciding.fence());
    let decision = ("user:bob", proposal.id, RollBack, reason);
    two.service.write_decision(decision, &fence).await.unwrap();
    deciding.release().await.unwrap();
    let refused = late.await;
    assert!(
        matches!(refused, Err(HyperSyncError::State { .. })),
        "{refused:?}"
    );
    assert_eq!(one.world.count(Call::Settle), 0);
}
