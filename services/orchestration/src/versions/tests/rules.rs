use super::*;
use tars_worlds::Action;

fn rule(name: &str) -> Target {
    Target::Rule(name.to_owned())
}

/// What the policy agent of a mesh does where nothing happens.
fn act(service: &Orchestration) -> Result<crate::agents::Action, OrchestrationError> {
    let slot = agent(service);
    let nothing = vec![0.0; slot.definition.space.observation.len()];
    slot.act(&nothing)
}

/// The numbers of the retained versions, and the rules among them.
async fn rules(service: &Orchestration) -> Vec<(i64, Option<String>)> {
    let rows = list(service).await.into_iter();
    rows.map(|row| (row.version, row.rule)).collect()
}

#[tokio::test]
async fn an_untrained_agent_answers_by_a_rule_that_was_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    assert!(matches!(act(&service), Err(OrchestrationError::Untrained)));
    assert_eq!(promote(&service, rule("aimd"), Some(0)).await.unwrap(), 1);
    let acted = act(&service).unwrap();
    assert_eq!(acted.action, Action::Discrete(0));
    assert_eq!((acted.rule, acted.weights_version), (Some("aimd"), 1));
    assert_eq!(agent(&service).choices(&acted).own, 0);
    let short = agent(&service).act(&[0.0]);
    assert!(
        matches!(short, Err(OrchestrationError::Observation { .. })),
        "{short:?}"
    );
    drop(service);
    let service = open_in(dir.path(), "mesh").await;
    assert_eq!(act(&service).unwrap().rule, Some("aimd"));
    assert_eq!(rules(&service).await, [(1, Some("aimd".to_owned()))]);
}

#[tokio::test]
async fn a_rule_is_a_version_that_training_replaces_and_a_roll_back_restores() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    promote(&service, rule("hold"), None).await.unwrap();
    assert_eq!(
        promote(&service, rule("hold"), None).await.unwrap(),
        1,
        "live already"
    );
    train(&service).await;
    assert_eq!(act(&service).unwrap().rule, None);
    let weights = agent(&service).live();
    assert_eq!(weights.row.weights_version, 2);
    for version in [3, 4] {
        promote(&service, Target::Before, None).await.unwrap();
        let live = agent(&service).live();
        assert_eq!(live.row.weights_version, version);
        assert_eq!(live.rule.is_some(), version == 3);
        let is_trained = live.policy.is_some() && live.row.last_return.is_some();
        assert_eq!(is_trained, version == 4);
    }
    assert_eq!(promote(&service, rule("mpc"), Some(4)).await.unwrap(), 5);
    assert_eq!(
        promote(&service, Target::Version(1), None).await.unwrap(),
        6
    );
    assert_eq!(act(&service).unwrap().rule, Some("hold"));
    let hold = || Some("hold".to_owned());
    let expected = [
        (6, hold()),
        (5, Some("mpc".to_owned())),
        (4, None),
        (3, hold()),
        (2, None),
        (1, hold()),
    ];
    assert_eq!(rules(&service).await, expected);
    let origins = numbers(&service).await.into_iter();
    let origins: Vec<_> = origins.map(|(_, from)| from).collect();
    assert_eq!(origins, [Some(1), None, Some(2), Some(1), None, None]);
}

#[tokio::test]
async fn a_rule_that_the_agent_does_not_have_is_refused_with_those_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    for wrong in ["target_tracking", "AIMD", "surprise", ""] {
        let refused = promote(&service, rule(wrong), None).await.unwrap_err();
        assert!(
            refused.to_string().ends_with("it has hold, aimd, mpc"),
            "{refused}"
        );
        assert_eq!(
            tonic::Status::from(refused).code(),
            tonic::Code::NotFound,
            "{wrong}"
        );
    }
    let stale = promote(&service, rule("aimd"), Some(1)).await;
    assert!(
        matches!(
            stale,
            Err(OrchestrationError::WeightsVersion { live: 0, .. })
        ),
        "{stale:?}"
    );
    assert!(list(&service).await.is_empty());
    assert!(matches!(act(&service), Err(OrchestrationError::Untrained)));
    drop(service);
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = open(dir.path()).await;
    let refused = promote(&elsewhere, rule("hold"), None).await.unwrap_err();
    assert!(
        refused.to_string().contains("only agents of the mesh"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_rule_is_not_promoted_while_a_governed_change_holds_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    let waiting = Governed {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        token: 1,
    };
    service.hold(agent(&service), waiting).await.unwrap();
    let refused = promote(&service, rule("aimd"), None).await;
    assert!(
        matches!(refused, Err(OrchestrationError::ChangeInProgress { .. })),
        "{refused:?}"
    );
    assert!(matches!(act(&service), Err(OrchestrationError::Untrained)));
}
