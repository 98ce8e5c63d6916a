//! Converts OpenMetrics to the text format of Prometheus, version 0.0.4.
//!
//! The formats differ in the name of a family: the samples of a counter `calls` are `calls_total` in
//! both, but the older format uses that name in its `HELP` and `TYPE` as well. It has no units, no
//! exemplars and no end marker.

use std::fmt::Write as _;

pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an `Accept` header prefers OpenMetrics to plain text. A wildcard selects plain text.
pub(super) fn wants_open_metrics(accept: &str) -> bool {
    let weight = |wanted: &[&str]| {
        let ranges = accept.split(',').filter_map(range);
        ranges
            .filter(|(kind, _)| wanted.iter().any(|w| kind.eq_ignore_ascii_case(w)))
            .map(|(_, weight)| weight)
            .fold(0.0, f32::max)
    };
    let open = weight(&["application/openmetrics-text"]);
    open > 0.0 && open >= weight(&["text/plain", "text/*"])
}

/// Parses a media range and its weight; `None` for a version that is not supported.
fn range(text: &str) -> Option<(&str, f32)> {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next()?;
    let mut weight = 1.0;
    for parameter in parts {
        let (name, value) = parameter.split_once('=')?;
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => weight = value.trim().parse().ok()?,
            "version" if kind.eq_ignore_ascii_case("application/openmetrics-text") => {
                let ours = ["1.0.0", "0.0.1"].contains(&value.trim().trim_matches('"'));
                ours.then_some(())?;
            }
            _ => {}
        }
    }
    Some((kind, weight))
}

/// Renders the same metrics in the older format.
pub(super) fn plain(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => describe(&mut out, &mut help, comment),
            None => sample(&mut out, line),
        }
    }
    out
}

/// `HELP` comes first, but only `TYPE` tells the name of the family.
fn describe(out: &mut String, help: &mut Option<String>, comment: &str) {
    let mut words = comment.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some("HELP"), Some(_), text) => *help = text.map(escape_help),
        (Some("TYPE"), Some(name), Some(kind)) => {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some(text) = help.take() {
                writeln!(out, "# HELP {name}{suffix} {text}").ok();
            }
            writeln!(out, "# TYPE {name}{suffix} {kind}").ok();
        }
        // UNIT and EOF.
        _ => {}
    }
}

/// Quotes are escaped in OpenMetrics and plain in the older format.
fn escape_help(text: &str) -> String {
    text.replace("\\\"", "\"")
}

fn sample(out: &mut String, line: &str) {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    if name.ends_with("_created") {
        return;
    }
    out.push_str(without_exemplar(line));
    out.push('\n');
}

