//! Conflicts between the agents' preferred actions, and their resolution: a bargaining solution among
//! the joint actions that the constraints allow, with an explanation.

use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use tars_games::{
    Game,
    bargaining::{self, Rule},
    pareto,
};

/// Pareto-efficient alternatives that a resolution lists.
const LISTED: usize = 16;
/// The largest number of joint actions of a dispute.
const MAX_JOINT_ACTIONS: usize = 8_192;
/// The tolerance of payoffs that are exact: up to this share of a party's payoff range, its regret is zero.
pub(crate) const EXACT: f64 = 1e-9;

/// A party to a dispute.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    pub(crate) name: String,
    /// The name of each action and the number that conditions compare.
    pub(crate) actions: Vec<(String, f64)>,
    /// The action that it prefers on its own.
    pub(crate) raw: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Above,
    Below,
    Equal,
}

#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) party: String,
    pub(crate) comparison: Comparison,
    pub(crate) value: f64,
}

/// Conditions that must not all hold at the same time.
#[derive(Debug, Clone)]
pub(crate) struct Constraint {
    pub(crate) name: String,
    pub(crate) conditions: Vec<Condition>,
}

/// A constraint whose parties all take part.
struct Bound<'a> {
    constraint: &'a Constraint,
    conditions: Vec<(usize, Comparison, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ResolutionRule {
    #[default]
    NashBargaining,
    KalaiSmorodinsky,
    MaxMin,
    Weighted,
}

impl ResolutionRule {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NashBargaining => "nash_bargaining",
            Self::KalaiSmorodinsky => "kalai_smorodinsky",
            Self::MaxMin => "max_min",
            Self::Weighted => "weighted",
        }
    }

    fn rule(self) -> Rule {
        match self {
            Self::NashBargaining => Rule::NashProduct,
            Self::KalaiSmorodinsky => Rule::KalaiSmorodinsky,
            Self::MaxMin => Rule::MaxMin,
            Self::Weighted => Rule::Utilitarian,
        }
    }
}

