//! Pruners: whether a trial that is going badly should stop early.

/// What a pruner looks at: the intermediate values of one trial, by step.
pub type Intermediate = [(u64, f64)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruner {
    None,
    /// Stops a trial whose best value so far is below the median of what others had at that step.
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

    /// Higher values are better. `others` are the trials that ran to their end.
    pub fn should_prune(self, values: &Intermediate, others: &[&Intermediate]) -> bool {
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
        let mut then: Vec<f64> = others.iter().filter_map(|o| value_at(o, *step)).collect();
        if then.len() < startup_trials {
            return false;
        }
        then.sort_by(f64::total_cmp);
        let best = values.iter().map(|(_, v)| *v).fold(f64::MIN, f64::max);
        best < then[then.len() / 2]
    }
}

/// What a trial had reported last when it was at a step.
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

    #[test]
    fn only_what_is_below_the_median_stops() {
        let pruner = Pruner::parse("median", 20).unwrap();
        let others: Vec<Vec<(u64, f64)>> = (0..5u32)
            .map(|n| vec![(10, 1.0), (20, f64::from(n))])
            .collect();
        let others: Vec<&Intermediate> = others.iter().map(Vec::as_slice).collect();
        assert!(pruner.should_prune(&[(10, 0.0), (20, 1.0)], &others));
        assert!(!pruner.should_prune(&[(10, 0.0), (20, 2.0)], &others));
        assert!(
            !pruner.should_prune(&[(10, 5.0), (20, 1.0)], &others),
            "its best counts"
        );
        assert!(!pruner.should_prune(&[(10, -9.0)], &others), "warm-up");
        assert!(
            !pruner.should_prune(&[(20, -9.0)], &others[..4]),
            "too few to compare with"
        );
        assert!(!pruner.should_prune(&[], &others));
        assert!(!Pruner::None.should_prune(&[(20, -9.0)], &others));
        assert_eq!(Pruner::parse("hyperband", 0), None);
    }
}
