//! Folds repeated refusals: a caller that is refused as fast as its limit allows must not fill the audit
//! list.
//!
//! The first refusal of a kind (event type, caller, peer, method, result, reason) is a record at once. Those
//! that follow become one record per minute, with their number and the times of the first and the last of
//! them. The number of kinds is bounded per owner and in total; refusals beyond it are counted in one record
//! with what they have in common, and some of the methods. So everything is counted somewhere, and only a
//! process that is killed loses the counts of its last minute. Successful calls are never folded.

use super::Record;
use std::collections::{BTreeSet, HashMap};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

const WINDOW: Duration = Duration::from_secs(60);
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
const KINDS_OF_AN_OWNER: usize = 32;
const KINDS: usize = 2048;
/// Maximum number of methods that one record names.
const NAMED: usize = 16;

/// The detail that names the person behind a caller.
pub const OWNER: &str = "owner";
/// The detail that holds the reason.
pub const REASON: &str = "reason";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    One {
        event_type: String,
        caller: String,
        peer: String,
        method: String,
        result: String,
        reason: String,
    },
    /// Of an owner with the maximum number of kinds, by event type.
    Owner(String, String),
    /// Of anybody while the table is full, by event type.
    Anybody(String),
}

#[derive(Debug)]
struct Group {
    /// The owner to whom the kind is charged.
    owner: String,
    /// What all refusals of this window have in common.
    common: Record,
    /// Some of the methods, where there are several.
    methods: BTreeSet<String>,
    count: u64,
    first_us: i64,
    last_us: i64,
    until: Instant,
}

/// The refusals of the current windows.
#[derive(Debug)]
pub struct Refusals {
    groups: HashMap<Kind, Group>,
    owners: HashMap<String, usize>,
    next_scan: Instant,
}

impl Refusals {
    /// Creates an empty table.
    pub fn new(now: Instant) -> Self {
        Self {
            groups: HashMap::new(),
            owners: HashMap::new(),
            next_scan: now + SCAN_INTERVAL,
        }
    }

    /// Takes a record: returns it when it is to be written at once, and counts it otherwise.
    pub fn take(&mut self, record: Record, now: Instant) -> Option<Record> {
        if record.result == "OK" {
            return Some(record);
        }
        let kind = self.kind_of(&record);
        if let Some(group) = self.groups.get_mut(&kind) {
            group.add(record);
            return None;
        }
        let mut group = Group::new(&record, now);
        let written = if matches!(kind, Kind::One { .. }) {
            *self.owners.entry(group.owner.clone()).or_default() += 1;
            Some(record)
        } else {
            group.add(record);
            None
        };
        self.groups.insert(kind, group);
        written
    }

    /// Returns a record for each kind whose window has ended.
    pub fn due(&mut self, now: Instant) -> Vec<Record> {
        if now < self.next_scan {
            return Vec::new();
        }
        self.next_scan = now + SCAN_INTERVAL;
        let (owners, mut due) = (&mut self.owners, Vec::new());
        self.groups.retain(|kind, group| {
            if group.until > now {
                return true;
            }
            group.until = now + WINDOW;
            let counted = group.folded();
            let goes_on = counted.is_some();
            due.extend(counted);
            if !goes_on && matches!(kind, Kind::One { .. }) {
                forget(owners, &group.owner);
            }
            goes_on
        });
        due
    }

    /// Returns a record for each kind with a count, and empties the table.
    pub fn rest(&mut self) -> Vec<Record> {
        self.owners.clear();
        let groups = std::mem::take(&mut self.groups);
        groups
            .into_values()
            .filter_map(|mut g| g.folded())
            .collect()
    }

    fn kind_of(&self, record: &Record) -> Kind {
        let one = Kind::One {
            event_type: record.event_type.clone(),
            caller: record.caller.clone(),
            peer: record.peer.clone(),
            method: record.method.clone(),
            result: record.result.clone(),
            reason: record.details.get(REASON).cloned().unwrap_or_default(),
        };
        let owner = owner(record);
        if self.groups.contains_key(&one) {
            one
        } else if self.owners.get(owner).copied().unwrap_or_default() >= KINDS_OF_AN_OWNER {
            Kind::Owner(owner.to_owned(), record.event_type.clone())
        } else if self.groups.len() >= KINDS {
            Kind::Anybody(record.event_type.clone())
        } else {
            one
        }
    }
}

impl Group {
    fn new(first: &Record, now: Instant) -> Self {
        Self {
            owner: owner(first).to_owned(),
            common: first.clone(),
            methods: BTreeSet::new(),
            count: 0,
            first_us: 0,
            last_us: 0,
            until: now + WINDOW,
        }
    }

    fn add(&mut self, record: Record) {
        self.last_us = record.at_us;
        self.count += 1;
        if self.methods.len() < NAMED {
            self.methods.insert(record.method.clone());
        }
        if self.count == 1 {
            self.first_us = record.at_us;
            self.common = record;
            return;
        }
        let common = &mut self.common;
        common.severity = common.severity.max(record.severity);
        for (kept, other) in [
            (&mut common.caller, record.caller),
            (&mut common.peer, record.peer),
            (&mut common.method, record.method),
            (&mut common.resource, record.resource),
            (&mut common.trace_id, record.trace_id),
        ] {
            if *kept != other {
                kept.clear();
            }
        }
        if common.result != record.result {
            // Several ways of being refused, and none of success.
            "REFUSED".clone_into(&mut common.result);
        }
        common
            .details
            .retain(|name, value| record.details.get(name) == Some(value));
    }

    /// Returns what was counted since the last time.
    fn folded(&mut self) -> Option<Record> {
        if self.count == 0 {
            return None;
        }
        let mut record = self.common.clone();
        record.event_id = Uuid::now_v7();
        record.at_us = self.last_us;
        let methods = std::mem::take(&mut self.methods);
        if methods.len() > 1 {
            let named: Vec<String> = methods.into_iter().collect();
            record = record.detail("methods", named.join(", "));
        }
        let record = record
            .detail("count", std::mem::take(&mut self.count))
            .detail("first_at", at(self.first_us))
            .detail("last_at", at(self.last_us));
        Some(record)
    }
}

fn owner(record: &Record) -> &str {
    record.details.get(OWNER).unwrap_or(&record.caller)
}

fn forget(owners: &mut HashMap<String, usize>, owner: &str) {
    if let Some(kinds) = owners.get_mut(owner) {
        *kinds -= 1;
        if *kinds == 0 {
            owners.remove(owner);
        }
    }
}

fn at(us: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000);
    at.ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
