//! The stages of the ladder, and what is said about versions that climb it: plain values, which the store, the
//! errors and the rules of the [ladder](crate::ladder) share.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};
use tars_learn::comparison::{self, Verdict};

/// How many steps a version has to answer in CANARY before it may become ACTIVE.
pub(crate) const CANARY_STEPS: u64 = 200;

/// At most one in this many of them may have been blocked by the shield.
pub(crate) const CANARY_BLOCKED_ONE_IN: u64 = 10;

/// The seeds that the ladder asks for.
pub(crate) const MIN_SEEDS: u32 = 30;

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

/// The last time that a version fell by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastFall {
    pub(crate) why: String,
    /// When and from where; of falls that are older than their record, nobody knows.
    pub(crate) at_us: Option<i64>,
    pub(crate) from: Option<Stage>,
}

/// What is to be replaced when a version becomes ACTIVE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incumbent {
    /// The ACTIVE version; 0 where there is none.
    pub(crate) version: i64,
    /// The rule that answers, or would where nothing is ACTIVE yet.
    pub(crate) rule: Option<String>,
}

/// A version in one of its trials. Each time that a version enters CANARY is a new trial, so that nothing which it
/// did in an earlier one is held for or against it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) version: i64,
    /// 0 before the version first enters CANARY.
    pub(crate) trial: i64,
}

/// What a version did in CANARY.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trial {
    pub(crate) steps: u64,
    /// Those whose action the shield blocked or changed.
    pub(crate) blocked: u64,
}

/// Steps of a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Steps that the version in SHADOW was asked in, and those in which it would have done the same.
    pub(crate) shadow_steps: u64,
    pub(crate) agreed: u64,
    /// Steps that the version in CANARY answered, and those that the shield blocked.
    pub(crate) canary_steps: u64,
    pub(crate) blocked: u64,
    /// Steps that the version answered while it was ACTIVE and a governed change held the agent, and those that the
    /// shield blocked.
    pub(crate) active_steps: u64,
    pub(crate) active_blocked: u64,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) incumbent: Incumbent,
    /// The name of the calibration of the environment.
    pub(crate) calibration: String,
    /// The number of episodes, and the seed of the first one.
    pub(crate) seeds: u32,
    pub(crate) first_seed: u64,
    /// The mean reward of a step of the version.
    pub(crate) mean: f64,
    pub(crate) with_incumbent: Against,
    pub(crate) with_rules: Vec<Against>,
    /// When it was made, which the store has in a column.
    #[serde(skip)]
    pub(crate) at_us: i64,
}

/// A version against something else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Against {
    /// What it is: `version 3`, or the name of a rule.
    pub(crate) name: String,
    /// Its mean reward of a step.
    pub(crate) mean: f64,
    pub(crate) difference: Difference,
}

/// By how much the version earns more, with the 95 % interval of the mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
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
    #[error(
        "a proposal leads up the ladder, and {to} is not above {from}: PromoteAgent leads down"
    )]
    NotUp { from: Stage, to: Stage },
    #[error(
        "a step up to {0} takes a proposal that another person approves (orchestration.governed_promotion): SyncService.ProposePromotion"
    )]
    Governed(Stage),
    #[error(
        "the mesh's model has not been calibrated yet: that takes two windows of served calls, and GetCalibration says how many calls"
    )]
    NotMeasured,
    #[error("the mesh's model is UNCALIBRATED: {0}")]
    Uncalibrated(String),
    #[error("the mesh's model is UNCALIBRATED for {agent}: what it acts on is not measured: {why}")]
    NothingOfAgent { agent: String, why: String },
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

impl Stage {
    const ALL: [Self; 5] = [
        Self::Sim,
        Self::Shadow,
        Self::Canary,
        Self::Active,
        Self::Retired,
    ];

    /// The stage that is written so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let is_named = |stage: &Self| stage.to_string() == name;
        Self::ALL.into_iter().find(is_named)
    }
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

impl Against {
    pub(crate) fn verdict(&self) -> Verdict {
        let Difference { mean, low, high } = self.difference;
        comparison::Difference { mean, low, high }.verdict()
    }

    /// Whether the version is certainly worse, or earned nothing that can be compared.
    pub(crate) fn is_worse(&self) -> bool {
        let Difference { mean, low, high } = self.difference;
        let is_known = [mean, low, high].iter().all(|number| number.is_finite());
        !is_known || self.verdict() == Verdict::Worse
    }
}

impl From<comparison::Difference> for Difference {
    fn from(from: comparison::Difference) -> Self {
        let comparison::Difference { mean, low, high } = from;
        Self { mean, low, high }
    }
}
