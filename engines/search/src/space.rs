//! Search spaces: named parameters, each with a range.

use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A categorical boolean.
    Flag(bool),
    /// A number; values of an integer range are whole numbers.
    Number(f64),
    /// A categorical name.
    Text(String),
}

/// The parameters of a trial by name.
pub type Assignment = BTreeMap<String, Value>;

/// The values that a parameter may take; both ends are included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Range {
    /// An interval of real numbers.
    Float {
        /// The lowest value.
        low: f64,
        /// The highest value.
        high: f64,
        /// Whether to search in the logarithm; `low` must then be above zero.
        log: bool,
    },
    /// An interval of whole numbers.
    Int {
        /// The lowest value, at least -2^53.
        low: i64,
        /// The highest value, at most 2^53.
        high: i64,
        /// Whether to search in the logarithm; `low` must then be above zero.
        log: bool,
    },
    /// A choice without an order.
    Categorical {
        /// The choices: at least one, all different.
        values: Vec<Value>,
    },
}

/// A parameter of a search space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// The name, unique within its space.
    pub name: String,
    /// The values to search.
    pub range: Range,
}

/// A search space that has been checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Space {
    parameters: Vec<Parameter>,
}

/// Why parameters are not a search space. All but the first name the parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// There are no parameters.
    #[error("the space has no parameters")]
    Empty,
    /// Two parameters have the same name.
    #[error("{0} is defined twice")]
    Duplicate(String),
    /// An interval is empty, infinite or not exactly representable.
    #[error("{0}: low must not be above high, and both must be finite")]
    Bounds(String),
    /// A logarithmic interval reaches zero or below.
    #[error("{0}: a logarithmic range must be above zero")]
    Log(String),
    /// A list of choices is empty or has duplicates.
    #[error("{0} must have at least one value and no duplicates")]
    Values(String),
}

/// The largest magnitude up to which a double holds every whole number.
const MAX_INT: i64 = 1 << 53;

impl Range {
    fn check(&self, name: &str) -> Result<(), SpaceError> {
        let require = |ok: bool, error: fn(String) -> SpaceError| match ok {
            true => Ok(()),
            false => Err(error(name.to_owned())),
        };
        match self {
            Self::Float { low, high, log } => {
                let is_interval = low.is_finite() && high.is_finite() && low <= high;
                require(is_interval, SpaceError::Bounds)?;
                require(!log || *low > 0.0, SpaceError::Log)
            }
            Self::Int { low, high, log } => {
                let is_interval = low <= high && *low >= -MAX_INT && *high <= MAX_INT;
                require(is_interval, SpaceError::Bounds)?;
                require(!log || *low > 0, SpaceError::Log)
            }
            Self::Categorical { values } => {
                let mut numbered = values.iter().enumerate();
                let distinct = numbered.all(|(i, v)| !values[..i].contains(v));
                require(!values.is_empty() && distinct, SpaceError::Values)
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
                numeric.to_external(at)
            }
        }
    }

    /// The ends of the internal range that samplers work in: logarithmic if so configured, and half
    /// a step wider on each side for whole numbers, so that the ends are as likely as the middle.
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

    /// A value in the internal range; `None` for one that is not of this range's type.
    pub(crate) fn to_internal(&self, value: &Value) -> Option<f64> {
        let Value::Number(n) = value else {
            return None;
        };
        match self {
            Self::Float { log, .. } | Self::Int { log, .. } => Some(if *log { n.ln() } else { *n }),
            Self::Categorical { .. } => None,
        }
    }

    /// The value at a point of the internal range, rounded and clamped to the range.
    pub(crate) fn to_external(&self, at: f64) -> Value {
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
    /// Checks parameters and makes a space of them.
    ///
    /// # Errors
    ///
    /// The first mistake; see [`SpaceError`].
    pub fn new(parameters: Vec<Parameter>) -> Result<Self, SpaceError> {
        if parameters.is_empty() {
            return Err(SpaceError::Empty);
        }
        let mut names = BTreeSet::new();
        for parameter in &parameters {
            parameter.range.check(&parameter.name)?;
            if !names.insert(parameter.name.as_str()) {
                return Err(SpaceError::Duplicate(parameter.name.clone()));
            }
        }
        Ok(Self { parameters })
    }

    /// The parameters, in the order in which they were given.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Draws each parameter uniformly from its internal range.
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
    fn malformed_spaces_are_refused() {
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
        assert!(matches!(refused(two), SpaceError::Duplicate(_)));
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
