//! The ladder that a version climbs before it acts on a live mesh: SIM, SHADOW, CANARY, ACTIVE.
//!
//! Only the agents of `orchestration.bound_agents` climb it. What training makes of such an agent enters as
//! SIM and changes nothing that answers. A version in SHADOW is asked what it would do, and nobody does it; one
//! in CANARY answers a share of the callers; the ACTIVE one answers all others. Each stage has at most one
//! version, so that the stage is a function of the agent's row, which names them, and a step of the ladder is
//! a compare-and-set of that row.
//!
//! Going up takes one step at a time and evidence; going down takes neither. Everything here is pure.

use crate::{
    calibration::Finding,
    comparisons::{Against, Comparison, MIN_SEEDS},
    store::{Places, VersionRow},
};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// How many steps a version has to answer in CANARY before it may become ACTIVE.
pub(crate) const CANARY_STEPS: u64 = 200;
/// At most one in this many of them may have been blocked by the shield.
pub(crate) const CANARY_BLOCKED_ONE_IN: u64 = 10;

/// Where a version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has met simulated worlds only.
    Sim,
    /// It is asked, and does not answer.
    Shadow,
    /// It answers a share of the callers.
    Canary,
    /// It answers.
    Active,
    /// It was ACTIVE, and has been replaced.
    Retired,
}

/// Where a promotion leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Stay,
    Up(Stage),
    Down(Stage),
}

/// What is to be replaced when a version becomes ACTIVE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incumbent {
    /// The ACTIVE version; 0 where there is none.
    pub(crate) version: i64,
    /// The rule that answers, or would where nothing is ACTIVE yet.
    pub(crate) rule: Option<String>,
}

/// What a version did in CANARY.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trial {
    pub(crate) steps: u64,
    /// Those whose action the shield blocked or changed.
    pub(crate) blocked: u64,
}

/// What is known about a version that is to climb.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) incumbent: Incumbent,
    /// The latest calibration of the mesh's model, and its age.
    pub(crate) calibration: Option<(&'a Finding, Duration)>,
    /// How old it may be.
    pub(crate) calibration_life: Duration,
    pub(crate) comparison: Option<&'a Comparison>,
    pub(crate) trial: Trial,
}

/// Why a version does not climb, and what would let it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the agent is not bound to the live mesh (orchestration.bound_agents): its versions become ACTIVE at once"
    )]
    NotBound,
    #[error("no version is put into the stage {0}")]
    NoTarget(Stage),
    #[error("a version in {from} climbs to {next} before {to}")]
    Skips { from: Stage, next: Stage, to: Stage },
    #[error("the ACTIVE version is replaced: promote another one or a rule, or roll back")]
    ActiveStays,
    #[error("a rule becomes ACTIVE at once, and takes no other stage")]
    RuleIsActive,
    #[error("the mesh's model has not been calibrated yet: that takes two windows of served calls")]
    NotMeasured,
    #[error("the mesh's model is UNCALIBRATED: {0}")]
    Uncalibrated(String),
    #[error("the last calibration is {} s old, and counts for {} s: that takes served calls", age.as_secs(), life.as_secs())]
    Outdated { age: Duration, life: Duration },
    #[error("the version was not compared with {0}: CompareAgent does")]
    NotCompared(Incumbent),
    #[error("the version was compared on {0} seeds, and {MIN_SEEDS} are needed: CompareAgent does")]
    FewSeeds(u32),
    #[error(
        "the version is not shown to be as good as {incumbent}: the difference of their rewards may be as low as {low:.4}; train it further"
    )]
    NotAsGood { incumbent: Incumbent, low: f64 },
    #[error(
        "the version is worse than the rule {rule}, by {by:.4} of the reward; promote the rule instead"
    )]
    Worse { rule: String, by: f64 },
    #[error("the version has answered {0} steps in CANARY, and {CANARY_STEPS} are needed")]
    TooFewSteps(u64),
    #[error(
        "the shield blocked {blocked} of {steps} steps in CANARY; at most one in {CANARY_BLOCKED_ONE_IN} may be"
    )]
    Blocked { blocked: u64, steps: u64 },
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sim => "SIM",
            Self::Shadow => "SHADOW",
            Self::Canary => "CANARY",
            Self::Active => "ACTIVE",
            Self::Retired => "RETIRED",
        })
    }
}

