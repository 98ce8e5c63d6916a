use super::*;
use crate::{
    Setup,
    conflicts::{Comparison, Condition, Constraint, ResolutionRule},
    rewards::RewardOptions,
    store::{Points, RunState},
    training::Start,
};
use std::path::Path;
use tars_interceptors::usage::Allowance;
use tars_runtime::{
    clock::Clock,
    db::{Db, LostCommit},
    lease::Terms,
    seeds::Seeds,
};
use tars_worlds::{Action, Observations, TimeStep, make_world};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

mod distances;

async fn open_with(dir: &Path, environment: &str) -> (Arc<Orchestration>, Clock) {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = environment.to_owned();
    let clock = setup.clock.clone();
    let place = tars_test_db::place(dir, "orchestration");
    // The next process on a folder continues at once, on every engine.
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    (opened.await.unwrap(), clock)
}

async fn open(dir: &Path, environment: &str) -> Arc<Orchestration> {
    open_with(dir, environment).await.0
}

async fn create(service: &Arc<Orchestration>, owner: &str, seed: u64) -> SessionRow {
    let created = service.create_session(owner.to_owned(), None, Some(seed));
    created.await.unwrap().row
}

fn call(session: &SessionRow) -> StepCall {
    StepCall {
        owner: session.owner.clone(),
        allowance: Allowance::default(),
        session: session.id,
        expected: None,
        constraints: Vec::new(),
        rule: ResolutionRule::default(),
        measured: false,
        tolerance: None,
        reward: RewardOptions::default(),
        until: None,
    }
}

fn measured(session: &SessionRow) -> StepCall {
    StepCall {
        measured: true,
        ..call(session)
    }
}

async fn step(service: &Arc<Orchestration>, call: StepCall) -> StepRecord {
    service.step_session(call).await.unwrap().record
}

/// A step without what differs when it is taken again.
fn timeless(record: StepRecord) -> StepRecord {
    let mut record = StepRecord {
        session: Uuid::nil(),
        step_id: String::new(),
        at_us: 0,
        ..record
    };
    if let Some(game) = &mut record.game {
        game.micros = 0;
    }
    record
}

fn forbidden(party: &str, comparison: Comparison, value: f64) -> Constraint {
    Constraint {
        name: "forbidden".into(),
        conditions: vec![Condition {
            party: party.into(),
            comparison,
            value,
        }],
    }
}

#[tokio::test]
async fn a_session_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let own = create(&service, "ada", 5).await;
    assert_eq!((own.steps, own.episode, own.seed), (0, 1, 5));
    let seen = service.session(own.id, "ada").await.unwrap();
    assert_eq!((&seen.row, seen.observations.len()), (&own, 1));

    let stranger = SessionRow {
        owner: "eve".into(),
        ..own.clone()
    };
    let absent = |e: OrchestrationError| matches!(e, OrchestrationError::NotFound("session", _));
    assert!(absent(service.session(own.id, "eve").await.unwrap_err()));
    assert!(absent(
        service.step_session(call(&stranger)).await.unwrap_err()
    ));
    assert!(absent(
        service
            .close_session(own.id, "eve".into())
            .await
            .unwrap_err()
    ));
    assert!(absent(
        service.list_steps(own.id, "eve", "", 0).await.unwrap_err()
    ));
    let watched = service.watch_steps(own.id, "eve".into(), 0).await;
    assert!(absent(watched.map(|_| ()).unwrap_err()));
    assert!(absent(
        service.session(Uuid::now_v7(), "ada").await.unwrap_err()
    ));
    assert!(
        service
            .list_sessions("eve", "", 0)
            .await
            .unwrap()
            .0
            .is_empty()
    );
    assert_eq!(service.list_sessions("ada", "", 0).await.unwrap().0, [own]);
}

