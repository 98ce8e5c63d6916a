//! `tars agents calibration`: how far the model of the mesh is from the mesh.

use crate::{
    commands::{
        CommandError,
        listing::{self, short, text, word},
    },
    rest::Rest,
};
use serde_json::{Value, json};
use std::process::ExitCode;

const PATH: &str = "/api/v1/orchestration/calibration";

pub(super) async fn show(rest: &Rest, json: bool) -> Result<ExitCode, CommandError> {
    let answer = rest.get(PATH).await?;
    if json {
        say!("{answer:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let (latest, shipped) = (&answer["latest"], &answer["shipped"]);
    if latest.is_object() {
        for (name, value) in facts(latest) {
            say!("{name:<12} {value}");
        }
        say!("");
    } else {
        note!("nothing has been measured yet; a calibration takes two windows of calls");
    }
    let rows = parameters(latest, shipped);
    let measured = rows.iter().any(|row| !row[2].is_null());
    let head = columns(["parameter", "unit", "measured", "shipped"], measured);
    listing::table(&head, &rows, |row| {
        let of = |at: usize| short(&row[at]);
        columns([of(0), unit(&row[1]), of(2), of(3)], measured)
    });
    Ok(ExitCode::SUCCESS)
}

/// The cells of a row; what was measured is left out where nothing was.
fn columns<T>(cells: [T; 4], measured: bool) -> Vec<T> {
    let numbered = cells.into_iter().enumerate();
    let shown = numbered.filter(|(at, _)| measured || *at != 2);
    shown.map(|(_, cell)| cell).collect()
}

/// A unit; empty for a number without one.
fn unit(unit: &Value) -> String {
    match text(unit) {
        one if one == "1" => String::new(),
        unit => unit,
    }
}

/// What was fitted, from what, and how far it was off; what is absent is left out.
fn facts(latest: &Value) -> Vec<(&'static str, String)> {
    let all = [
        ("calibration", text(&latest["name"])),
        ("state", word(&latest["state"], "CALIBRATION_STATE_")),
        ("reason", text(&latest["reason"])),
        ("source", text(&latest["source"])),
        ("fitted to", fitted_to(latest)),
        ("tested on", tested_on(latest)),
        ("errors in the newest", errors(&latest["errors"])),
        ("approvals", approvals(&latest["approvals"])),
    ];
    let known = all.into_iter().filter(|(_, value)| !value.is_empty());
    known.collect()
}

fn fitted_to(latest: &Value) -> String {
    format!(
        "{} calls in {} windows from {} to {} ({} failed, {} rejected)",
        short(&latest["calls"]),
        short(&latest["windows"]),
        text(&latest["from"]),
        text(&latest["to"]),
        short(&latest["failed"]),
        short(&latest["rejected"]),
    )
}

fn tested_on(latest: &Value) -> String {
    let (calls, until) = (short(&latest["tested_calls"]), text(&latest["tested_to"]));
    format!("{calls} calls in the window until {until}")
}

/// What was found of approvals.
fn approvals(found: &Value) -> String {
    if !found.is_object() {
        return String::new();
    }
    let state = word(&found["state"], "CALIBRATION_STATE_");
    if state != "calibrated" {
        return format!("{state}: {}", text(&found["reason"]));
    }
    let percent = |name: &str| found["errors"][name].as_f64().unwrap_or(f64::NAN) * 100.0;
    format!(
        "{state} to {} answers to {} proposals; on the {} after them, answers {:.1} % off, times {:.1} %",
        short(&found["answers"]),
        short(&found["proposals"]),
        short(&found["tested"]),
        percent("answers"),
        percent("time"),
    )
}

fn errors(errors: &Value) -> String {
    let percent = |name: &str| {
        let error = errors[name].as_f64()?;
        Some(format!("{name} {:.1} %", error * 100.0))
    };
    let all = ["throughput", "p50", "p95", "p99"].into_iter();
    all.filter_map(percent).collect::<Vec<_>>().join(", ")
}

/// Each parameter: what was measured, if it was, beside what is shipped.
fn parameters(latest: &Value, shipped: &Value) -> Vec<Value> {
    let of = |calibration: &Value| {
        let all = calibration["parameters"].as_array();
        all.cloned().unwrap_or_default()
    };
    let (latest, shipped) = (of(latest), of(shipped));
    let named = |all: &[Value], name: &Value| all.iter().find(|p| p["name"] == *name).cloned();
    let new = latest
        .iter()
        .filter(|p| named(&shipped, &p["name"]).is_none());
    let row = |parameter: &Value| {
        let name = &parameter["name"];
        let measured = named(&latest, name).filter(|p| p["fitted"] == true);
        let measured = measured.map(|p| p["value"].clone());
        let assumed = named(&shipped, name).map(|p| p["value"].clone());
        json!([name, parameter["unit"], measured, assumed])
    };
    new.chain(&shipped).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, value: f64, fitted: bool) -> Value {
        json!({ "name": name, "unit": "s", "value": value, "fitted": fitted })
    }

    #[test]
    fn what_was_measured_is_shown_beside_what_is_shipped() {
        let latest = json!({ "parameters": [
            parameter("caller_1.rate", 9.0, true),
            parameter("time", 0.001, true),
            parameter("answer", 20.0, false),
        ]});
        let shipped = json!({ "parameters": [
            parameter("time", 0.05, false),
            parameter("answer", 20.0, false),
        ]});
        let expected = [
            json!(["caller_1.rate", "s", 9.0, null]),
            json!(["time", "s", 0.001, 0.05]),
            json!(["answer", "s", null, 20.0]),
        ];
        assert_eq!(parameters(&latest, &shipped), expected);
        let nothing = parameters(&Value::Null, &shipped);
        assert_eq!(nothing[0], json!(["time", "s", null, 0.05]));
    }

    #[test]
    fn the_column_of_measurements_is_left_out_where_there_are_none() {
        assert_eq!(columns(["a", "b", "c", "d"], true), ["a", "b", "c", "d"]);
        assert_eq!(columns(["a", "b", "c", "d"], false), ["a", "b", "d"]);
        assert_eq!(
            (unit(&json!("1")), unit(&json!("s"))),
            (String::new(), "s".to_owned())
        );
    }

    #[test]
    fn approvals_are_shown_with_their_errors_or_why_they_are_not_calibrated() {
        let few = json!({ "state": "CALIBRATION_STATE_UNCALIBRATED", "reason": "too few" });
        assert_eq!(approvals(&few), "uncalibrated: too few");
        let found = json!({
            "state": "CALIBRATION_STATE_CALIBRATED", "proposals": 100, "answers": 90, "tested": 10,
            "errors": { "answers": 0.1, "time": 0.05 },
        });
        assert_eq!(
            approvals(&found),
            "calibrated to 90 answers to 100 proposals; on the 10 after them, answers 10.0 % off, times 5.0 %"
        );
        assert_eq!(approvals(&Value::Null), "");
    }

    #[test]
    fn errors_and_reasons_are_left_out_where_there_are_none() {
        let names = |latest: Value| {
            facts(&latest)
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
        };
        let state = "CALIBRATION_STATE_UNCALIBRATED";
        let latest = json!({ "name": "calls-1", "state": state, "reason": "too few calls", "source": "calls" });
        let seen = names(latest);
        assert!(
            seen.contains(&"reason") && !seen.contains(&"errors in the newest"),
            "{seen:?}"
        );
        let found = json!({ "throughput": 0.021, "p50": 0.5, "p95": 0.0, "p99": 1.0 });
        assert_eq!(
            errors(&found),
            "throughput 2.1 %, p50 50.0 %, p95 0.0 %, p99 100.0 %"
        );
        let seen = names(json!({ "name": "calls-2", "errors": found }));
        assert!(
            seen.contains(&"errors in the newest") && !seen.contains(&"reason"),
            "{seen:?}"
        );
    }
}
