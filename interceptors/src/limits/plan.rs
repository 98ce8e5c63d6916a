//! Which limits a call is charged to, and how large they are. A plan is made from the configuration and,
//! where there is one, from the file of limits. It is replaced as a whole while the process runs; what was
//! counted before is kept.

mod file;

pub use file::{FileError, Kind, OverrideError, SizeError};

use crate::Call;
use serde::Deserialize;
use std::{collections::HashMap, fmt, time::Duration};
use tars_certs::PeerClass;
use tars_credentials::{Credential, View};
use tars_proto::table::{Budget, RateClass, Rule};
use tars_runtime::{
    config::{Limits, bounds::EXACT_CALLS},
    network::{Network, Sites, bucket},
    rate::Rate,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The name of a limit, as in headers, in refusals and in the file of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitName {
    /// Logins, by address.
    Auth,
    /// Public documents, by address.
    Public,
    /// Calls of people, by user.
    User,
    /// Calls of workloads, by peer.
    Internal,
    /// Questions of callers about themselves, by user.
    Identity,
    /// New secrets of API keys, by user.
    KeyChanges,
}

use LimitName::{Auth, Identity, Internal, KeyChanges, Public, User};

impl LimitName {
    pub(super) const ALL: [Self; 6] = [Auth, Public, User, Internal, Identity, KeyChanges];

    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        match self {
            Auth => "auth",
            Public => "public",
            User => "user",
            Internal => "internal",
            Identity => "identity",
            KeyChanges => "key-changes",
        }
    }

    /// Volume is smoothed; what guards secrets and what strangers may call is counted exactly.
    fn is_exact(self) -> bool {
        !matches!(self, User | Internal)
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// So many calls in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// What it is called.
    pub name: LimitName,
    /// The number of calls.
    pub calls: u32,
    /// The window, at least a second.
    pub window: Duration,
}

impl fmt::Display for Limit {
    /// Of volume as many more may come at once after a time without any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (calls, seconds) = (self.calls, self.window.as_secs());
        match self.is_exact() {
            true => write!(f, "{calls} calls in any {seconds} s"),
            false => write!(
                f,
                "{calls} calls in {seconds} s on average, {} at once",
                self.at_once().0
            ),
        }
    }
}

impl Limit {
    /// Creates a limit.
    pub const fn new(name: LimitName, calls: u32, window: Duration) -> Self {
        Self {
            name,
            calls,
            window,
        }
    }

    /// Whether no window of this length, wherever it begins, has more calls.
    pub fn is_exact(&self) -> bool {
        self.name.is_exact()
    }

    /// The rate of a limit that is not exact: at most a quarter of its calls come at once.
    pub(crate) fn rate(&self) -> Rate {
        Rate::every(self.window / self.calls.max(1), (self.calls / 4).max(1))
    }

    /// How many calls there may be at once after a period without any, and the time in which as many
    /// become free again.
    pub(crate) fn at_once(&self) -> (u32, Duration) {
        if self.is_exact() {
            return (self.calls, self.window);
        }
        let rate = self.rate();
        (rate.burst(), rate.interval() * rate.burst())
    }

    /// The part of one of several replicas that cannot count together.
    #[must_use]
    pub(crate) fn share(&self, replicas: u32) -> Self {
        Self {
            calls: self.calls.div_ceil(replicas.max(1)).max(1),
            ..*self
        }
    }
}

/// Whom a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject<'a> {
    /// A person, or a peer.
    Name(&'a str),
    /// An API key that has a limit of its own.
    Key(&'a str),
    /// An address, or the network of one; see [`bucket`].
    Address(u64),
    /// The networks of one site; see [`Sites`].
    Site(u64),
}

/// One call, charged to one limit.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// The limit.
    pub limit: Limit,
    /// Whom it counts.
    pub subject: Subject<'a>,
}

/// What belongs to each limit of a call, which is charged to all of them or to none: its class, also for the
/// client's site where it counts addresses, and a budget where its method names one.
#[derive(Debug, Clone, Copy)]
pub struct Each<T> {
    /// The limit of its class.
    pub class: T,
    /// The same for the whole site of an IPv6 address, so many times as large.
    pub site: Option<T>,
    /// A further limit, which is always exact.
    pub budget: Option<T>,
}

/// What a call is charged to.
pub type Charges<'a> = Each<Charge<'a>>;

impl<T> Each<T> {
    /// Of a call that has one limit.
    pub fn one(class: T) -> Self {
        Self {
            class,
            site: None,
            budget: None,
        }
    }

    pub(super) fn map<U>(&self, of: impl Fn(&T) -> U) -> Each<U> {
        Each {
            class: of(&self.class),
            site: self.site.as_ref().map(&of),
            budget: self.budget.as_ref().map(&of),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.class)
            .chain(&self.site)
            .chain(&self.budget)
    }
}

/// Every limit in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    sites: Sites,
    limits: [Limit; LimitName::ALL.len()],
    users: HashMap<String, Vec<Limit>>,
    keys: HashMap<String, Vec<Limit>>,
    peers: HashMap<String, Vec<Limit>>,
    networks: Vec<(Network, Limit)>,
}