#[tokio::test]
async fn a_step_has_the_rewards_and_observations_of_the_world() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let session = create(&service, "ada", 9).await;
    let mut world = make_world("mesh").unwrap();
    let (mut seen, mut rng) = (Observations::new(world.spec()), Generator::seed_from_u64(9));
    world.reset(&mut rng, &mut seen);
    for number in 1..=4 {
        let record = step(&service, call(&session)).await;
        assert_eq!(
            (record.step, record.episode_step, record.episode),
            (number, number, 1)
        );
        let action = |taken: &crate::store::ActionRecord| match taken.at {
            Some(at) => Action::Discrete(at),
            None => Action::Continuous(taken.numbers.clone()),
        };
        let joint: Vec<Action> = record.agents.iter().map(|a| action(&a.taken)).collect();
        let mut got = [TimeStep::default(); 4];
        world.step(&joint, &mut rng, &mut seen, &mut got);
        let mut sum = 0.0;
        for (at, (agent, got)) in record.agents.iter().zip(&got).enumerate() {
            assert_eq!((agent.reward, agent.truncated), (got.reward, got.truncated));
            assert_eq!(agent.observation, seen.of(at));
            sum += crate::rewards::weight(&agent.agent) * f64::from(got.reward);
        }
        assert!((record.reward.weighted_sum - sum).abs() < 1e-6);
        assert!(record.game.is_none() && record.agents[0].rule.as_deref() == Some("aimd"));
    }
    let now = service.session(session.id, "ada").await.unwrap();
    assert_eq!(now.row.steps, 4);
    assert_eq!(now.observations["resource"], seen.of(3));
    let (steps, next) = service.list_steps(session.id, "ada", "", 3).await.unwrap();
    assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), [4, 3, 2]);
    let (steps, _) = service
        .list_steps(session.id, "ada", &next, 3)
        .await
        .unwrap();
    assert_eq!(steps.len(), 1);
}

#[tokio::test]
async fn a_session_goes_on_in_another_process_as_if_nothing_had_happened() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let (whole, cut) = (
        create(&service, "ada", 2).await,
        create(&service, "ada", 2).await,
    );
    let mut undisturbed = Vec::new();
    for at in 0..4 {
        let asked = if at == 1 {
            measured(&whole)
        } else {
            call(&whole)
        };
        undisturbed.push(timeless(step(&service, asked).await));
    }
    let mut repeated = vec![timeless(step(&service, call(&cut)).await)];
    drop(service);
    let service = open(dir.path(), "mesh").await;
    repeated.push(timeless(step(&service, measured(&cut)).await));
    for _ in 2..4 {
        repeated.push(timeless(step(&service, call(&cut)).await));
    }
    assert_eq!(repeated, undisturbed);
    let other = create(&service, "ada", 3).await;
    assert_ne!(timeless(step(&service, call(&other)).await), undisturbed[0]);
}

#[tokio::test]
async fn of_steps_at_the_same_time_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let session = create(&service, "ada", 1).await;
    let steps = (0..6).map(|_| service.step_session(call(&session)));
    let ended = futures_util::future::join_all(steps).await;
    let taken = ended.iter().filter(|step| step.is_ok()).count();
    for lost in ended.into_iter().filter_map(Result::err) {
        assert!(matches!(lost, OrchestrationError::SessionStepped), "{lost}");
    }
    let now = service.session(session.id, "ada").await.unwrap().row;
    assert!(taken >= 1);
    assert_eq!(usize::try_from(now.steps).unwrap(), taken);
    // A caller who knows how many were taken does not take one twice.
    let expecting = |expected: i64| StepCall {
        expected: Some(expected),
        ..call(&session)
    };
    step(&service, expecting(now.steps)).await;
    let twice = service
        .step_session(expecting(now.steps))
        .await
        .unwrap_err();
    let OrchestrationError::SessionSteps { taken, expected } = twice else {
        panic!("{twice}");
    };
    assert_eq!((taken, expected), (now.steps + 1, now.steps));
}

