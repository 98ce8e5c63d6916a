use super::*;
use crate::{
    change::{Tuning, Verification},
    fake::{Call, Rig, unavailable},
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

#[tokio::test]
async fn what_has_ended_is_recorded_once_it_has_and_again_where_that_failed() {
    let rig = Rig::start().await;
    let ended = async |trial_number| {
        let rejected = Proposal {
            change: trial(trial_number),
            decided_us: Some(7),
            ended_us: Some(9),
            ..proposal(State::Rejected)
        };
        rig.insert(rejected).await.id.to_string()
    };
    let open = Proposal {
        change: trial(9),
        ..proposal(State::PendingApproval)
    };
    rig.insert(open).await;
    let recorded = || {
        let all = rig.world.recorded.lock();
        all.iter()
            .map(|one| one.proposal_id.clone())
            .collect::<Vec<_>>()
    };
    let mut reported = Reported::default();
    rig.service.report_decisions(&mut reported).await.unwrap();
    assert_eq!(
        rig.world.count(Call::Record),
        0,
        "there is nothing to record"
    );
    let first = ended(1).await;
    for _ in 0..2 {
        rig.service.report_decisions(&mut reported).await.unwrap();
        assert_eq!(recorded(), std::slice::from_ref(&first));
    }
    let second = ended(2).await;
    rig.world.fail(1, Call::Record, &unavailable());
    let failed = rig.service.report_decisions(&mut reported).await;
    assert!(failed.is_err());
    rig.service.report_decisions(&mut reported).await.unwrap();
    assert_eq!(recorded(), [first, second]);
}
