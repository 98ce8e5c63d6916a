//! Root rotation as a state machine: prepare, activate, taint, remove, in this order only.
//!
//! A root that signs before every peer trusts it, or is removed while a peer still has a
//! certificate below it, takes the mesh down. This module enforces the order; whether the peers are
//! ready is checked by the caller, before a step is taken.

mod step;

pub use step::{OrderError, RotationStep};

use super::{CaError, file, unusable};
use crate::{SpiffeId, secret};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The place of a root in the rotation. The serialized names are part of `ca.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootState {
    /// Trusted, but does not sign yet.
    Prepared,
    /// Signs intermediates. Exactly one root is active.
    Active,
    /// No longer signs; its certificates are still trusted.
    Retired,
    /// Like retired, and identities below it must be renewed at once.
    Tainted,
}

impl RootState {
    /// The name of the state in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Tainted => "tainted",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootEntry {
    pub(super) generation: u32,
    pub(super) state: RootState,
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The version of the bundle after the step.
    pub version: u64,
    /// The step.
    pub step: RotationStep,
    /// The root that it was about.
    pub generation: u32,
    /// When it was taken, in seconds since the Unix epoch.
    pub at: u64,
    /// Who asked for it.
    pub by: String,
}

/// The contents of `ca.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    pub(super) version: u64,
    pub(super) roots: Vec<RootEntry>,
    /// Every step since the first one, which `init` records.
    pub(super) steps: Vec<StepRecord>,
    /// For each revoked identity, the second at which its leaves may begin.
    #[serde(default)]
    pub(super) not_before: BTreeMap<String, u64>,
}

impl Ledger {
    pub(super) fn first(now: Duration) -> Self {
        Self {
            version: 1,
            roots: vec![RootEntry {
                generation: 1,
                state: RootState::Active,
            }],
            steps: vec![StepRecord {
                version: 1,
                step: RotationStep::Activate,
                generation: 1,
                at: now.as_secs(),
                by: "init".to_owned(),
            }],
            not_before: BTreeMap::new(),
        }
    }

    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("ca.json")
    }

    pub(super) fn load(dir: &Path) -> Result<Self, CaError> {
        let path = Self::path(dir);
        let text = fs::read_to_string(&path).map_err(|e| file(&path, e))?;
        let ledger: Self =
            serde_json::from_str(&text).map_err(|e| unusable(&path, &e.to_string()))?;
        if !ledger.is_sound() {
            return Err(unusable(&path, "must have one active root and its history"));
        }
        Ok(ledger)
    }

    /// Whether there is one active root, and a history.
    pub(super) fn is_sound(&self) -> bool {
        let active = |r: &&RootEntry| r.state == RootState::Active;
        self.roots.iter().filter(active).count() == 1 && !self.steps.is_empty()
    }

    /// Raises the earliest start of the leaves of identities; `false` when nothing changes. The latest
    /// moment of an identity counts.
    pub(super) fn raise_not_before(&mut self, floors: &[(SpiffeId, Duration)]) -> bool {
        let mut changed = false;
        for (id, at) in floors {
            let floor = self.not_before.entry(id.as_str().to_owned()).or_default();
            changed |= *floor < at.as_secs();
            *floor = (*floor).max(at.as_secs());
        }
        changed
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), CaError> {
        let path = Self::path(dir);
        let text =
            serde_json::to_string_pretty(self).map_err(|e| unusable(&path, &e.to_string()))?;
        secret::write_public(&path, text.as_bytes()).map_err(|e| file(&path, e))
    }

    /// The latest step.
    pub(super) fn last(&self) -> &StepRecord {
        self.steps
            .last()
            .expect("loading refuses a ledger without steps")
    }

    pub(super) fn earliest(&self, id: &SpiffeId) -> Duration {
        let at = self.not_before.get(id.as_str()).copied();
        Duration::from_secs(at.unwrap_or(0))
    }

    fn find(&self, state: RootState) -> Option<u32> {
        let mut roots = self.roots.iter();
        roots.find(|r| r.state == state).map(|r| r.generation)
    }

    fn set(&mut self, from: RootState, to: RootState) -> Option<u32> {
        let entry = self.roots.iter_mut().find(|r| r.state == from)?;
        entry.state = to;
        Some(entry.generation)
    }

    /// The ledger after a step.
    ///
    /// # Errors
    ///
    /// Another step is due.
    pub(super) fn after(
        &self,
        step: RotationStep,
        by: &str,
        now: Duration,
    ) -> Result<Self, OrderError> {
        use RootState::{Active, Prepared, Retired, Tainted};
        let refuse = |why| OrderError { step, why };
        let mut next = self.clone();
        let generation = match step {
            RotationStep::Prepare if self.roots.len() > 1 => {
                return Err(refuse("the previous rotation is not finished"));
            }
            RotationStep::Prepare => {
                let newest = self.steps.iter().map(|s| s.generation).max();
                let generation = newest.unwrap_or(0) + 1;
                next.roots.push(RootEntry {
                    generation,
                    state: Prepared,
                });
                generation
            }
            RotationStep::Activate => {
                let prepared = self.find(Prepared);
                let prepared = prepared.ok_or(refuse("no root is prepared"))?;
                next.set(Active, Retired);
                next.set(Prepared, Active);
                prepared
            }
            RotationStep::Taint => next.set(Retired, Tainted).ok_or(refuse(
                "no root is retired; the active one cannot be tainted",
            ))?,
            RotationStep::Remove => {
                let tainted = self.find(Tainted).ok_or(refuse("no root is tainted"))?;
                next.roots.retain(|r| r.generation != tainted);
                tainted
            }
        };
        next.version += 1;
        next.steps.push(StepRecord {
            version: next.version,
            step,
            generation,
            at: now.as_secs(),
            by: by.to_owned(),
        });
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_accepted_in_one_order_only() {
        let now = Duration::from_secs(1);
        let order = RotationStep::ALL;
        let mut ledger = Ledger::first(now);
        for round in 0..3 {
            for (at, step) in order.iter().enumerate() {
                for other in order.iter().filter(|o| *o != step) {
                    assert!(
                        ledger.after(*other, "x", now).is_err(),
                        "{other} instead of {step} in round {round}"
                    );
                }
                ledger = ledger.after(*step, "x", now).unwrap();
                assert_eq!(ledger.last().step, order[at]);
                assert!(
                    ledger.find(RootState::Active).is_some(),
                    "one root is always active"
                );
            }
            assert_eq!(ledger.roots.len(), 1);
        }
        assert_eq!(
            ledger.find(RootState::Active),
            Some(4),
            "generation numbers are never reused"
        );
        assert_eq!(ledger.steps.len(), 13);
    }
}
