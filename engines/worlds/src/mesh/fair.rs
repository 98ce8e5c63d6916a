//! Dividing capacity among tenants: weighted α-fairness (Mo and Walrand, "Fair End-to-End Window-Based
//! Congestion Control", 2000) on one shared resource, and Jain's index (Jain, Chiu and Hawe, "A Quantitative
//! Measure of Fairness and Discrimination", 1984).

use super::calibration::MAX_TENANTS;
use serde::{Deserialize, Serialize};

/// How capacity is divided: α-fairness maximises the sum of w·(x/w)^(1-α)/(1-α). The smaller α, the more is
/// done in all, because cheap calls go first; the larger, the more evenly it is divided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Alpha {
    /// α = 1/2.
    Half,
    /// α = 1: proportional fairness.
    #[default]
    One,
    /// α = 2: the least total delay.
    Two,
    /// α = ∞: max-min fairness.
    Infinite,
}

impl Alpha {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Half, Self::One, Self::Two, Self::Infinite];

    /// How fast calls at the common level are served by their cost: cost^(-1/α).
    fn preference(self, cost: f64) -> f64 {
        match self {
            Self::Half => 1.0 / (cost * cost),
            Self::One => 1.0 / cost,
            Self::Two => 1.0 / cost.sqrt(),
            Self::Infinite => 1.0,
        }
    }

    /// The α whose inverse is nearest to a number.
    pub(crate) fn nearest(inverse: f64) -> Self {
        match inverse {
            inverse if inverse > 1.5 => Self::Half,
            inverse if inverse > 0.75 => Self::One,
            inverse if inverse > 0.25 => Self::Two,
            _ => Self::Infinite,
        }
    }

    /// 1/α within 0 and 2.
    pub(crate) fn inverse(self) -> f64 {
        match self {
            Self::Half => 2.0,
            Self::One => 1.0,
            Self::Two => 0.5,
            Self::Infinite => 0.0,
        }
    }
}

pub(crate) type PerTenant = [f64; MAX_TENANTS];

/// Divides `capacity` among tenants who want `demand`, whose units cost `cost` each. Nobody gets more than
/// they want; when not all can be served, those who want more get the common level times their weight and
/// the preference of α.
pub(crate) fn divide(
    capacity: f64,
    demand: &PerTenant,
    cost: &PerTenant,
    weights: &PerTenant,
    alpha: Alpha,
) -> PerTenant {
    let all: f64 = demand
        .iter()
        .zip(cost)
        .map(|(wanted, cost)| wanted * cost)
        .sum();
    if all <= capacity {
        return *demand;
    }
    let speed: PerTenant = std::array::from_fn(|at| weights[at] * alpha.preference(cost[at]));
    fill(capacity, demand, cost, &speed)
}

/// Raises the common level until the capacity is used up: those whose demand is met first leave the rest to
/// the others.
fn fill(capacity: f64, demand: &PerTenant, cost: &PerTenant, speed: &PerTenant) -> PerTenant {
    let mut got = [0.0; MAX_TENANTS];
    let mut open: [bool; MAX_TENANTS] =
        std::array::from_fn(|at| demand[at] > 0.0 && speed[at] > 0.0);
    let mut left = capacity;
    loop {
        let used: f64 = (0..MAX_TENANTS)
            .filter(|at| open[*at])
            .map(|at| speed[at] * cost[at])
            .sum();
        if used <= 0.0 {
            return got;
        }
        let level = left / used;
        let met = |at: usize| open[at] && demand[at] <= level * speed[at];
        let full: [bool; MAX_TENANTS] = std::array::from_fn(met);
        if !full.contains(&true) {
            for at in (0..MAX_TENANTS).filter(|at| open[*at]) {
                got[at] = level * speed[at];
            }
            return got;
        }
        for at in (0..MAX_TENANTS).filter(|at| full[*at]) {
            got[at] = demand[at];
            left = (left - demand[at] * cost[at]).max(0.0);
            open[at] = false;
        }
    }
}

/// Jain's index of what some get: 1 when all get the same, 1/n when one gets everything.
pub fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares <= 0.0 {
        return 1.0;
    }
    sum * sum / (shares.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: PerTenant = [0.25; 4];

    fn used(got: &PerTenant, cost: &PerTenant) -> f64 {
        got.iter().zip(cost).map(|(got, cost)| got * cost).sum()
    }

    #[test]
    fn enough_capacity_meets_every_demand() {
        let demand = [5.0, 0.0, 2.0, 1.0];
        for alpha in Alpha::ALL {
            assert_eq!(divide(8.0, &demand, &[1.0; 4], &EVEN, alpha), demand);
        }
    }

    #[test]
    fn scarce_capacity_is_used_up_and_nobody_gets_more_than_they_want() {
        let (demand, cost) = ([50.0, 30.0, 1.0, 20.0], [1.0, 0.5, 2.0, 4.0]);
        for alpha in Alpha::ALL {
            let got = divide(40.0, &demand, &cost, &[0.4, 0.3, 0.2, 0.1], alpha);
            assert!((used(&got, &cost) - 40.0).abs() < 1e-9);
            assert!(
                got.iter()
                    .zip(demand)
                    .all(|(got, wanted)| *got <= wanted + 1e-12)
            );
        }
    }

    #[test]
    fn max_min_fairness_meets_small_demands_and_levels_the_others() {
        let got = divide(
            30.0,
            &[4.0, 20.0, 20.0, 2.0],
            &[1.0; 4],
            &EVEN,
            Alpha::Infinite,
        );
        assert_eq!(got, [4.0, 12.0, 12.0, 2.0]);
    }

    #[test]
    fn proportional_fairness_divides_by_weight_and_cost() {
        let got = divide(
            10.0,
            &[90.0, 90.0, 0.0, 0.0],
            &[1.0, 3.0, 1.0, 1.0],
            &EVEN,
            Alpha::One,
        );
        assert!((got[0] - 5.0).abs() < 1e-12 && (got[1] - 5.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_smaller_alpha_serves_more_calls_and_a_larger_one_serves_more_evenly() {
        let (demand, cost) = ([90.0; 4], [1.0, 1.0, 2.0, 4.0]);
        let got = Alpha::ALL.map(|alpha| divide(40.0, &demand, &cost, &EVEN, alpha));
        for pair in got.windows(2) {
            assert!(pair[0].iter().sum::<f64>() > pair[1].iter().sum());
            assert!(jain(&pair[0]) < jain(&pair[1]));
        }
    }

    #[test]
    fn the_division_is_the_optimum_of_its_utility() {
        // At the optimum, marginal utility per cost, (x/w)^-α / cost, is the same for all.
        let (demand, cost, weights) = ([90.0; 4], [1.0, 1.5, 2.0, 4.0], [0.4, 0.3, 0.2, 0.1]);
        for (alpha, power) in [(Alpha::Half, 0.5), (Alpha::One, 1.0), (Alpha::Two, 2.0f64)] {
            let got = divide(40.0, &demand, &cost, &weights, alpha);
            let marginal: Vec<f64> = (0..4)
                .map(|at| (got[at] / weights[at]).powf(-power) / cost[at])
                .collect();
            assert!(
                marginal
                    .iter()
                    .all(|m| (m / marginal[0] - 1.0).abs() < 1e-9),
                "{alpha:?}"
            );
        }
    }

    #[test]
    fn jain_has_its_limits() {
        assert_eq!(jain(&[0.7; 4]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(jain(&[0.0; 3]), 1.0);
    }
}
