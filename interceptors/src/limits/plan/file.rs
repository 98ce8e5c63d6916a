//! The file of limits: how it is read, and what is refused in it. A limit of somebody to whom no call is ever
//! charged would be kept in silence and never apply, so that it is a mistake like any other.

use super::{
    Limit, LimitName,
    LimitName::{Auth, Identity, Internal, KeyChanges, Public, User},
    Plan, class_of,
};
use crate::contract;
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, time::Duration};
use tars_certs::{ClassTable, PeerClass, SpiffeError, SpiffeId};
use tars_credentials::apikey;
use tars_proto::{
    table::Rule,
    validate::{is_name, is_uuid},
};
use tars_runtime::{
    config::bounds::{EXACT_CALLS, RATE},
    network::{Network, NetworkError},
};

/// The longest window: 31 days.
const LONGEST: u64 = 31 * 86_400;
/// Paths are the same in every trust domain; this one is for none.
const ANY_DOMAIN: &str = "any";

/// What is wrong with a file of limits, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is not such a file at all.
    #[error("{0}")]
    Syntax(String),
    /// The size of a limit.
    #[error("limit.{name}: {why}")]
    Limit {
        /// The limit.
        name: LimitName,
        /// What is wrong with it.
        why: SizeError,
    },
    /// An override.
    #[error("override {at}: {why}")]
    Override {
        /// Its position, from 1.
        at: usize,
        /// What is wrong with it.
        why: OverrideError,
    },
}

/// Why so many calls in such a window are no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// There are too many calls, or none.
    #[error("calls must be between 1 and {0}")]
    Calls(u32),
    /// The window is too long, or is none.
    #[error("window_seconds must be between 1 and {LONGEST}")]
    Window,
}

/// Why an override is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// It is of no size that a limit has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It names nobody, or several.
    #[error("names exactly one of user, key, peer and address")]
    Whom,
    /// Its limit never counts whom it names.
    #[error("the limit {limit} counts by {}, never by {kind}; by {kind} counts {}", by(.limit), of(.kind))]
    NotCounted {
        /// The limit.
        limit: LimitName,
        /// Whom it names.
        kind: Kind,
    },
    /// The limit never counts peers of this class.
    #[error(
        "the limit {limit} never counts {path:?}, which is of class {class}: what such a peer does by itself counts as internal, what callers do through it as theirs"
    )]
    NotCountedOfClass {
        /// The limit.
        limit: LimitName,
        /// The path of the peer.
        path: String,
        /// Its class.
        class: PeerClass,
    },
    /// No user can have this name or id.
    #[error(
        "{0:?} can be no user: give a name (at most 64 of a-z, 0-9, '-', '_', '.', the first a letter or digit) or an id (a UUID in lower case)"
    )]
    User(String),
    /// No API key can have this id.
    #[error("{0:?} can be no API key: give the id that `/auth/service-tokens` shows, {len} letters and digits", len = apikey::ID_LEN)]
    Key(String),
    /// No peer can have this path.
    #[error(
        "{path:?} can be no peer: {why}; give the path alone, such as \"/automl\" or \"/client/bot\""
    )]
    Peer {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: SpiffeError,
    },
    /// The peer may call nothing.
    #[error("no pattern of certificates.classes matches {0:?}: such a peer may call nothing")]
    Classless(String),
    /// It names no network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It names a part of what is counted as one, whose limit would be charged to the count of the rest.
    #[error("{0}: all of an IPv6 /64 is counted as one, write the /64")]
    Part(Network),
    /// An earlier override is for the same.
    #[error("override {0} is for the same limit of the same {1}")]
    Again(usize, Kind),
    /// An earlier override is for a network that this one lies in.
    #[error(
        "every address of {network} has the limit of override {earlier}, {of}: put the smaller network first"
    )]
    Covered {
        /// The network.
        network: Network,
        /// The position of the other override.
        earlier: usize,
        /// The network of the other override.
        of: Network,
    },
}

