//! Hyperparameters: their names, bounds, defaults and search ranges, and the typed form that a
//! learner reads. A value outside its bounds never reaches a learner.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A hyperparameter's value in its untyped form, as it is stored and sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A switch.
    Flag(bool),
    /// A number; integers are whole numbers.
    Number(f64),
}

/// Values by the parameters' names.
pub type Values = BTreeMap<String, Value>;

/// The type of a parameter and its inclusive bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any number within the bounds.
    Float {
        /// The lowest value.
        low: f64,
        /// The highest value.
        high: f64,
    },
    /// A whole number within the bounds.
    Int {
        /// The lowest value.
        low: i64,
        /// The highest value.
        high: i64,
    },
    /// True or false.
    Flag,
}

/// The range that a search explores by default, which is narrower than the bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    /// An interval of real numbers.
    Float {
        /// The lowest value.
        low: f64,
        /// The highest value.
        high: f64,
        /// Whether the search is uniform in the logarithm.
        log: bool,
    },
    /// A list of numbers without an order.
    Choices(&'static [f64]),
    /// Both values of a flag.
    Flag,
    /// An interval of whole numbers.
    Int {
        /// The lowest value.
        low: i64,
        /// The highest value.
        high: i64,
        /// Whether the search is uniform in the logarithm.
        log: bool,
    },
}

/// One hyperparameter of an algorithm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// The name that values are given by.
    pub name: &'static str,
    /// Its type and bounds.
    pub kind: Kind,
    /// The value of an agent that sets none.
    pub default: Value,
    /// The range that a search explores when the study gives no space.
    pub search: Search,
    /// Whether a running learner takes a new value; it is fixed at the start otherwise.
    pub reloadable: bool,
}

/// A value that a [`Spec`] does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamViolation {
    /// The name as it was given; it need not be a parameter's.
    pub name: String,
    /// What is required, to be read after the name: "must be between 0.9 and 0.9999".
    pub problem: String,
}

/// The hyperparameters of one algorithm.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// All parameters, in the order in which they are shown.
    pub parameters: &'static [Parameter],
}

/// A parameter that is any number within its bounds, and is reloadable.
pub(crate) const fn float(
    name: &'static str,
    low: f64,
    high: f64,
    default: f64,
    search: Search,
) -> Parameter {
    Parameter {
        name,
        kind: Kind::Float { low, high },
        default: Value::Number(default),
        search,
        reloadable: true,
    }
}

/// A parameter that is a whole number within its bounds, and is reloadable.
pub(crate) const fn int(
    name: &'static str,
    low: i64,
    high: i64,
    default: i64,
    search: Search,
) -> Parameter {
    Parameter {
        name,
        kind: Kind::Int { low, high },
        default: Value::Number(default as f64),
        search,
        reloadable: true,
    }
}

/// A parameter that is a switch, and is reloadable.
pub(crate) const fn flag(name: &'static str, default: bool) -> Parameter {
    Parameter {
        name,
        kind: Kind::Flag,
        default: Value::Flag(default),
        search: Search::Flag,
        reloadable: true,
    }
}

/// A search that is uniform.
pub(crate) const fn linear(low: f64, high: f64) -> Search {
    Search::Float {
        low,
        high,
        log: false,
    }
}

/// A search that is uniform in the logarithm.
pub(crate) const fn log(low: f64, high: f64) -> Search {
    Search::Float {
        low,
        high,
        log: true,
    }
}

/// A search over whole numbers that is uniform in the logarithm.
pub(crate) const fn log_int(low: i64, high: i64) -> Search {
    Search::Int {
        low,
        high,
        log: true,
    }
}

/// What [`Run`](crate::Run) takes. The learner of the same name in the
/// [registry](crate::algorithm::ALGORITHMS) has more.
const DQN: &[Parameter] = &[
    float("learning_rate", 1e-6, 1e-1, 1e-3, log(1e-5, 1e-2)),
    float("gamma", 0.9, 0.9999, 0.95, linear(0.95, 0.999)),
    float("epsilon_start", 0.5, 1.0, 1.0, linear(0.9, 1.0)),
    float("epsilon_end", 0.001, 0.2, 0.01, log(0.01, 0.1)),
    float("epsilon_decay", 0.9, 0.99999, 0.995, linear(0.9, 0.9999)),
    int(
        "buffer_size",
        1_000,
        10_000_000,
        10_000,
        log_int(5_000, 100_000),
    ),
    int(
        "batch_size",
        8,
        1024,
        64,
        Search::Choices(&[16.0, 32.0, 64.0, 128.0]),
    ),
    int("target_update", 1, 10_000, 10, log_int(1, 50)),
    float("tau", 1e-4, 1.0, 0.005, log(0.005, 1.0)),
    int(
        "hidden_dim",
        16,
        1024,
        64,
        Search::Choices(&[32.0, 64.0, 128.0]),
    ),
    flag("double_dqn", true),
];

/// The hyperparameters of the algorithm that a [`Run`](crate::Run) trains; `None` when it trains no such
/// algorithm.
pub fn spec_of(algorithm: &str) -> Option<Spec> {
    (algorithm == "dqn").then_some(Spec { parameters: DQN })
}

impl Spec {
    /// The default of every parameter.
    pub fn defaults(&self) -> Values {
        self.parameters
            .iter()
            .map(|p| (p.name.to_owned(), p.default))
            .collect()
    }

