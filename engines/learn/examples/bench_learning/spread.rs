//! What other trainings say: the same comparisons with agents that were trained from other seeds.

use crate::{
    contest::Contest,
    report::{Row, against_rules, jointly, word},
};
use serde_json::{Value, json};
use tars_learn::comparison::{Difference, Verdict};

/// One comparison over all trainings.
pub(crate) struct Spread {
    pub(crate) agent: String,
    against: &'static str,
    /// The mean difference of each training, over the episodes.
    means: Vec<f64>,
    /// The mean over the trainings.
    pub(crate) over: Difference,
    better: usize,
    worse: usize,
}

/// Each trained agent among rules, and all four together, over all trainings.
pub(crate) fn spreads(contests: &mut [Contest]) -> Vec<Spread> {
    let rows = |contest: &mut Contest| -> Vec<Row> {
        let mut rows = against_rules(contest);
        rows.extend(jointly(contest).pop());
        rows
    };
    let trainings: Vec<Vec<Row>> = contests.iter_mut().map(rows).collect();
    let comparisons = 0..trainings.first().map_or(0, Vec::len);
    let over_all = |at: usize| trainings.iter().map(|rows| &rows[at]).collect::<Vec<_>>();
    comparisons.map(|at| Spread::of(&over_all(at))).collect()
}

impl Spread {
    fn of(rows: &[&Row]) -> Self {
        let means: Vec<f64> = rows.iter().map(|row| row.difference.mean).collect();
        let count = |verdict| {
            let same = rows
                .iter()
                .filter(|row| row.difference.verdict() == verdict);
            same.count()
        };
        Self {
            agent: rows[0].agent.clone(),
            against: rows[0].against,
            over: Difference::paired(&means, &vec![0.0; means.len()]),
            better: count(Verdict::Better),
            worse: count(Verdict::Worse),
            means,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "agent": self.agent,
            "against": self.against,
            "differences": self.means,
            "difference": self.over.mean,
            "low": self.over.low,
            "high": self.over.high,
            "trainings_better": self.better,
            "trainings_worse": self.worse,
            "verdict": word(self.over.verdict()),
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let Difference { mean, low, high } = self.over;
        let least = self.means.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!(
            "| {} | {} | {mean:+.4} | {low:+.4} to {high:+.4} | {least:+.4} to {most:+.4} | {} | {} | {} |",
            self.agent,
            self.against,
            self.better,
            self.worse,
            word(self.over.verdict()),
        )
    }
}