/// How an override names somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A user, by name or id.
    User,
    /// An API key, by id.
    Key,
    /// A peer, by the path of its SPIFFE id.
    Peer,
    /// A network.
    Address,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Key => "key",
            Self::Peer => "peer",
            Self::Address => "address",
        })
    }
}

impl LimitName {
    /// How whom it counts can be named.
    pub(super) fn counts(self) -> &'static [Kind] {
        match self {
            Auth | Public => &[Kind::Address],
            // Of a peer only the calls for which its certificate is enough, without a caller.
            User => &[Kind::User, Kind::Key, Kind::Peer],
            Identity | KeyChanges => &[Kind::User, Kind::Key],
            Internal => &[Kind::Peer],
        }
    }
}

fn joined(all: impl Iterator<Item = impl ToString>) -> String {
    let all: Vec<_> = all.map(|one| one.to_string()).collect();
    all.join(", ")
}

/// By what a limit counts.
fn by(limit: &LimitName) -> String {
    joined(limit.counts().iter())
}

/// The limits that count by this.
fn of(kind: &Kind) -> String {
    let counts = |name: &LimitName| name.counts().contains(kind);
    joined(LimitName::ALL.into_iter().filter(counts))
}

/// Whether a peer of this class makes calls that are charged to it under this limit: those of others are
/// charged to their callers.
pub(super) fn counts_class(limit: LimitName, class: PeerClass) -> bool {
    let charged = |rule: &Rule| {
        let admitted = rule.peers.iter().any(|name| name == class.as_str());
        let is_enough = !rule.needs_credential() || rule.suffices(class.as_str());
        admitted && is_enough && class_of(Some(class), rule) == limit
    };
    let mut methods = contract().into_iter().flat_map(|table| table.iter());
    limit.counts().contains(&Kind::Peer) && methods.any(|method| charged(&method.rule))
}

/// The file of limits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    limit: BTreeMap<LimitName, Size>,
    #[serde(default, rename = "override")]
    overrides: Vec<Override>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    calls: u32,
    window_seconds: u64,
}

impl Size {
    fn limit(self, name: LimitName) -> Result<Limit, SizeError> {
        let most = if name.is_exact() { EXACT_CALLS } else { RATE };
        if !(1..=most).contains(&self.calls) {
            return Err(SizeError::Calls(most));
        }
        if !(1..=LONGEST).contains(&self.window_seconds) {
            return Err(SizeError::Window);
        }
        let window = Duration::from_secs(self.window_seconds);
        Ok(Limit::new(name, self.calls, window))
    }
}

/// A limit for one user (by name or id), API key (by id), peer (by the path of its SPIFFE id) or network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    user: Option<String>,
    key: Option<String>,
    peer: Option<String>,
    address: Option<String>,
    limit: LimitName,
    calls: u32,
    window_seconds: u64,
}

/// Whom an override is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    User(String),
    Key(String),
    Peer(String),
    Address(Network),
}

impl Whom {
    fn kind(&self) -> Kind {
        match self {
            Self::User(_) => Kind::User,
            Self::Key(_) => Kind::Key,
            Self::Peer(_) => Kind::Peer,
            Self::Address(_) => Kind::Address,
        }
    }
}

impl Override {
    /// Whom it names, and the limit.
    fn checked(self, classes: &ClassTable) -> Result<(Whom, Limit), OverrideError> {
        let (calls, window_seconds) = (self.calls, self.window_seconds);
        let limit = Size {
            calls,
            window_seconds,
        }
        .limit(self.limit)?;
        let whom = match (self.user, self.key, self.peer, self.address) {
            (Some(user), None, None, None) => Whom::User(user),
            (None, Some(key), None, None) => Whom::Key(key),
            (None, None, Some(path), None) => Whom::Peer(path),
            (None, None, None, Some(network)) => Whom::Address(network.parse()?),
            _ => return Err(OverrideError::Whom),
        };
        let (limit_name, kind) = (limit.name, whom.kind());
        if !limit_name.counts().contains(&kind) {
            return Err(OverrideError::NotCounted {
                limit: limit_name,
                kind,
            });
        }
        whom.check(limit_name, classes)?;
        Ok((whom, limit))
    }
}