    /// Checks values, of which some parameters may be missing.
    ///
    /// # Errors
    ///
    /// Every violation: unknown names, wrong types, values out of bounds.
    pub fn check(&self, values: &Values) -> Result<(), Vec<ParamViolation>> {
        let violations: Vec<ParamViolation> = values
            .iter()
            .filter_map(|(name, value)| {
                let problem = match self.parameters.iter().find(|p| p.name == name) {
                    None => Some("is not a parameter of this algorithm".to_owned()),
                    Some(parameter) => parameter.problem(*value),
                };
                problem.map(|problem| ParamViolation {
                    name: name.clone(),
                    problem,
                })
            })
            .collect();
        if violations.is_empty() {
            Ok(())
        } else {
            Err(violations)
        }
    }

    /// Checks values and adds the defaults of the missing parameters.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check).
    pub fn complete(&self, values: &Values) -> Result<Values, Vec<ParamViolation>> {
        self.check(values)?;
        let mut all = self.defaults();
        all.extend(values.clone());
        Ok(all)
    }
}

/// The values of all parameters of an algorithm, within their bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Complete(BTreeMap<String, Wire>);

/// A [`Value`] in a format that does not describe itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Wire {
    Flag(bool),
    Number(f64),
}

impl Complete {
    /// The values by name.
    pub(crate) fn values(&self) -> Values {
        let value = |wire: &Wire| match *wire {
            Wire::Flag(flag) => Value::Flag(flag),
            Wire::Number(number) => Value::Number(number),
        };
        let named = |(name, wire): (&String, &Wire)| (name.clone(), value(wire));
        self.0.iter().map(named).collect()
    }

    /// The value of a number.
    pub(crate) fn number(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(Wire::Number(number)) => *number,
            _ => unreachable!("{name} is a number of the algorithm"),
        }
    }

    /// The value of a number, in single precision.
    pub(crate) fn float(&self, name: &str) -> f32 {
        self.number(name) as f32
    }

    /// The value of a whole number that is not negative.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.number(name) as usize
    }

    /// The value of a switch.
    pub(crate) fn flag(&self, name: &str) -> bool {
        match self.0.get(name) {
            Some(Wire::Flag(flag)) => *flag,
            _ => unreachable!("{name} is a switch of the algorithm"),
        }
    }
}

impl Spec {
    /// As [`complete`](Self::complete), in the form that learners read.
    pub(crate) fn typed(&self, values: &Values) -> Result<Complete, Vec<ParamViolation>> {
        let wire = |value| match value {
            Value::Flag(flag) => Wire::Flag(flag),
            Value::Number(number) => Wire::Number(number),
        };
        let all = self.complete(values)?.into_iter();
        Ok(Complete(all.map(|(name, v)| (name, wire(v))).collect()))
    }

    /// What a running learner's values become when some are reloaded.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check), and for parameters that are fixed at the start and would change.
    pub(crate) fn reload(
        &self,
        present: &Complete,
        values: &Values,
    ) -> Result<Complete, Vec<ParamViolation>> {
        self.check(values)?;
        let mut all = present.values();
        let is_fixed = |(name, value): &(&String, &Value)| {
            let parameter = self.parameters.iter().find(|p| p.name == name.as_str());
            parameter.is_some_and(|p| !p.reloadable) && all.get(*name) != Some(*value)
        };
        let violation = |(name, _): (&String, &Value)| ParamViolation {
            name: name.clone(),
            problem: "is fixed when the learner starts".to_owned(),
        };
        let fixed: Vec<_> = values.iter().filter(is_fixed).map(violation).collect();
        if !fixed.is_empty() {
            return Err(fixed);
        }
        all.extend(values.clone());
        self.typed(&all)
    }
}

impl Parameter {
    /// The same parameter, fixed when a learner starts.
    pub(crate) const fn fixed(self) -> Self {
        Self {
            reloadable: false,
            ..self
        }
    }

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

/// The hyperparameters of a DQN learner, typed and within their bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DqnParams {
    /// The step size of Adam; 1e-6..=0.1, by default 1e-3.
    pub learning_rate: f32,
    /// The discount of one step; 0.9..=0.9999, by default 0.95.
    pub gamma: f32,
    /// The probability of a random action at the start; 0.5..=1, by default 1.
    pub epsilon_start: f64,
    /// The probability of a random action that decay ends at; 0.001..=0.2, by default 0.01.
    pub epsilon_end: f64,
    /// The factor of epsilon after each episode; 0.9..=0.99999, by default 0.995.
    pub epsilon_decay: f64,
    /// The capacity of the replay buffer, in transitions; 1000..=10 million, by default 10000.
    pub buffer_size: usize,
    /// The transitions of a minibatch; 8..=1024, by default 64.
    pub batch_size: usize,
    /// Episodes between two updates of the target network; 1..=10000, by default 10.
    pub target_update: u64,
    /// The share by which the target network moves towards the online one, 1 being a copy;
    /// 1e-4..=1, by default 0.005.
    pub tau: f32,
    /// The units of each of the two hidden layers; 16..=1024, by default 64.
    pub hidden_dim: usize,
    /// Whether targets use double Q-learning; true by default.
    pub double_dqn: bool,
}

impl DqnParams {
    /// Checks values and converts them; missing ones get their defaults.
    ///
    /// # Errors
    ///
    /// As for [`Spec::check`].
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
    fn defaults_and_search_ranges_are_within_the_bounds() {
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
    fn every_violation_is_reported_by_name() {
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
            let violations = spec.check(&one(name, value)).unwrap_err();
            assert_eq!(violations[0].name, name);
        }
        let mut two = one("gamma", Value::Number(2.0));
        two.extend(one("nope", Value::Flag(true)));
        assert_eq!(spec.check(&two).unwrap_err().len(), 2);
    }
}
