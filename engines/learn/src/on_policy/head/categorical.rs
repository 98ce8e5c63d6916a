//! The categorical distribution, given by the logarithms of its probabilities.

use super::{Evaluation, Weights};

/// The log-probability that an impossible action is given, so that differences of two stay numbers.
const IMPOSSIBLE: f32 = -1e6;

/// The log-probability of an action and the entropy.
pub(crate) fn evaluate(log_probabilities: &[f32], action: usize) -> Evaluation {
    Evaluation {
        log_probability: log_probabilities[action].max(IMPOSSIBLE),
        entropy: crate::distribution::entropy(log_probabilities),
    }
}

/// Replaces log-probabilities by the gradient, by the logits, of the weighted sum. Actions that are ruled
/// out have none, whatever was done.
pub(crate) fn differentiate(row: &mut [f32], action: usize, entropy: f32, weights: Weights) {
    let was_possible = row[action] > IMPOSSIBLE;
    for value in row.iter_mut() {
        let log = value.max(IMPOSSIBLE);
        let factor = weights.log_probability + weights.entropy * (log + entropy);
        *value = -log.exp() * factor;
    }
    if was_possible {
        row[action] += weights.log_probability;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::{entropy, log_softmax};

    const LOGITS: [f32; 4] = [0.3, -1.2, 2.0, 0.7];
    const WEIGHTS: Weights = Weights {
        log_probability: 0.7,
        entropy: -1.3,
    };

    fn normalised(logits: [f32; 4], mask: &[bool]) -> [f32; 4] {
        let mut logs = logits;
        log_softmax(&mut logs, mask);
        logs
    }

    fn weighted(logits: [f32; 4], mask: &[bool], action: usize) -> f32 {
        let found = evaluate(&normalised(logits, mask), action);
        WEIGHTS.log_probability * found.log_probability + WEIGHTS.entropy * found.entropy
    }

    #[test]
    fn gradients_agree_with_finite_differences_with_and_without_a_mask() {
        for mask in [&[][..], &[true, true, false, true]] {
            let mut gradient = normalised(LOGITS, mask);
            differentiate(
                &mut gradient,
                1,
                entropy(&normalised(LOGITS, mask)),
                WEIGHTS,
            );
            for (at, exact) in gradient.iter().enumerate() {
                let (mut up, mut down) = (LOGITS, LOGITS);
                up[at] += 1e-2;
                down[at] -= 1e-2;
                let numeric = (weighted(up, mask, 1) - weighted(down, mask, 1)) / 2e-2;
                assert!((numeric - exact).abs() < 1e-3, "{at}: {numeric} {exact}");
            }
        }
    }

    #[test]
    fn an_action_that_was_taken_against_the_mask_moves_no_logit_of_a_ruled_out_action() {
        let mask = [true, false, true, false];
        let mut row = normalised(LOGITS, &mask);
        let found = evaluate(&row, 3);
        assert_eq!(found.log_probability, IMPOSSIBLE);
        differentiate(&mut row, 3, found.entropy, WEIGHTS);
        assert_eq!([row[1], row[3]], [0.0, 0.0]);
        assert!(row.iter().all(|g| g.is_finite()));
    }
}
