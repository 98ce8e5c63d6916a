//! Conversions between a search's assignments and hyperparameters.

use tars_proto::params::{Param, Params};
use tars_search::{Assignment, Value};

pub(crate) fn params(assignment: &Assignment) -> Params {
    let param = |(name, value): (&String, &Value)| (name.clone(), param(value));
    assignment.iter().map(param).collect()
}

pub(crate) fn param(value: &Value) -> Param {
    match value {
        Value::Flag(b) => Param::Flag(*b),
        Value::Number(n) => Param::Number(*n),
        Value::Text(s) => Param::Text(s.clone()),
    }
}

pub(crate) fn value(param: Param) -> Value {
    match param {
        Param::Flag(b) => Value::Flag(b),
        Param::Number(n) => Value::Number(n),
        Param::Text(s) => Value::Text(s),
    }
}
