//! Hyperparameters: their names, bounds, defaults and search ranges, and the typed form that an
//! algorithm reads. What is outside its bounds never reaches a learner.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value as it comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Flag(bool),
    Number(f64),
}

pub type Values = BTreeMap<String, Value>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Float { low: f64, high: f64 },
    Int { low: i64, high: i64 },
    Flag,
}

/// The range that a search looks through: narrower than the bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    Float { low: f64, high: f64, log: bool },
    Choices(&'static [f64]),
    Flag,
    Int { low: i64, high: i64, log: bool },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Value,
    pub search: Search,
}

/// What is wrong with a set of values: the parameter and the problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamViolation {
    pub name: String,
    pub problem: String,
}

/// The parameters of one algorithm.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub parameters: &'static [Parameter],
}

const fn float(name: &'static str, low: f64, high: f64, default: f64, search: Search) -> Parameter {
    Parameter {
        name,
        kind: Kind::Float { low, high },
        default: Value::Number(default),
        search,
    }
}

const fn int(name: &'static str, low: i64, high: i64, default: f64, search: Search) -> Parameter {
    Parameter {
        name,
        kind: Kind::Int { low, high },
        default: Value::Number(default),
        search,
    }
}

const fn range(low: f64, high: f64, log: bool) -> Search {
    Search::Float { low, high, log }
}

const DQN: &[Parameter] = &[
    float("learning_rate", 1e-6, 1e-1, 1e-3, range(1e-5, 1e-2, true)),
    float("gamma", 0.9, 0.9999, 0.95, range(0.95, 0.999, false)),
    float("epsilon_start", 0.5, 1.0, 1.0, range(0.9, 1.0, false)),
    float("epsilon_end", 0.001, 0.2, 0.01, range(0.01, 0.1, true)),
    float(
        "epsilon_decay",
        0.9,
        0.99999,
        0.995,
        range(0.9, 0.9999, false),
    ),
    int(
        "buffer_size",
        1_000,
        10_000_000,
        10_000.0,
        Search::Int {
            low: 5_000,
            high: 100_000,
            log: true,
        },
    ),
    int(
        "batch_size",
        8,
        1024,
        64.0,
        Search::Choices(&[16.0, 32.0, 64.0, 128.0]),
    ),
    int(
        "target_update",
        1,
        10_000,
        10.0,
        Search::Int {
            low: 1,
            high: 50,
            log: true,
        },
    ),
    float("tau", 1e-4, 1.0, 0.005, range(0.005, 1.0, true)),
    int(
        "hidden_dim",
        16,
        1024,
        64.0,
        Search::Choices(&[32.0, 64.0, 128.0]),
    ),
    Parameter {
        name: "double_dqn",
        kind: Kind::Flag,
        default: Value::Flag(true),
        search: Search::Flag,
    },
];

/// The parameters of an algorithm by its name.
pub fn spec_of(algorithm: &str) -> Option<Spec> {
    (algorithm == "dqn").then_some(Spec { parameters: DQN })
}

impl Spec {
    pub fn defaults(&self) -> Values {
        self.parameters
            .iter()
            .map(|p| (p.name.to_owned(), p.default))
            .collect()
    }

    /// Everything that is wrong: unknown names, wrong kinds, values out of bounds.
    pub fn check(&self, values: &Values) -> Result<(), Vec<ParamViolation>> {
        let wrong: Vec<ParamViolation> = values
            .iter()
            .filter_map(|(name, value)| {
                let problem = match self.parameters.iter().find(|p| p.name == name) {
                    None => Some("is no parameter of this algorithm".to_owned()),
                    Some(parameter) => parameter.problem(*value),
                };
                problem.map(|problem| ParamViolation {
                    name: name.clone(),
                    problem,
                })
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The defaults with some values replaced; these must be right.
    pub fn complete(&self, values: &Values) -> Result<Values, Vec<ParamViolation>> {
        self.check(values)?;
        let mut all = self.defaults();
        all.extend(values.clone());
        Ok(all)
    }
}

impl Parameter {
    fn problem(&self, value: Value) -> Option<String> {
        match (self.kind, value) {
            (Kind::Flag, Value::Flag(_)) => None,
            (Kind::Flag, _) => Some("must be true or false".to_owned()),
            (_, Value::Flag(_)) => Some("must be a number".to_owned()),
            (Kind::Float { low, high }, Value::Number(n)) if n >= low && n <= high => None,
            (Kind::Float { low, high }, _) => Some(format!("must be between {low} and {high}")),
            (Kind::Int { low, high }, Value::Number(n))
                if n.fract() == 0.0 && n >= low as f64 && n <= high as f64 =>
            {
                None
            }
            (Kind::Int { low, high }, _) => {
                Some(format!("must be a whole number between {low} and {high}"))
            }
        }
    }
}

/// What a DQN learner reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DqnParams {
    pub learning_rate: f32,
    pub gamma: f32,
    pub epsilon_start: f64,
    pub epsilon_end: f64,
    pub epsilon_decay: f64,
    pub buffer_size: usize,
    pub batch_size: usize,
    pub target_update: u64,
    pub tau: f32,
    pub hidden_dim: usize,
    pub double_dqn: bool,
}

impl DqnParams {
    /// From checked values; what is left out has its default.
    pub fn from_values(values: &Values) -> Result<Self, Vec<ParamViolation>> {
        let all = Spec { parameters: DQN }.complete(values)?;
        let number = |name: &str| match all.get(name) {
            Some(Value::Number(n)) => *n,
            _ => 0.0,
        };
        Ok(Self {
            learning_rate: number("learning_rate") as f32,
            gamma: number("gamma") as f32,
            epsilon_start: number("epsilon_start"),
            epsilon_end: number("epsilon_end"),
            epsilon_decay: number("epsilon_decay"),
            buffer_size: number("buffer_size") as usize,
            batch_size: number("batch_size") as usize,
            target_update: number("target_update") as u64,
            tau: number("tau") as f32,
            hidden_dim: number("hidden_dim") as usize,
            double_dqn: all.get("double_dqn") == Some(&Value::Flag(true)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: Value) -> Values {
        [(name.to_owned(), value)].into()
    }

    #[test]
    fn defaults_are_within_bounds_and_searches_within_them() {
        let spec = spec_of("dqn").unwrap();
        spec.check(&spec.defaults()).unwrap();
        for p in spec.parameters {
            let ends: Vec<f64> = match p.search {
                Search::Float { low, high, .. } => vec![low, high],
                Search::Int { low, high, .. } => vec![low as f64, high as f64],
                Search::Choices(all) => all.to_vec(),
                Search::Flag => vec![],
            };
            for end in ends {
                assert_eq!(p.problem(Value::Number(end)), None, "{} {end}", p.name);
            }
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let spec = spec_of("dqn").unwrap();
        for (name, value) in [
            ("gamma", Value::Number(-7.0)),
            ("gamma", Value::Number(f64::NAN)),
            ("gamma", Value::Flag(true)),
            ("learning_rate", Value::Number(99_999.0)),
            ("batch_size", Value::Number(32.5)),
            ("double_dqn", Value::Number(1.0)),
            ("lr", Value::Number(0.1)),
            ("hidden_dim", Value::Number(1e9)),
        ] {
            let wrong = spec.check(&one(name, value)).unwrap_err();
            assert_eq!(wrong[0].name, name);
        }
        let mut two = one("gamma", Value::Number(2.0));
        two.extend(one("nope", Value::Flag(true)));
        assert_eq!(spec.check(&two).unwrap_err().len(), 2);
    }
}
