//! A proposal that needs attention: how it is entered, left, failed and resumed.

use super::*;
use crate::fake::{Call, Rig, Trouble, away, caller, gamma, reason};
use Resolution::{KeepLive, RollBack};

/// A proposal about which a person is asked: 0.9 is live, and neither side is its.
async fn asking() -> (Rig, Proposal) {
    let rig = Rig::start().await;
    let proposal = rig.put(State::NeedsAttention).await;
    {
        let mut agent = rig.world.kept.lock();
        agent.live = gamma(0.9);
        agent.version = 3;
        agent.hold = Some((proposal.id.to_string(), true));
    }
    (rig, proposal)
}

async fn decide(rig: &Rig, id: Uuid, resolution: Resolution) -> Result<Proposal, HyperSyncError> {
    let (ada, tracer) = (caller("ada", &[]), Tracer::disabled());
    let reason = "a reason".to_owned();
    rig.service
        .resolve(&ada, id, resolution, reason, &tracer)
        .await
}

#[tokio::test]
async fn whoever_keeps_what_is_live_ends_the_change() {
    let (rig, proposal) = asking().await;
    let kept = decide(&rig, proposal.id, KeepLive).await.unwrap();
    assert_eq!(
        (kept.state, kept.reason.as_str()),
        (State::Kept, "a reason")
    );
    assert!(kept.attention.is_empty());
    let agent = rig.world.agent();
    assert_eq!((agent.live, agent.hold), (gamma(0.9), None));
    assert_eq!(agent.approved, 1, "kept is not approved");
}

#[tokio::test]
async fn whoever_rolls_back_gets_the_old_values_whatever_is_live() {
    let (rig, proposal) = asking().await;
    let decided = decide(&rig, proposal.id, RollBack).await.unwrap();
    assert_eq!((decided.state, decided.forced), (State::RollingBack, true));
    rig.until_state(proposal.id, State::RolledBack).await;
    let agent = rig.world.agent();
    assert_eq!((agent.live, agent.hold), (gamma(0.95), None));
}

#[tokio::test]
async fn a_decision_that_cannot_be_done_leaves_the_agent_held() {
    let (rig, proposal) = asking().await;
    rig.service.keep_held();
    rig.world.trouble(Call::Settle, Trouble::LosesAnswer);
    let failed = decide(&rig, proposal.id, KeepLive).await;
    assert!(failed.is_err());
    assert_eq!(rig.state(proposal.id).await, State::NeedsAttention);
    rig.until_held(Some((proposal.id, true))).await;
    decide(&rig, proposal.id, KeepLive).await.unwrap();
    rig.until_held(None).await;
}

#[tokio::test]
async fn only_what_needs_attention_is_resolved() {
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
async fn the_next_process_holds_the_agent_until_somebody_decides() {
    let (rig, proposal) = asking().await;
    rig.world.kept.lock().hold = None;
    let rig = rig.restart().await;
    rig.world.fails(5, Call::Hold, &away());
    assert_eq!(rig.resume().await, 0, "nothing is driven");
    rig.until_held(Some((proposal.id, true))).await;
    decide(&rig, proposal.id, KeepLive).await.unwrap();
    rig.until_held(None).await;
}

#[tokio::test]
async fn an_agent_that_cannot_be_held_keeps_no_other_from_being_held_and_decided_about() {
    let rig = Rig::start().await;
    rig.put(State::NeedsAttention).await;
    let other = Proposal {
        id: Uuid::now_v7(),
        agent_id: "other".into(),
        trial_number: 4,
        ..rig
            .service
            .store
            .needing_attention()
            .await
            .unwrap()
            .remove(0)
    };
    rig.insert(other).await;
    rig.world.trouble(Call::Hold, Trouble::Hangs);
    rig.service.keep_held();
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
async fn of_two_decisions_one_counts() {
    let (rig, proposal) = asking().await;
    let (keep, back) = tokio::join!(
        decide(&rig, proposal.id, KeepLive),
        decide(&rig, proposal.id, RollBack)
    );
    assert!(keep.is_ok() != back.is_ok());
}
