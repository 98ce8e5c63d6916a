//! The rotation of roots as a state machine: prepare, activate, taint, remove, in that order only.
//!
//! A root that signs before everybody trusts it, or goes before everybody has left it, stops a
//! mesh. This file knows the order; whether the bundle has reached the peers is asked of whoever
//! hears from them, before a step is taken.

use super::{CaError, file, unusable};
use crate::{SpiffeId, secret};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootState {
    /// Trusted, and signs nothing yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; what it signed still counts.
    Retired,
    /// The same, and whoever has a leaf below it renews at once.
    Tainted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationStep {
    Prepare,
    Activate,
    Taint,
    Remove,
}

impl RotationStep {
    pub const ALL: [Self; 4] = [Self::Prepare, Self::Activate, Self::Taint, Self::Remove];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Taint => "taint",
            Self::Remove => "remove",
        }
    }
}

impl RootState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Tainted => "tainted",
        }
    }
}

impl fmt::Display for RotationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step} a root now: {why}")]
pub struct OrderError {
    pub step: RotationStep,
    pub why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootEntry {
    pub(super) generation: u32,
    pub(super) state: RootState,
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    pub version: u64,
    pub step: RotationStep,
    pub generation: u32,
    /// Seconds since the Unix epoch.
    pub at: u64,
    pub by: String,
}

/// What `ca.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    pub(super) version: u64,
    pub(super) roots: Vec<RootEntry>,
    /// Every step since the first, which is `init`'s.
    pub(super) steps: Vec<StepRecord>,
    /// Revoked identities: seconds before which none of their leaves begins.
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
        let active = |r: &&RootEntry| r.state == RootState::Active;
        if ledger.roots.iter().filter(active).count() != 1 || ledger.steps.is_empty() {
            return Err(unusable(&path, "must have one active root and its history"));
        }
        Ok(ledger)
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

    /// The ledger after a step, or why the step is not the next one.
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
                return Err(refuse("the rotation before it is not finished"));
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
    fn only_one_order_of_steps_is_possible() {
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
                assert!(ledger.find(RootState::Active).is_some(), "something signs");
            }
            assert_eq!(ledger.roots.len(), 1);
        }
        assert_eq!(
            ledger.find(RootState::Active),
            Some(4),
            "numbers never come back"
        );
        assert_eq!(ledger.steps.len(), 13);
    }
}
