use super::*;

const NAMES: [&str; 4] = ["policy", "consensus", "ethical", "resource"];

fn of(rewards: [f32; 4], options: &RewardOptions) -> GlobalReward {
    let recent = rewards.map(|reward| [reward]);
    let agents = NAMES.iter().zip(&recent);
    let agents = agents.map(|(agent, recent)| Rewarded { agent, recent });
    aggregate(&agents.collect::<Vec<_>>(), options)
}

fn plain(rewards: [f32; 4]) -> GlobalReward {
    of(rewards, &RewardOptions::default())
}

#[track_caller]
fn assert_close(number: f64, expected: f64) {
    assert!((number - expected).abs() < 1e-7, "{number} {expected}");
}

#[test]
fn the_weights_of_the_four_add_up_to_one() {
    assert_close(NAMES.iter().map(|name| weight(name)).sum(), 1.0);
}

#[test]
fn agents_in_harmony_get_a_fifth_more() {
    // Mean 0.5, standard deviation 0.1: a fifth of the mean.
    let found = plain([0.4, 0.6, 0.4, 0.6]);
    assert_close(found.weighted_sum, 0.12 + 0.15 + 0.10 + 0.12);
    assert_close(found.contributions["policy"], 0.12);
    assert_close(found.rewards["resource"], 0.6);
    assert_eq!(
        (found.cooperation_multiplier, found.conflict_penalty),
        (1.2, 0.0)
    );
    assert_close(found.cooperation_bonus(), 0.098);
    assert_close(found.value, 0.588);
    assert!(found.normalised.is_empty());
}

#[test]
fn agents_that_all_gain_get_a_tenth_more() {
    // Mean 0.5, standard deviation 0.4.
    let found = plain([0.1, 0.9, 0.1, 0.9]);
    assert_eq!(found.cooperation_multiplier, 1.1);
    assert_close(found.weighted_sum, 0.03 + 0.225 + 0.025 + 0.18);
    assert_close(found.value, 0.46 * 1.1);
}

#[test]
fn a_reward_of_zero_is_no_gain_and_no_loss() {
    let found = plain([0.0, 0.5, 0.5, 0.5]);
    assert_eq!(
        (found.cooperation_multiplier, found.conflict_penalty),
        (1.0, 0.0)
    );
    assert_close(found.value, 0.35);
}

#[test]
fn rewards_of_different_signs_cost_a_tenth_of_their_deviation() {
    // Mean 0, standard deviation 0.5, variance 0.25.
    let found = plain([0.5, -0.5, 0.5, -0.5]);
    assert_close(found.conflict_penalty, 0.05);
    assert_close(found.weighted_sum, 0.15 - 0.125 + 0.125 - 0.10);
    assert_close(found.value, 0.05 - 0.05);
}

#[test]
fn a_wide_spread_of_confident_agents_costs_a_tenth_of_their_variance() {
    // Mean 0, standard deviation 1, variance 1.
    let found = plain([1.0, -1.0, 1.0, -1.0]);
    assert_close(found.conflict_penalty, 0.1 + 0.1);
    // Without the confidence of the last two the others are 1 and -1 still; with one of them there is no spread.
    let doubted = |names: &[&str]| RewardOptions {
        confidence: names.iter().map(|name| ((*name).to_owned(), 0.7)).collect(),
        ..RewardOptions::default()
    };
    let found = of([1.0, -1.0, 1.0, -1.0], &doubted(&["ethical", "resource"]));
    assert_close(found.conflict_penalty, 0.2);
    let found = of([1.0, -1.0, 1.0, -1.0], &doubted(&NAMES[1..]));
    assert_close(found.conflict_penalty, 0.1);
}

#[test]
fn a_variance_of_exactly_half_is_not_wide() {
    let half = 0.5_f64.sqrt();
    assert_close(variance(&[half, -half]), 0.5);
    assert_eq!(penalty(&[0.0, 1.4], &[1.0, 1.0]), 0.0, "variance 0.49");
    assert_close(penalty(&[0.0, 2.0], &[1.0, 1.0]), 0.1);
}

#[test]
fn confidence_and_causal_impact_scale() {
    let options = RewardOptions {
        confidence: [("policy".to_owned(), 0.5), ("resource".to_owned(), 0.0)].into(),
        causal_impact: -0.5,
        ..RewardOptions::default()
    };
    let found = of([0.4, 0.4, 0.4, 0.4], &options);
    assert_close(found.weighted_sum, 0.06 + 0.10 + 0.10);
    assert_eq!(
        (found.causal_modifier, found.cooperation_multiplier),
        (0.5, 1.2)
    );
    assert_close(found.value, 0.26 * 1.2 * 0.5);
}

#[test]
fn the_weights_of_those_that_take_part_are_scaled() {
    let agents = [("policy", [1.0_f32]), ("resource", [0.5])];
    let agents: Vec<_> = (agents.iter())
        .map(|(agent, recent)| Rewarded { agent, recent })
        .collect();
    let found = aggregate(&agents, &RewardOptions::default());
    assert_close(found.contributions["policy"], 0.6);
    assert_close(found.weighted_sum, 0.6 + 0.4 * 0.5);
    let found = aggregate(&[], &RewardOptions::default());
    assert_eq!((found.value, found.weighted_sum), (0.0, 0.0));
}

#[test]
fn z_scores_are_of_recent_rewards_where_they_differ() {
    // Mean 2, standard deviation 1.
    let (wide, flat, single) = ([1.0, 3.0], [0.5, 0.5], [0.7]);
    let agents = [
        ("policy", &wide[..]),
        ("consensus", &flat),
        ("ethical", &single),
    ];
    let agents: Vec<_> = (agents.iter())
        .map(|(agent, recent)| Rewarded { agent, recent })
        .collect();
    let options = RewardOptions {
        normalise: true,
        ..RewardOptions::default()
    };
    let found = aggregate(&agents, &options);
    assert_eq!(found.normalised, ["policy"]);
    assert_close(found.rewards["policy"], 1.0);
    assert_close(found.rewards["consensus"], 0.5);
    assert_close(found.rewards["ethical"], 0.7);
    let found = aggregate(&agents, &RewardOptions::default());
    assert_close(found.rewards["policy"], 3.0);
}

#[test]
fn a_confidence_in_nobody_or_outside_of_its_range_is_refused() {
    let check = |agent: &str, confidence: f64| {
        let options = RewardOptions {
            confidence: [(agent.to_owned(), confidence)].into(),
            ..RewardOptions::default()
        };
        options.check(NAMES.into_iter()).is_ok()
    };
    assert!(check("policy", 0.0) && check("resource", 1.0));
    for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(!check("policy", wrong), "{wrong}");
    }
    assert!(!check("somebody", 0.5));
}
