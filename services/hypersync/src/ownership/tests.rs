//! Two replicas of HyperSync on one database, with the same peers.

use super::*;
use crate::saga::Settled;
use crate::{
    attention::Resolution,
    fake::{Call, LIFE, Rig, caller, reason},
    store::State,
};
use std::time::Duration;
use tars_proto::fault;
use tonic::{Code, Status};
use tonic_types::StatusExt;

async fn two() -> (Rig, Rig) {
    let one = Rig::replica("one").await;
    let two = one.beside("two").await;
    (one, two)
}

/// Calls that change something in Orchestration.
fn changes(rig: &Rig) -> usize {
    let calls = [Call::Apply, Call::Settle, Call::Hold];
    calls.into_iter().map(|call| rig.world.count(call)).sum()
}

async fn take_over(rig: &Rig) {
    rig.service.take_over().await.unwrap();
}

#[tokio::test]
async fn a_proposal_that_another_replica_applies_is_left_alone() {
    let (one, two) = two().await;
    let proposal = one.put(State::Applying).await;
    let _lease = one.take(&saga_lease(proposal.id)).await;
    assert_eq!(two.resume().await, 1, "it is unfinished");
    assert!(two.service.acquire_saga(proposal.id).await.is_none());
    take_over(&two).await;
    assert_eq!(two.state(proposal.id).await, State::Applying);
    assert_eq!(one.world.calls(), 0);
}

#[tokio::test]
async fn a_suspended_replica_writes_no_state_once_another_has_taken_over() {
    for state in [State::Applying, State::Verifying, State::RollingBack] {
        let (one, two) = two().await;
        let stale = one.put(state).await;
        let lease = one.take(&saga_lease(stale.id)).await;
        // The clock of the first stands still: it does not know that its lease has ended.
        take_over(&two).await;
        two.clock.advance(LIFE);
        take_over(&two).await;
        let ended = two.until(stale.id, |p| p.state.is_final()).await;
        for next in [State::NeedsAttention, State::Failed, State::RolledBack] {
            let (mut turned, fence) = (stale.clone(), lease.fence());
            let written = one.service.advance(&mut turned, next, &fence);
            let refused = written.await.unwrap_err();
            assert!(
                matches!(refused, HyperSyncError::NotOwned(_)),
                "{refused:?}"
            );
        }
        assert!(lease.lost().is_cancelled());
        let before = changes(&one);
        one.service.run(stale, &lease.fence()).await;
        assert_eq!(changes(&one), before, "nor does it ask for a change");
        assert_eq!(two.service.get(ended.id).await.unwrap(), ended, "{state:?}");
    }
}

#[tokio::test]
async fn a_replica_whose_lease_has_ended_asks_nothing_of_orchestration() {
    let (one, _two) = two().await;
    let proposal = one.put(State::Applying).await;
    let lease = one.take(&saga_lease(proposal.id)).await;
    one.clock.advance(LIFE);
    one.service.run(proposal.clone(), &lease.fence()).await;
    assert_eq!(one.world.calls(), 0);
    assert_eq!(one.state(proposal.id).await, State::Applying);
}