impl Whom {
    /// # Errors
    ///
    /// Nobody can be named so, or the limit never counts them.
    fn check(&self, limit: LimitName, classes: &ClassTable) -> Result<(), OverrideError> {
        match self {
            Self::User(who) if !is_name(who) && !is_id(who) => {
                Err(OverrideError::User(who.clone()))
            }
            Self::Key(id) if !apikey::is_id(id) => Err(OverrideError::Key(id.clone())),
            Self::Peer(path) => check_peer(path, limit, classes),
            Self::Address(network) if network.is_part_of_a_bucket() => {
                Err(OverrideError::Part(*network))
            }
            Self::User(_) | Self::Key(_) | Self::Address(_) => Ok(()),
        }
    }
}

/// Ids of users are compared as texts, and are written in lower case.
fn is_id(text: &str) -> bool {
    is_uuid(text) && !text.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_peer(path: &str, limit: LimitName, classes: &ClassTable) -> Result<(), OverrideError> {
    let id = SpiffeId::new(ANY_DOMAIN, path).map_err(|why| OverrideError::Peer {
        path: path.to_owned(),
        why,
    })?;
    let class = classes
        .classify(&id)
        .ok_or_else(|| OverrideError::Classless(path.to_owned()))?;
    match counts_class(limit, class) {
        true => Ok(()),
        false => Err(OverrideError::NotCountedOfClass {
            limit,
            path: path.to_owned(),
            class,
        }),
    }
}

impl Plan {
    /// The same with what a file of limits changes. `classes` tells which peers there can be.
    ///
    /// # Errors
    ///
    /// Every mistake in the text.
    pub fn with(&self, text: &str, classes: &ClassTable) -> Result<Self, Vec<FileError>> {
        let syntax = |e: toml::de::Error| vec![FileError::Syntax(e.to_string())];
        let file: File = toml::from_str(text).map_err(syntax)?;
        let (mut plan, mut mistakes) = (self.clone(), Vec::new());
        for (name, size) in file.limit {
            match size.limit(name) {
                Ok(limit) => plan.limits[name as usize] = limit,
                Err(why) => mistakes.push(FileError::Limit { name, why }),
            }
        }
        let mut earlier = Vec::new();
        for (n, row) in file.overrides.into_iter().enumerate() {
            let at = n + 1;
            let checked = row.checked(classes).and_then(|(whom, limit)| {
                fresh(&earlier, &whom, limit.name)?;
                Ok((whom, limit))
            });
            match checked {
                Ok((whom, limit)) => {
                    earlier.push((at, whom.clone(), limit.name));
                    plan.add(whom, limit);
                }
                Err(why) => mistakes.push(FileError::Override { at, why }),
            }
        }
        if mistakes.is_empty() {
            Ok(plan)
        } else {
            Err(mistakes)
        }
    }

    fn add(&mut self, whom: Whom, limit: Limit) {
        match whom {
            Whom::User(user) => self.users.entry(user).or_default().push(limit),
            Whom::Key(key) => self.keys.entry(key).or_default().push(limit),
            Whom::Peer(path) => self.peers.entry(path).or_default().push(limit),
            Whom::Address(network) => self.networks.push((network, limit)),
        }
    }
}

/// # Errors
///
/// An earlier override applies wherever this one would.
fn fresh(
    earlier: &[(usize, Whom, LimitName)],
    whom: &Whom,
    limit: LimitName,
) -> Result<(), OverrideError> {
    let of_limit = earlier.iter().filter(|(_, _, name)| *name == limit);
    for (at, other, _) in of_limit {
        match (other, whom) {
            _ if other == whom => return Err(OverrideError::Again(*at, whom.kind())),
            (Whom::Address(of), Whom::Address(network)) if of.covers(network) => {
                let (earlier, network, of) = (*at, *network, *of);
                return Err(OverrideError::Covered {
                    network,
                    earlier,
                    of,
                });
            }
            _ => {}
        }
    }
    Ok(())
}