#[tokio::test]
async fn a_step_that_is_refused_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let session = create(&service, "ada", 1).await;
    let refused = async |call| service.step_session(call).await.map(|_| ()).unwrap_err();
    let never = StepCall {
        constraints: vec![forbidden("policy", Comparison::Above, -1.0)],
        ..call(&session)
    };
    assert!(matches!(
        refused(never).await,
        OrchestrationError::NothingAllowed(_)
    ));
    let late = StepCall {
        until: Some(Instant::now()),
        ..measured(&session)
    };
    assert!(matches!(refused(late).await, OrchestrationError::TimeLimit));
    let mut doubted = call(&session);
    doubted.reward.confidence.insert("somebody".into(), 0.5);
    assert!(matches!(
        refused(doubted).await,
        OrchestrationError::Confidence(_)
    ));
    let unknown = service.create_session("ada".into(), Some("nowhere".into()), None);
    assert!(matches!(
        unknown.await,
        Err(OrchestrationError::Environment(_))
    ));
    let elsewhere = service.create_session("ada".into(), Some("cartpole".into()), None);
    assert!(matches!(
        elsewhere.await,
        Err(OrchestrationError::NotInhabited { .. })
    ));
    let before = service.list_sessions("ada", "", 0).await.unwrap().0;
    assert_eq!(before, [session]);
    assert!(
        service
            .conflicts(store::Met::ByAll)
            .await
            .unwrap()
            .0
            .is_empty()
    );
}

#[tokio::test]
async fn a_closed_session_is_read_and_stepped_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let session = create(&service, "ada", 1).await;
    step(&service, call(&session)).await;
    let closed = service
        .close_session(session.id, "ada".into())
        .await
        .unwrap();
    assert!(closed.closed_us.is_some());
    let again = service
        .close_session(session.id, "ada".into())
        .await
        .unwrap();
    assert_eq!(again, closed);
    let refused = service.step_session(call(&session)).await.unwrap_err();
    assert!(matches!(refused, OrchestrationError::SessionClosed));
    let place = Measurement {
        owner: "ada".into(),
        allowance: Allowance::default(),
        place: Place::Session(session.id),
        rollouts: 2,
        run: None,
        until: None,
    };
    let refused = service
        .measure_equilibrium(place)
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(refused, OrchestrationError::SessionClosed));
    let (steps, _) = service.list_steps(session.id, "ada", "", 0).await.unwrap();
    assert_eq!(steps.len(), 1);
}

#[tokio::test]
async fn sessions_of_an_owner_are_bounded_and_age() {
    let dir = tempfile::tempdir().unwrap();
    let (service, clock) = open_with(dir.path(), "cartpole").await;
    let first = create(&service, "ada", 1).await;
    for seed in 1..16 {
        create(&service, "ada", seed).await;
    }
    let full = service.create_session("ada".into(), None, None).await;
    assert!(matches!(full, Err(OrchestrationError::SessionsFull(16))));
    create(&service, "eve", 1).await;
    // A closed one makes room, and only the last of those that were closed are retained.
    for seed in 0..20 {
        let oldest = service.list_sessions("ada", "", 0).await.unwrap().0;
        let oldest = oldest
            .iter()
            .rev()
            .find(|s| s.closed_us.is_none())
            .unwrap()
            .id;
        service.close_session(oldest, "ada".into()).await.unwrap();
        create(&service, "ada", seed).await;
    }
    let all = service.list_sessions("ada", "", 0).await.unwrap().0;
    let open = all.iter().filter(|s| s.closed_us.is_none()).count();
    assert_eq!((open, all.len()), (16, 32));
    assert!(service.session(first.id, "ada").await.is_err());

    clock.advance(Duration::from_secs(23 * 3600));
    let used = all.iter().find(|s| s.closed_us.is_none()).unwrap();
    step(&service, call(used)).await;
    clock.advance(Duration::from_secs(2 * 3600));
    create(&service, "eve", 2).await;
    let kept = service.list_sessions("ada", "", 0).await.unwrap().0;
    assert_eq!(kept.iter().map(|s| s.id).collect::<Vec<_>>(), [used.id]);
    let (steps, _) = service.list_steps(used.id, "ada", "", 0).await.unwrap();
    assert_eq!(steps.len(), 1);
}