/// An exemplar follows the value after ` # `, which a label's value may contain as well.
fn without_exemplar(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return line[..at].trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use prometheus_client::metrics::{
        counter::Counter, exemplar::CounterWithExemplar, family::Family, gauge::Gauge,
        histogram::Histogram,
    };
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn the_format_follows_from_the_accept_header() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for open in [
            prometheus,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=1.0.0",
            "text/plain;q=0.5, application/openmetrics-text;q=0.5",
        ] {
            assert!(wants_open_metrics(open), "{open}");
        }
        for plain in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/json",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.1,text/plain",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=x",
        ] {
            assert!(!wants_open_metrics(plain), "{plain}");
        }
    }

    #[test]
    fn every_kind_of_metric_follows_the_rules_of_the_older_format() {
        let metrics = Metrics::default();
        let family: Family<Vec<(String, String)>, Counter> = Family::default();
        let family = metrics.register("calls", "Calls with a \\ in the help", family);
        let odd = "a # \"quoted\\\" {value}\nof two lines".to_owned();
        family.get_or_create(&vec![("who".to_owned(), odd)]).inc();
        metrics
            .register("going_on", "Now", Gauge::<i64>::default())
            .set(3);
        let times = metrics.register("took_seconds", "Time", Histogram::new([0.1, 1.0]));
        times.observe(0.5);
        let shown: CounterWithExemplar<Vec<(&str, &str)>> = CounterWithExemplar::default();
        let shown = metrics.register("shown", "With an exemplar", shown);
        shown.inc_by(1, Some(vec![("trace_id", "abc")]), None);
        metrics.measure("age_seconds", "Age", "auth", || Some(1.5));
        metrics.measure("age_seconds", "Age", "automl", || None);
        let text = metrics.render("*/*").unwrap().1;
        let families = check(&text).unwrap_or_else(|why| panic!("{why} in\n{text}"));
        let expected = [
            ("age_seconds", "gauge"),
            ("calls_total", "counter"),
            ("going_on", "gauge"),
            ("shown_total", "counter"),
            ("took_seconds", "histogram"),
        ];
        let expected = expected.map(|(n, k)| (n.to_owned(), k.to_owned()));
        assert_eq!(families, BTreeMap::from(expected));
        assert!(
            text.contains("age_seconds{service=\"auth\"} 1.5\n"),
            "{text}"
        );
        assert!(text.contains("shown_total 1\n"), "{text}");
        assert!(!text.contains("automl"), "what is not known is left out");
        let open = metrics.render("application/openmetrics-text").unwrap().1;
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE calls counter"));
        assert!(check(&open).is_err(), "the checker knows the two apart");
    }

    #[test]
    fn kinds_that_the_older_format_lacks_become_the_nearest_one() {
        let open = "# HELP build \\\"what\\\" this is.\n# TYPE build info\n# UNIT build x\n\
             build_info{v=\"1\"} 1\n# HELP odd Odd.\n# TYPE odd unknown\nodd 2\n\
             # HELP made Made.\n# TYPE made counter\nmade_total 3\nmade_created 4\n# EOF\n";
        let plain = plain(open);
        let families = check(&plain).unwrap_or_else(|why| panic!("{why} in {plain}"));
        assert_eq!(families["build_info"], "gauge");
        assert_eq!(families["odd"], "untyped");
        assert!(
            plain.starts_with("# HELP build_info \"what\" this is.\n"),
            "{plain}"
        );
        assert!(plain.ends_with("made_total 3\n"), "{plain}");
    }

    /// A small parser of the format that rejects what `promtool check metrics` rejects: families that are
    /// named twice, samples before or without their family, counters without `_total`, syntax errors.
    fn check(text: &str) -> Result<BTreeMap<String, String>, String> {
        let (mut families, mut helped) = (BTreeMap::new(), BTreeSet::new());
        let mut current = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').ok_or("a HELP without text")?;
                if !helped.insert(name.to_owned()) || help.is_empty() {
                    return Err(format!("second or empty HELP for {name}"));
                }
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').ok_or("a TYPE without a type")?;
                if !helped.contains(name) || families.contains_key(name) {
                    return Err(format!("TYPE of {name} twice or without HELP"));
                }
                let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
                if !kinds.contains(&kind) || (kind == "counter") != name.ends_with("_total") {
                    return Err(format!("{name} is called {kind}"));
                }
                families.insert(name.to_owned(), kind.to_owned());
                current = name.to_owned();
            } else if line.starts_with('#') {
                return Err(format!("unknown comment {line}"));
            } else {
                check_sample(line, &current, &families[&current])?;
            }
        }
        Ok(families)
    }

    fn check_sample(line: &str, family: &str, kind: &str) -> Result<(), String> {
        let at = line.find(['{', ' ']).ok_or("no value")?;
        let (name, rest) = line.split_at(at);
        let rest = match rest.strip_prefix('{') {
            Some(labels) => after_labels(labels).ok_or(format!("labels of {line}"))?,
            None => rest,
        };
        let suffix = name
            .strip_prefix(family)
            .ok_or(format!("{name} in {family}"))?;
        let suffixes: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let number = rest.trim_start().parse::<f64>().is_ok();
        let good = suffixes.contains(&suffix) && number;
        good.then_some(()).ok_or(format!("sample {line}"))
    }

    fn after_labels(text: &str) -> Option<&str> {
        let (mut quoted, mut escaped) = (false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = !quoted,
                b'}' if !quoted => return text.get(at + 1..),
                _ => {}
            }
        }
        None
    }
}
