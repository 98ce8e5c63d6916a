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
    stage::{
        Against, CANARY_BLOCKED_ONE_IN, CANARY_STEPS, Comparison, Incumbent, MIN_SEEDS, Refusal,
        Stage, Trial,
    },
    store::{Places, VersionRow},
};
use std::time::Duration;

/// Where a promotion leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Stay,
    Up(Stage),
    Down(Stage),
}

/// What is known about a version that is to climb.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) agent: &'a str,
    pub(crate) incumbent: Incumbent,
    /// The latest calibration of the mesh's model, and its age.
    pub(crate) calibration: Option<(&'a Finding, Duration)>,
    /// How old it may be.
    pub(crate) calibration_life: Duration,
    pub(crate) comparison: Option<&'a Comparison>,
    pub(crate) trial: Trial,
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

/// The version that one rolls back to: the newest one before what is live that was ACTIVE, did not fall, and
/// answers otherwise. Of a bound agent it must have climbed to where it was, or be a rule. The versions are those
/// before the live one, the newest first.
pub(crate) fn way_back(
    before: Vec<VersionRow>,
    is_bound: bool,
    answers: impl Fn(&VersionRow) -> bool,
) -> Option<VersionRow> {
    let is_earned = |version: &VersionRow| !is_bound || version.climbed || version.rule.is_some();
    before
        .into_iter()
        .find(|version| version.served && !version.fell && is_earned(version) && !answers(version))
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
        if age > life {
            return Err(Refusal::Outdated { age, life });
        }
        match finding.measures(self.agent) {
            true => Ok(()),
            false => Err(Refusal::NothingOfAgent {
                agent: self.agent.to_owned(),
                why: finding.why_not(),
            }),
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
    pub(crate) fn is_passed(self) -> Result<(), Refusal> {
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
