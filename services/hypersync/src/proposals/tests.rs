//! Proposals that wait for a decision or to be applied: how each state is entered, left, fails and is
//! resumed.

use super::*;
use crate::{
    attention::Resolution,
    change::Change,
    fake::{AgentRecord, Call, Fault, Rig, caller, gamma, reason, refused, unavailable},
    store::tests::{proposal, trial},
};
use std::{task::Poll, time::Duration};
use tars_proto::{fault, params};
use tars_runtime::db::LostCommit;
use tonic::{Code, Status};

const APPROVE: Decision = Decision::Approve {
    without_assessment: false,
};
const APPROVE_UNSEEN: Decision = Decision::Approve {
    without_assessment: true,
};

async fn propose(rig: &Rig) -> Result<Proposal, HyperSyncError> {
    let dev = caller("dev", &[]);
    rig.service.propose(&dev, "study", "a note", Some(2)).await
}

async fn decide(rig: &Rig, id: Uuid, decision: Decision) -> Result<Proposal, HyperSyncError> {
    let ada = caller("ada", &[]);
    rig.service.decide(&ada, id, decision, "a reason").await
}

async fn apply(rig: &Rig, id: Uuid) -> Result<Proposal, HyperSyncError> {
    let ada = caller("ada", &[]);
    rig.service.apply_approved(&ada, id).await
}

/// A proposal that waits for a decision, with its assessment.
async fn assessed() -> (Rig, Uuid) {
    let rig = Rig::start().await;
    let id = propose(&rig).await.unwrap().id;
    rig.until(id, |p| p.change.is_assessed()).await;
    (rig, id)
}

async fn approved() -> (Rig, Uuid) {
    let (rig, id) = assessed().await;
    decide(&rig, id, APPROVE).await.unwrap();
    (rig, id)
}

#[tokio::test]
async fn proposals_are_counted_and_timed_once_they_end() {
    let (rig, id) = approved().await;
    let hour = Duration::from_secs(3600);
    rig.clock.advance(hour);
    let count = |line: &str| rig.metrics.open_metrics().unwrap().contains(line);
    assert!(!count("proposals_ended_total{"), "it waits");
    let dev = caller("dev", &[]);
    rig.service.withdraw(&dev, id, "").await.unwrap();
    assert!(count("proposals_ended_total{outcome=\"withdrawn\"} 1"));
    assert!(count(
        "proposal_duration_seconds_sum{outcome=\"withdrawn\"} 3600.0"
    ));
}

// === PendingApproval ===

#[tokio::test]
async fn a_proposal_is_the_best_trial_against_the_live_values() {
    let rig = Rig::start().await;
    let made = propose(&rig).await.unwrap();
    let Change::Tuning(tuning) = &made.change else {
        panic!("{made:?}");
    };
    assert_eq!(
        (made.state, made.base_version, tuning.trial_number),
        (State::PendingApproval, 1, 3)
    );
    assert_eq!(
        (&tuning.current_params, &tuning.new_params),
        (&gamma(0.95), &gamma(0.99))
    );
    assert_eq!(
        (made.proposed_by.as_str(), made.note.as_str()),
        ("user:dev", "a note")
    );
    assert_eq!(rig.service.get(made.id).await.unwrap().id, made.id);
}

#[tokio::test]
async fn what_a_study_found_elsewhere_is_measured_where_the_agent_lives() {
    let rig = Rig::start().await;
    if let Some(study) = rig.world.study.lock().as_mut() {
        study.environment = "external/poles".to_owned();
    }
    assert_eq!(propose(&rig).await.unwrap().environment, "cartpole");
}