/// The parties, their joint actions and payoffs, and the constraints on them.
#[derive(Debug)]
pub(crate) struct Dispute {
    pub(crate) parties: Vec<Party>,
    pub(crate) game: Game,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) rule: ResolutionRule,
    /// The regret up to which a party is content, as a share of its payoff range.
    pub(crate) tolerance: f64,
    /// Each party's payoff without an agreement; by default its security level.
    pub(crate) disagreement: Option<Vec<f64>>,
    pub(crate) weights: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConflictKind {
    Constraint,
    Regret,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conflict {
    pub(crate) name: String,
    pub(crate) kind: ConflictKind,
    pub(crate) parties: Vec<String>,
    pub(crate) description: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resolution {
    pub(crate) conflicts: Vec<Conflict>,
    /// The rule that was applied; `None` without a conflict.
    pub(crate) rule: Option<ResolutionRule>,
    pub(crate) raw: Vec<usize>,
    pub(crate) resolved: Vec<usize>,
    pub(crate) raw_payoffs: Vec<f64>,
    pub(crate) resolved_payoffs: Vec<f64>,
    pub(crate) disagreement: Vec<f64>,
    pub(crate) regret: Vec<f64>,
    pub(crate) is_equilibrium: bool,
    pub(crate) allowed: usize,
    pub(crate) joint_actions: usize,
    pub(crate) efficient: Vec<(Vec<usize>, Vec<f64>)>,
    pub(crate) explanation: String,
}

impl Resolution {
    /// The name of the rule that was applied; empty without a conflict.
    pub(crate) fn method(&self) -> &'static str {
        self.rule.map_or("", ResolutionRule::as_str)
    }
}

/// The constraints that always hold among the four agents.
pub(crate) fn built_in() -> Vec<Constraint> {
    let condition = |party: &str, comparison, value| Condition {
        party: party.to_owned(),
        comparison,
        value,
    };
    vec![
        Constraint {
            name: "policy_ethical_mismatch".to_owned(),
            conditions: vec![
                condition("policy", Comparison::Above, 7.0),
                condition("ethical", Comparison::Below, 3.0),
            ],
        },
        Constraint {
            name: "resource_over_allocation".to_owned(),
            conditions: vec![condition("resource", Comparison::Above, 0.95)],
        },
    ]
}

/// The game in which each agent's payoff is its own value of its own action.
pub(crate) fn own_values(values: &[Vec<f64>]) -> Result<Game, OrchestrationError> {
    let shape: Vec<usize> = values.iter().map(Vec::len).collect();
    let cells: usize = shape.iter().product();
    let mut payoffs = vec![Vec::with_capacity(cells); values.len()];
    let mut stride = cells;
    for ((tensor, own), actions) in payoffs.iter_mut().zip(values).zip(&shape) {
        stride /= actions;
        tensor.extend((0..cells).map(|cell| own[cell / stride % actions]));
    }
    Ok(Game::new(shape, payoffs)?)
}

impl Dispute {
    /// Finds the conflicts of the raw joint action, and the joint action that the rule chooses.
    pub(crate) fn resolve(&self) -> Result<Resolution, OrchestrationError> {
        if self.game.cells() > MAX_JOINT_ACTIONS {
            let given = self.game.cells();
            return Err(OrchestrationError::DisputeTooLarge(
                given,
                MAX_JOINT_ACTIONS,
            ));
        }
        let raw: Vec<usize> = self.parties.iter().map(|p| p.raw).collect();
        let bound: Vec<Bound<'_>> = self
            .constraints
            .iter()
            .filter_map(|c| self.bind(c))
            .collect();
        let conflicts = self.conflicts(&bound, &raw)?;
        let allowed: Vec<usize> = (0..self.game.cells())
            .filter(|cell| {
                let joint = self.game.joint(*cell);
                !bound.iter().any(|b| self.forbids(b, &joint))
            })
            .collect();
        let disagreement = match &self.disagreement {
            Some(given) => given.clone(),
            None => (0..self.parties.len()).map(|i| self.security(i)).collect(),
        };
        let (resolved, explanation) = if conflicts.is_empty() {
            (self.game.cell(&raw), "nothing is in conflict".to_owned())
        } else {
            self.choose(&allowed, &disagreement)?
        };
        let resolved = self.game.joint(resolved);
        let (regret, is_equilibrium) = self.regrets(&resolved)?;
        Ok(Resolution {
            rule: (!conflicts.is_empty()).then_some(self.rule),
            raw_payoffs: self.payoffs(&raw),
            resolved_payoffs: self.payoffs(&resolved),
            efficient: self.efficient(&allowed),
            allowed: allowed.len(),
            joint_actions: self.game.cells(),
            conflicts,
            raw,
            resolved,
            disagreement,
            regret,
            is_equilibrium,
            explanation,
        })
    }

    fn conflicts(
        &self,
        bound: &[Bound<'_>],
        raw: &[usize],
    ) -> Result<Vec<Conflict>, OrchestrationError> {
        let mut conflicts: Vec<Conflict> = bound
            .iter()
            .filter(|b| self.forbids(b, raw))
            .map(|b| Conflict {
                name: b.constraint.name.clone(),
                kind: ConflictKind::Constraint,
                parties: (b.conditions.iter())
                    .map(|(party, ..)| self.parties[*party].name.clone())
                    .collect(),
                description: self.describe(b, raw),
            })
            .collect();
        let (regrets, _) = self.regrets(raw)?;
        for (i, party) in self.parties.iter().enumerate() {
            if regrets[i] > self.tolerance * self.game.span(i) {
                conflicts.push(Conflict {
                    name: "unilateral_gain".to_owned(),
                    kind: ConflictKind::Regret,
                    parties: vec![party.name.clone()],
                    description: format!(
                        "{} could gain {} by another action than {}",
                        party.name,
                        short(regrets[i]),
                        self.name(i, raw[i])
                    ),
                });
            }
        }
        Ok(conflicts)
    }

    fn describe(&self, bound: &Bound<'_>, joint: &[usize]) -> String {
        let parts = bound.conditions.iter().map(|(party, comparison, value)| {
            let relation = match comparison {
                Comparison::Above => "above",
                Comparison::Below => "below",
                Comparison::Equal => "equal to",
            };
            let (name, action) = (&self.parties[*party].name, self.name(*party, joint[*party]));
            format!("{name} would do {action}, {relation} {value}")
        });
        parts.collect::<Vec<_>>().join(" and ")
    }

    /// Finds a constraint's parties. One that names an absent party cannot be broken.
    fn bind<'a>(&self, constraint: &'a Constraint) -> Option<Bound<'a>> {
        let conditions = constraint.conditions.iter().map(|condition| {
            let party = self
                .parties
                .iter()
                .position(|p| p.name == condition.party)?;
            Some((party, condition.comparison, condition.value))
        });
        Some(Bound {
            constraint,
            conditions: conditions.collect::<Option<_>>()?,
        })
    }

    fn forbids(&self, bound: &Bound<'_>, joint: &[usize]) -> bool {
        bound.conditions.iter().all(|(party, comparison, value)| {
            let number = self.parties[*party].actions[joint[*party]].1;
            match comparison {
                Comparison::Above => number > *value,
                Comparison::Below => number < *value,
                Comparison::Equal => number == *value,
            }
        })
    }

    /// The rule's choice among the allowed joint actions, with its explanation.
    fn choose(
        &self,
        allowed: &[usize],
        disagreement: &[f64],
    ) -> Result<(usize, String), OrchestrationError> {
        let gains: Vec<Vec<f64>> = allowed
            .iter()
            .map(|cell| self.gains(*cell, disagreement))
            .collect();
        let rule = self.rule.as_str();
        if let Some(best) = bargaining::outcome(self.rule.rule(), &gains) {
            let text = format!(
                "{rule}: the best of {} allowed joint actions, of {}, in which nobody has less than \
                 without an agreement",
                allowed.len(),
                self.game.cells()
            );
            return Ok((allowed[best], text));
        }
        let least = |gains: &Vec<f64>| gains.iter().copied().fold(f64::INFINITY, f64::min);
        let best = (0..allowed.len())
            .max_by(|a, b| least(&gains[*a]).total_cmp(&least(&gains[*b])))
            .ok_or(OrchestrationError::NothingAllowed(self.game.cells()))?;
        let text = format!(
            "in every allowed joint action somebody has less than without an agreement, so that {rule} \
             has no answer: the one with the least loss"
        );
        Ok((allowed[best], text))
    }

    /// The gains of a joint action over the disagreement, as shares of each party's payoff range.
    fn gains(&self, cell: usize, disagreement: &[f64]) -> Vec<f64> {
        (0..self.parties.len())
            .map(|i| {
                let (gain, span) = (
                    self.game.payoffs(i)[cell] - disagreement[i],
                    self.game.span(i),
                );
                let weight = match (&self.weights, self.rule) {
                    (Some(weights), ResolutionRule::Weighted) => weights[i],
                    _ => 1.0,
                };
                if span > 0.0 {
                    weight * gain / span
                } else {
                    0.0
                }
            })
            .collect()
    }

    /// The security level of a party: its best payoff in pure actions whatever the others do.
    fn security(&self, party: usize) -> f64 {
        let actions = self.parties[party].actions.len();
        let mut worst = vec![f64::INFINITY; actions];
        for (cell, payoff) in self.game.payoffs(party).iter().enumerate() {
            let own = self.game.joint(cell)[party];
            worst[own] = worst[own].min(*payoff);
        }
        worst.into_iter().fold(f64::NEG_INFINITY, f64::max)
    }

    fn regrets(&self, joint: &[usize]) -> Result<(Vec<f64>, bool), OrchestrationError> {
        let strategies: Vec<Vec<f64>> = self
            .parties
            .iter()
            .zip(joint)
            .map(|(party, action)| {
                let mut strategy = vec![0.0; party.actions.len()];
                strategy[*action] = 1.0;
                strategy
            })
            .collect();
        let certified = self.game.verify(&strategies, self.tolerance)?;
        let converged = certified.converged();
        Ok((certified.regret, converged))
    }

    fn payoffs(&self, joint: &[usize]) -> Vec<f64> {
        let cell = self.game.cell(joint);
        (0..self.parties.len())
            .map(|i| self.game.payoffs(i)[cell])
            .collect()
    }

    fn efficient(&self, allowed: &[usize]) -> Vec<(Vec<usize>, Vec<f64>)> {
        let points: Vec<Vec<f64>> = allowed
            .iter()
            .map(|cell| self.payoffs(&self.game.joint(*cell)))
            .collect();
        let front = pareto::front(&points).into_iter().take(LISTED);
        front
            .map(|k| (self.game.joint(allowed[k]), points[k].clone()))
            .collect()
    }

    pub(crate) fn name(&self, party: usize, action: usize) -> &str {
        &self.parties[party].actions[action].0
    }
}

fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
