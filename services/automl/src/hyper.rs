//! Conversions between a search's assignments and hyperparameters.

use tars_proto::params::{Param, Params};
use tars_search::{Assignment, Range, Space, Value};

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

/// The largest value of each parameter of a space, by which a learner becomes the largest that a trial may have.
pub(crate) fn largest(space: &Space) -> Params {
    let largest = |p: &tars_search::Parameter| Some((p.name.clone(), largest_of(&p.range)?));
    space.parameters().iter().filter_map(largest).collect()
}

fn largest_of(range: &Range) -> Option<Param> {
    match range {
        Range::Float { high, .. } => Some(Param::Number(*high)),
        Range::Int { high, .. } => Some(Param::Number(*high as f64)),
        Range::Categorical { values } => {
            let rank = |value: &Value| match value {
                Value::Flag(flag) => f64::from(u8::from(*flag)),
                Value::Number(number) => *number,
                Value::Text(_) => f64::NEG_INFINITY,
            };
            let most = values.iter().max_by(|a, b| rank(a).total_cmp(&rank(b)));
            most.map(param)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_of_each_parameter_is_the_end_of_its_range() {
        let parameter = |name: &str, range| tars_search::Parameter {
            name: name.to_owned(),
            range,
        };
        let space = Space::new(vec![
            parameter(
                "buffer_size",
                Range::Int {
                    low: 1_000,
                    high: 9_000,
                    log: true,
                },
            ),
            parameter(
                "tau",
                Range::Float {
                    low: 0.1,
                    high: 0.5,
                    log: false,
                },
            ),
            parameter(
                "hidden_dim",
                Range::Categorical {
                    values: [64.0, 512.0, 128.0].map(Value::Number).to_vec(),
                },
            ),
            parameter(
                "dueling",
                Range::Categorical {
                    values: vec![Value::Flag(true), Value::Flag(false)],
                },
            ),
        ]);
        let largest = largest(&space.unwrap());
        assert_eq!(largest["buffer_size"], Param::Number(9_000.0));
        assert_eq!(largest["tau"], Param::Number(0.5));
        assert_eq!(largest["hidden_dim"], Param::Number(512.0));
        assert_eq!(largest["dueling"], Param::Flag(true));
    }
}
