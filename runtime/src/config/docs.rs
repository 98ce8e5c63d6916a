//! The reference of all configuration keys, with meaning, default and range, derived from the doc
//! comments of the structures themselves.

use super::{
    Config, ENV_PREFIX,
    ranges::{self, Number},
};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use toml::{Table, Value as Toml};

const WIDTH: usize = 100;

/// The documentation of one section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionDocs {
    /// The section's name in TOML.
    pub name: String,
    /// What its keys have in common; may be empty.
    pub meaning: String,
    /// The keys of the section.
    pub keys: Vec<KeyDocs>,
}

/// The documentation of one key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyDocs {
    /// The key's name, without its section.
    pub name: String,
    /// What the key sets, and in which unit.
    pub meaning: String,
    /// The default as TOML; `None` when the key is unset.
    pub default: Option<Toml>,
    /// The smallest and the largest value of a number.
    pub range: Option<(u64, u64)>,
    /// The environment variable that sets it.
    pub variable: String,
}

impl Config {
    /// Returns the documentation of every key, section by section.
    pub fn docs() -> Vec<SectionDocs> {
        let schema = schemars::schema_for!(Self).to_value();
        let defaults = Table::try_from(Self::default()).unwrap_or_default();
        let ranges = ranges::numbers(&Self::default());
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

/// Follows the reference by which the root schema names a section's schema.
fn resolved<'a>(schema: &'a Value, section: &'a Value) -> &'a Value {
    let target = section["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
    target.and_then(|t| schema.pointer(t)).unwrap_or(section)
}

fn meaning(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn keys(section: &str, schema: &Value, defaults: &Table, ranges: &[Number]) -> Vec<KeyDocs> {
    let known = schema["properties"].as_object().into_iter().flatten();
    let key = |(name, schema): (&String, &Value)| {
        let path = format!("{section}.{name}");
        KeyDocs {
            meaning: meaning(schema),
            // It depends on who asks; the meaning states the rule.
            default: (path != "data.dir")
                .then(|| defaults.get(name).cloned())
                .flatten(),
            range: ranges
                .iter()
                .find(|n| n.key == path)
                .map(|n| (n.least, n.most)),
            variable: format!("{ENV_PREFIX}{}__{}", section, name).to_uppercase(),
            name: name.clone(),
        }
    };
    known.map(key).collect()
}

/// Renders a configuration file that sets every key to its default, documented.
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

/// Renders a value on one line: a list of tables would otherwise need headers of its own.
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
    fn every_key_is_documented() {
        let mut silent = Vec::new();
        for section in Config::docs() {
            for key in section.keys.iter().filter(|k| k.meaning.is_empty()) {
                silent.push(format!("{}.{}", section.name, key.name));
            }
        }
        assert!(silent.is_empty(), "{silent:#?}");
    }

    #[test]
    fn the_documentation_parses_as_the_default_configuration() {
        let text = to_toml(&Config::docs());
        let read: Config = toml::from_str(&text).unwrap();
        assert_eq!(read, Config::default());
        let ignored_by_serde = text.matches("ignored").count();
        assert_eq!(ignored_by_serde, 0, "no key that cannot be set");
    }

    #[test]
    fn the_data_directory_is_documented_by_its_rule_and_not_by_a_home() {
        let text = to_toml(&Config::docs());
        let home = super::super::Data::default().dir;
        assert!(!text.contains(&*home.to_string_lossy()), "{text}");
        assert!(text.contains("$XDG_DATA_HOME/tars"), "{text}");
    }

    #[test]
    fn an_unset_key_is_shown_with_its_variable() {
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
