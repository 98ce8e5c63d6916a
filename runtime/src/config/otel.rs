//! The environment variables that OpenTelemetry defines for every program, as settings of the lowest
//! precedence.
//!
//! As the specification requires, an empty variable counts as unset, and an invalid value is ignored
//! with a warning: a process does not fail to start because of its telemetry.

use super::{leaf, merge};
use toml::{Table, Value};

/// Returns the settings, and a warning for each variable that is ignored.
pub(super) fn settings(env: &[(String, String)]) -> (Table, Vec<String>) {
    let get = |name: &str| {
        let found = env.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.trim()).filter(|v| !v.is_empty())
    };
    let mut read = Read::default();
    read.endpoint(&get);
    read.sampler(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG"));
    if let Some(text) = get("OTEL_RESOURCE_ATTRIBUTES") {
        read.attributes(text);
    }
    if let Some(name) = get("OTEL_SERVICE_NAME") {
        read.set("service_name", Value::String(name.to_owned()));
    }
    let none = get("OTEL_TRACES_EXPORTER").is_some_and(|e| e.eq_ignore_ascii_case("none"));
    let disabled = get("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if none || disabled {
        read.set("disabled", Value::Boolean(true));
    }
    (read.table, read.ignored)
}

/// Drops an empty endpoint, which counts as unset and must not hide one of lower precedence.
pub(super) fn without_empty(mut table: Table) -> Table {
    if let Some(Value::Table(telemetry)) = table.get_mut("telemetry")
        && telemetry.get("otlp_endpoint").and_then(Value::as_str) == Some("")
    {
        telemetry.remove("otlp_endpoint");
    }
    table
}

#[derive(Default)]
struct Read {
    table: Table,
    ignored: Vec<String>,
}

impl Read {
    fn set(&mut self, key: &str, value: Value) {
        merge(&mut self.table, leaf("telemetry", key, value));
    }

    fn endpoint<'a>(&mut self, get: &impl Fn(&str) -> Option<&'a str>) {
        let names = [
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ];
        let found = names.into_iter().find_map(|name| Some((name, get(name)?)));
        match found {
            None => {}
            Some((_, url)) if url.starts_with("http://") => {
                self.set("otlp_endpoint", Value::String(url.to_owned()));
            }
            Some((name, _)) => self.ignored.push(format!(
                "{name}: must start with http:// (a collector on the same host or pod)"
            )),
        }
    }

    fn sampler(&mut self, sampler: Option<&str>, arg: Option<&str>) {
        let Some(sampler) = sampler else {
            return;
        };
        let base = sampler.strip_prefix("parentbased_");
        let ratio = match base.unwrap_or(sampler) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio(arg),
            _ => {
                let text = format!("OTEL_TRACES_SAMPLER: {sampler:?} is not known here");
                return self.ignored.push(text);
            }
        };
        self.set("sample_ratio", Value::Float(ratio));
        self.set("follow_parent", Value::Boolean(base.is_some()));
    }

    fn ratio(&mut self, arg: Option<&str>) -> f64 {
        let given = arg.map(str::parse::<f64>);
        match given {
            None => 1.0,
            Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
            Some(_) => {
                let text = "OTEL_TRACES_SAMPLER_ARG: must be a number of 0 to 1; 1 is used";
                self.ignored.push(text.to_owned());
                1.0
            }
        }
    }

    /// Parses percent-encoded `key=value,…`; one invalid pair invalidates all of them.
    fn attributes(&mut self, text: &str) {
        let pairs = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        let parsed: Option<Table> = pairs
            .map(|pair| {
                let (key, value) = pair.split_once('=')?;
                let key = Some(key.trim()).filter(|k| !k.is_empty())?;
                Some((decode(key)?, Value::String(decode(value.trim())?)))
            })
            .collect();
        match parsed {
            Some(table) => self.set("resource_attributes", Value::Table(table)),
            None => self
                .ignored
                .push("OTEL_RESOURCE_ATTRIBUTES: must be key=value,…, percent-encoded".to_owned()),
        }
    }
}

