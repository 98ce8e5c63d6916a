use super::*;

fn party(name: &str, actions: usize, raw: usize) -> Party {
    Party {
        name: name.to_owned(),
        actions: (0..actions)
            .map(|a| (format!("{name}_{a}"), a as f64))
            .collect(),
        raw,
    }
}

fn dispute(parties: Vec<Party>, payoffs: Vec<Vec<f64>>) -> Dispute {
    let shape = parties.iter().map(|p| p.actions.len()).collect();
    Dispute {
        game: Game::new(shape, payoffs).unwrap(),
        parties,
        constraints: built_in(),
        tolerance: EXACT,
        rule: ResolutionRule::default(),
        disagreement: None,
        weights: None,
    }
}

#[test]
fn built_in_constraints_are_enforced() {
    let values = vec![
        (0..10).map(f64::from).collect::<Vec<_>>(),
        vec![5.0, 1.0, 0.0, 4.0],
    ];
    let mut mismatch = dispute(
        vec![party("policy", 10, 9), party("ethical", 4, 0)],
        vec![vec![0.0; 40]; 2],
    );
    mismatch.game = own_values(&values).unwrap();
    let found = mismatch.resolve().unwrap();
    assert_eq!(found.conflicts.len(), 1);
    assert_eq!(found.conflicts[0].name, "policy_ethical_mismatch");
    assert_eq!(found.conflicts[0].parties, ["policy", "ethical"]);
    assert_eq!(found.raw, [9, 0]);
    // The ethical agent loses less by its second best action than policy would at 7.
    assert_eq!(
        (found.resolved, found.raw_payoffs),
        (vec![9, 3], vec![9.0, 5.0])
    );
    assert_eq!(found.resolved_payoffs, [9.0, 4.0]);
    assert!(
        !found.is_equilibrium,
        "ethical would rather do what is forbidden"
    );
    assert_eq!((found.allowed, found.joint_actions), (40 - 2 * 3, 40));

    let mut greedy = party("resource", 3, 2);
    greedy.actions = vec![
        ("low".into(), 0.1),
        ("half".into(), 0.5),
        ("all".into(), 1.0),
    ];
    let found = dispute(vec![greedy], vec![vec![0.1, 0.4, 0.9]])
        .resolve()
        .unwrap();
    assert_eq!(found.conflicts[0].name, "resource_over_allocation");
    assert_eq!((found.raw, found.resolved), (vec![2], vec![1]));
}

#[test]
fn a_joint_action_without_conflict_is_kept() {
    let calm = dispute(
        vec![party("policy", 2, 1), party("ethical", 2, 1)],
        vec![vec![4.0, 0.0, 3.0, 3.5], vec![4.0, 3.0, 0.0, 3.5]],
    );
    let found = calm.resolve().unwrap();
    assert!(found.conflicts.is_empty() && found.rule.is_none() && found.is_equilibrium);
    assert_eq!(found.resolved, [1, 1]);
}

#[test]
fn regret_is_a_conflict_that_rules_resolve_differently() {
    // Battle of the sexes: each prefers its own equilibrium.
    let mut sexes = dispute(
        vec![party("a", 2, 0), party("b", 2, 1)],
        vec![vec![5.0, 0.0, 0.0, 2.0], vec![1.0, 0.0, 0.0, 4.0]],
    );
    let found = sexes.resolve().unwrap();
    assert_eq!(found.conflicts.len(), 2);
    assert!(
        found
            .conflicts
            .iter()
            .all(|c| c.kind == ConflictKind::Regret)
    );
    assert_eq!(found.resolved, [1, 1]);
    assert!(found.is_equilibrium);
    sexes.rule = ResolutionRule::Weighted;
    sexes.weights = Some(vec![0.9, 0.1]);
    assert_eq!(sexes.resolve().unwrap().resolved, [0, 0]);
    sexes.disagreement = Some(vec![0.0, 2.0]);
    assert_eq!(sexes.resolve().unwrap().resolved, [1, 1]);
    sexes.disagreement = Some(vec![9.0, 9.0]);
    assert!(sexes.resolve().unwrap().explanation.contains("least loss"));
}

#[test]
fn a_regret_within_the_tolerance_is_no_conflict() {
    // The payoffs of the first range over 4, and it could gain 1 of that.
    let mut tolerant = dispute(
        vec![party("a", 3, 0), party("b", 1, 0)],
        vec![vec![3.0, 4.0, 0.0], vec![0.0; 3]],
    );
    let strict = tolerant.resolve().unwrap();
    assert_eq!(strict.conflicts.len(), 1);
    assert_eq!((strict.resolved, strict.is_equilibrium), (vec![1, 0], true));
    tolerant.tolerance = 0.24;
    assert_eq!(tolerant.resolve().unwrap().conflicts.len(), 1);
    tolerant.tolerance = 0.25;
    let calm = tolerant.resolve().unwrap();
    assert!(calm.conflicts.is_empty() && calm.is_equilibrium);
    assert_eq!((calm.resolved, calm.regret[0]), (vec![0, 0], 1.0));
}

#[test]
fn a_dispute_without_allowed_joint_actions_is_refused() {
    let mut shut = dispute(vec![party("policy", 2, 0)], vec![vec![1.0, 2.0]]);
    shut.constraints.push(Constraint {
        name: "closed".to_owned(),
        conditions: vec![Condition {
            party: "policy".to_owned(),
            comparison: Comparison::Above,
            value: -1.0,
        }],
    });
    let refused = shut.resolve().unwrap_err();
    assert!(matches!(refused, OrchestrationError::NothingAllowed(2)));
}