#[tokio::test]
async fn a_refused_proposal_leaves_no_row() {
    type Spoil = fn(&Rig);
    let cases: [(&str, Spoil); 7] = [
        ("NO_AGENT", |rig| {
            rig.world.study.lock().as_mut().unwrap().agent_id.clear();
        }),
        ("NO_FINISHED_TRIAL", |rig| {
            rig.world.study.lock().as_mut().unwrap().best_trial = None;
        }),
        ("CHANGE_IN_PROGRESS", |rig| {
            rig.world.stored.lock().hold = Some(("another".into(), false));
        }),
        ("NO_CHANGE", |rig| {
            rig.world.stored.lock().live = gamma(0.99);
        }),
        ("INVALID_FIELD", |rig| {
            let mut study = rig.world.study.lock();
            let trial = study.as_mut().unwrap().best_trial.as_mut().unwrap();
            trial.parameters = Some(params::to_struct(&gamma(7.0)));
        }),
        ("TEST", |rig| {
            rig.world
                .fail(1, Call::Study, &refused(Code::PermissionDenied));
        }),
        ("INTERNAL", |rig| *rig.world.study.lock() = None),
    ];
    for (why, spoil) in cases {
        let rig = Rig::start().await;
        spoil(&rig);
        assert_eq!(reason(propose(&rig).await), why);
        let (rows, _) = rig.service.list(Which::All, "", 10).await.unwrap();
        assert!(rows.is_empty(), "{why}");
    }
}

#[tokio::test]
async fn a_trial_with_an_open_proposal_is_refused_with_its_id() {
    let (rig, id) = assessed().await;
    let refused = propose(&rig).await;
    assert!(matches!(refused, Err(HyperSyncError::AlreadyOpen(open)) if open == id));
}

#[tokio::test]
async fn the_proposer_cannot_decide() {
    let (rig, id) = assessed().await;
    let dev = caller("dev", &["proposals.approve"]);
    for decision in [APPROVE, APPROVE_UNSEEN, Decision::Reject] {
        let refused = rig.service.decide(&dev, id, decision, "").await;
        assert_eq!(reason(refused), "FOUR_EYES");
    }
    assert_eq!(rig.state(id).await, State::PendingApproval);
}

#[tokio::test]
async fn a_decision_is_made_once() {
    for (decision, state) in [
        (APPROVE, State::Approved),
        (Decision::Reject, State::Rejected),
    ] {
        let (rig, id) = assessed().await;
        let decided = decide(&rig, id, decision).await.unwrap();
        assert_eq!(
            (decided.state, decided.decided_by.as_str()),
            (state, "user:ada")
        );
        assert_eq!(decided.decided_us, Some(rig.clock.now_us()));
        for again in [APPROVE, Decision::Reject] {
            assert_eq!(reason(decide(&rig, id, again).await), "WRONG_STATE");
        }
    }
}

#[tokio::test]
async fn a_stale_proposal_cannot_be_approved_but_can_be_rejected() {
    let (rig, id) = assessed().await;
    rig.world.stored.lock().version = 2;
    assert_eq!(reason(decide(&rig, id, APPROVE_UNSEEN).await), "STALE");
    rig.world.fail(1, Call::Read, &unavailable());
    let unknown = decide(&rig, id, APPROVE).await.unwrap_err();
    assert_eq!(Status::from(unknown).code(), Code::Unavailable);
    let rejected = decide(&rig, id, Decision::Reject).await.unwrap();
    assert_eq!(rejected.state, State::Rejected);
}

#[tokio::test]
async fn approval_without_an_assessment_must_be_explicit() {
    let rig = Rig::start().await;
    rig.world.fail(1, Call::Evaluate, &refused(Code::Aborted));
    let id = propose(&rig).await.unwrap().id;
    let failed = rig.until(id, |p| !p.assessment_error.is_empty()).await;
    assert_eq!(failed.assessed(), Assessment::Failed);
    assert_eq!(reason(decide(&rig, id, APPROVE).await), "ASSESSMENT_FAILED");
    let approved = decide(&rig, id, APPROVE_UNSEEN).await.unwrap();
    assert!(approved.approved_without_assessment);
}

