//! A process that is killed, and the next one that goes on.

use super::*;

#[tokio::test]
async fn a_killed_study_resumes_with_the_trials_that_were_running() {
    let rig = Rig::start().await;
    rig.world.plan(1, Outcome::Reports(vec![(10, 0.5)], 1.0));
    rig.world.plan(2, Outcome::HangsAfter(vec![]));
    rig.world.plan(3, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(5)).await;
    rig.until("the last two run", || rig.world.asked().len() == 4)
        .await;
    let before = rig.trials(id).await;
    assert_eq!(before.len(), 4);

    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let after = rig.trials(id).await;
    assert_eq!(states(&after), [Complete; 5]);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.parameters, after.parameters, "drawn once");
        let again = u32::from(before.state == TrialState::Running);
        assert_eq!(after.attempt, 1 + again, "trial {}", after.number);
        if again == 0 {
            assert_eq!(before.ended_us, after.ended_us, "not run again");
        }
    }
    let seeds_asked: HashSet<u64> = rig.world.asked().iter().map(|a| a.seed).collect();
    let left: HashSet<u64> = (2..5).map(|n| seeds::for_trial(7, n)).collect();
    assert_eq!(seeds_asked, left);
}

#[tokio::test]
async fn trials_that_ended_are_not_run_again_whatever_their_end() {
    let rig = Rig::start_with(1).await;
    for number in 0..5 {
        rig.world
            .plan(number, Outcome::Reports(vec![(50, 10.0)], 10.0));
    }
    rig.world.plan(5, Outcome::Reports(vec![(50, 1.0)], 1.0));
    rig.world.plan(6, Outcome::Fails(refused(Code::Aborted)));
    rig.world.plan(7, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(8)).await;
    rig.until("the last one hangs", || rig.world.asked().len() == 8)
        .await;
    let before = rig.trials(id).await;
    assert_eq!(states(&before[4..7]), [Complete, Pruned, Failed]);
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    assert_eq!(rig.world.asked().len(), 1, "the trial that was running");
    let after = rig.trials(id).await;
    assert_eq!(states(&after[4..8]), [Complete, Pruned, Failed, Complete]);
    assert!((0..7).all(|i| before[i].ended_us == after[i].ended_us));
}

#[tokio::test]
async fn a_study_is_killed_at_every_trial_and_ends_the_same() {
    for trial in 0..4 {
        let rig = Rig::start_with(1).await;
        rig.world.plan(trial, Outcome::HangsAfter(vec![]));
        let id = rig.begin(seeded(4)).await;
        rig.until("it hangs", || rig.world.asked().len() == trial as usize + 1)
            .await;
        let rig = rig.restart().await;
        assert_eq!(rig.resume().await, 1);
        assert_eq!(rig.ended(id).await.state, StudyState::Completed);
        let trials = rig.trials(id).await;
        assert_eq!(states(&trials), [Complete; 4]);
        assert_eq!(rig.world.asked().len(), 4 - trial as usize);
    }
}

#[tokio::test]
async fn reports_of_a_killed_run_are_discarded() {
    let rig = Rig::start_with(1).await;
    rig.world
        .plan(0, Outcome::HangsAfter(vec![(10, 0.1), (20, 0.2)]));
    let id = rig.begin(seeded(1)).await;
    rig.until_reported(id, 2).await;
    let rig = rig.restart().await;
    rig.world.plan(0, Outcome::Reports(vec![(10, 0.9)], 1.0));
    assert_eq!(rig.resume().await, 1);
    rig.ended(id).await;
    let [trial] = &rig.trials(id).await[..] else {
        panic!("one trial");
    };
    assert_eq!((trial.attempt, trial.score), (2, Some(1.0)));
    assert_eq!(trial.intermediate, [(10, 0.9)]);
}

#[tokio::test]
async fn a_study_whose_trials_have_ended_is_ended_by_the_next_process() {
    let rig = Rig::start().await;
    let id = rig.begin(seeded(2)).await;
    rig.ended(id).await;
    rig.until_idle().await;
    let lost = "UPDATE studies SET state = 'running', completed_us = NULL";
    rig.execute(lost).await;
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    assert!(rig.world.asked().is_empty());
}

#[tokio::test]
async fn ended_studies_are_not_resumed() {
    let rig = Rig::start().await;
    let completed = rig.begin(seeded(1)).await;
    rig.ended(completed).await;
    rig.world.plan(0, Outcome::Fails(refused(Code::Aborted)));
    let failed = rig.begin(seeded(1)).await;
    rig.ended(failed).await;
    rig.world.plan(0, Outcome::HangsAfter(vec![]));
    let cancelled = rig.begin(seeded(1)).await;
    rig.automl.cancel(cancelled, "user:dev").await.unwrap();
    rig.settled_trials(cancelled).await;
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 0);
    for (id, state) in [
        (completed, StudyState::Completed),
        (failed, StudyState::Failed),
        (cancelled, StudyState::Cancelled),
    ] {
        assert_eq!(rig.row(id).await.state, state);
    }
}

#[tokio::test]
async fn resumed_studies_respect_the_limit() {
    let rig = Rig::start().await;
    let mut ids = Vec::new();
    for _ in 0..2 * STUDIES {
        let row = rig.automl.create_study(seeded(1)).await.unwrap();
        ids.push(row.id);
    }
    let rig = rig.restart().await;
    let (world, releases) = (&rig.world, Arc::new(Semaphore::new(0)));
    for _ in &ids {
        world.plan(0, Outcome::Permitted(Arc::clone(&releases)));
    }
    assert_eq!(rig.resume().await, ids.len());
    for ended in 0..ids.len() {
        let running = STUDIES.min(ids.len() - ended);
        let full = || world.asked().len() == ended + running && world.running() == running;
        rig.until("as many studies run as may", full).await;
        releases.add_permits(1);
    }
    for id in ids {
        assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    }
    assert_eq!(rig.world.most_running(), STUDIES);
}