#[tokio::test]
async fn an_episode_that_ends_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let session = create(&service, "ada", 1).await;
    // Always the same action: the pole falls.
    let mut last = step(&service, call(&session)).await;
    while !last.agents[0].terminated {
        assert!(last.episode_step < 50 && last.episode == 1);
        last = step(&service, call(&session)).await;
    }
    let now = service.session(session.id, "ada").await.unwrap();
    assert_eq!(
        (now.row.episode, now.row.episode_steps, now.row.steps),
        (2, 0, last.step)
    );
    let (_, shown) = now.observations.first_key_value().unwrap();
    assert_ne!(
        &last.agents[0].observation, shown,
        "one is the final observation"
    );
    let next = step(&service, call(&session)).await;
    assert_eq!(
        (next.episode, next.episode_step, next.step),
        (2, 1, last.step + 1)
    );
}

#[tokio::test]
async fn a_measured_step_resolves_a_conflict_by_what_the_agents_would_get() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let session = create(&service, "ada", 4).await;
    let free = StepCall {
        tolerance: Some(1.0),
        ..measured(&session)
    };
    let calm = service.step_session(free).await.unwrap();
    let game = calm.record.game.as_ref().unwrap();
    assert_eq!(game.joint_actions, 625);
    assert!(calm.record.is_equilibrium, "everybody is content");
    assert_eq!(
        calm.outcome.resolution.raw,
        calm.outcome.resolution.resolved
    );
    // In the same state, Consensus must not do what it would do.
    let session = create(&service, "ada", 4).await;
    let at = calm.record.agents[1].raw.at.unwrap();
    let constrained = StepCall {
        constraints: vec![forbidden("consensus", Comparison::Equal, at as f64)],
        tolerance: Some(1.0),
        ..measured(&session)
    };
    let met = service.step_session(constrained).await.unwrap();
    let (resolution, record) = (&met.outcome.resolution, &met.record);
    assert_eq!(record.method, "nash_bargaining");
    assert!(record.conflicts.iter().any(|met| met.name == "forbidden"));
    assert!(record.agents[1].taken.at != Some(at) && record.agents[1].raw.at == Some(at));
    assert_eq!(resolution.joint_actions, 625);
    assert!(resolution.allowed <= 500, "a fifth is forbidden");
    let hold = met.outcome.dispute.game.cell(&[0; 4]);
    let held = met.outcome.dispute.game.payoffs(0)[hold];
    assert_eq!(resolution.disagreement[0], held);
    let listed = service.conflicts(store::Met::ByAll).await.unwrap();
    assert_eq!(
        (listed.0.len(), listed.1),
        (0, 0),
        "a session is seen by its owner alone"
    );
}

#[tokio::test]
async fn a_watcher_sees_each_step_until_the_session_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let session = create(&service, "ada", 1).await;
    let taken = |record: &StepRecord| (record.step, StepEvent::Taken(Box::new(record.clone())));
    let first = step(&service, call(&session)).await;
    let watch = async |after| service.watch_steps(session.id, "ada".into(), after).await;
    let mut watcher = watch(0).await.unwrap();
    assert_eq!(watcher.next().await.unwrap(), Some(taken(&first)));
    let (seen, second) = tokio::join!(watcher.next(), step(&service, call(&session)));
    assert_eq!(seen.unwrap(), Some(taken(&second)));
    let mut late = watch(1).await.unwrap();
    assert_eq!(late.next().await.unwrap(), Some(taken(&second)));
    let ahead = watch(3).await.map(|_| ()).unwrap_err();
    assert!(matches!(ahead, OrchestrationError::Trimmed(_)));
    let closing = service.close_session(session.id, "ada".into());
    let (ended, closed) = tokio::join!(watcher.next(), closing);
    let ended = ended.unwrap();
    assert_eq!(
        ended,
        Some((3, StepEvent::Ended(Box::new(closed.unwrap()))))
    );
    assert_eq!(late.next().await.unwrap(), ended);
    assert_eq!(
        (watcher.next().await.unwrap(), late.next().await.unwrap()),
        (None, None)
    );
    assert_eq!(watch(3).await.unwrap().next().await.unwrap(), None);
}
