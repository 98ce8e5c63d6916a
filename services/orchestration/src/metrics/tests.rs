use super::*;
use crate::{
    Setup,
    store::{self, Report, RunState},
    training::Start,
};
use std::{path::Path, sync::Arc, time::Duration};
use tars_learn::algorithm;
use tars_runtime::{db::Db, lease::Terms, seeds::Seeds};

async fn open(dir: &Path) -> Arc<Orchestration> {
    open_in(dir, "cartpole").await
}

/// A service whose agents live in an environment.
async fn open_in(dir: &Path, environment: &str) -> Arc<Orchestration> {
    let mut setup = Setup::for_tests(Seeds::counted(7));
    setup.settings.environment = environment.to_owned();
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    opened.await.unwrap()
}

/// A training run of an agent that has ended.
async fn train(service: &Arc<Orchestration>, agent: &str, steps: u64) -> Uuid {
    train_with(service, Start::of(agent, steps, Some(3))).await
}

async fn train_with(service: &Arc<Orchestration>, start: Start) -> Uuid {
    let id = service.start_training(start).await.unwrap().row.id;
    let ended = async {
        while service.training(id).await.unwrap().row.state != RunState::Completed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("the run ends");
    id
}

async fn read(service: &Orchestration, agent: &str, wanted: usize) -> Reports {
    let agent = service.agents.get(agent).unwrap();
    service.reports_of(agent, wanted, |_| true).await.unwrap()
}

/// Adds groups of reports to a run, each report with its number as its return.
async fn add(service: &Orchestration, run: Uuid, like: &AgentReport, groups: &[i64]) -> i64 {
    let mut last = service.training(run).await.unwrap().row.last_report;
    for size in groups {
        let numbers = last + 1..=last + size;
        last += size;
        let of = |number: i64| AgentReport {
            mean_return: (number % 2 == 0).then_some(number as f64),
            ..like.clone()
        };
        let report = |number: i64| Report {
            step: 1,
            episode: 0,
            agents: vec![of(number)],
        };
        let reports = numbers.map(report).collect();
        let mut tx = service.store.begin("tests.reports").await.unwrap();
        let group = Group { last, reports };
        store::insert_reports(&mut tx, run, &group, None)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    last
}

fn names(series: &[Series]) -> Vec<&'static str> {
    series.iter().map(|series| series.name).collect()
}

#[tokio::test]
async fn each_algorithm_has_what_it_measured_under_its_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    for (agent, measured) in [
        (
            "policy",
            &["mean_return", "td_loss", "epsilon", "q", "gradient_norm"][..],
        ),
        (
            "ethical",
            &[
                "mean_return",
                "policy_loss",
                "value_loss",
                "entropy",
                "kl",
                "clip_fraction",
                "explained_variance",
                "gradient_norm",
            ],
        ),
    ] {
        let run = train(&service, agent, 6000).await;
        let reports = read(&service, agent, 1000).await;
        let of = service.agents.get(agent).unwrap().definition.algorithm;
        let all = reports.all(of);
        assert_eq!(names(&all), measured);
        for series in all {
            let points = &series.points;
            assert!(points.iter().all(|p| p.run == run && p.value.is_finite()));
            assert!(points.windows(2).all(|pair| pair[0].step < pair[1].step));
            assert!(points.last().unwrap().step <= 6000);
        }
        let means = reports.means(of);
        assert!(!means.contains_key("mean_return") && means.len() == measured.len() - 1);
    }
    let untrained = read(&service, "consensus", 1000).await;
    assert!(untrained.0.is_empty());
    assert!(untrained.all(algorithm::find("a2c").unwrap()).is_empty());
}

#[tokio::test]
async fn the_newest_reports_are_read_over_groups_and_runs_and_agents_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let first = train(&service, "policy", 200).await;
    train(&service, "consensus", 200).await;
    let second = train(&service, "policy", 200).await;
    let runs =
        |reports: &Reports| -> Vec<Uuid> { reports.0.iter().map(|entry| entry.run).collect() };
    let all = read(&service, "policy", 1000).await;
    let own = runs(&all);
    assert_eq!(own.len(), 200, "a hundred of each run");
    assert!(own.iter().all(|run| [first, second].contains(run)));
    assert!(own.is_sorted(), "one run after the other");
    let steps: Vec<u64> = all.0.iter().map(|entry| entry.step).collect();
    assert!(steps[..100].is_sorted() && steps[100..].is_sorted());

    let like = all.0[0].of.clone();
    // More groups than are read at once, and of different sizes.
    let last = add(
        &service,
        second,
        &like,
        &[&[1, 7, 3][..], &[2; 40]].concat(),
    )
    .await;
    let agent = service.agents.get("policy").unwrap();
    let returned = |report: &AgentReport| report.mean_return.is_some();
    for wanted in [1, 2, 30, 45] {
        let reports = service.reports_of(agent, wanted, returned).await.unwrap();
        let newest = (1..=wanted as i64).rev().map(|n| (last / 2 - n + 1) * 2);
        let expected: Vec<f64> = newest.map(|number| number as f64).collect();
        assert_eq!(values(&reports.returns()), expected);
    }
}

#[tokio::test]
async fn what_is_read_is_bounded_when_nothing_counts() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let run = train(&service, "policy", 200).await;
    let like = read(&service, "policy", 1).await.0[0].of.clone();
    add(&service, run, &like, &[1024; 9]).await;
    let agent = service.agents.get("policy").unwrap();
    let reports = service.reports_of(agent, 1, |_| false).await.unwrap();
    assert_eq!(reports.0.len(), MOST);
}

#[tokio::test]
async fn of_a_run_of_several_agents_each_has_its_own_reports() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    let all = Start {
        by: "user:dev".into(),
        owner: "dev".into(),
        steps: Some(3000),
        seed: Some(3),
        ..Start::default()
    };
    let run = train_with(&service, all).await;
    for (agent, loss) in [
        ("policy", "td_loss"),
        ("consensus", "value_loss"),
        ("ethical", "policy_loss"),
        ("resource", "critic_loss"),
    ] {
        let reports = read(&service, agent, 1000).await;
        assert_eq!(reports.0.len(), 100, "every report has every agent");
        assert!(reports.0.iter().all(|entry| entry.run == run));
        let of = service.agents.get(agent).unwrap().definition.algorithm;
        let measured = reports.all(of);
        assert!(names(&measured).contains(&loss), "{measured:?}");
        assert!(names(&measured).contains(&"mean_return"));
    }
    let returns = async |agent| read(&service, agent, 1000).await.returns();
    assert_ne!(returns("policy").await, returns("resource").await);
}

#[tokio::test]
async fn the_newest_report_says_how_an_agent_has_done_since_its_run_began() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    for (agent, buffered) in [("policy", Some(6000)), ("ethical", None)] {
        train(&service, agent, 6000).await;
        let reports = read(&service, agent, 1000).await;
        let newest = reports.newest().unwrap().statistics.unwrap();
        assert_eq!(newest.buffered, buffered);
        let updates = reports.0.iter().map(|entry| entry.of.update.gradient_steps);
        assert_eq!(newest.gradient_steps, updates.map(u64::from).sum::<u64>());
        assert!(newest.gradient_steps > 0 && newest.loss.is_some());
        // A step of the pole brings 1.
        assert_eq!(newest.mean_length_100, newest.mean_return_100);
        let most = newest.max_return.unwrap();
        let means = values(&reports.returns());
        assert!(means.iter().all(|mean| *mean <= most));
        assert!(newest.mean_return_10.unwrap() <= most);
    }
    assert!(read(&service, "consensus", 10).await.newest().is_none());
}
