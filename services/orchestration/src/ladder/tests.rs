use super::*;
use crate::{calibration::Parameter, stage::Difference};

const LIFE: Duration = Duration::from_secs(600);

fn version(number: i64, served: bool) -> VersionRow {
    VersionRow {
        version: number,
        served,
        ..VersionRow::of_rule("hold")
    }
}

#[test]
fn a_stage_follows_from_the_row_of_the_agent() {
    let places = Places {
        live: 4,
        shadow: Some(6),
        canary: Some(5),
    };
    let stages = [
        (3, false, Stage::Sim),
        (3, true, Stage::Retired),
        (4, true, Stage::Active),
        (5, false, Stage::Canary),
        (6, false, Stage::Shadow),
        // One that was ACTIVE climbs again.
        (6, true, Stage::Shadow),
        (7, false, Stage::Sim),
    ];
    for (number, served, stage) in stages {
        assert_eq!(Stage::of(&version(number, served), places), stage);
    }
}

#[test]
fn sim_climbs_to_shadow_only() {
    assert_eq!(Stage::Sim.promoted(None), Ok(Move::Up(Stage::Shadow)));
    assert_eq!(Stage::Sim.promoted(Some(Stage::Sim)), Ok(Move::Stay));
    for to in [Stage::Canary, Stage::Active] {
        let skips = Refusal::Skips {
            from: Stage::Sim,
            next: Stage::Shadow,
            to,
        };
        assert_eq!(Stage::Sim.promoted(Some(to)), Err(skips));
    }
}

#[test]
fn shadow_climbs_to_canary_or_falls() {
    assert_eq!(Stage::Shadow.promoted(None), Ok(Move::Up(Stage::Canary)));
    assert_eq!(Stage::Shadow.promoted(Some(Stage::Shadow)), Ok(Move::Stay));
    assert_eq!(
        Stage::Shadow.promoted(Some(Stage::Sim)),
        Ok(Move::Down(Stage::Sim))
    );
    let skips = Stage::Shadow.promoted(Some(Stage::Active)).unwrap_err();
    assert_eq!(
        skips.to_string(),
        "a version in SHADOW climbs to CANARY before ACTIVE"
    );
}

#[test]
fn canary_climbs_to_active_or_falls() {
    assert_eq!(Stage::Canary.promoted(None), Ok(Move::Up(Stage::Active)));
    for to in [Stage::Sim, Stage::Shadow] {
        assert_eq!(Stage::Canary.promoted(Some(to)), Ok(Move::Down(to)));
    }
}

#[test]
fn active_stays_until_it_is_replaced() {
    for to in [None, Some(Stage::Active)] {
        assert_eq!(Stage::Active.promoted(to), Ok(Move::Stay));
    }
    for to in [Stage::Sim, Stage::Shadow, Stage::Canary] {
        assert_eq!(Stage::Active.promoted(Some(to)), Err(Refusal::ActiveStays));
    }
}

#[test]
fn retired_begins_anew_and_is_no_target() {
    assert_eq!(Stage::Retired.promoted(None), Ok(Move::Up(Stage::Shadow)));
    assert_eq!(Stage::Retired.promoted(Some(Stage::Sim)), Ok(Move::Stay));
    let skips = Stage::Retired.promoted(Some(Stage::Active));
    assert!(matches!(skips, Err(Refusal::Skips { .. })));
    for from in [Stage::Sim, Stage::Shadow, Stage::Canary, Stage::Active] {
        let refused = from.promoted(Some(Stage::Retired));
        assert_eq!(refused, Err(Refusal::NoTarget(Stage::Retired)));
    }
}

fn finding(uncalibrated: Option<&str>) -> Finding {
    Finding {
        uncalibrated: uncalibrated.map(str::to_owned),
        from_us: 0,
        to_us: 0,
        windows: 1,
        calls: 1,
        failed: 0,
        rejected: 0,
        tested_to_us: 0,
        tested_calls: 1,
        errors: None,
        parameters: Vec::new(),
        approvals: None,
    }
}

fn incumbent() -> Incumbent {
    Incumbent {
        version: 0,
        rule: Some("aimd".to_owned()),
    }
}

