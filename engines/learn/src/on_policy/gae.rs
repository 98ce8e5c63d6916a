//! Generalised advantage estimation (Schulman et al., "High-Dimensional Continuous Control Using Generalized
//! Advantage Estimation", 2016).
//!
//! The sums stop at the end of an episode. A step that ended in a final state is followed by the value zero,
//! one that the time limit cut off by the value of the final observation (Pardo et al., "Time Limits in
//! Reinforcement Learning", 2018).

use serde::{Deserialize, Serialize};

/// How far ahead a learner looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Horizon {
    /// What a reward is worth one step earlier.
    pub gamma: f32,
    /// The weight of longer sums: 0 trusts the values, 1 the rewards.
    pub lambda: f32,
}

/// What followed a step in its episode.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Next {
    /// The next step of the same copy.
    Step,
    /// Nothing: the episode ended here, and what it ended with has this value, which is zero for a final
    /// state.
    End(f32),
}

/// Steps of several copies of an environment: for each point in time an element for each copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trajectories<'a> {
    pub rewards: &'a [f32],
    /// The estimated values of the states that were acted in.
    pub values: &'a [f32],
    pub nexts: &'a [Next],
    /// The values of the states after the last point in time, an element for each copy. Those of copies
    /// whose episode has just ended are not read.
    pub last_values: &'a [f32],
}

/// Writes the advantage of each step and its return, which is the advantage plus the value.
///
/// The time is that of one pass, latest step first.
pub(crate) fn estimate(
    steps: &Trajectories<'_>,
    horizon: Horizon,
    advantages: &mut [f32],
    returns: &mut [f32],
) {
    let copies = steps.last_values.len();
    let decay = horizon.gamma * horizon.lambda;
    for at in (0..steps.rewards.len()).rev() {
        let following = at + copies;
        let (next_value, next_advantage) = match steps.nexts[at] {
            Next::End(value) => (value, 0.0),
            Next::Step if following < steps.rewards.len() => {
                (steps.values[following], advantages[following])
            }
            Next::Step => (steps.last_values[at % copies], 0.0),
        };
        let error = steps.rewards[at] + horizon.gamma * next_value - steps.values[at];
        advantages[at] = error + decay * next_advantage;
        returns[at] = advantages[at] + steps.values[at];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HORIZON: Horizon = Horizon {
        gamma: 0.9,
        lambda: 0.8,
    };

    fn run(steps: &Trajectories<'_>, horizon: Horizon) -> (Vec<f32>, Vec<f32>) {
        let mut advantages = vec![f32::NAN; steps.rewards.len()];
        let mut returns = advantages.clone();
        estimate(steps, horizon, &mut advantages, &mut returns);
        (advantages, returns)
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        let equal = found
            .iter()
            .zip(expected)
            .all(|(f, e)| (f - e).abs() < 1e-5);
        assert!(equal, "{found:?} {expected:?}");
    }

    #[test]
    fn an_advantage_is_the_decaying_sum_of_the_errors_after_it() {
        let steps = Trajectories {
            rewards: &[1.0, 2.0, 3.0],
            values: &[0.5, 1.5, 2.5],
            nexts: &[Next::Step; 3],
            last_values: &[4.0],
        };
        let errors = [
            1.0 + 0.9 * 1.5 - 0.5,
            2.0 + 0.9 * 2.5 - 1.5,
            3.0 + 0.9 * 4.0 - 2.5,
        ];
        let third = errors[2];
        let second = errors[1] + 0.72 * third;
        let first = errors[0] + 0.72 * second;
        let (advantages, returns) = run(&steps, HORIZON);
        close(&advantages, &[first, second, third]);
        close(&returns, &[first + 0.5, second + 1.5, third + 2.5]);
    }

    #[test]
    fn lambda_one_gives_discounted_returns_and_lambda_zero_one_step_errors() {
        let steps = Trajectories {
            rewards: &[1.0, 1.0],
            values: &[0.3, 0.7],
            nexts: &[Next::Step, Next::End(0.0)],
            last_values: &[f32::NAN],
        };
        let at = |lambda| run(&steps, Horizon { gamma: 0.5, lambda });
        close(&at(1.0).1, &[1.5, 1.0]);
        close(&at(0.0).1, &[1.0 + 0.5 * 0.7, 1.0]);
    }

    #[test]
    fn a_truncated_episode_continues_with_the_value_of_its_final_observation() {
        let with = |next| {
            let steps = Trajectories {
                rewards: &[1.0, 1.0],
                values: &[2.0, 100.0],
                nexts: &[next, Next::Step],
                last_values: &[50.0],
            };
            run(&steps, HORIZON).0[0]
        };
        close(&[with(Next::End(0.0))], &[1.0 - 2.0]);
        close(&[with(Next::End(3.0))], &[1.0 + 0.9 * 3.0 - 2.0]);
    }

    #[test]
    fn copies_do_not_see_each_other() {
        let alone = |rewards: &[f32], values: &[f32], last: f32| {
            let nexts = [Next::Step, Next::Step];
            let steps = Trajectories {
                rewards,
                values,
                nexts: &nexts,
                last_values: &[last],
            };
            run(&steps, HORIZON).0
        };
        let (a, b) = (
            alone(&[1.0, 2.0], &[0.1, 0.2], 7.0),
            alone(&[3.0, 4.0], &[0.3, 0.4], 8.0),
        );
        let together = Trajectories {
            rewards: &[1.0, 3.0, 2.0, 4.0],
            values: &[0.1, 0.3, 0.2, 0.4],
            nexts: &[Next::Step; 4],
            last_values: &[7.0, 8.0],
        };
        close(&run(&together, HORIZON).0, &[a[0], b[0], a[1], b[1]]);
    }
}
