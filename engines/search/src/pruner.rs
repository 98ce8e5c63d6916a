//! Pruners, which decide whether an unpromising trial should be stopped early.

use crate::quantile::median;

/// The intermediate values of one trial, as pairs of step and value in ascending steps.
pub type Intermediate = [(u64, f64)];

/// Which values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Higher values are better.
    Maximise,
    /// Lower values are better.
    Minimise,
}

/// A pruning rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruner {
    /// Stops no trial.
    None,
    /// The median stopping rule (Golovin et al., "Google Vizier", 2017), as Optuna's `MedianPruner`
    /// applies it at every report: stops a trial whose best value so far is worse than the median
    /// of the completed trials' values at the same step.
    Median {
        /// Completed trials below which no trial is stopped.
        startup_trials: usize,
        /// The step before which no trial is stopped.
        warmup_steps: u64,
    },
}

impl Pruner {
    /// The pruner with this name, `none` or `median`; `None` for any other. The median rule begins
    /// after five completed trials and at the step `warmup_steps`.
    pub fn parse(name: &str, warmup_steps: u64) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "median" => Some(Self::Median {
                startup_trials: 5,
                warmup_steps,
            }),
            _ => None,
        }
    }

    /// The name that [`parse`](Self::parse) accepts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Median { .. } => "median",
        }
    }

    /// Whether a trial with these values should stop. `others` are the values of completed trials.
    /// A trial whose values are all not a number is stopped like one below the median.
    pub fn should_prune(
        self,
        direction: Direction,
        values: &Intermediate,
        others: &[&Intermediate],
    ) -> bool {
        let Self::Median {
            startup_trials,
            warmup_steps,
        } = self
        else {
            return false;
        };
        let Some((step, _)) = values.last() else {
            return false;
        };
        if others.len() < startup_trials || *step < warmup_steps {
            return false;
        }
        // A NaN of a completed trial carries no information, so it is left out of the median.
        let then: Vec<f64> = others
            .iter()
            .filter_map(|o| value_at(o, *step))
            .filter(|v| !v.is_nan())
            .collect();
        if then.len() < startup_trials {
            return false;
        }
        let Some(median) = median(then) else {
            return false;
        };
        match (direction.best(values), direction) {
            (None, _) => true,
            (Some(best), Direction::Maximise) => best < median,
            (Some(best), Direction::Minimise) => best > median,
        }
    }
}

impl Direction {
    /// The best value that is a number; `None` when there is none.
    fn best(self, values: &Intermediate) -> Option<f64> {
        let numbers = values.iter().map(|(_, v)| *v).filter(|v| !v.is_nan());
        numbers.reduce(match self {
            Self::Maximise => f64::max,
            Self::Minimise => f64::min,
        })
    }
}

/// The last value at or before a step. Trials need not report at the same steps.
fn value_at(values: &Intermediate, step: u64) -> Option<f64> {
    values
        .iter()
        .take_while(|(s, _)| *s <= step)
        .last()
        .map(|(_, v)| *v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Maximise, Minimise};

    fn at_20(values: impl IntoIterator<Item = f64>) -> Vec<Vec<(u64, f64)>> {
        values.into_iter().map(|v| vec![(20, v)]).collect()
    }

    fn prunes(direction: Direction, own: &Intermediate, others: &[Vec<(u64, f64)>]) -> bool {
        let others: Vec<&Intermediate> = others.iter().map(Vec::as_slice).collect();
        let pruner = Pruner::parse("median", 20).unwrap();
        pruner.should_prune(direction, own, &others)
    }

    #[test]
    fn an_even_number_of_trials_is_compared_with_the_mean_of_the_middle_two() {
        let six = at_20((0..6).map(f64::from));
        for (report, direction, pruned) in [
            (2.7, Maximise, false),
            (2.5, Maximise, false),
            (2.4, Maximise, true),
            (2.3, Minimise, false),
            (2.5, Minimise, false),
            (2.6, Minimise, true),
        ] {
            let own = [(20, report)];
            assert_eq!(
                prunes(direction, &own, &six),
                pruned,
                "{report} {direction:?}"
            );
        }
    }

    #[test]
    fn an_odd_number_of_trials_is_compared_with_the_middle_one() {
        let five = at_20((0..5).map(f64::from));
        for (report, direction, pruned) in [
            (2.0, Maximise, false),
            (1.9, Maximise, true),
            (2.0, Minimise, false),
            (2.1, Minimise, true),
        ] {
            let own = [(20, report)];
            assert_eq!(
                prunes(direction, &own, &five),
                pruned,
                "{report} {direction:?}"
            );
        }
    }

    #[test]
    fn values_that_are_not_numbers_are_ignored() {
        let nan = f64::NAN;
        let mut six = at_20((0..6).map(f64::from));
        six.extend(at_20([nan, nan, nan]));
        assert!(
            !prunes(Maximise, &[(20, 2.7)], &six),
            "left out of the median"
        );
        assert!(
            prunes(Maximise, &[(20, nan)], &six),
            "no number was reported"
        );
        assert!(
            !prunes(Maximise, &[(10, 9.0), (20, nan)], &six),
            "the best value counts"
        );
        let few = at_20([0.0, 1.0, 2.0, 3.0, nan, nan]);
        assert!(
            !prunes(Maximise, &[(20, -9.0)], &few),
            "four completed trials are too few"
        );
    }

    #[test]
    fn only_a_trial_below_the_median_is_stopped() {
        let others: Vec<Vec<(u64, f64)>> = (0..5u32)
            .map(|n| vec![(10, 1.0), (20, f64::from(n))])
            .collect();
        assert!(prunes(Maximise, &[(10, 0.0), (20, 1.0)], &others));
        assert!(!prunes(Maximise, &[(10, 0.0), (20, 2.0)], &others));
        assert!(
            !prunes(Maximise, &[(10, 5.0), (20, 1.0)], &others),
            "the best value counts"
        );
        assert!(!prunes(Maximise, &[(10, -9.0)], &others), "warm-up");
        assert!(
            !prunes(Maximise, &[(20, -9.0)], &others[..4]),
            "four completed trials are fewer than startup_trials"
        );
        assert!(!prunes(Maximise, &[], &others));
        assert!(!Pruner::None.should_prune(Maximise, &[(20, -9.0)], &[]));
        assert_eq!(Pruner::parse("hyperband", 0), None);
    }
}