fn against(name: &str, low: f64, high: f64) -> Against {
    let mean = (low + high) / 2.0;
    Against {
        name: name.to_owned(),
        mean: 0.0,
        difference: Difference { mean, low, high },
    }
}

fn comparison() -> Comparison {
    Comparison {
        incumbent: incumbent(),
        calibration: "shipped".to_owned(),
        seeds: MIN_SEEDS,
        first_seed: 1,
        mean: 0.0,
        with_incumbent: against("aimd", 0.0, 0.2),
        // Undecided is not worse.
        with_rules: vec![against("hold", 0.1, 0.3), against("mpc", -0.1, 0.1)],
        at_us: 0,
    }
}

/// What is known of a version that may climb to ACTIVE.
fn evidence<'a>(finding: &'a Finding, comparison: &'a Comparison) -> Evidence<'a> {
    Evidence {
        agent: "policy",
        incumbent: incumbent(),
        calibration: Some((finding, LIFE)),
        calibration_life: LIFE,
        comparison: Some(comparison),
        trial: Trial {
            steps: CANARY_STEPS,
            blocked: CANARY_STEPS / CANARY_BLOCKED_ONE_IN,
        },
    }
}

/// What is refused for CANARY is refused for ACTIVE too, and never for SHADOW.
fn refused(evidence: &Evidence<'_>) -> Refusal {
    assert_eq!(evidence.admits(Stage::Shadow), Ok(()));
    let refusal = evidence.admits(Stage::Canary).unwrap_err();
    let active = evidence.admits(Stage::Active).unwrap_err();
    assert_eq!(active.to_string(), refusal.to_string());
    refusal
}

#[test]
fn a_version_with_all_evidence_climbs() {
    let (finding, comparison) = (finding(None), comparison());
    let evidence = evidence(&finding, &comparison);
    for to in [Stage::Shadow, Stage::Canary, Stage::Active] {
        assert_eq!(evidence.admits(to), Ok(()));
    }
}

#[test]
fn nothing_climbs_beyond_shadow_without_a_calibration_that_counts() {
    let (good, comparison) = (finding(None), comparison());
    let mut evidence = evidence(&good, &comparison);
    evidence.calibration = None;
    assert_eq!(refused(&evidence), Refusal::NotMeasured);
    let age = LIFE + Duration::from_micros(1);
    evidence.calibration = Some((&good, age));
    assert_eq!(refused(&evidence), Refusal::Outdated { age, life: LIFE });
    let bad = finding(Some("too few calls: 3"));
    evidence.calibration = Some((&bad, Duration::ZERO));
    assert_eq!(
        refused(&evidence).to_string(),
        "the mesh's model is UNCALIBRATED: too few calls: 3"
    );
}

#[test]
fn an_agent_climbs_only_on_a_calibration_that_measured_what_it_acts_on() {
    let (mut finding, comparison) = (finding(None), comparison());
    let parameter = |name: &str, fitted| Parameter {
        name: name.to_owned(),
        unit: "1".to_owned(),
        value: 0.5,
        fitted,
    };
    let calls = parameter("api.rate", true);
    let (assumed, counted) = (
        parameter("changes.bad", false),
        parameter("changes.bad", true),
    );
    let proposals = parameter("changes.proposals", true);
    for (parameters, measured) in [
        (vec![], false),
        (vec![calls.clone()], false),
        (vec![calls.clone(), proposals.clone(), assumed], false),
        (vec![calls, proposals, counted], true),
    ] {
        finding.parameters = parameters;
        for agent in ["policy", "consensus", "ethical", "resource"] {
            let mut evidence = evidence(&finding, &comparison);
            evidence.agent = agent;
            if measured || agent != "consensus" {
                assert_eq!(evidence.admits(Stage::Active), Ok(()), "{agent}");
                continue;
            }
            let refusal = refused(&evidence);
            let Refusal::NothingOfAgent { agent: named, .. } = refusal else {
                panic!("{refusal:?}");
            };
            assert_eq!(named, agent);
        }
    }
}