#[tokio::test]
async fn an_assessment_is_retried_while_the_trainer_is_unreachable() {
    let rig = Rig::start().await;
    rig.world.fail(3, Call::Evaluate, &unavailable());
    let id = propose(&rig).await.unwrap().id;
    let measured = rig.until(id, |p| p.change.is_assessed()).await;
    assert!(measured.assessment_error.is_empty());
}

#[tokio::test]
async fn an_assessment_fails_when_the_trainer_stays_unreachable() {
    let rig = Rig::start().await;
    rig.world.fail(1000, Call::Evaluate, &unavailable());
    let id = propose(&rig).await.unwrap().id;
    let failed = rig.until(id, |p| !p.assessment_error.is_empty()).await;
    assert_eq!(failed.state, State::PendingApproval);
    assert_eq!(failed.assessed(), Assessment::Failed);
    assert_eq!(reason(decide(&rig, id, APPROVE).await), "ASSESSMENT_FAILED");
}

#[tokio::test]
async fn waiting_assessments_do_not_block_others() {
    let rig = Rig::start_pausing(Duration::from_secs(3600)).await;
    let assess = async |trial_number| {
        let proposal = rig
            .insert(Proposal {
                id: Uuid::now_v7(),
                change: trial(trial_number),
                ..proposal(State::PendingApproval)
            })
            .await;
        rig.service.assess_in_background(&proposal);
        proposal.id
    };
    for waits in 0..crate::assess::AT_ONCE as u32 {
        let before = rig.world.count(Call::Evaluate);
        rig.world.fail(1, Call::Evaluate, &unavailable());
        assess(waits).await;
        let asked = async {
            while rig.world.count(Call::Evaluate) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
        asked.expect("the trainer is asked");
    }
    let id = assess(100).await;
    rig.until(id, |p| p.change.is_assessed()).await;
}

/// Polls a future a bounded number of times, then drops it. Returns whether it completed.
async fn is_ready_within(polls: usize, future: impl Future) -> bool {
    let (mut future, mut left) = (std::pin::pin!(future), polls);
    std::future::poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        left -= 1;
        if left == 0 {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Drops a call after its first poll, after its second, and so on until it completes, and checks that
/// whatever it has committed is announced.
async fn dropped_anywhere(call: impl AsyncFn(&Rig, Uuid)) {
    let rig = Rig::start().await;
    let (mut committed_unheard, mut polls) = (false, 1);
    for trial_number in 0..1000 {
        let id = Uuid::now_v7();
        let new = Proposal {
            id,
            change: trial(trial_number),
            ..proposal(State::PendingApproval)
        };
        rig.insert(new).await;
        let mut changed = rig.service.subscribe();
        let is_heard = is_ready_within(polls, call(&rig, id)).await;
        // From its first poll on the call is a task, which continues.
        let announced = async {
            while rig.state(id).await == State::PendingApproval {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            changed.changed().await.unwrap();
        };
        let announced = tokio::time::timeout(Duration::from_secs(10), announced).await;
        announced.unwrap_or_else(|_| panic!("not announced when dropped after {polls} polls"));
        committed_unheard |= !is_heard;
        // The number of polls that a call takes varies.
        polls = if is_heard { 1 } else { polls + 1 };
        if is_heard && committed_unheard {
            return;
        }
    }
    panic!("no commit was on its way");
}

#[tokio::test]
async fn a_decision_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(async |rig, id| {
        drop(decide(rig, id, APPROVE_UNSEEN).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_withdrawal_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(async |rig, id| {
        let dev = caller("dev", &[]);
        drop(rig.service.withdraw(&dev, id, "").await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn the_next_process_assesses_unassessed_proposals() {
    for state in [State::PendingApproval, State::Approved] {
        let rig = Rig::start().await;
        let waiting = rig.put(state).await;
        let rig = rig.restart().await;
        assert_eq!(rig.resume().await, 1);
        let assessed = rig.until(waiting.id, |p| p.change.is_assessed()).await;
        assert_eq!(assessed.state, state);
    }
}

#[tokio::test]
async fn only_the_proposer_or_an_approver_can_withdraw() {
    for who in [caller("dev", &[]), caller("ada", &["proposals.approve"])] {
        for state in [State::PendingApproval, State::Approved] {
            let rig = Rig::start().await;
            let id = rig.put(state).await.id;
            let stranger = caller("eve", &[]);
            let refused = rig.service.withdraw(&stranger, id, "").await;
            assert_eq!(reason(refused), "NOT_YOURS");
            let gone = rig.service.withdraw(&who, id, "").await.unwrap();
            assert_eq!(gone.state, State::Withdrawn);
        }
    }
}

#[tokio::test]
async fn a_proposal_in_progress_or_ended_cannot_be_decided_withdrawn_or_applied() {
    for state in State::ALL.into_iter().filter(|s| !s.is_waiting()) {
        let rig = Rig::start().await;
        let id = rig.put(state).await.id;
        let dev = caller("dev", &[]);
        let withdrawn = rig.service.withdraw(&dev, id, "").await;
        for refused in [
            withdrawn,
            decide(&rig, id, APPROVE).await,
            decide(&rig, id, Decision::Reject).await,
            apply(&rig, id).await,
        ] {
            assert_eq!(reason(refused), "WRONG_STATE", "{state:?}");
        }
        assert_eq!((rig.state(id).await, rig.world.calls()), (state, 0));
    }
}

// === Approved ===

#[tokio::test]
async fn an_approved_proposal_is_applied_to_completion() {
    let (rig, id) = approved().await;
    assert_eq!(rig.world.agent().version, 1, "approval changes nothing");
    let begun = apply(&rig, id).await.unwrap();
    assert_eq!(
        (begun.state, begun.applied_by.as_str()),
        (State::Applying, "user:ada")
    );
    rig.until_state(id, State::Completed).await;
    assert_eq!(rig.world.agent().live, gamma(0.99));
}

#[tokio::test]
async fn an_unapproved_proposal_is_not_applied() {
    let (rig, id) = assessed().await;
    assert_eq!(reason(apply(&rig, id).await), "WRONG_STATE");
    assert_eq!(rig.state(id).await, State::PendingApproval);
}

#[tokio::test]
async fn a_proposal_that_became_stale_after_its_approval_is_not_applied() {
    let (rig, id) = approved().await;
    rig.world.stored.lock().version = 2;
    assert_eq!(reason(apply(&rig, id).await), "STALE");
    assert_eq!(rig.state(id).await, State::Approved, "and can be withdrawn");
    assert_eq!(rig.world.count(Call::Apply), 0);
}

#[tokio::test]
async fn an_agent_has_one_change_in_progress() {
    let (rig, id) = approved().await;
    let other = Proposal {
        change: trial(4),
        applied_by: "user:ada".into(),
        ..proposal(State::NeedsAttention)
    };
    rig.insert(other.clone()).await;
    let refused = apply(&rig, id).await;
    assert!(
        matches!(&refused, Err(HyperSyncError::ChangeInProgress(by)) if *by == other.id.to_string()),
        "{refused:?}"
    );
    let ada = caller("ada", &[]);
    let keep = Resolution::KeepLive;
    rig.service
        .resolve(&ada, other.id, keep, String::new())
        .await
        .unwrap();
    apply(&rig, id).await.unwrap();
    rig.until_state(id, State::Completed).await;
}

#[tokio::test]
async fn the_next_process_does_not_apply_an_approved_proposal_on_its_own() {
    let (rig, id) = approved().await;
    let rig = rig.restart().await;
    assert_eq!(
        rig.resume().await,
        1,
        "resumed in case it needs an assessment"
    );
    rig.service.store.db().check().await.unwrap();
    assert_eq!(rig.state(id).await, State::Approved);
    assert_eq!(rig.world.count(Call::Apply), 0);
}

#[tokio::test]
async fn one_of_two_concurrent_applications_wins() {
    let (rig, id) = approved().await;
    let (one, other) = tokio::join!(apply(&rig, id), apply(&rig, id));
    assert!(one.is_ok() != other.is_ok());
    rig.until_state(id, State::Completed).await;
    let AgentRecord { live, version, .. } = rig.world.agent();
    assert_eq!((live, version), (gamma(0.99), 2), "applied once");
}

#[tokio::test]
async fn a_proposal_is_shown_without_live_values_that_cannot_be_read() {
    let (rig, id) = assessed().await;
    rig.world.inject(Call::Read, Fault::Fail(unavailable()));
    let row = rig.service.get(id).await.unwrap();
    assert!(rig.service.view(row.clone()).await.live.is_none());
    assert_eq!(rig.service.view(row).await.is_stale(), Some(false));
}

#[test]
fn an_early_approval_names_the_alternatives() {
    let pending = proposal(State::PendingApproval);
    let failed = Proposal {
        assessment_error: "training diverged".to_owned(),
        ..pending.clone()
    };
    for (proposal, why, says) in [
        (pending, "ASSESSMENT_PENDING", "WatchProposal"),
        (failed, "ASSESSMENT_FAILED", "training diverged"),
    ] {
        let status = Status::from(require_assessed(&proposal).unwrap_err());
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert_eq!(fault::reason(&status).as_deref(), Some(why));
        for part in [says, "without_assessment"] {
            assert!(status.message().contains(part), "{status}");
        }
    }
}

// === Commits whose answer is lost ===

#[tokio::test]
async fn a_proposal_whose_row_was_written_is_assessed_without_its_answer() {
    let rig = Rig::start().await;
    rig.service
        .store
        .db()
        .lose_commit("proposals.propose", LostCommit::Made);
    let id = propose(&rig).await.unwrap().id;
    rig.until(id, |p| p.change.is_assessed()).await;
}

#[tokio::test]
async fn a_proposal_whose_row_was_not_written_leaves_nothing() {
    let rig = Rig::start().await;
    rig.service
        .store
        .db()
        .lose_commit("proposals.propose", LostCommit::Undone);
    let refused = propose(&rig).await;
    let unchanged = matches!(
        &refused,
        Err(HyperSyncError::Store(DbError::Unavailable(_)))
    );
    assert!(unchanged, "{refused:?}");
    let (stored, _) = rig.service.list(Which::All, "", 10).await.unwrap();
    assert!(stored.is_empty());
    propose(&rig).await.unwrap();
}

#[tokio::test]
async fn an_application_whose_start_was_stored_is_driven_without_its_answer() {
    let (rig, id) = approved().await;
    rig.service
        .store
        .db()
        .lose_commit("proposals.apply", LostCommit::Undone);
    let lost = apply(&rig, id).await;
    let in_doubt = matches!(&lost, Err(HyperSyncError::Store(DbError::InDoubt(_))));
    assert!(in_doubt, "{lost:?}");
    assert_eq!(rig.state(id).await, State::Approved);
    rig.service
        .store
        .db()
        .lose_commit("proposals.apply", LostCommit::Made);
    apply(&rig, id).await.unwrap();
    rig.until_state(id, State::Completed).await;
}

#[tokio::test]
async fn a_decision_in_doubt_is_announced() {
    let (rig, id) = assessed().await;
    let mut changed = rig.service.subscribe();
    changed.borrow_and_update();
    rig.service
        .store
        .db()
        .lose_commit("proposals.decide", LostCommit::Made);
    let decided = decide(&rig, id, APPROVE).await.unwrap();
    assert_eq!(decided.state, State::Approved);
    assert!(changed.has_changed().unwrap());
}

#[tokio::test]
async fn each_change_made_at_one_replica_wakes_the_watchers_of_another() {
    let rig = Rig::replica("a").await;
    let other = rig.beside("b").await;
    let id = propose(&rig).await.unwrap().id;
    other.until(id, |p| p.change.is_assessed()).await;
    decide(&other, id, APPROVE).await.unwrap();
    rig.until_state(id, State::Approved).await;
    apply(&rig, id).await.unwrap();
    other.until_state(id, State::Completed).await;
}
