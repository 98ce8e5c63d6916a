//! Live weights that are lost while the service is away.

use super::*;
use tars_runtime::db::Query;

/// Makes the row of an agent name weights that are nowhere.
async fn lose_weights(service: &Orchestration, agent: &str) {
    let mut tx = service.store.begin("test.lose").await.unwrap();
    let update = "UPDATE agents SET weights = $1 WHERE id = $2";
    let update = Query::new(update).bind("0".repeat(64)).bind(agent);
    tx.execute(update).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
}

fn act(service: &Orchestration, name: &str) -> Result<Option<&'static str>, OrchestrationError> {
    let slot = service.agents.get(name).unwrap();
    let nothing = vec![0.0; slot.definition.space.observation.len()];
    slot.act(&nothing).map(|acted| acted.rule)
}

#[tokio::test]
async fn an_agent_whose_weights_are_lost_says_so_until_others_are_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    act(&service, "policy").unwrap();
    lose_weights(&service, "policy").await;
    drop(service);
    let service = open(dir.path()).await;
    let refused = act(&service, "policy").unwrap_err();
    assert!(
        refused.to_string().contains("there is no blob"),
        "{refused}"
    );
    let status = tonic::Status::from(refused);
    let reason = tars_proto::fault::reason(&status);
    assert_eq!(reason.as_deref(), Some("UNUSABLE_VERSION"));
    // The next change does not lose sight of it, and a promotion mends it.
    drop(service.turn(&agent(&service), "test.turn").await.unwrap());
    assert!(act(&service, "policy").is_err());
    promote(&service, Target::Version(1), None).await.unwrap();
    act(&service, "policy").unwrap();
}

#[tokio::test]
async fn a_bound_agent_whose_weights_are_lost_falls_to_its_rule() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    train(&service).await;
    lose_weights(&service, "policy").await;
    drop(service);
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = "mesh".to_owned();
    setup.settings.bound_agents = vec!["policy".to_owned()];
    let place = tars_test_db::place(dir.path(), "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let service = Orchestration::open_at(dir.path(), &place, terms, setup);
    let service = service.await.unwrap();
    eventually("it answers by a rule", async || {
        act(&service, "policy").is_ok_and(|rule| rule.is_some())
    })
    .await;
    let kinds = recorded(&service).await;
    assert_eq!(kinds, ["agent.fell_back"]);
}
