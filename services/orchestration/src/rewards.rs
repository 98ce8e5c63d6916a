//! The agents' rewards of a step as one number.
//!
//! With the rewards r, the weights w and the confidences c it is (S·C − P)·(1 + causal impact), where S = Σ w·r·c,
//! the multiplier C rewards agents that all gain, and the penalty P is for agents of which some gain and some lose.

use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many of an agent's rewards a z-score is of.
pub(crate) const RECENT: usize = 100;
/// The least standard deviation by which a reward is divided.
const LEAST_DEVIATION: f64 = 1e-6;
/// The shares of the standard deviation, and of the variance, that are taken off.
const PENALTY: f64 = 0.1;
/// The variance of the confident agents' rewards from which on it counts, and who is confident.
const WIDE: f64 = 0.5;
const CONFIDENT: f64 = 0.7;
/// The share of the mean that the standard deviation of agents in harmony stays below.
const HARMONY: f64 = 0.3;
const HARMONIC: f64 = 1.2;
const COOPERATIVE: f64 = 1.1;

/// How rewards are aggregated.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RewardOptions {
    /// Replace each reward by its z-score among the agent's recent ones.
    pub(crate) normalise: bool,
    /// The confidence in each agent; 1 for one that is not named.
    pub(crate) confidence: BTreeMap<String, f64>,
    pub(crate) causal_impact: f64,
}

impl RewardOptions {
    /// Checks that each confidence is in one of the agents, and within 0 and 1.
    pub(crate) fn check<'a>(
        &self,
        agents: impl Iterator<Item = &'a str>,
    ) -> Result<(), OrchestrationError> {
        let agents: Vec<&str> = agents.collect();
        let is_wrong = |(agent, confidence): &(&String, &f64)| {
            !agents.contains(&agent.as_str()) || !(0.0..=1.0).contains(*confidence)
        };
        match self.confidence.iter().find(is_wrong) {
            Some((agent, _)) => Err(OrchestrationError::Confidence(agent.clone())),
            None => Ok(()),
        }
    }
}

/// What an agent got, and its recent rewards with this one as the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rewarded<'a> {
    pub(crate) agent: &'a str,
    pub(crate) recent: &'a [f32],
}

/// The aggregate with everything that it was made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct GlobalReward {
    pub(crate) value: f64,
    /// The rewards as they were aggregated.
    pub(crate) rewards: BTreeMap<String, f64>,
    pub(crate) contributions: BTreeMap<String, f64>,
    pub(crate) weighted_sum: f64,
    pub(crate) conflict_penalty: f64,
    pub(crate) cooperation_multiplier: f64,
    pub(crate) causal_modifier: f64,
    /// The agents whose reward is a z-score.
    pub(crate) normalised: Vec<String>,
}

impl GlobalReward {
    /// What the multiplier adds to the weighted sum.
    pub(crate) fn cooperation_bonus(&self) -> f64 {
        self.weighted_sum * (self.cooperation_multiplier - 1.0)
    }
}

/// The weight of an agent beside the other three.
pub(crate) fn weight(agent: &str) -> f64 {
    match agent {
        "policy" => 0.30,
        "resource" => 0.20,
        _ => 0.25,
    }
}

/// Aggregates the rewards of the agents that take part, whose weights are scaled to the sum 1.
pub(crate) fn aggregate(agents: &[Rewarded<'_>], options: &RewardOptions) -> GlobalReward {
    let total: f64 = agents.iter().map(|one| weight(one.agent)).sum();
    let (mut rewards, mut confidences) = (Vec::new(), Vec::new());
    let (mut contributions, mut normalised) = (BTreeMap::new(), Vec::new());
    for one in agents {
        let raw = one.recent.last().copied().map_or(0.0, f64::from);
        let score = options.normalise.then(|| z_score(one.recent)).flatten();
        if score.is_some() {
            normalised.push(one.agent.to_owned());
        }
        let reward = score.unwrap_or(raw);
        let confidence = options.confidence.get(one.agent).copied().unwrap_or(1.0);
        let contribution = weight(one.agent) / total * reward * confidence;
        contributions.insert(one.agent.to_owned(), contribution);
        rewards.push(reward);
        confidences.push(confidence);
    }
    let weighted_sum = contributions.values().sum::<f64>();
    let conflict_penalty = penalty(&rewards, &confidences);
    let cooperation_multiplier = multiplier(&rewards);
    let causal_modifier = 1.0 + options.causal_impact;
    let names = agents.iter().map(|one| one.agent.to_owned());
    GlobalReward {
        value: (weighted_sum * cooperation_multiplier - conflict_penalty) * causal_modifier,
        rewards: names.zip(rewards).collect(),
        contributions,
        weighted_sum,
        conflict_penalty,
        cooperation_multiplier,
        causal_modifier,
        normalised,
    }
}

/// How many standard deviations the last number is above the mean of all; `None` where they hardly differ.
fn z_score(numbers: &[f32]) -> Option<f64> {
    let numbers: Vec<f64> = numbers.iter().copied().map(f64::from).collect();
    let (mean, deviation) = (mean(&numbers), variance(&numbers).sqrt());
    let last = numbers.last().filter(|_| numbers.len() >= 2)?;
    (deviation > LEAST_DEVIATION).then(|| (last - mean) / deviation)
}

fn penalty(rewards: &[f64], confidences: &[f64]) -> f64 {
    let is_split = rewards.iter().any(|r| *r > 0.0) && rewards.iter().any(|r| *r < 0.0);
    let split = if is_split {
        PENALTY * variance(rewards).sqrt()
    } else {
        0.0
    };
    let confident = rewards.iter().zip(confidences);
    let confident = confident.filter(|(_, confidence)| **confidence > CONFIDENT);
    let spread = variance(&confident.map(|(reward, _)| *reward).collect::<Vec<f64>>());
    if spread > WIDE {
        split + PENALTY * spread
    } else {
        split
    }
}

fn multiplier(rewards: &[f64]) -> f64 {
    if rewards.is_empty() || !rewards.iter().all(|reward| *reward > 0.0) {
        return 1.0;
    }
    if variance(rewards).sqrt() / mean(rewards).abs() < HARMONY {
        HARMONIC
    } else {
        COOPERATIVE
    }
}

/// The mean; 0 of no numbers.
fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// The population variance; 0 of no numbers.
fn variance(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|n| (n - mean).powi(2)).sum();
    squares / numbers.len().max(1) as f64
}

#[cfg(test)]
mod tests;