#[tokio::test]
async fn a_proposal_is_applied_once_where_several_replicas_look_for_it() {
    let (one, two) = two().await;
    let proposal = one.put(State::Applying).await;
    for _ in 0..5 {
        tokio::join!(take_over(&one), take_over(&two));
    }
    let ended = async {
        while one.state(proposal.id).await != State::Completed {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
    ended.expect("the proposal is applied");
    assert_eq!(one.world.count(Call::Settle), 1);
    assert_eq!(one.world.count(Call::Evaluate), 4, "measured once");
}

#[tokio::test]
async fn an_assessment_of_a_replica_that_stops_is_made_by_another() {
    let (one, two) = two().await;
    let proposal = one.put(State::PendingApproval).await;
    let lease = one.take(&assessment_lease(proposal.id)).await;
    take_over(&two).await;
    assert_eq!(two.world.count(Call::Evaluate), 0, "another makes it");
    drop(lease);
    one.service.leases.close().await;
    take_over(&two).await;
    two.until(proposal.id, |p| p.change.is_assessed()).await;
    assert_eq!(two.world.count(Call::Evaluate), 4);
}

#[tokio::test]
async fn orchestration_refuses_a_suspended_replica_that_does_not_know_of_its_successor() {
    for state in [State::Applying, State::Verifying, State::RollingBack] {
        let (one, two) = two().await;
        let stale = one.put(state).await;
        let lease = one.take(&saga_lease(stale.id)).await;
        take_over(&two).await;
        two.clock.advance(LIFE);
        take_over(&two).await;
        let ended = two.until(stale.id, |p| p.state.is_final()).await;
        let before = one.world.agent();
        // The first replica's clock stands still, and it has written nothing since: only the token tells.
        assert!(lease.fence().check().is_ok());
        let fence = lease.fence();
        let applied = one
            .service
            .settle(&stale, Settled::Approved(before.version), &fence)
            .await;
        assert_eq!(reason(applied), "SUPERSEDED");
        assert_eq!(reason(one.service.hold(&stale, &fence).await), "SUPERSEDED");
        one.service.run(stale, &fence).await;
        assert_eq!(one.world.agent(), before, "{state:?}");
        assert_eq!(two.service.get(ended.id).await.unwrap(), ended);
    }
}

#[tokio::test]
async fn a_hold_is_not_taken_for_a_proposal_that_another_replica_decides_about() {
    let (one, two) = two().await;
    let proposal = one.put(State::NeedsAttention).await;
    let deciding = one.take(&saga_lease(proposal.id)).await;
    two.service.take_missing_holds().await.unwrap();
    assert_eq!(
        one.world.count(Call::Hold),
        0,
        "whoever decides has the lease"
    );
    // It is gone, and with it its decision.
    deciding.release().await.unwrap();
    take_over(&two).await;
    assert_eq!(
        one.world.agent().hold,
        Some((proposal.id.to_string(), true))
    );
}

#[tokio::test]
async fn a_decision_at_one_replica_is_known_at_every_other() {
    let (one, two) = two().await;
    let proposal = one.put(State::NeedsAttention).await;
    for rig in [&one, &two] {
        rig.service.take_missing_holds().await.unwrap();
    }
    let (ada, keep) = (caller("ada", &[]), Resolution::KeepLive);
    let decided = two
        .service
        .resolve(&ada, proposal.id, keep, "a reason".to_owned());
    assert_eq!(decided.await.unwrap().state, State::Kept);
    one.until_state(proposal.id, State::Kept).await;
    one.service.take_missing_holds().await.unwrap();
    assert_eq!(one.world.agent().hold, None, "nor is it held again");
}

#[tokio::test]
async fn a_decision_says_how_long_the_lease_of_a_replica_that_is_gone_lasts() {
    let (one, two) = two().await;
    let proposal = one.put(State::NeedsAttention).await;
    // Its owner was killed: nobody renews the lease.
    let _lease = one.take(&saga_lease(proposal.id)).await;
    take_over(&two).await;
    two.clock.advance(LIFE - Duration::from_secs(5));
    let (ada, keep) = (caller("ada", &[]), Resolution::KeepLive);
    let decide = || {
        two.service
            .resolve(&ada, proposal.id, keep, "a reason".to_owned())
    };
    let refused = Status::from(decide().await.unwrap_err());
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(fault::reason(&refused).as_deref(), Some("OWNED_ELSEWHERE"));
    let retry = refused
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    assert_eq!(retry, Some(Duration::from_secs(6)), "{refused}");
    assert!(refused.message().contains("in 6 s"), "{refused}");
    two.clock.advance(Duration::from_secs(6));
    assert_eq!(decide().await.unwrap().state, State::Kept);
}

#[tokio::test]
async fn one_of_two_decisions_at_different_replicas_wins() {
    let (one, two) = two().await;
    let proposal = one.put(State::NeedsAttention).await;
    let decide = |rig: &Rig, resolution| {
        let (service, ada) = (Arc::clone(&rig.service), caller("ada", &[]));
        let reason = "a reason".to_owned();
        async move {
            let decided = service.resolve(&ada, proposal.id, resolution, reason);
            decided.await
        }
    };
    let (keep, back) = tokio::join!(
        decide(&one, Resolution::KeepLive),
        decide(&two, Resolution::RollBack)
    );
    assert!(keep.is_ok() != back.is_ok(), "{keep:?} {back:?}");
}
