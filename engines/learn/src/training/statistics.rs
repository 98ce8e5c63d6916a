//! How a learner has done since its training began, and over its newest episodes and updates.

use crate::learner::Update;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How many of the newest episodes and updates are remembered.
const REMEMBERED: usize = 100;
/// How many of the newest episodes the shorter mean is over.
const NEWEST: usize = 10;

/// How a learner has done. Means are over fewer episodes or updates where there are not as many yet, and
/// absent before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// The gradient steps since the training began.
    pub gradient_steps: u64,
    /// The mean undiscounted return of the newest 10 episodes.
    pub mean_return_10: Option<f64>,
    /// The mean undiscounted return of the newest 100 episodes.
    pub mean_return_100: Option<f64>,
    /// The highest undiscounted return of an episode since the training began.
    pub max_return: Option<f64>,
    /// The mean length of the newest 100 episodes, in steps.
    pub mean_length_100: Option<f64>,
    /// The loss of the newest update.
    pub loss: Option<f64>,
    /// The mean loss of the newest 100 updates.
    pub mean_loss_100: Option<f64>,
    /// As of [`Learner::buffered`](crate::Learner::buffered).
    pub buffered: Option<u64>,
}

/// What the statistics are computed from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Recent {
    /// The returns and the lengths of the newest episodes, the oldest first.
    episodes: VecDeque<(f64, u64)>,
    /// The losses of the newest updates, the oldest first.
    losses: VecDeque<f32>,
    max_return: Option<f64>,
    gradient_steps: u64,
}

fn remember<T>(items: &mut VecDeque<T>, item: T) {
    if items.len() == REMEMBERED {
        items.pop_front();
    }
    items.push_back(item);
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

impl Recent {
    /// Takes in an episode that has ended.
    pub(super) fn episode(&mut self, brought: f64, steps: u64) {
        remember(&mut self.episodes, (brought, steps));
        let highest = self.max_return.map_or(brought, |max| max.max(brought));
        self.max_return = Some(highest);
    }

    pub(super) fn update(&mut self, update: &Update) {
        self.gradient_steps += u64::from(update.gradient_steps);
        if let Some(loss) = update.loss {
            remember(&mut self.losses, loss);
        }
    }

    pub(super) fn statistics(&self, buffered: Option<usize>) -> Statistics {
        let returns = self.episodes.iter().map(|(brought, _)| *brought);
        let older = self.episodes.len().saturating_sub(NEWEST);
        let losses = self.losses.iter().copied().map(f64::from);
        Statistics {
            gradient_steps: self.gradient_steps,
            mean_return_10: mean(returns.clone().skip(older)),
            mean_return_100: mean(returns),
            max_return: self.max_return,
            mean_length_100: mean(self.episodes.iter().map(|(_, steps)| *steps as f64)),
            loss: self.losses.back().copied().map(f64::from),
            mean_loss_100: mean(losses),
            buffered: buffered.map(|count| count as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(gradient_steps: u32, loss: Option<f32>) -> Update {
        Update {
            gradient_steps,
            loss,
            ..Update::default()
        }
    }

    #[test]
    fn nothing_is_stated_before_it_was_measured() {
        assert_eq!(Recent::default().statistics(None), Statistics::default());
        let mut recent = Recent::default();
        recent.update(&update(2, None));
        let expected = Statistics {
            gradient_steps: 2,
            buffered: Some(0),
            ..Statistics::default()
        };
        assert_eq!(recent.statistics(Some(0)), expected);
    }

    #[test]
    fn means_are_over_the_newest_and_the_highest_return_over_all() {
        let mut recent = Recent::default();
        recent.episode(1000.0, 7);
        for number in 1..=100 {
            recent.episode(f64::from(number), 2);
            recent.update(&update(3, Some(number as f32)));
        }
        let expected = Statistics {
            gradient_steps: 300,
            mean_return_10: Some(95.5),
            mean_return_100: Some(50.5),
            max_return: Some(1000.0),
            mean_length_100: Some(2.0),
            loss: Some(100.0),
            mean_loss_100: Some(50.5),
            buffered: Some(64),
        };
        assert_eq!(recent.statistics(Some(64)), expected);
        recent.update(&update(1, Some(101.0)));
        let after = recent.statistics(None);
        assert_eq!((after.loss, after.mean_loss_100), (Some(101.0), Some(51.5)));
    }

    #[test]
    fn a_few_episodes_are_all_counted() {
        let mut recent = Recent::default();
        recent.episode(-4.0, 1);
        recent.episode(-2.0, 3);
        let few = recent.statistics(None);
        assert_eq!(few.mean_return_10, Some(-3.0));
        assert_eq!(few.mean_return_100, Some(-3.0));
        assert_eq!(
            (few.max_return, few.mean_length_100),
            (Some(-2.0), Some(2.0))
        );
    }
}
