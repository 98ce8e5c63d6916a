//! A change of stage: one step of a version up the ladder of its agent.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version that is to climb.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Promotion {
    pub(crate) version: u64,
    /// The stages when it was proposed.
    pub(crate) from: Stage,
    pub(crate) to: Stage,
    /// What it replaces when it becomes ACTIVE, when it was proposed.
    pub(crate) incumbent: Incumbent,
    /// What the person who decides is shown.
    pub(crate) comparison: Option<Comparison>,
    /// Where the step up has put it.
    pub(crate) placement: Option<Placement>,
    /// What it did there.
    pub(crate) verification: Option<Watched>,
}

/// A stage of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    Sim,
    Shadow,
    Canary,
    Active,
    Retired,
}

/// What answers: a version, or the rule that answers under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incumbent {
    /// 0 where nothing was ever ACTIVE.
    pub(crate) version: u64,
    /// Empty where a policy answers.
    pub(crate) rule: String,
}

/// Where a step up has put a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    pub(crate) stage: Stage,
    /// One that becomes ACTIVE gets the next number.
    pub(crate) version: u64,
    /// Which of its trials a version in CANARY is in.
    pub(crate) trial: u64,
}

/// What a version did in its stage while it was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub(crate) steps: u64,
    /// Those that the action shield blocked.
    pub(crate) blocked: u64,
    pub(crate) micros: u64,
}

/// Where a version stands now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    pub(crate) stage: Stage,
    pub(crate) trial: u64,
    pub(crate) incumbent: Incumbent,
    pub(crate) steps: u64,
    pub(crate) blocked: u64,
    /// Why it fell by itself; empty if it did not.
    pub(crate) fell: String,
}

/// How a version compares with others that take its agent's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) incumbent: Incumbent,
    pub(crate) calibration: String,
    pub(crate) seeds: u32,
    pub(crate) first_seed: u64,
    pub(crate) mean: f64,
    /// With the incumbent, and with the agent's rules.
    pub(crate) with_incumbent: Option<Against>,
    pub(crate) with_rules: Vec<Against>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Against {
    pub(crate) name: String,
    pub(crate) mean: f64,
    /// By how much the version earns more, and the 95 % interval of that mean.
    pub(crate) difference: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The number of the verdict in the contract.
    pub(crate) verdict: i32,
}

impl Promotion {
    /// What keeps the proposal from being about what it was made against; `None` while nothing does.
    pub(crate) fn staleness(&self, now: &Standing) -> Option<String> {
        let Self {
            version,
            from,
            incumbent,
            ..
        } = self;
        if now.stage != *from {
            let stage = now.stage;
            return Some(format!(
                "version {version} stood in {from} when it was proposed, and stands in {stage} now"
            ));
        }
        (now.incumbent.version != incumbent.version).then(|| {
            let live = now.incumbent.version;
            let base = incumbent.version;
            format!("it was made against version {base}, and version {live} is live")
        })
    }
}

impl Placement {
    /// Whether a version still stands where it was put.
    pub(crate) fn lasts(self, now: &Standing) -> bool {
        now.stage == self.stage && (self.stage != Stage::Canary || now.trial == self.trial)
    }

    /// Why a version that does not stand there any more has left it.
    pub(crate) fn left(self, now: &Standing) -> String {
        let Self { version, stage, .. } = self;
        match now.fell.as_str() {
            "" => format!("version {version} does not stand in {stage} any more"),
            why => format!("version {version} fell from {stage}: {why}"),
        }
    }
}

impl Stage {
    /// Whether a version that stands there answers, so that what it does is watched.
    pub(crate) fn answers(self) -> bool {
        matches!(self, Self::Canary | Self::Active)
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn standing(stage: Stage, trial: u64) -> Standing {
        Standing {
            stage,
            trial,
            incumbent: Incumbent {
                version: 1,
                rule: "aimd".to_owned(),
            },
            steps: 0,
            blocked: 0,
            fell: String::new(),
        }
    }

    #[test]
    fn a_version_lasts_in_canary_for_one_trial() {
        let placed = |stage, trial| Placement {
            stage,
            version: 2,
            trial,
        };
        let there = [
            (placed(Stage::Canary, 1), standing(Stage::Canary, 1), true),
            (placed(Stage::Canary, 1), standing(Stage::Canary, 2), false),
            (placed(Stage::Canary, 1), standing(Stage::Shadow, 0), false),
            (placed(Stage::Active, 0), standing(Stage::Active, 0), true),
            (placed(Stage::Active, 0), standing(Stage::Retired, 0), false),
            (placed(Stage::Shadow, 0), standing(Stage::Shadow, 0), true),
        ];
        for (placed, now, lasts) in there {
            assert_eq!(placed.lasts(&now), lasts, "{placed:?} {now:?}");
        }
    }

    #[test]
    fn why_a_version_left_its_stage_is_what_it_fell_for() {
        let placed = Placement {
            stage: Stage::Canary,
            version: 2,
            trial: 1,
        };
        let mut now = standing(Stage::Shadow, 0);
        assert_eq!(
            placed.left(&now),
            "version 2 does not stand in CANARY any more"
        );
        now.fell = "an action was not finite".to_owned();
        assert_eq!(
            placed.left(&now),
            "version 2 fell from CANARY: an action was not finite"
        );
    }
}
