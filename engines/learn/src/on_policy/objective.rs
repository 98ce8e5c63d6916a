//! The terms of the loss, for one sample: a value and its derivative.

/// A term of the loss and its derivative by what the network put out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Term {
    pub loss: f32,
    pub slope: f32,
    /// Whether clipping made the loss ignore how far the policy has moved.
    pub clipped: bool,
}

/// The policy gradient, with the ratio of probabilities clipped to 1 ± `clip` (Schulman et al., "Proximal
/// Policy Optimization Algorithms", 2017, equation 7), or not at all (Mnih et al., "Asynchronous Methods for
/// Deep Reinforcement Learning", 2016). The derivative is by the new log-probability.
pub(crate) fn policy_term(new: f32, old: f32, advantage: f32, clip: Option<f32>) -> Term {
    let Some(clip) = clip else {
        return Term {
            loss: -advantage * new,
            slope: -advantage,
            clipped: false,
        };
    };
    let ratio = (new - old).exp();
    let bounded = ratio.clamp(1.0 - clip, 1.0 + clip);
    let (free, cut) = (-advantage * ratio, -advantage * bounded);
    Term {
        loss: free.max(cut),
        slope: if free >= cut { free } else { 0.0 },
        clipped: ratio != bounded,
    }
}

/// The squared error of a value; with `clip`, the larger one of it and of that of the value moved by at most
/// `clip` from the old one. The derivative is by the value.
pub(crate) fn value_term(value: f32, old: f32, target: f32, clip: Option<f32>) -> Term {
    let error = value - target;
    let free = Term {
        loss: error * error,
        slope: 2.0 * error,
        clipped: false,
    };
    let Some(clip) = clip else {
        return free;
    };
    let cut = old + (value - old).clamp(-clip, clip) - target;
    if cut * cut <= free.loss {
        return free;
    }
    Term {
        loss: cut * cut,
        slope: 0.0,
        clipped: true,
    }
}

/// An estimate of the divergence of the old policy from the new one: its mean over samples of the old policy
/// is exact, and, unlike the mean difference of the log-probabilities, no sample is negative (Schulman,
/// "Approximating KL Divergence", 2020, estimator k3).
pub(crate) fn divergence(new: f32, old: f32) -> f32 {
    let log_ratio = new - old;
    (log_ratio.exp_m1() - log_ratio).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: f32 = -1.2;

    fn numeric(loss: impl Fn(f32) -> f32, at: f32) -> f32 {
        (loss(at + 1e-3) - loss(at - 1e-3)) / 2e-3
    }

    #[test]
    fn slopes_are_those_of_the_losses() {
        for clip in [None, Some(0.2)] {
            for (new, advantage) in [(-1.3, 2.0), (-1.0, -2.0), (-0.5, 2.0), (-2.0, -1.0)] {
                let loss = |new| policy_term(new, OLD, advantage, clip).loss;
                let exact = policy_term(new, OLD, advantage, clip).slope;
                assert!((numeric(loss, new) - exact).abs() < 2e-3, "{new}: {exact}");
            }
            for (value, target) in [(1.1, 3.0), (1.1, -3.0), (2.0, 3.0), (2.0, 1.8)] {
                let loss = |value| value_term(value, 1.0, target, clip).loss;
                let exact = value_term(value, 1.0, target, clip).slope;
                let found = numeric(loss, value);
                assert!((found - exact).abs() < 5e-3, "{value}: {found} {exact}");
            }
        }
    }

    #[test]
    fn the_policy_gains_nothing_by_moving_beyond_the_clip() {
        let beyond_up = policy_term(OLD + 0.5, OLD, 1.0, Some(0.2));
        let beyond_down = policy_term(OLD - 0.5, OLD, -1.0, Some(0.2));
        assert_eq!((beyond_up.slope, beyond_down.slope), (0.0, 0.0));
        assert!(beyond_up.clipped && beyond_down.clipped);
        assert!((beyond_up.loss + 1.2).abs() < 1e-6);
        let back = policy_term(OLD + 0.5, OLD, -1.0, Some(0.2));
        assert!(back.slope > 1.6 && back.clipped);
    }

    #[test]
    fn the_divergence_is_never_negative_and_its_mean_is_exact() {
        let (old, new) = ([0.7f32, 0.2, 0.1], [0.5f32, 0.3, 0.2]);
        let exact: f32 = (0..3).map(|i| old[i] * (old[i] / new[i]).ln()).sum();
        let samples: Vec<f32> = (0..3)
            .map(|i| divergence(new[i].ln(), old[i].ln()))
            .collect();
        let mean: f32 = (0..3).map(|i| old[i] * samples[i]).sum();
        assert!(samples.iter().all(|s| *s >= 0.0));
        assert!((mean - exact).abs() < 1e-5, "{mean} {exact}");
    }
}
