//! The softmax distribution over discrete actions, of which a mask may rule some out, and choices by value.

use rand::{Rng, RngExt};

/// Whether an action may be taken; an empty mask rules none out.
pub fn is_allowed(mask: &[bool], action: usize) -> bool {
    mask.get(action).copied().unwrap_or(true)
}

/// The position of the largest value among the allowed ones, the first among equals; 0 when there is none.
pub fn argmax(values: &[f32], mask: &[bool]) -> usize {
    let allowed = (0..values.len()).filter(|at| is_allowed(mask, *at));
    let better = |best: usize, at: usize| if values[at] > values[best] { at } else { best };
    allowed.reduce(better).unwrap_or(0)
}

/// An allowed action, each with the same probability; 0 when there is none.
pub fn uniform(actions: usize, mask: &[bool], rng: &mut impl Rng) -> usize {
    let allowed = || (0..actions).filter(|at| is_allowed(mask, *at));
    let count = allowed().count().max(1);
    allowed().nth(rng.random_range(0..count)).unwrap_or(0)
}

/// Replaces logits by the logarithms of the probabilities; those of actions that are ruled out become
/// negative infinity.
pub fn log_softmax(logits: &mut [f32], mask: &[bool]) {
    for (at, logit) in logits.iter_mut().enumerate() {
        if !is_allowed(mask, at) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return;
    }
    let sum: f32 = logits.iter().map(|l| (l - largest).exp()).sum();
    let log_sum = sum.ln();
    // In this order, since the largest logit may be so large that the sum's logarithm vanishes in it.
    logits.iter_mut().for_each(|l| *l = *l - largest - log_sum);
}

/// An action drawn by the logarithms of its probabilities.
pub fn sample(log_probabilities: &[f32], rng: &mut impl Rng) -> usize {
    let mut rest: f32 = rng.random();
    let mut last = 0;
    for (at, log) in log_probabilities.iter().enumerate() {
        let probability = log.exp();
        if probability > 0.0 {
            last = at;
            if rest < probability {
                return at;
            }
            rest -= probability;
        }
    }
    last
}

/// The entropy in nats.
pub fn entropy(log_probabilities: &[f32]) -> f32 {
    let term = |log: &f32| {
        if log.is_finite() {
            -log.exp() * log
        } else {
            0.0
        }
    };
    log_probabilities.iter().map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tars_worlds::Generator;

    #[test]
    fn masked_actions_have_no_probability_and_the_others_sum_to_one() {
        let mut logs = [1.0, 100.0, -3.0, 2.0];
        let mask = [true, false, true, true];
        log_softmax(&mut logs, &mask);
        assert_eq!(logs[1], f32::NEG_INFINITY);
        let sum: f32 = logs.iter().map(|l| l.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6 && entropy(&logs).is_finite());
        let rng = &mut Generator::seed_from_u64(1);
        let mut counts = [0u32; 4];
        for _ in 0..20_000 {
            counts[sample(&logs, rng)] += 1;
        }
        for (count, log) in counts.iter().zip(&logs) {
            assert!((*count as f32 / 20_000.0 - log.exp()).abs() < 0.02);
        }
    }

    #[test]
    fn huge_logits_do_not_overflow_and_a_uniform_distribution_has_the_largest_entropy() {
        let mut logs = [3.0e38, 3.0e38];
        log_softmax(&mut logs, &[]);
        assert!((entropy(&logs) - 2.0f32.ln()).abs() < 1e-6);
        let mut none = [1.0, 2.0];
        log_softmax(&mut none, &[false, false]);
        assert_eq!(sample(&none, &mut Generator::seed_from_u64(1)), 0);
    }

    #[test]
    fn choices_respect_the_mask() {
        assert_eq!(argmax(&[1.0, 5.0, 5.0], &[]), 1);
        assert_eq!(argmax(&[1.0, 5.0, 4.0], &[true, false, true]), 2);
        assert_eq!(argmax(&[1.0], &[false]), 0);
        let rng = &mut Generator::seed_from_u64(1);
        assert!((0..100).all(|_| uniform(3, &[false, true, false], rng) == 1));
    }
}