impl fmt::Display for Incumbent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rule, self.version) {
            (Some(rule), 0) => write!(f, "the rule {rule}"),
            (Some(rule), version) => write!(f, "version {version}, the rule {rule}"),
            (None, version) => write!(f, "the ACTIVE version {version}"),
        }
    }
}

impl Stage {
    /// The stage of a version, by the places of its agent.
    pub(crate) fn of(version: &VersionRow, places: Places) -> Self {
        let number = Some(version.version);
        if version.version == places.live {
            Self::Active
        } else if places.canary == number {
            Self::Canary
        } else if places.shadow == number {
            Self::Shadow
        } else if version.served {
            Self::Retired
        } else {
            Self::Sim
        }
    }

    /// The next step up. A version that was ACTIVE begins anew.
    fn above(self) -> Self {
        match self {
            Self::Sim | Self::Retired => Self::Shadow,
            Self::Shadow => Self::Canary,
            Self::Canary | Self::Active => Self::Active,
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Sim | Self::Retired => 0,
            Self::Shadow => 1,
            Self::Canary => 2,
            Self::Active => 3,
        }
    }

    /// Where a promotion leads from here; without a stage, one step up.
    pub(crate) fn promoted(self, to: Option<Self>) -> Result<Move, Refusal> {
        let to = to.unwrap_or(self.above());
        match (self, to) {
            (_, Self::Retired) => Err(Refusal::NoTarget(to)),
            (from, to) if from.rank() == to.rank() => Ok(Move::Stay),
            (Self::Active, _) => Err(Refusal::ActiveStays),
            (from, to) if to.rank() < from.rank() => Ok(Move::Down(to)),
            (from, to) if to == from.above() => Ok(Move::Up(to)),
            (from, to) => Err(Refusal::Skips {
                from,
                next: from.above(),
                to,
            }),
        }
    }
}

impl Evidence<'_> {
    /// Whether a version may climb to a stage. That it fits its agent was checked before.
    pub(crate) fn admits(&self, to: Stage) -> Result<(), Refusal> {
        match to {
            Stage::Sim | Stage::Retired | Stage::Shadow => Ok(()),
            Stage::Canary => self.is_calibrated().and_then(|()| self.is_as_good()),
            Stage::Active => {
                self.is_calibrated()?;
                self.is_as_good()?;
                self.trial.is_passed()
            }
        }
    }

    fn is_calibrated(&self) -> Result<(), Refusal> {
        let (finding, age) = self.calibration.ok_or(Refusal::NotMeasured)?;
        if let Some(reason) = &finding.uncalibrated {
            return Err(Refusal::Uncalibrated(reason.clone()));
        }
        let life = self.calibration_life;
        match age <= life {
            true => Ok(()),
            false => Err(Refusal::Outdated { age, life }),
        }
    }

    fn is_as_good(&self) -> Result<(), Refusal> {
        let compared = self.comparison.filter(|c| c.incumbent == self.incumbent);
        let compared = compared.ok_or_else(|| Refusal::NotCompared(self.incumbent.clone()))?;
        if compared.seeds < MIN_SEEDS {
            return Err(Refusal::FewSeeds(compared.seeds));
        }
        let low = compared.with_incumbent.difference.low;
        if low.is_nan() || low < 0.0 {
            let incumbent = self.incumbent.clone();
            return Err(Refusal::NotAsGood { incumbent, low });
        }
        match compared.with_rules.iter().find(|rule| rule.is_worse()) {
            None => Ok(()),
            Some(Against {
                name, difference, ..
            }) => Err(Refusal::Worse {
                rule: name.clone(),
                by: -difference.mean,
            }),
        }
    }
}

impl Trial {
    fn is_passed(self) -> Result<(), Refusal> {
        let Self { steps, blocked } = self;
        if steps < CANARY_STEPS {
            return Err(Refusal::TooFewSteps(steps));
        }
        match blocked.saturating_mul(CANARY_BLOCKED_ONE_IN) <= steps {
            true => Ok(()),
            false => Err(Refusal::Blocked { blocked, steps }),
        }
    }
}

#[cfg(test)]
mod tests;