/// Undoes percent-encoding; `None` for what is none.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        out.push(u8::from_str_radix(digits, 16).ok().filter(|_| hex)?);
        rest = tail;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Telemetry, leaf};
    use toml::{Table, Value};

    fn load(pairs: &[(&str, &str)]) -> Telemetry {
        loaded(pairs, Table::new())
    }

    fn loaded(pairs: &[(&str, &str)], flags: Table) -> Telemetry {
        let env = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(None, env, flags).unwrap().telemetry
    }

    #[test]
    fn tars_variables_precede_those_for_traces_and_those_for_all_signals() {
        let (own, traces, all) = (
            ("TARS__TELEMETRY__OTLP_ENDPOINT", "http://own:1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1"),
        );
        assert_eq!(load(&[own, traces, all]).endpoint(), Some("http://own:1"));
        assert_eq!(load(&[traces, all]).endpoint(), Some("http://traces:1"));
        assert_eq!(load(&[all]).endpoint(), Some("http://all:1"));
        assert_eq!(load(&[]).endpoint(), None);
    }

    #[test]
    fn an_empty_endpoint_counts_as_unset() {
        let empty = ("TARS__TELEMETRY__OTLP_ENDPOINT", "");
        assert_eq!(load(&[empty]).endpoint(), None);
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1");
        assert_eq!(load(&[empty, all]).endpoint(), Some("http://all:1"));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", " ");
        assert_eq!(load(&[traces, all]).endpoint(), Some("http://all:1"));
        assert_eq!(
            load(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).endpoint(),
            None
        );
        let flag = leaf("telemetry", "otlp_endpoint", Value::String(String::new()));
        assert_eq!(loaded(&[], flag).endpoint(), None);
    }

    #[test]
    fn export_can_be_disabled() {
        let own = ("TARS__TELEMETRY__OTLP_ENDPOINT", "http://own:1");
        for off in [
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            assert_eq!(load(&[own, off]).endpoint(), None);
        }
        for on in [
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "otlp"),
        ] {
            assert!(load(&[own, on]).endpoint().is_some());
        }
    }

    #[test]
    fn samplers_are_mapped_as_the_specification_defines_them() {
        for (sampler, arg, ratio, follow_parent) in [
            ("always_on", "", 1.0, false),
            ("always_off", "", 0.0, false),
            ("traceidratio", "0.25", 0.25, false),
            ("parentbased_always_off", "", 0.0, true),
            ("parentbased_traceidratio", "0.5", 0.5, true),
            ("parentbased_traceidratio", "", 1.0, true),
        ] {
            let read = load(&[
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", arg),
            ]);
            assert_eq!(
                (read.sample_ratio, read.follow_parent),
                (ratio, follow_parent)
            );
            assert!(read.ignored.is_empty());
        }
        let own = ("TARS__TELEMETRY__SAMPLE_RATIO", "0.75");
        assert_eq!(
            load(&[own, ("OTEL_TRACES_SAMPLER", "always_off")]).sample_ratio,
            0.75
        );
    }

    #[test]
    fn invalid_values_are_ignored_with_a_warning() {
        for (variables, expected) in [
            (
                &[("OTEL_TRACES_SAMPLER", "jaeger_remote")][..],
                "jaeger_remote",
            ),
            (
                &[
                    ("OTEL_TRACES_SAMPLER", "traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "2"),
                ],
                "_ARG",
            ),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://far:4317")],
                "http://",
            ),
            (
                &[("OTEL_RESOURCE_ATTRIBUTES", "a=1,b")],
                "OTEL_RESOURCE_ATTRIBUTES",
            ),
            (&[("OTEL_RESOURCE_ATTRIBUTES", "a=%zz")], "percent"),
            (&[("OTEL_RESOURCE_ATTRIBUTES", "a=%+1")], "percent"),
        ] {
            let read = load(variables);
            assert!(
                read.ignored.iter().any(|t| t.contains(expected)),
                "{:?}",
                read.ignored
            );
            let rest = Telemetry {
                ignored: Vec::new(),
                follow_parent: true,
                ..read
            };
            assert_eq!(rest, Telemetry::default(), "{variables:?}");
        }
    }

    #[test]
    fn service_name_and_attributes_are_read() {
        let read = load(&[
            ("OTEL_SERVICE_NAME", "mine"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "team=blue%2Fgreen, service.name=other,,",
            ),
        ]);
        assert_eq!(read.service_name.as_deref(), Some("mine"));
        assert_eq!(read.resource_attributes["team"], "blue/green");
        assert_eq!(read.resource_attributes["service.name"], "other");
    }
}
