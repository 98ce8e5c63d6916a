//! Pruners: whether a trial that is going badly should stop early.

use crate::quantile::median;

/// What a pruner looks at: the intermediate values of one trial, by step.
pub type Intermediate = [(u64, f64)];

/// Which values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Maximise,
    Minimise,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruner {
    None,
    /// Stops a trial whose best value so far is worse than the median of what others had at that
    /// step, as Optuna's `MedianPruner` does, which looks at every report.
    Median {
        startup_trials: usize,
        warmup_steps: u64,
    },
}

impl Pruner {
    /// `warmup_steps`: before that no trial is stopped.
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

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Median { .. } => "median",
        }
    }

    /// `others` are the trials that ran to their end.
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
        // What is no number says nothing of a trial that ended, and everything of one that runs.
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
    /// The best number among the values; `None` where none is one.
    fn best(self, values: &Intermediate) -> Option<f64> {
        let numbers = values.iter().map(|(_, v)| *v).filter(|v| !v.is_nan());
        numbers.reduce(match self {
            Self::Maximise => f64::max,
            Self::Minimise => f64::min,
        })
    }
}

/// What a trial had reported last when it was at a step: trials that the caller runs need not
/// report at the same steps.
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
    fn of_an_even_count_the_median_is_the_mean_of_the_middle() {
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
    fn of_an_odd_count_the_median_is_the_middle() {
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
    fn what_is_no_number_is_no_value() {
        let nan = f64::NAN;
        let mut six = at_20((0..6).map(f64::from));
        six.extend(at_20([nan, nan, nan]));
        assert!(
            !prunes(Maximise, &[(20, 2.7)], &six),
            "left out of the median"
        );
        assert!(
            prunes(Maximise, &[(20, nan)], &six),
            "nothing good was reported"
        );
        assert!(
            !prunes(Maximise, &[(10, 9.0), (20, nan)], &six),
            "its best counts"
        );
        let few = at_20([0.0, 1.0, 2.0, 3.0, nan, nan]);
        assert!(
            !prunes(Maximise, &[(20, -9.0)], &few),
            "four numbers are too few"
        );
    }

    #[test]
    fn only_what_is_below_the_median_stops() {
        let others: Vec<Vec<(u64, f64)>> = (0..5u32)
            .map(|n| vec![(10, 1.0), (20, f64::from(n))])
            .collect();
        assert!(prunes(Maximise, &[(10, 0.0), (20, 1.0)], &others));
        assert!(!prunes(Maximise, &[(10, 0.0), (20, 2.0)], &others));
        assert!(
            !prunes(Maximise, &[(10, 5.0), (20, 1.0)], &others),
            "its best counts"
        );
        assert!(!prunes(Maximise, &[(10, -9.0)], &others), "warm-up");
        assert!(
            !prunes(Maximise, &[(20, -9.0)], &others[..4]),
            "too few to compare with"
        );
        assert!(!prunes(Maximise, &[], &others));
        assert!(!Pruner::None.should_prune(Maximise, &[(20, -9.0)], &[]));
        assert_eq!(Pruner::parse("hyperband", 0), None);
    }
}
