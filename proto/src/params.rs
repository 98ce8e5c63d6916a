//! Hyperparameters. On the wire they are a `google.protobuf.Struct`, so that JSON clients write plain numbers,
//! strings and booleans; in memory they are a sorted map of typed values.

use prost_types::value::Kind;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The value of one hyperparameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Param {
    /// A boolean.
    Flag(bool),
    /// A number, integers included.
    Number(f64),
    /// A string.
    Text(String),
}

/// Hyperparameters by name.
pub type Params = BTreeMap<String, Param>;

/// The value of this hyperparameter is a list, an object or null.
#[derive(Debug, thiserror::Error)]
#[error("{0} must be a number, a string or a boolean")]
pub struct NotScalar(pub String);

impl Param {
    /// Returns the value if it is a number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(n) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(b) => b.fmt(f),
            Self::Number(n) if n.abs() >= 1e-3 && n.abs() < 1e6 || *n == 0.0 => {
                let text = format!("{n:.6}");
                f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
            }
            Self::Number(n) => write!(f, "{n:.3e}"),
            Self::Text(s) => s.fmt(f),
        }
    }
}

impl From<Param> for prost_types::Value {
    fn from(param: Param) -> Self {
        let kind = match param {
            Param::Flag(b) => Kind::BoolValue(b),
            Param::Number(n) => Kind::NumberValue(n),
            Param::Text(s) => Kind::StringValue(s),
        };
        Self { kind: Some(kind) }
    }
}

/// Converts one value.
///
/// # Errors
///
/// [`NotScalar`] with `name` when the value is not a scalar.
pub fn from_value(name: &str, value: prost_types::Value) -> Result<Param, NotScalar> {
    match value.kind {
        Some(Kind::BoolValue(b)) => Ok(Param::Flag(b)),
        Some(Kind::NumberValue(n)) => Ok(Param::Number(n)),
        Some(Kind::StringValue(s)) => Ok(Param::Text(s)),
        _ => Err(NotScalar(name.to_owned())),
    }
}

/// Converts hyperparameters from the wire.
///
/// # Errors
///
/// [`NotScalar`] with the name of the first value that is not a scalar.
pub fn from_struct(value: prost_types::Struct) -> Result<Params, NotScalar> {
    value
        .fields
        .into_iter()
        .map(|(name, value)| from_value(&name, value).map(|v| (name, v)))
        .collect()
}

/// Converts hyperparameters for the wire.
pub fn to_struct(params: &Params) -> prost_types::Struct {
    prost_types::Struct {
        fields: params
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect(),
    }
}
