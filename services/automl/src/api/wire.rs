//! Conversions of search spaces, trials and studies between messages and the domain.

use crate::{
    AutomlError, hyper,
    store::{StudyState as State, TrialRow, TrialState as Ended},
    views::StudyView,
};
use serde::Serialize;
use tars_learn::hyper::{Kind, Search, Spec};
use tars_proto::{automl::v1::*, params, time::timestamp};
use tars_runtime::db::json;
use tars_search::{Range, Space, Value};

/// Maximum size of a search space, in bytes of JSON.
const MAX_SPACE: usize = 256 << 10;
/// Maximum size of the parameters of a trial, in the same unit.
const MAX_TRIAL: usize = 16 << 10;

pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> AutomlError {
    AutomlError::Invalid {
        field,
        problem: problem.into(),
    }
}

fn range(parameter: Parameter) -> Result<tars_search::Parameter, AutomlError> {
    let name = parameter.name;
    let range = match (parameter.float, parameter.int, parameter.categorical) {
        (Some(f), None, None) => Range::Float {
            low: f.low,
            high: f.high,
            log: f.log,
        },
        (None, Some(i), None) => Range::Int {
            low: i.low,
            high: i.high,
            log: i.log,
        },
        (None, None, Some(c)) => {
            let values = c
                .values
                .into_iter()
                .map(|v| params::from_value(&name, v).map(hyper::value));
            Range::Categorical {
                values: values.collect::<Result<_, _>>()?,
            }
        }
        _ => {
            return Err(invalid(
                "search_space",
                format!("{name} must have exactly one of float, int, categorical"),
            ));
        }
    };
    Ok(tars_search::Parameter { name, range })
}

pub(super) fn space(parameters: Vec<Parameter>) -> Result<Space, AutomlError> {
    let parameters = parameters
        .into_iter()
        .map(range)
        .collect::<Result<Vec<_>, _>>()?;
    ensure_small(&parameters)?;
    Ok(Space::new(parameters)?)
}

/// Refuses a space that is too large to be stored with each study, or whose trials are: a study has up to a thousand,
/// all of which are read for the next.
fn ensure_small(parameters: &[tars_search::Parameter]) -> Result<(), AutomlError> {
    let (mut space, mut trial) = (0, 0);
    for parameter in parameters {
        space += parameter.name.len() + length(&parameter.range)?;
        trial += parameter.name.len() + longest(&parameter.range)?;
    }
    for (size, most, what) in [
        (space, MAX_SPACE, "it has"),
        (
            trial,
            MAX_TRIAL,
            "with the longest of all choices, a trial has",
        ),
    ] {
        if size > most {
            let problem = format!("{what} {size} bytes, and may have {most}");
            return Err(invalid("search_space", problem));
        }
    }
    Ok(())
}

fn longest(range: &Range) -> Result<usize, AutomlError> {
    match range {
        Range::Categorical { values } => {
            let mut lengths = values.iter().map(length);
            lengths.try_fold(0, |most, length| Ok(most.max(length?)))
        }
        Range::Float { .. } | Range::Int { .. } => Ok(size_of::<f64>()),
    }
}

/// The length of something as it is stored.
fn length(stored: &impl Serialize) -> Result<usize, AutomlError> {
    Ok(json(stored)?.len())
}

/// The default search space of an algorithm.
pub(super) fn own_space(spec: &Spec) -> Result<Space, AutomlError> {
    let parameters = spec.parameters.iter().filter_map(|p| {
        let range = match p.search? {
            Search::Float { low, high, log } => Range::Float { low, high, log },
            Search::Int { low, high, log } => Range::Int { low, high, log },
            Search::Choices(all) => Range::Categorical {
                values: all.iter().map(|n| Value::Number(*n)).collect(),
            },
            Search::Flag => Range::Categorical {
                values: vec![Value::Flag(false), Value::Flag(true)],
            },
        };
        Some(tars_search::Parameter {
            name: p.name.to_owned(),
            range,
        })
    });
    Ok(Space::new(parameters.collect())?)
}