impl Plan {
    /// The limits of a configuration.
    pub fn new(limits: &Limits) -> Self {
        let of = |name| match name {
            Auth => (limits.auth_per_minute, MINUTE),
            Public => (limits.public_per_minute, MINUTE),
            User => (limits.user_per_minute, MINUTE),
            Internal => (limits.internal_per_second, SECOND),
            Identity => (limits.identity_per_minute, MINUTE),
            KeyChanges => (limits.key_changes_per_minute, MINUTE),
        };
        Self {
            sites: limits.sites(),
            limits: LimitName::ALL.map(|name| {
                let (calls, window) = of(name);
                Limit::new(name, calls, window)
            }),
            users: HashMap::new(),
            keys: HashMap::new(),
            peers: HashMap::new(),
            networks: Vec::new(),
        }
    }

    /// Users and keys with limits of their own who do not exist.
    pub fn strangers(&self, view: &View) -> Vec<String> {
        let users = view.strangers(self.users.keys()).into_iter();
        let keys = self.keys.keys().filter(|id| !view.has_key(id));
        let mut keys: Vec<_> = keys.map(|id| format!("key {id}")).collect();
        keys.sort_unstable();
        users.map(|who| format!("user {who}")).chain(keys).collect()
    }

    /// How many overrides there are.
    pub fn overrides(&self) -> usize {
        let named = [&self.users, &self.keys, &self.peers].map(HashMap::len);
        named.iter().sum::<usize>() + self.networks.len()
    }

    /// The limit of this name, for whom nothing else is set.
    pub fn limit(&self, name: LimitName) -> Limit {
        self.limits[name as usize]
    }

    /// What a call is charged to.
    pub(crate) fn charges<'c>(&self, call: &'c Call) -> Charges<'c> {
        let class = class_of(call.peer.class, &call.method.rule);
        let budget = match call.method.rule.budget {
            Some(budget) if class != Internal => Some(self.of_caller(budget_name(budget), call)),
            _ => None,
        };
        let (class, site) = match class {
            Auth | Public => self.of_address(class, call),
            User => (self.of_caller(class, call), None),
            other => (self.of_peer(other, call), None),
        };
        Charges {
            class,
            site,
            budget,
        }
    }

    /// What the address is charged, and its site. A limit that is set for a part of a site says nothing of the
    /// rest of it: what may come from there is not counted against the site.
    fn of_address<'c>(&self, name: LimitName, call: &'c Call) -> (Charge<'c>, Option<Charge<'c>>) {
        let is_own = |(network, limit): &&(Network, Limit)| {
            limit.name == name && network.contains(call.client)
        };
        let own = self.networks.iter().find(is_own);
        let limit = own.map_or_else(|| self.limit(name), |(_, limit)| *limit);
        let has_site = own.is_none_or(|(network, _)| network.has_whole(self.sites));
        let charge = Charge {
            limit,
            subject: Subject::Address(bucket(call.client)),
        };
        let site = has_site.then(|| self.of_site(limit, call)).flatten();
        (charge, site)
    }

    /// What the site of an address is charged for it.
    fn of_site<'c>(&self, limit: Limit, call: &Call) -> Option<Charge<'c>> {
        let site = self.sites.of(call.client)?;
        Some(Charge {
            limit: Limit {
                calls: self
                    .sites
                    .times(limit.calls)
                    .min(EXACT_CALLS.max(limit.calls)),
                ..limit
            },
            subject: Subject::Site(site),
        })
    }

    /// A key that has a limit of its own is not charged to its owner; all others are.
    fn of_caller<'c>(&self, name: LimitName, call: &'c Call) -> Charge<'c> {
        let Some(caller) = call.caller() else {
            return self.of_peer(name, call);
        };
        if let Credential::ApiKey { id, .. } = &caller.credential
            && let Some(limit) = own(&self.keys, id, name)
        {
            let subject = Subject::Key(id);
            return Charge { limit, subject };
        }
        let limit = own(&self.users, &caller.owner_id, name);
        let limit = limit.or_else(|| own(&self.users, &caller.username, name));
        Charge {
            limit: limit.unwrap_or_else(|| self.limit(name)),
            subject: Subject::Name(&caller.owner_id),
        }
    }

    fn of_peer<'c>(&self, name: LimitName, call: &'c Call) -> Charge<'c> {
        let path = call.peer.id().map(|id| id.path());
        let limit = path.and_then(|path| own(&self.peers, path, name));
        Charge {
            limit: limit.unwrap_or_else(|| self.limit(name)),
            subject: Subject::Name(call.peer.name()),
        }
    }
}

fn own(of: &HashMap<String, Vec<Limit>>, who: &str, name: LimitName) -> Option<Limit> {
    if of.is_empty() {
        return None;
    }
    of.get(who)?
        .iter()
        .find(|limit| limit.name == name)
        .copied()
}

/// A workload that forwards a caller's call has already charged the caller.
fn class_of(peer: Option<PeerClass>, rule: &Rule) -> LimitName {
    let hop = peer.is_some_and(|c| c.is_workload() && c != PeerClass::Gateway);
    match rule.rate {
        _ if hop => Internal,
        RateClass::Auth => Auth,
        RateClass::Public => Public,
        RateClass::User => User,
        RateClass::Internal => Internal,
    }
}

fn budget_name(budget: Budget) -> LimitName {
    match budget {
        Budget::Identity => Identity,
        Budget::KeyChanges => KeyChanges,
    }
}

#[cfg(test)]
mod tests;
