use super::*;
use crate::net::{Activation, Init};
use rand::{RngExt, SeedableRng};
use tars_worlds::{Generator, make_world};

fn bounds() -> Bounds {
    Bounds {
        low: vec![-2.0],
        high: vec![2.0],
    }
}

fn policy(readout: Readout, outputs: usize) -> Policy {
    let rng = &mut Generator::seed_from_u64(1);
    let mut net = Net::new(3);
    let trunk = net.hidden(None, &[6, 5], Activation::Relu, Init::He(1.0), rng);
    net.add(trunk, outputs, Activation::Tanh, Init::Xavier(1.0), rng);
    if matches!(readout, Readout::Dueling | Readout::Logits) {
        net.add(trunk, 1, Activation::Identity, Init::Xavier(1.0), rng);
    }
    Policy::new("dqn", net, readout)
}

fn all() -> Vec<Policy> {
    let gaussian = Readout::Gaussian {
        bounds: bounds(),
        log_std: vec![-0.5],
    };
    vec![
        policy(Readout::Values, 4),
        policy(Readout::Dueling, 4),
        policy(Readout::Logits, 4),
        policy(Readout::Bounded(bounds()), 1),
        policy(gaussian, 1),
    ]
}

#[test]
fn every_kind_of_policy_round_trips() {
    for policy in all() {
        assert_eq!(Policy::from_bytes(&policy.to_bytes()).unwrap(), policy);
    }
}

#[test]
fn bytes_that_are_cut_anywhere_are_refused() {
    for policy in all() {
        let bytes = policy.to_bytes();
        for end in 0..bytes.len() {
            assert!(Policy::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(Policy::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn bytes_that_are_changed_anywhere_are_refused() {
    let rng = &mut Generator::seed_from_u64(1);
    for policy in all() {
        let bytes = policy.to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= rng.random_range(1..=255u8);
            assert!(Policy::from_bytes(&changed).is_err(), "changed at {at}");
        }
    }
}

#[test]
fn a_huge_header_and_numbers_that_are_not_finite_are_refused() {
    let bytes = policy(Readout::Values, 2).to_bytes();
    for length in [u64::MAX, u64::from(u32::MAX), bytes.len() as u64] {
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&length.to_le_bytes());
        assert!(Policy::from_bytes(&huge).is_err());
    }
    let mut net = policy(Readout::Values, 2).net().clone();
    net.params_mut()[3] = f32::NAN;
    let nan = Policy::new("dqn", net, Readout::Values).to_bytes();
    assert!(Policy::from_bytes(&nan).is_err());
}

/// Bytes of the first version: a header with the tensors only.
fn first_version(header: &str, numbers: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    let data: Vec<u8> = (0..numbers)
        .flat_map(|i| (i as f32).to_le_bytes())
        .collect();
    [&length[..], header.as_bytes(), &data].concat()
}

#[test]
fn bytes_of_the_first_version_are_read_and_their_shapes_checked() {
    let header = |rows: usize| {
        format!(
            r#"{{"layers.0.bias":{{"dtype":"F32","shape":[2],"data_offsets":[16,24]}},
            "layers.0.weight":{{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}},
            "layers.1.bias":{{"dtype":"F32","shape":[1],"data_offsets":[32,36]}},
            "layers.1.weight":{{"dtype":"F32","shape":[{rows},1],"data_offsets":[24,32]}}}}"#
        )
    };
    let policy = Policy::from_bytes(&first_version(&header(2), 9)).unwrap();
    let decision = policy.act(&[1.0, -1.0], &[], &mut Scratch::default());
    assert_eq!(
        (policy.algorithm(), decision.values),
        ("dqn", vec![6.0 * 2.0 + 7.0 * 3.0 + 8.0])
    );
    for bad in [
        first_version(&header(3), 9),
        first_version(&header(2), 8),
        first_version("{}", 0),
    ] {
        assert!(Policy::from_bytes(&bad).is_err());
    }
}

#[test]
fn a_policy_fits_only_agents_that_observe_and_act_alike() {
    let space = |world: &str| make_world(world).unwrap().spec().agents[0].clone();
    let bounded = policy(Readout::Bounded(bounds()), 1);
    let wider = Bounds {
        low: vec![-3.0],
        high: vec![2.0],
    };
    assert_eq!(bounded.fits(&space("pendulum")), Ok(()));
    assert_eq!(
        policy(Readout::Bounded(wider), 1).fits(&space("pendulum")),
        Err(Mismatch::Actions)
    );
    assert_eq!(
        policy(Readout::Values, 1).fits(&space("pendulum")),
        Err(Mismatch::NeedsDiscrete)
    );
    let takes = Mismatch::Observation { takes: 3, has: 4 };
    assert_eq!(bounded.fits(&space("cartpole")), Err(takes));
}

#[test]
fn actions_are_within_the_mask_and_the_bounds() {
    let rng = &mut Generator::seed_from_u64(3);
    let mut scratch = Scratch::default();
    for policy in all() {
        for _ in 0..200 {
            let observation = [0; 3].map(|_| rng.random_range(-9.0..9.0f32));
            let mask = [false, true, false, true];
            let greedy = policy.act(&observation, &mask, &mut scratch);
            let sampled = policy.sample(&observation, &mask, rng, &mut scratch);
            for decision in [greedy, sampled] {
                match decision.action {
                    Action::Discrete(at) => assert!(mask[at]),
                    Action::Continuous(c) => assert!(c.len() == 1 && c[0].abs() <= 2.0),
                }
            }
        }
    }
}

#[test]
fn a_dueling_policy_values_actions_by_state_and_advantage() {
    let dueling = policy(Readout::Dueling, 4);
    let mut scratch = Scratch::default();
    let values = dueling.act(&[0.3, -0.2, 0.9], &[], &mut scratch).values;
    let state = dueling
        .net()
        .output_of(dueling.net().heads().nth(1).unwrap(), &scratch.net)[0];
    assert!((values.iter().sum::<f32>() / 4.0 - state).abs() < 1e-6);
}
