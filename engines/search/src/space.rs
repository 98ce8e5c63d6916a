//! What may be tried.

use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Flag(bool),
    Number(f64),
    Text(String),
}

pub type Assignment = BTreeMap<String, Value>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Range {
    Float { low: f64, high: f64, log: bool },
    Int { low: i64, high: i64, log: bool },
    Categorical { values: Vec<Value> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    pub name: String,
    pub range: Range,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Space {
    parameters: Vec<Parameter>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    #[error("the space has no parameters")]
    Empty,
    #[error("{0} is there twice")]
    Twice(String),
    #[error("{0}: low must be below high, or equal to it, and both finite")]
    Bounds(String),
    #[error("{0}: a logarithmic range must be above zero")]
    Log(String),
    #[error("{0} has no values, or one of them twice")]
    Values(String),
}

/// Whole numbers that a double holds exactly.
const MAX_INT: i64 = 1 << 53;

impl Range {
    fn check(&self, name: &str) -> Result<(), SpaceError> {
        let bounds = |ok: bool| {
            if ok {
                Ok(())
            } else {
                Err(SpaceError::Bounds(name.to_owned()))
            }
        };
        let positive = |ok: bool| {
            if ok {
                Ok(())
            } else {
                Err(SpaceError::Log(name.to_owned()))
            }
        };
        match self {
            Self::Float { low, high, log } => {
                bounds(low.is_finite() && high.is_finite() && low <= high)?;
                positive(!log || *low > 0.0)
            }
            Self::Int { low, high, log } => {
                bounds(low <= high && *low >= -MAX_INT && *high <= MAX_INT)?;
                positive(!log || *low > 0)
            }
            Self::Categorical { values } => {
                let distinct = values
                    .iter()
                    .enumerate()
                    .all(|(i, v)| !values[..i].contains(v));
                let good = !values.is_empty() && distinct;
                if good {
                    Ok(())
                } else {
                    Err(SpaceError::Values(name.to_owned()))
                }
            }
        }
    }

    pub(crate) fn sample(&self, rng: &mut StdRng) -> Value {
        match self {
            Self::Categorical { values } => values[rng.random_range(0..values.len())].clone(),
            numeric => {
                let (low, high) = numeric.ends();
                let at = if low < high {
                    rng.random_range(low..high)
                } else {
                    low
                };
                numeric.outer(at)
            }
        }
    }

    /// The range in the space that samplers work in: logarithmic where asked, and half a step
    /// wider on each side for whole numbers, so that the ends are as likely as the middle.
    pub(crate) fn ends(&self) -> (f64, f64) {
        let inner = |v: f64, log: bool| if log { v.ln() } else { v };
        match self {
            Self::Float { low, high, log } => (inner(*low, *log), inner(*high, *log)),
            Self::Int { low, high, log } => (
                inner(*low as f64 - 0.5, *log),
                inner(*high as f64 + 0.5, *log),
            ),
            Self::Categorical { .. } => (0.0, 0.0),
        }
    }

    pub(crate) fn inner_of(&self, value: &Value) -> Option<f64> {
        let Value::Number(n) = value else {
            return None;
        };
        match self {
            Self::Float { log, .. } | Self::Int { log, .. } => Some(if *log { n.ln() } else { *n }),
            Self::Categorical { .. } => None,
        }
    }

    pub(crate) fn outer(&self, at: f64) -> Value {
        Value::Number(match self {
            Self::Float { low, high, log } => (if *log { at.exp() } else { at }).clamp(*low, *high),
            Self::Int { low, high, log } => {
                let n = (if *log { at.exp() } else { at }).round();
                n.clamp(*low as f64, *high as f64)
            }
            Self::Categorical { .. } => at,
        })
    }
}

impl Space {
    pub fn new(parameters: Vec<Parameter>) -> Result<Self, SpaceError> {
        if parameters.is_empty() {
            return Err(SpaceError::Empty);
        }
        let mut names = BTreeSet::new();
        for parameter in &parameters {
            parameter.range.check(&parameter.name)?;
            if !names.insert(parameter.name.as_str()) {
                return Err(SpaceError::Twice(parameter.name.clone()));
            }
        }
        Ok(Self { parameters })
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub fn sample(&self, rng: &mut StdRng) -> Assignment {
        self.parameters
            .iter()
            .map(|p| (p.name.clone(), p.range.sample(rng)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn parameter(name: &str, range: Range) -> Parameter {
        Parameter {
            name: name.into(),
            range,
        }
    }

    #[test]
    fn broken_spaces_are_refused() {
        let float = |low, high, log| Range::Float { low, high, log };
        let refused = |p: Vec<Parameter>| Space::new(p).unwrap_err();
        assert_eq!(refused(vec![]), SpaceError::Empty);
        assert!(matches!(
            refused(vec![parameter("a", float(1.0, 0.0, false))]),
            SpaceError::Bounds(_)
        ));
        assert!(matches!(
            refused(vec![parameter("a", float(f64::NAN, 1.0, false))]),
            SpaceError::Bounds(_)
        ));
        assert!(matches!(
            refused(vec![parameter("a", float(0.0, 1.0, true))]),
            SpaceError::Log(_)
        ));
        let two = vec![
            parameter("a", float(0.0, 1.0, false)),
            parameter("a", float(0.0, 1.0, false)),
        ];
        assert!(matches!(refused(two), SpaceError::Twice(_)));
        let values = |v: Vec<Value>| vec![parameter("a", Range::Categorical { values: v })];
        assert!(matches!(refused(values(vec![])), SpaceError::Values(_)));
        assert!(matches!(
            refused(values(vec![Value::Flag(true), Value::Flag(true)])),
            SpaceError::Values(_)
        ));
    }

    #[test]
    fn samples_stay_inside_and_reach_the_ends() {
        let space = Space::new(vec![
            parameter(
                "f",
                Range::Float {
                    low: 1e-5,
                    high: 1e-2,
                    log: true,
                },
            ),
            parameter(
                "i",
                Range::Int {
                    low: 1,
                    high: 3,
                    log: true,
                },
            ),
            parameter(
                "c",
                Range::Categorical {
                    values: vec![Value::Text("x".into()), Value::Flag(false)],
                },
            ),
            parameter(
                "one",
                Range::Float {
                    low: 2.0,
                    high: 2.0,
                    log: false,
                },
            ),
        ])
        .unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let mut ints = BTreeSet::new();
        for _ in 0..500 {
            let a = space.sample(&mut rng);
            let Value::Number(f) = a["f"] else { panic!() };
            let Value::Number(i) = a["i"] else { panic!() };
            assert!(
                (1e-5..=1e-2).contains(&f) && i.fract() == 0.0 && a["one"] == Value::Number(2.0)
            );
            ints.insert(i as i64);
        }
        assert_eq!(ints, [1, 2, 3].into());
    }
}