/// Checks that a search space contains only values that the agent accepts.
pub(super) fn check_against(space: &Space, spec: &Spec) -> Result<(), AutomlError> {
    for p in space.parameters() {
        let known = spec.parameters.iter().find(|known| known.name == p.name);
        let known = known.ok_or_else(|| {
            invalid(
                "search_space",
                format!("{} is not a parameter of this agent", p.name),
            )
        })?;
        let inside = |low: f64, high: f64| match known.kind {
            Kind::Float { low: l, high: h } => low >= l && high <= h,
            Kind::Int { low: l, high: h } => low >= l as f64 && high <= h as f64,
            Kind::Flag => false,
        };
        let good = match &p.range {
            Range::Float { low, high, .. } => {
                matches!(known.kind, Kind::Float { .. }) && inside(*low, *high)
            }
            Range::Int { low, high, .. } => inside(*low as f64, *high as f64),
            Range::Categorical { values } => values.iter().all(|v| match v {
                Value::Number(n) => inside(*n, *n),
                Value::Flag(_) => known.kind == Kind::Flag,
                Value::Text(_) => false,
            }),
        };
        if !good {
            return Err(invalid(
                "search_space",
                format!("{} exceeds the agent's bounds", p.name),
            ));
        }
    }
    Ok(())
}

fn parameter(from: &tars_search::Parameter) -> Parameter {
    let mut out = Parameter {
        name: from.name.clone(),
        ..Parameter::default()
    };
    match &from.range {
        Range::Float { low, high, log } => {
            out.float = Some(FloatRange {
                low: *low,
                high: *high,
                log: *log,
            });
        }
        Range::Int { low, high, log } => {
            out.int = Some(IntRange {
                low: *low,
                high: *high,
                log: *log,
            });
        }
        Range::Categorical { values } => {
            let values = values.iter().map(|v| hyper::param(v).into());
            out.categorical = Some(Choices {
                values: values.collect(),
            });
        }
    }
    out
}

pub(super) fn trial(row: TrialRow) -> Trial {
    let state = match row.state {
        Ended::Running => TrialState::Running,
        Ended::Complete => TrialState::Complete,
        Ended::Pruned => TrialState::Pruned,
        Ended::Failed => TrialState::Failed,
    };
    Trial {
        number: row.number,
        state: state.into(),
        parameters: Some(params::to_struct(&hyper::params(&row.parameters))),
        score: row.score,
        intermediate_values: row
            .intermediate
            .into_iter()
            .map(|(step, value)| IntermediateValue { step, value })
            .collect(),
        attempt: row.attempt,
        error: row.error,
        started_at: Some(timestamp(row.started_us)),
        ended_at: row.ended_us.map(timestamp),
    }
}

fn state(from: State) -> StudyState {
    match from {
        State::Running => StudyState::Running,
        State::Completed => StudyState::Completed,
        State::Failed => StudyState::Failed,
        State::Cancelled => StudyState::Cancelled,
    }
}

pub(super) fn study(view: StudyView) -> Study {
    let StudyView { row, tally, best } = view;
    Study {
        study_id: row.id.to_string(),
        agent_id: row.agent_id,
        agent_type: row.agent_type,
        environment: row.environment,
        state: state(row.state).into(),
        server_run: row.server_run,
        sampler_type: row.sampler.as_str().to_owned(),
        pruner_type: row.pruner.as_str().to_owned(),
        n_trials: row.n_trials,
        n_completed_trials: tally.complete,
        n_pruned_trials: tally.pruned,
        n_failed_trials: tally.failed,
        best_trial: best.map(trial),
        search_space: row.space.parameters().iter().map(parameter).collect(),
        seed: row.seed,
        steps: row.server_run.then_some(row.steps),
        owner: row.owner,
        error: row.error,
        started_at: Some(timestamp(row.started_us)),
        completed_at: row.completed_us.map(timestamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::{Value as Any, params::Param};

    fn choices(name: &str, values: impl Iterator<Item = Param>) -> Parameter {
        Parameter {
            name: name.to_owned(),
            categorical: Some(Choices {
                values: values.map(Any::from).collect(),
            }),
            ..Parameter::default()
        }
    }

    /// As many parameters as a request may have, with so many choices each, each of so many characters.
    fn texts(choice_count: usize, length: usize) -> Vec<Parameter> {
        let one = |at: usize| {
            let text = move |n| Param::Text(format!("{n:0length$}"));
            choices(&format!("p{at}"), (0..choice_count).map(text))
        };
        (0..64).map(one).collect()
    }

    #[test]
    fn a_space_is_bounded_in_all_and_by_its_longest_trial() {
        let numbers = |at: usize| {
            let values = (0..100).map(|n| Param::Number(f64::from(n) + 0.123_456_789));
            choices(&format!("{at:064}"), values)
        };
        space((0..64).map(numbers).collect()).unwrap();
        space(texts(10, 200)).unwrap();
        for (refused, why) in [
            (texts(100, 1024), "it has 65"),
            (texts(30, 200), "it has "),
            (texts(1, 300), "a trial has "),
        ] {
            let error = space(refused).unwrap_err().to_string();
            assert!(
                error.starts_with("search_space: ") && error.contains(why),
                "{error}"
            );
        }
    }
}
