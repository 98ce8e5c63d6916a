//! Peer classes: the kind of workload or client that a SPIFFE id belongs to. Rules in the contract
//! name classes, never ids.

use crate::{SpiffeId, spiffe::is_segment};
use std::{fmt, str::FromStr};

macro_rules! peer_classes {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// The kind of peer that a SPIFFE id denotes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum PeerClass {
            /// Auth, the issuer of credentials.
            Auth,
            $(
                #[doc = concat!($title, ", a service of the mesh.")]
                $variant,
            )*
            /// The REST gateway.
            Gateway,
            /// A workload that is no service of the mesh.
            Worker,
            /// A person with an operator certificate.
            Operator,
            /// A program outside the mesh.
            Client,
            /// An unauthenticated caller of the bootstrap listener. No certificate maps to it.
            Joiner,
        }

        /// The names that rules of the contract use for peer classes, in the order of
        /// [`PeerClass::ALL`].
        pub const PEER_CLASSES: &[&str] = &[
            "auth",
            $(stringify!($name),)*
            "gateway",
            "worker",
            "operator",
            "client",
            "joiner",
        ];

        impl PeerClass {
            /// Every class.
            pub const ALL: [Self; PEER_CLASSES.len()] = [
                Self::Auth,
                $(Self::$variant,)*
                Self::Gateway,
                Self::Worker,
                Self::Operator,
                Self::Client,
                Self::Joiner,
            ];
        }
    };
}
crate::for_each_service!(peer_classes);

/// A set of classes is a `u16`.
const _: () = assert!(PEER_CLASSES.len() <= 16);

impl PeerClass {
    /// The name of the class in rules, configuration, metrics and records.
    pub fn as_str(self) -> &'static str {
        PEER_CLASSES[self as usize]
    }

    /// The class with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == text)
    }

    /// Whether this is a service of the mesh, as opposed to a person or an outside program.
    pub fn is_workload(self) -> bool {
        !matches!(self, Self::Operator | Self::Client | Self::Joiner)
    }

    /// The bit of this class in a set of classes.
    pub fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for PeerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pattern of SPIFFE paths, in which `*` matches exactly one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern(Vec<String>);

/// The text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "pattern {0:?} must be a path of segments, as in \"/user/*\": `*` stands for one segment, and any other segment consists of letters, digits, '.', '-', '_'"
)]
pub struct PatternError(String);

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let rest = text
            .strip_prefix('/')
            .filter(|r| r.split('/').all(|s| s == "*" || is_segment(s)));
        let rest = rest.ok_or_else(|| PatternError(text.to_owned()))?;
        Ok(Self(rest.split('/').map(str::to_owned).collect()))
    }
}

impl PathPattern {
    /// Whether the path of `id` matches, whatever its trust domain.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let mut parts = id.path()[1..].split('/');
        let all = self.0.iter().all(|pattern| {
            parts
                .next()
                .is_some_and(|part| pattern == "*" || pattern == part)
        });
        all && parts.next().is_none()
    }
}

/// Maps SPIFFE paths to classes. The first matching rule wins.
#[derive(Debug, Clone, Default)]
pub struct ClassTable {
    rules: Vec<(PathPattern, PeerClass)>,
}

/// Why a class table is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    /// There is no class with this name.
    #[error("unknown peer class {0:?}")]
    Class(String),
    /// A rule assigns [`PeerClass::Joiner`].
    #[error("no pattern can assign the class joiner: it is for callers without a certificate")]
    Joiner,
    /// The left side of a rule is not a pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl ClassTable {
    /// Builds the table from pairs of pattern and class name.
    pub fn new<'a>(
        rules: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ClassError> {
        let mut table = Self::default();
        for (pattern, class) in rules {
            let class =
                PeerClass::parse(class).ok_or_else(|| ClassError::Class(class.to_owned()))?;
            if class == PeerClass::Joiner {
                return Err(ClassError::Joiner);
            }
            table.rules.push((pattern.parse()?, class));
        }
        Ok(table)
    }

    /// The class of `id`; `None` when no rule matches.
    pub fn classify(&self, id: &SpiffeId) -> Option<PeerClass> {
        let mut rules = self.rules.iter();
        rules
            .find(|(pattern, _)| pattern.matches(id))
            .map(|(_, class)| *class)
    }
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
    fn patterns_match_whole_paths_only() {
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
        assert!(ClassTable::new([("/a", "joiner")]).is_err());
        for bad in ["", "a", "/", "//a"] {
            assert!(ClassTable::new([(bad, "auth")]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_that_no_id_can_match_is_refused() {
        for good in ["/*", "/user/*", "/ns/*/sa/*", "/a.b-c_D"] {
            good.parse::<PathPattern>().unwrap();
        }
        for bad in [
            "/user/**",
            "/user/",
            "/user//ada",
            "/a*",
            "/*a",
            "/.",
            "/..",
            "/a b",
            "/{name}",
            "/user/?",
            "/ü",
            "spiffe://tars.local/user/ada",
            "/user/*/",
        ] {
            let refused = bad.parse::<PathPattern>().unwrap_err().to_string();
            assert!(refused.contains("`*` stands for one segment"), "{refused}");
            assert!(refused.contains(bad), "{refused}");
        }
    }

    #[test]
    fn names_and_classes_are_in_the_same_order() {
        for class in PeerClass::ALL {
            assert_eq!(PeerClass::parse(class.as_str()), Some(class));
        }
    }
}