#[test]
fn nothing_climbs_beyond_shadow_without_a_comparison_with_the_incumbent() {
    let (finding, mut few) = (finding(None), comparison());
    let compared = comparison();
    let mut known = evidence(&finding, &compared);
    known.comparison = None;
    assert_eq!(refused(&known), Refusal::NotCompared(incumbent()));
    // Something else became ACTIVE meanwhile.
    let other = [(3, None), (3, Some("aimd")), (0, Some("mpc"))];
    for (version, rule) in other {
        let mut known = evidence(&finding, &compared);
        let rule = rule.map(str::to_owned);
        known.incumbent = Incumbent { version, rule };
        assert!(matches!(refused(&known), Refusal::NotCompared(_)));
    }
    few.seeds = MIN_SEEDS - 1;
    assert_eq!(
        refused(&evidence(&finding, &few)),
        Refusal::FewSeeds(MIN_SEEDS - 1)
    );
}

#[test]
fn a_version_that_may_be_worse_than_the_incumbent_does_not_climb() {
    let finding = finding(None);
    for low in [-1e-9, -1.0, f64::NEG_INFINITY, f64::NAN] {
        let mut found = comparison();
        found.with_incumbent.difference.low = low;
        let refusal = refused(&evidence(&finding, &found));
        assert!(matches!(refusal, Refusal::NotAsGood { .. }), "{refusal}");
    }
}

#[test]
fn a_version_that_is_worse_than_a_rule_does_not_climb() {
    let finding = finding(None);
    for (low, high) in [(-0.2, -1e-9), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
        let mut found = comparison();
        found.with_rules[1] = against("mpc", low, high);
        match refused(&evidence(&finding, &found)) {
            Refusal::Worse { rule, .. } => assert_eq!(rule, "mpc"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_canary_becomes_active_after_enough_steps_that_the_shield_let_pass() {
    let (finding, comparison) = (finding(None), comparison());
    let mut evidence = evidence(&finding, &comparison);
    let tried = |steps, blocked| Trial { steps, blocked };
    for (trial, refusal) in [
        (tried(0, 0), Refusal::TooFewSteps(0)),
        (
            tried(CANARY_STEPS - 1, 0),
            Refusal::TooFewSteps(CANARY_STEPS - 1),
        ),
        (
            tried(200, 21),
            Refusal::Blocked {
                steps: 200,
                blocked: 21,
            },
        ),
    ] {
        evidence.trial = trial;
        assert_eq!(evidence.admits(Stage::Active), Err(refusal));
        assert_eq!(evidence.admits(Stage::Canary), Ok(()));
    }
}

/// A version of a policy that was ACTIVE.
fn earned(number: i64) -> VersionRow {
    VersionRow {
        rule: None,
        climbed: true,
        ..version(number, true)
    }
}

#[test]
fn one_goes_back_to_the_newest_version_that_was_active_and_did_not_fall() {
    let rule = |number| version(number, true);
    let fell = |number| VersionRow {
        fell: true,
        ..earned(number)
    };
    let unproven = |number| VersionRow {
        climbed: false,
        ..earned(number)
    };
    let sim = |number| VersionRow {
        served: false,
        ..unproven(number)
    };
    let back = |before: Vec<VersionRow>, is_bound, live: i64| {
        let found = way_back(before, is_bound, |version| version.version == live);
        found.map(|version| version.version)
    };
    assert_eq!(back(vec![], true, 0), None);
    assert_eq!(back(vec![earned(3), earned(2)], true, 0), Some(3));
    assert_eq!(back(vec![fell(3), earned(2)], true, 0), Some(2));
    assert_eq!(back(vec![fell(3), earned(2)], false, 0), Some(2));
    assert_eq!(back(vec![sim(4), fell(3), rule(1)], true, 0), Some(1));
    // It was ACTIVE before the agent was bound, without evidence.
    assert_eq!(back(vec![unproven(3), earned(2)], true, 0), Some(2));
    assert_eq!(back(vec![unproven(3), earned(2)], false, 0), Some(3));
    // The same answers already.
    assert_eq!(back(vec![rule(3), earned(2)], true, 3), Some(2));
    assert_eq!(back(vec![rule(3), fell(2), sim(1)], true, 3), None);
}
