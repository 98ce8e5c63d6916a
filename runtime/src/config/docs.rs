//! Every key of the configuration with its meaning, its default and its range, from the documentation
//! of the structure itself.

use super::{Config, ENV_PREFIX, ranges};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use toml::{Table, Value as Toml};

const WIDTH: usize = 100;

/// One section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionDocs {
    pub name: String,
    /// What its keys have in common; empty when the keys say it all.
    pub meaning: String,
    pub keys: Vec<KeyDocs>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyDocs {
    pub name: String,
    pub meaning: String,
    /// As TOML; `None` when the key is unset.
    pub default: Option<Toml>,
    /// The least and the greatest value of a number.
    pub range: Option<(u64, u64)>,
    /// The environment variable that sets it.
    pub variable: String,
}

impl Config {
    /// What may be configured, section by section.
    pub fn docs() -> Vec<SectionDocs> {
        let schema = schemars::schema_for!(Self).to_value();
        let defaults = Table::try_from(Self::default()).unwrap_or_default();
        let ranges = ranges::all(&Self::default());
        let sections = schema["properties"].as_object().into_iter().flatten();
        sections
            .map(|(name, section)| {
                let section = resolved(&schema, section);
                let empty = Table::new();
                let defaults = defaults.get(name).and_then(Toml::as_table);
                SectionDocs {
                    meaning: meaning(section),
                    keys: keys(name, section, defaults.unwrap_or(&empty), &ranges),
                    name: name.clone(),
                }
            })
            .collect()
    }
}

/// A section's own schema, where the root only refers to it.
fn resolved<'a>(schema: &'a Value, section: &'a Value) -> &'a Value {
    let target = section["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
    target.and_then(|t| schema.pointer(t)).unwrap_or(section)
}

fn meaning(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn keys(section: &str, schema: &Value, defaults: &Table, ranges: &[ranges::Range]) -> Vec<KeyDocs> {
    let known = schema["properties"].as_object().into_iter().flatten();
    let key = |(name, schema): (&String, &Value)| {
        let path = format!("{section}.{name}");
        KeyDocs {
            meaning: meaning(schema),
            default: defaults.get(name).cloned(),
            range: ranges.iter().find(|r| r.0 == path).map(|r| (r.1, r.2)),
            variable: format!("{ENV_PREFIX}{}__{}", section, name).to_uppercase(),
            name: name.clone(),
        }
    };
    known.map(key).collect()
}

/// A configuration file that says nothing but the defaults, with what each key means.
pub fn to_toml(sections: &[SectionDocs]) -> String {
    let mut out = String::new();
    for section in sections {
        comment(&mut out, &section.meaning);
        let _ = writeln!(out, "[{}]", section.name);
        for key in &section.keys {
            comment(&mut out, &key.meaning);
            if let Some((least, most)) = key.range {
                comment(&mut out, &format!("From {least} to {most}."));
            }
            let _ = match &key.default {
                Some(value) => writeln!(out, "{} = {}", key.name, inline(value)),
                None => writeln!(out, "# {} =    (unset)", key.name),
            };
        }
        out.push('\n');
    }
    out
}

/// A value on one line: a list of tables would otherwise need headers of its own.
fn inline(value: &Toml) -> String {
    match value {
        Toml::Array(all) => {
            let all: Vec<String> = all.iter().map(inline).collect();
            format!("[{}]", all.join(", "))
        }
        Toml::Table(table) => {
            let all: Vec<String> = table
                .iter()
                .map(|(key, value)| format!("{key} = {}", inline(value)))
                .collect();
            format!("{{ {} }}", all.join(", "))
        }
        plain => plain.to_string(),
    }
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    if line.len() > 1 {
        let _ = writeln!(out, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_says_what_it_means() {
        let mut silent = Vec::new();
        for section in Config::docs() {
            for key in section.keys.iter().filter(|k| k.meaning.is_empty()) {
                silent.push(format!("{}.{}", section.name, key.name));
            }
        }
        assert!(silent.is_empty(), "{silent:#?}");
    }

    #[test]
    fn the_documentation_is_a_file_of_the_defaults() {
        let text = to_toml(&Config::docs());
        let read: Config = toml::from_str(&text).unwrap();
        assert_eq!(read, Config::default());
        let ignored_by_serde = text.matches("ignored").count();
        assert_eq!(ignored_by_serde, 0, "no key that cannot be set");
    }

    #[test]
    fn a_key_that_is_unset_is_shown_with_its_variable() {
        let docs = Config::docs();
        let policy = docs.iter().find(|s| s.name == "policy").unwrap();
        assert_eq!(policy.keys[0].default, None);
        assert_eq!(policy.keys[0].variable, "TARS__POLICY__FILE");
        assert!(to_toml(&docs).contains("# file =    (unset)"));
    }

    #[test]
    fn a_number_is_shown_with_its_range() {
        let docs = Config::docs();
        let limits = docs.iter().find(|s| s.name == "limits").unwrap();
        let rate = limits
            .keys
            .iter()
            .find(|k| k.name == "user_per_minute")
            .unwrap();
        assert_eq!(rate.range, Some((1, 1_000_000_000)));
    }
}
