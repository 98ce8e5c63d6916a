use super::*;
use crate::{Setup, agents::Asker, store::RunState, training::Start};
use std::{path::Path, sync::Arc, time::Duration};
use tars_runtime::{db::Db, lease::Terms, seeds::Seeds};

/// A service whose agent has learned a little.
async fn trained(dir: &Path) -> Arc<Orchestration> {
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let setup = Setup::for_tests(Seeds::counted(7));
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    let service = opened.await.unwrap();
    let start = Start::of("policy", 200, Some(3));
    let run = service.start_training(start).await.unwrap().row.id;
    // Until nothing follows the run, its row may say so before its weights are live.
    let is_done = async || {
        let row = service.training(run).await.unwrap().row;
        row.state == RunState::Completed && service.trainings.is_empty()
    };
    let ended = async {
        while !is_done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, ended)
        .await
        .expect("it ends");
    service
}

async fn step(
    service: &Orchestration,
    agent: &'static str,
    kind: Option<&str>,
    state: &[f32],
) -> Result<StepOutcome, OrchestrationError> {
    let observed = Observed {
        agent,
        agent_type: kind.map(str::to_owned),
        observation: state.to_owned(),
    };
    let stepped = service.step(
        Asker {
            name: "user:dev",
            owner: "dev",
            counts: true,
        },
        vec![observed],
        vec![],
        ResolutionRule::default(),
    );
    stepped.await
}

#[tokio::test]
async fn a_state_that_no_agent_can_be_in_is_refused_and_the_next_one_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let service = trained(dir.path()).await;
    let good = [0.0, 0.1, 0.02, -0.1];
    let expected = step(&service, "policy", None, &good).await.unwrap();
    for state in [
        &[][..],
        &good[..3],
        &[0.0; 5],
        &[f32::NAN, 0.0, 0.0, 0.0],
        &[0.0, f32::INFINITY, 0.0, 0.0],
        // Finite, but not as a number of the network.
        &[0.0, 0.0, 0.0, -1e39_f64 as f32],
    ] {
        let refused = step(&service, "policy", None, state).await.unwrap_err();
        let by_width = matches!(refused, OrchestrationError::Observation { given, needed: 4, .. } if given == state.len());
        let by_number = matches!(refused, OrchestrationError::NotFinite("policy"));
        assert_eq!((by_width, by_number), (state.len() != 4, state.len() == 4));
        assert_eq!(
            tonic::Status::from(refused).code(),
            tonic::Code::InvalidArgument
        );
    }
    let unknown = step(&service, "nobody", None, &good).await.unwrap_err();
    assert!(matches!(unknown, OrchestrationError::NotFound("agent", _)));
    let other = step(&service, "policy", Some("ppo"), &good).await;
    assert!(matches!(other, Err(OrchestrationError::AgentType)));
    let untrained = step(&service, "ethical", None, &good).await;
    assert!(matches!(untrained, Err(OrchestrationError::Untrained)));
    let none = service
        .step(
            Asker {
                name: "user:dev",
                owner: "dev",
                counts: true,
            },
            vec![],
            vec![],
            ResolutionRule::default(),
        )
        .await;
    assert!(matches!(none, Err(OrchestrationError::NoState)));
    let after = step(&service, "policy", None, &good).await.unwrap();
    assert_eq!(after.raw[0].values, expected.raw[0].values);
    assert_eq!(
        service.conflicts(store::Met::ByAll).await.unwrap().1,
        0,
        "nothing was recorded"
    );
}
