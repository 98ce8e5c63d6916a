//! What kind of peer a SPIFFE id is. Rules in the contract name classes, never ids.

use crate::SpiffeId;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerClass {
    Auth,
    Orchestration,
    Automl,
    Hypersync,
    Gateway,
    Worker,
    Operator,
    Client,
}

const ALL: [PeerClass; 8] = [
    PeerClass::Auth,
    PeerClass::Orchestration,
    PeerClass::Automl,
    PeerClass::Hypersync,
    PeerClass::Gateway,
    PeerClass::Worker,
    PeerClass::Operator,
    PeerClass::Client,
];

/// The words that rules may use.
pub const PEER_CLASSES: &[&str] = &[
    "auth",
    "orchestration",
    "automl",
    "hypersync",
    "gateway",
    "worker",
    "operator",
    "client",
];

impl PeerClass {
    pub fn as_str(self) -> &'static str {
        PEER_CLASSES[self as usize]
    }

    pub fn parse(text: &str) -> Option<Self> {
        ALL.into_iter().find(|c| c.as_str() == text)
    }

    /// A service of the mesh, as opposed to a person or an outside program.
    pub fn is_workload(self) -> bool {
        !matches!(self, Self::Operator | Self::Client)
    }

    /// One bit a class, for sets.
    pub fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for PeerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Patterns of SPIFFE paths, first match wins.
#[derive(Debug, Clone, Default)]
pub struct ClassTable {
    rules: Vec<(Vec<String>, PeerClass)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    #[error("unknown peer class {0:?}")]
    Class(String),
    #[error("pattern {0:?} must be a path of segments, '*' standing for one")]
    Pattern(String),
}

impl ClassTable {
    pub fn new<'a>(
        rules: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ClassError> {
        let mut table = Self::default();
        for (pattern, class) in rules {
            let class =
                PeerClass::parse(class).ok_or_else(|| ClassError::Class(class.to_owned()))?;
            let rest = pattern
                .strip_prefix('/')
                .filter(|r| r.split('/').all(|s| !s.is_empty()));
            let rest = rest.ok_or_else(|| ClassError::Pattern(pattern.to_owned()))?;
            table
                .rules
                .push((rest.split('/').map(str::to_owned).collect(), class));
        }
        Ok(table)
    }

    pub fn classify(&self, id: &SpiffeId) -> Option<PeerClass> {
        let parts: Vec<&str> = id.path()[1..].split('/').collect();
        self.rules
            .iter()
            .find(|(pattern, _)| matches(pattern, &parts))
            .map(|(_, class)| *class)
    }
}

fn matches(pattern: &[String], parts: &[&str]) -> bool {
    pattern.len() == parts.len()
        && pattern
            .iter()
            .zip(parts)
            .all(|(p, part)| p == "*" || p == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> ClassTable {
        ClassTable::new([
            ("/auth", "auth"),
            ("/ns/*/sa/auth", "auth"),
            ("/user/*", "operator"),
        ])
        .unwrap()
    }

    fn class(path: &str) -> Option<PeerClass> {
        table().classify(&SpiffeId::new("tars.local", path).unwrap())
    }

    #[test]
    fn patterns_take_whole_paths_only() {
        assert_eq!(class("/auth"), Some(PeerClass::Auth));
        assert_eq!(class("/ns/prod/sa/auth"), Some(PeerClass::Auth));
        assert_eq!(class("/user/ada"), Some(PeerClass::Operator));
        for other in [
            "/autho",
            "/auth/x",
            "/x/auth",
            "/user",
            "/user/a/b",
            "/ns/prod/sa/other",
            "/Auth",
        ] {
            assert_eq!(class(other), None, "{other}");
        }
    }

    #[test]
    fn broken_rules_are_refused() {
        assert!(ClassTable::new([("/a", "king")]).is_err());
        for bad in ["", "a", "/", "//a"] {
            assert!(ClassTable::new([(bad, "auth")]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_and_classes_agree() {
        for class in ALL {
            assert_eq!(PeerClass::parse(class.as_str()), Some(class));
        }
    }
}
