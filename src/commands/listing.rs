//! Lists of the mesh: all pages of one, and the words and tables that people read.

use super::{CommandError, output};
use crate::rest::{Rest, RestError};
use serde_json::Value;
use uuid::Uuid;

/// The largest page that the services serve.
const LARGEST_PAGE: usize = 500;

/// All rows of a list.
pub(super) async fn all(rest: &Rest, path: &str, field: &str) -> Result<Vec<Value>, RestError> {
    first(rest, path, field, usize::MAX).await
}

/// The first rows of a list, `limit` at most.
pub(super) async fn first(
    rest: &Rest,
    path: &str,
    field: &str,
    limit: usize,
) -> Result<Vec<Value>, RestError> {
    let (mut rows, mut token) = (Vec::new(), String::new());
    let sign = if path.contains('?') { '&' } else { '?' };
    while rows.len() < limit {
        let size = (limit - rows.len()).min(LARGEST_PAGE);
        let page = format!("{path}{sign}page_size={size}&page_token={token}");
        let page = rest.get(&page).await?;
        rows.extend(page[field].as_array().cloned().unwrap_or_default());
        token = text(&page["next_page_token"]);
        if token.is_empty() {
            break;
        }
    }
    Ok(rows)
}

/// Prints rows as a table.
pub(super) fn table(head: &[&str], rows: &[Value], row: impl Fn(&Value) -> Vec<String>) {
    output::table(head, &rows.iter().map(row).collect::<Vec<_>>());
}

/// Parses the id of a study or a proposal.
pub(super) fn id(text: &str) -> Result<Uuid, &'static str> {
    Uuid::try_parse(text).map_err(|_| "the id must be a UUID, as `list` shows it")
}

/// A text on one line; empty when it is absent.
pub(super) fn text(value: &Value) -> String {
    output::inline(value.as_str().unwrap_or_default()).into_owned()
}

/// A text that every answer of its kind has.
pub(super) fn required(value: &Value, name: &str) -> Result<String, CommandError> {
    let found = value[name].as_str().map(str::to_owned);
    found.ok_or_else(|| CommandError::Failed(format!("the answer has no {name}: {value}")))
}

/// A number; those of 64 bits are texts in JSON.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// A value of an enum in small letters: `STUDY_STATE_RUNNING` without `STUDY_STATE_` is `running`.
pub(super) fn word(value: &Value, prefix: &str) -> String {
    let text = value.as_str().unwrap_or_default();
    text.trim_start_matches(prefix).to_lowercase()
}

/// A value for a table: a number with the digits that a person compares, a text without quotes, `-`
/// for nothing.
pub(super) fn short(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => output::inline(text).into_owned(),
        other => other.as_f64().map_or_else(|| other.to_string(), digits),
    }
}

/// An environment, with the calibration that figures from it depend on: `mesh (calibration shipped)`.
pub(super) fn world(environment: &str, calibration: Option<&str>) -> String {
    match calibration {
        None | Some("") => environment.to_owned(),
        Some(name) => format!("{environment} (calibration {name})"),
    }
}

/// The environment that an answer is about, as [`world`] names it.
pub(super) fn world_of(answer: &Value) -> String {
    let calibration = text(&answer["calibration"]);
    world(&text(&answer["environment"]), Some(&calibration))
}

/// A return with two decimals; `-` for nothing.
pub(super) fn rounded(value: &Value) -> String {
    number(value).map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"))
}

/// The values of a hyperparameter that stand for something else, in their order.
const NOISE_KINDS: [&str; 3] = ["correlated", "adaptive", "independent"];

/// A hyperparameter's value as [`short`] shows it, with what it stands for where it is a choice.
pub(super) fn hyperparameter(name: &str, value: &Value) -> String {
    let shown = short(value);
    let at = number(value).filter(|at| name == "noise_kind" && at.fract() == 0.0);
    match at.and_then(|at| NOISE_KINDS.get(at as usize)) {
        Some(meaning) => format!("{shown} ({meaning})"),
        None => shown,
    }
}

fn digits(number: f64) -> String {
    if number != 0.0 && (number.abs() < 1e-3 || number.abs() >= 1e6) {
        format!("{number:.2e}")
    } else {
        format!("{}", (number * 1e5).round() / 1e5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_shown_with_the_digits_that_are_compared() {
        for (value, shown) in [
            (json!(0.99), "0.99"),
            (json!(0.0), "0"),
            (json!(0.000_123_4), "1.23e-4"),
            (json!(32), "32"),
            (json!(2_000_000), "2.00e6"),
            (json!("tpe"), "tpe"),
            (json!(true), "true"),
            (Value::Null, "-"),
        ] {
            assert_eq!(short(&value), shown);
        }
    }

    #[test]
    fn a_choice_is_shown_with_what_it_stands_for() {
        for (name, value, shown) in [
            ("noise_kind", json!(2), "2 (independent)"),
            ("noise_kind", json!(0.0), "0 (correlated)"),
            ("noise_kind", json!(7), "7"),
            ("noise_kind", Value::Null, "-"),
            ("tau", json!(1), "1"),
        ] {
            assert_eq!(hyperparameter(name, &value), shown);
        }
    }

    #[test]
    fn an_environment_is_named_with_its_calibration() {
        let answer = json!({ "environment": "mesh", "calibration": "shipped" });
        assert_eq!(world_of(&answer), "mesh (calibration shipped)");
        let none = json!({ "environment": "taxi", "calibration": "" });
        assert_eq!(
            (world_of(&none), world("taxi", None)),
            ("taxi".into(), "taxi".into())
        );
    }

    #[test]
    fn a_word_of_an_enum_loses_its_prefix() {
        let state = json!("STUDY_STATE_RUNNING");
        assert_eq!(word(&state, "STUDY_STATE_"), "running");
        assert_eq!(word(&Value::Null, "STUDY_STATE_"), "");
    }

    #[test]
    fn numbers_of_64_bits_are_read_from_texts() {
        assert_eq!(number(&json!("18")), Some(18.0));
        assert_eq!(number(&json!(1.5)), Some(1.5));
        assert_eq!(number(&json!("x")), None);
    }
}
