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
    /// The range that a search explores when the study gives no space; `None` when it leaves the parameter
    /// at its default.
    pub search: Option<Search>,
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
        search: Some(search),
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
        search: Some(search),
        reloadable: true,
    }
}

/// A parameter that is a switch, and is reloadable.
pub(crate) const fn flag(name: &'static str, default: bool) -> Parameter {
    Parameter {
        name,
        kind: Kind::Flag,
        default: Value::Flag(default),
        search: Some(Search::Flag),
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

/// A name that takes more edits than these is no misspelling.
const LIKELY_EDITS: usize = 2;
/// No parameter has a longer name.
const LONGEST_NAME: usize = 64;

/// The Levenshtein distance between two names.
fn edits(one: &str, other: &str) -> usize {
    if one.len() > LONGEST_NAME {
        return one.len();
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (before, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[before + 1];
            row[before + 1] = replaced.min(diagonal + 1).min(row[before] + 1);
        }
    }
    row[other.len()]
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
                    None => Some(self.unknown(name)),
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

    /// The problem of a name that is no parameter's, with the parameter that may be meant.
    fn unknown(&self, name: &str) -> String {
        let problem = "is not a parameter of this algorithm";
        let names = self.parameters.iter().map(|p| p.name);
        let nearest = names.min_by_key(|known| edits(name, known));
        match nearest.filter(|known| edits(name, known) <= LIKELY_EDITS) {
            Some(known) => format!("{problem}: did you mean {known}?"),
            None => problem.to_owned(),
        }
    }

    /// Removes the parameters that are fixed when a learner starts.
    pub fn retain_reloadable(&self, values: &mut Values) {
        let is_fixed = |name: &str| {
            let mut parameters = self.parameters.iter();
            parameters.any(|p| p.name == name && !p.reloadable)
        };
        values.retain(|name, _| !is_fixed(name));
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

    /// The same parameter, which a search leaves at its default unless the study names it.
    pub(crate) const fn unsearched(self) -> Self {
        Self {
            search: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{ALGORITHMS, find};

    fn one(name: &str, value: Value) -> Values {
        [(name.to_owned(), value)].into()
    }

    #[test]
    fn defaults_and_search_ranges_are_within_the_bounds() {
        for algorithm in ALGORITHMS {
            let spec = algorithm.spec;
            spec.check(&spec.defaults()).unwrap();
            let searched = |p: &&Parameter| p.search.is_some();
            assert!(spec.parameters.iter().any(|p| searched(&p)));
            for p in spec.parameters {
                let ends: Vec<f64> = match p.search {
                    Some(Search::Float { low, high, .. }) => vec![low, high],
                    Some(Search::Int { low, high, .. }) => vec![low as f64, high as f64],
                    Some(Search::Choices(all)) => all.to_vec(),
                    Some(Search::Flag) | None => vec![],
                };
                for end in ends {
                    assert_eq!(p.problem(Value::Number(end)), None, "{} {end}", p.name);
                }
            }
        }
    }

    #[test]
    fn a_misspelled_name_is_answered_with_the_one_that_is_meant() {
        let spec = find("dqn").unwrap().spec;
        let problem = |name: &str| {
            let wrong = spec.check(&one(name, Value::Number(0.9))).unwrap_err();
            wrong[0].problem.clone()
        };
        for name in ["gama", "gmma", "gamma_", "Gamma"] {
            let problem = problem(name);
            assert!(problem.ends_with("did you mean gamma?"), "{problem}");
        }
        for name in ["discount", &"gamma".repeat(100), ""] {
            let problem = problem(name);
            assert!(!problem.contains("did you mean"), "{problem}");
        }
    }

    #[test]
    fn what_a_running_learner_cannot_take_on_is_removed() {
        let spec = find("dqn").unwrap().spec;
        let mut values = one("gamma", Value::Number(0.99));
        values.extend(one("hidden_dim", Value::Number(128.0)));
        values.extend(one("unknown", Value::Flag(true)));
        spec.retain_reloadable(&mut values);
        let left: Vec<&str> = values.keys().map(String::as_str).collect();
        assert_eq!(left, ["gamma", "unknown"]);
    }

    #[test]
    fn every_violation_is_reported_by_name() {
        let spec = find("dqn").unwrap().spec;
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
