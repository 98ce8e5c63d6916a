use super::*;
use tars_worlds::{MeshEnv, make_controller};

fn baselines(mesh: &MeshEnv) -> Vec<Box<dyn Controller>> {
    let names = [
        "aimd",
        "majority_quorum",
        "static_quotas",
        "target_tracking",
    ];
    let agents = names.into_iter().zip(&mesh.spec().agents);
    let make = |(name, agent)| make_controller(name, agent, mesh.calibration()).unwrap();
    agents.map(make).collect()
}

#[test]
fn the_seed_determines_what_everybody_earns_and_controllers_start_anew() {
    let mut mesh = MeshEnv::shipped();
    let mut players = baselines(&mesh);
    let both = play(&mut mesh, &mut players, [7, 7, 8]);
    assert_eq!(both.len(), 4);
    for rewards in &both {
        assert_eq!(rewards[0], rewards[1]);
        assert_ne!(rewards[0], rewards[2]);
        assert!(rewards.iter().all(|mean| mean.abs() <= 1.0));
    }
    let alone = play(&mut mesh, &mut players, [8]);
    assert_eq!(alone[0][0], both[0][2]);
}

#[test]
fn a_policy_plays_what_it_would_decide() {
    let mesh = MeshEnv::shipped();
    let space = &mesh.spec().agents[0];
    let mut rng = Generator::seed_from_u64(1);
    let dqn = crate::algorithm::find("dqn").unwrap();
    let learner = dqn.create(space, &crate::hyper::Values::new(), 1, &mut rng);
    let policy = learner.unwrap().policy();
    let observation = vec![0.5; space.observation.len()];
    let mut action = space.action.first();
    Trained::from(policy.clone()).act(&observation, &mut action);
    let expected = policy.act(&observation, &[], &mut Scratch::default());
    assert_eq!(action, expected.action);
}

/// The percentiles of a table of Student's distribution.
#[test]
fn the_interval_is_as_wide_as_students_distribution_says() {
    for (degrees, expected, tolerance) in [
        (4.0, 2.776, 0.01),
        (9.0, 2.262, 0.001),
        (29.0, 2.045, 0.001),
        (1000.0, 1.962, 0.001),
    ] {
        assert!((student(degrees) - expected).abs() < tolerance, "{degrees}");
    }
    // The differences 1, 2, 3, 4 and 5 have a standard error of √0.5.
    let difference = Difference::paired(&[1.0, 3.0, 5.0, 7.0, 9.0], &[0.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(difference.mean, 3.0);
    assert!((difference.high - 3.0 - 2.776 * 0.5_f64.sqrt()).abs() < 0.01);
    assert!((difference.high + difference.low - 6.0).abs() < 1e-9);
}

#[test]
fn a_verdict_needs_an_interval_on_one_side_of_zero() {
    let better = Difference::paired(&[2.0, 2.1, 2.2], &[1.0, 1.0, 1.0]);
    let worse = Difference::paired(&[1.0, 1.0, 1.0], &[2.0, 2.1, 2.2]);
    let undecided = Difference::paired(&[1.0, -1.0, 0.5], &[0.0, 0.0, 0.0]);
    let one_pair = Difference::paired(&[9.0], &[0.0]);
    assert_eq!(better.verdict(), Verdict::Better);
    assert_eq!(worse.verdict(), Verdict::Worse);
    assert_eq!(undecided.verdict(), Verdict::Undecided);
    assert_eq!(one_pair.verdict(), Verdict::Undecided);
}
