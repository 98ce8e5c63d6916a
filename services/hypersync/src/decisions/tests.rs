use super::*;
use crate::{
    change::{Tuning, Verification},
    fake::{Call, Rig, caller, unavailable},
    proposals::Decision,
    store::tests::{proposal, trial, tuning},
};

fn measured(low: f64, high: f64) -> Verification {
    Verification {
        seeds: vec![1],
        baseline: vec![0.0],
        candidate: vec![0.0],
        improvement: (low + high) / 2.0,
        low,
        high,
        steps: 1,
    }
}

#[test]
fn a_change_is_judged_by_how_it_did_and_else_by_a_measurement_beyond_doubt() {
    use ProposalQuality::{Bad, Good, Unspecified};
    let of = |state, assessment: Option<Verification>| {
        let mut proposal = proposal(state);
        proposal.change = Change::Tuning(Tuning {
            assessment,
            ..tuning()
        });
        quality(&proposal)
    };
    for (state, assessment, expected) in [
        (State::Completed, Some(measured(-2.0, -1.0)), Good),
        (State::RolledBack, Some(measured(1.0, 2.0)), Bad),
        (State::Rejected, Some(measured(1.0, 2.0)), Good),
        (State::Rejected, Some(measured(-2.0, 0.0)), Bad),
        (State::Rejected, Some(measured(-1.0, 1.0)), Unspecified),
        (State::Withdrawn, None, Unspecified),
    ] {
        assert_eq!(of(state, assessment), expected, "{state:?}");
    }
}

#[test]
fn an_answer_is_an_approval_unless_it_was_rejected_and_none_where_nobody_decided() {
    let votes = |state, decided_us| {
        let mut proposal = proposal(state);
        (proposal.decided_us, proposal.ended_us) = (decided_us, Some(9));
        let votes = decided(&proposal).unwrap().votes.into_iter();
        votes.map(|vote| vote.approves).collect::<Vec<_>>()
    };
    assert_eq!(votes(State::Completed, Some(5)), [true]);
    assert_eq!(votes(State::Rejected, Some(5)), [false]);
    assert_eq!(votes(State::Failed, None), [false; 0]);
    assert_eq!(votes(State::Withdrawn, Some(5)), [true]);
    let mut open = proposal(State::Approved);
    open.ended_us = None;
    assert_eq!(decided(&open), None);
    let mut withdrawn = proposal(State::Withdrawn);
    (withdrawn.decided_us, withdrawn.ended_us) = (None, Some(9));
    assert_eq!(
        decided(&withdrawn),
        None,
        "nobody was asked for long enough"
    );
}

/// The proposals that Orchestration has recorded, in their order.
fn recorded(rig: &Rig) -> Vec<String> {
    let all = rig.world.recorded.lock();
    all.iter().map(|one| one.proposal_id.clone()).collect()
}

/// A proposal that waits for a decision.
async fn waiting(rig: &Rig, trial_number: u32) -> Proposal {
    rig.insert(Proposal {
        change: trial(trial_number),
        ..proposal(State::PendingApproval)
    })
    .await
}

/// Ends a proposal. Returns its id.
async fn reject(rig: &Rig, proposal: &Proposal) -> String {
    let (ada, no) = (caller("ada", &[]), Decision::Reject);
    let rejected = rig.service.decide(&ada, proposal.id, no, "no");
    rejected.await.unwrap().id.to_string()
}

#[tokio::test]
async fn what_has_ended_is_recorded_once_it_has_and_again_where_that_failed() {
    let rig = Rig::start().await;
    let (first, second) = (waiting(&rig, 1).await, waiting(&rig, 2).await);
    waiting(&rig, 9).await;
    rig.service.report_decisions().await.unwrap();
    let calls = rig.world.count(Call::Record);
    assert_eq!(calls, 0, "there is nothing to record");
    let first = reject(&rig, &first).await;
    for _ in 0..2 {
        rig.service.report_decisions().await.unwrap();
        assert_eq!(recorded(&rig), std::slice::from_ref(&first));
    }
    let second = reject(&rig, &second).await;
    rig.world.fail(1, Call::Record, &unavailable());
    assert!(rig.service.report_decisions().await.is_err());
    rig.service.report_decisions().await.unwrap();
    assert_eq!(recorded(&rig), [first, second]);
}

#[tokio::test]
async fn an_old_proposal_is_recorded_when_it_ends_however_many_are_newer() {
    let rig = Rig::start().await;
    let old = waiting(&rig, 0).await;
    for trial_number in 1..=BATCH + 1 {
        waiting(&rig, trial_number).await;
    }
    let old = reject(&rig, &old).await;
    rig.service.report_decisions().await.unwrap();
    assert_eq!(recorded(&rig), [old]);
}

#[tokio::test]
async fn all_that_ended_while_orchestration_was_away_is_recorded_by_the_next_process() {
    let rig = Rig::start().await;
    let mut ended = Vec::new();
    for trial_number in 0..=BATCH {
        let waits = waiting(&rig, trial_number).await;
        ended.push(reject(&rig, &waits).await);
    }
    rig.world.fail(1, Call::Record, &unavailable());
    assert!(rig.service.report_decisions().await.is_err());
    let rig = rig.restart().await;
    rig.service.report_decisions().await.unwrap();
    assert_eq!(recorded(&rig), ended);
    assert_eq!(rig.world.count(Call::Record), 2, "a hundred at a time");
}
