//! What could not be stored is refused before it begins.

use super::*;
use crate::changes::Reload;
use tars_learn::hyper::Value;

fn numbers(pairs: &[(&str, f64)]) -> Values {
    let owned = |(name, n): &(&str, f64)| ((*name).to_owned(), Value::Number(*n));
    pairs.iter().map(owned).collect()
}

async fn reload(
    service: &Arc<Orchestration>,
    agent: &str,
    values: &[(&str, f64)],
) -> Result<i64, OrchestrationError> {
    let agent = Arc::clone(service.agents.get(agent).unwrap());
    let reload = Reload {
        by: "user:dev".to_owned(),
        reason: String::new(),
        expected_version: None,
        values: numbers(values),
    };
    let (live, _) = service.reload(agent, reload).await?;
    Ok(live.row.version)
}

/// The parameters that a refusal names.
fn refused<T: std::fmt::Debug>(refused: Result<T, OrchestrationError>) -> Vec<String> {
    match refused {
        Err(OrchestrationError::Hyperparameters(wrong)) => {
            wrong.into_iter().map(|violation| violation.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn runs(service: &Orchestration) -> usize {
    service.list_trainings("", 10).await.unwrap().0.len()
}

#[tokio::test]
async fn a_run_whose_state_could_not_be_stored_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    // A buffer that a usual run does not fill is no reason to refuse it.
    reload(&service, "policy", &[("buffer_size", 1e7)])
        .await
        .unwrap();
    for agents in [&["policy"][..], &["consensus", "policy"], &[]] {
        let started = service.start_training(joint(agents, LONG)).await;
        assert_eq!(refused(started), ["buffer_size"], "{agents:?}");
    }
    assert_eq!(runs(&service).await, 0);
    let row = train(&service, joint(&["policy"], 400)).await.row;
    assert_eq!(row.state, RunState::Completed, "{}", row.error);
    // It learns together with others as before once it is lowered.
    reload(&service, "policy", &[("buffer_size", 1e4)])
        .await
        .unwrap();
    let id = service
        .start_training(joint(&[], LONG))
        .await
        .unwrap()
        .row
        .id;
    service
        .cancel_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    assert_eq!(ended(&service, id).await.row.state, RunState::Cancelled);
}

#[tokio::test]
async fn a_reload_by_which_an_agent_could_not_learn_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let version = || service.agents.get("consensus").unwrap().live().row.version;
    let before = version();
    let wide = [("n_steps", 1e4), ("hidden_dim", 512.0)];
    assert_eq!(
        refused(reload(&service, "consensus", &wide).await),
        ["n_steps"]
    );
    assert_eq!(version(), before);
    // Each alone is small enough; the second is what makes it too large.
    reload(&service, "consensus", &wide[..1]).await.unwrap();
    assert_eq!(version(), before + 1);
    reload(&service, "consensus", &[("gamma", 0.95)])
        .await
        .unwrap();
    assert_eq!(version(), before + 2);
}

#[tokio::test]
async fn the_largest_trial_of_a_study_is_judged_where_it_learns() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let policy = Arc::clone(service.agents.get("policy").unwrap());
    let judge = |environment: &str, buffer: f64, steps: u64| {
        let values = numbers(&[("buffer_size", buffer)]);
        service.ensure_storable(&policy, ("dev", environment), values, steps)
    };
    assert_eq!(refused(judge("mesh", 1e6, LONG)), ["buffer_size"]);
    judge("mesh", 1e6, 20_000).unwrap();
    judge("mesh", 1e5, LONG).unwrap();
    // What is observed there is less.
    judge("cartpole", 1e6, LONG).unwrap();
    assert_eq!(refused(judge("cartpole", 1e7, LONG)), ["buffer_size"]);
    let unknown = judge("nowhere", 1e4, 1_000);
    assert!(matches!(unknown, Err(OrchestrationError::Environment(_))));
}
