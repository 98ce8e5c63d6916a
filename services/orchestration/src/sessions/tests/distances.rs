//! The distance from an equilibrium, measured and remembered.

use super::*;

/// The agent that acts in a world of one.
async fn only_agent(service: &Arc<Orchestration>) -> String {
    let session = create(service, "eve", 1).await;
    let view = service.session(session.id, "eve").await.unwrap();
    view.observations.into_keys().next().unwrap()
}

async fn train(service: &Arc<Orchestration>, agent: &str) -> Uuid {
    let started = service.start_training(Start::of(agent, 200, None));
    let run = started.await.unwrap().row.id;
    let trained = async {
        while service.training(run).await.unwrap().row.state != RunState::Completed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let trained = tokio::time::timeout(Duration::from_secs(60), trained);
    trained.await.unwrap();
    run
}

#[tokio::test]
async fn a_trained_agent_acts_by_its_policy_and_its_distance_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let session = create(&service, "ada", 1).await;
    let agent = only_agent(&service).await;
    train(&service, &agent).await;
    let record = step(&service, measured(&session)).await;
    let acted = &record.agents[0];
    assert_eq!(
        (acted.weights_version, acted.values.len(), &acted.rule),
        (1, 2, &None)
    );

    let asked = |place| Measurement {
        owner: "ada".into(),
        allowance: Allowance::default(),
        place,
        rollouts: 4,
        run: None,
        until: None,
    };
    assert!(
        service
            .store
            .nash_points(Points::All, 9)
            .await
            .unwrap()
            .is_empty()
    );
    let found = service
        .measure_equilibrium(asked(Place::Session(session.id)))
        .await
        .unwrap();
    assert!(found.solution.converged() && found.game.distance >= 0.0);
    let points = service.store.nash_points(Points::All, 9).await.unwrap();
    assert_eq!(
        (points[0].value, points[0].origin.session),
        (found.game.distance, Some(session.id))
    );
    assert_eq!(points[0].origin.weights[&agent], 1);
    let now = service.session(session.id, "ada").await.unwrap().row;
    assert_eq!(now.steps, 1, "measuring changes nothing");
    // The same episode is the same state.
    let place = Place::Episode { seed: 3, steps: 20 };
    let one = service.measure_equilibrium(asked(place)).await.unwrap();
    let two = service.measure_equilibrium(asked(place)).await.unwrap();
    assert_eq!(one.game.distance, two.game.distance);
    assert_eq!(one.solution.profile, two.solution.profile);
    assert_eq!(
        service
            .store
            .nash_points(Points::All, 9)
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn the_history_has_a_point_for_each_change_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let (mut lease, agent) = (None, only_agent(&service).await);
    assert!(service.measure_changed(&mut lease).await.unwrap());
    assert!(!service.measure_changed(&mut lease).await.unwrap());
    let run = train(&service, &agent).await;
    assert!(service.measure_changed(&mut lease).await.unwrap());
    assert!(!service.measure_changed(&mut lease).await.unwrap());
    let points = service.store.nash_points(Points::All, 9).await.unwrap();
    let versions = points.iter().map(|point| point.origin.weights[&agent]);
    assert_eq!(versions.collect::<Vec<_>>(), [1, 0], "the newest first");
    assert_eq!(
        (points[0].origin.run, points[1].origin.run),
        (Some(run), None)
    );
    // What callers measure is of other games, before a change and after one.
    let session = create(&service, "ada", 1).await;
    let elsewhere = async |place, rollouts| {
        let asked = Measurement {
            owner: "ada".into(),
            allowance: Allowance::default(),
            place,
            rollouts,
            run: None,
            until: None,
        };
        service.measure_equilibrium(asked).await.unwrap();
    };
    let regular = async || service.store.nash_points(Points::Regular, 9).await.unwrap();
    let same = Place::Episode { seed: 1, steps: 60 };
    for is_changed in [false, true] {
        if is_changed {
            train(&service, &agent).await;
        }
        elsewhere(Place::Session(session.id), 2).await;
        elsewhere(Place::Episode { seed: 2, steps: 60 }, 8).await;
        elsewhere(Place::Episode { seed: 1, steps: 59 }, 8).await;
        elsewhere(same, 7).await;
        assert_eq!(regular().await.len(), 2);
        // Whoever does not have the lease leaves it to the one that has.
        assert!(!service.measure_changed(&mut None).await.unwrap());
        let measured = service.measure_changed(&mut lease).await.unwrap();
        assert_eq!(measured, is_changed);
    }
    // The same game is measured once, whoever does.
    train(&service, &agent).await;
    elsewhere(same, 8).await;
    assert_eq!(regular().await.len(), 4);
    assert!(!service.measure_changed(&mut lease).await.unwrap());
}

#[tokio::test]
async fn a_measurement_that_failed_or_was_missed_is_made_later() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let agent = only_agent(&service).await;
    train(&service, &agent).await;
    // The change is over when this begins to look, and the first point is lost.
    let db = service.store.db();
    db.lose_commit("nash_points.insert", LostCommit::Undone);
    let changes = service.changes.subscribe();
    let apart = Duration::from_millis(20);
    let kept = history::keep_measured(Arc::downgrade(&service), changes, apart);
    let kept = AbortOnDropHandle::new(tokio::spawn(kept));
    let measured = async {
        while service
            .store
            .nash_points(Points::Regular, 1)
            .await
            .unwrap()
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let measured = tokio::time::timeout(Duration::from_secs(60), measured);
    measured.await.unwrap();
    drop(kept);
}

#[tokio::test]
async fn no_point_is_of_a_run_whose_weights_nobody_acts_by() {
    for is_bound in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Setup::for_tests(Seeds::counted(41));
        setup.settings.environment = "mesh".to_owned();
        if is_bound {
            setup.settings.bound_agents = vec!["policy".to_owned()];
        }
        let place = tars_test_db::place(dir.path(), "orchestration");
        let terms = |_: &Db| Ok(Terms::Sole);
        let opened = Orchestration::open_at(dir.path(), &place, terms, setup);
        let service = opened.await.unwrap();
        let run = train(&service, "policy").await;
        let newest = service.newest_run().await.unwrap();
        assert_eq!(newest, (!is_bound).then_some(run));
    }
}
