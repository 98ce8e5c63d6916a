//! The steps of a root rotation.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A step of the rotation. The serialized names are part of `ca.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationStep {
    /// Creates the next root and adds it to the bundle.
    Prepare,
    /// Makes the prepared root active and retires the one before it.
    Activate,
    /// Taints the retired root.
    Taint,
    /// Removes the tainted root from the bundle.
    Remove,
}

impl RotationStep {
    /// The steps of one rotation, in order.
    pub const ALL: [Self; 4] = [Self::Prepare, Self::Activate, Self::Taint, Self::Remove];

    /// The name of the step in records and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Taint => "taint",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for RotationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step is not the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step} a root now: {why}")]
pub struct OrderError {
    /// The step that was requested.
    pub step: RotationStep,
    /// Why it cannot be taken now.
    pub why: &'static str,
}
