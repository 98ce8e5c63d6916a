//! How proposals are approved, fitted to what came of the last ones.
//!
//! Proposals are rare: a window of them is not a time, but the last few. The fit is to those before, and it is
//! tested by whether it predicts the last few: how many answers each got, and how long an answer took.

use serde::{Deserialize, Serialize};
use tars_worlds::mesh::{Changes, fit::MAX_TAIL_ERROR};

/// How many of the last proposals test the fit.
pub(crate) const TESTED: usize = 10;
/// How many before them it takes at least.
pub(crate) const MIN_FITTED: usize = 30;
/// How many answers on good proposals, and how many on bad ones.
pub(crate) const MIN_ANSWERS: usize = 5;
/// The shortest time of an answer that the model takes, in s.
const LEAST_S: f64 = 1e-3;
/// By how many standard errors a prediction may be off, where that is more than it may be else.
const CHANCE: f64 = 2.0;

/// A proposal that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decided {
    pub(crate) proposed_us: i64,
    pub(crate) ended_us: i64,
    /// How many answers it needed.
    pub(crate) required: u32,
    pub(crate) votes: Vec<Vote>,
    /// Whether it was good or bad, where that is known.
    pub(crate) quality: Option<Quality>,
}

/// An approver's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vote {
    pub(crate) approves: bool,
    pub(crate) at_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quality {
    Good,
    Bad,
}

/// How far the fit was off on the last proposals, as shares of what they show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ApprovalErrors {
    /// Of the answers that a proposal got.
    pub(crate) answers: f64,
    /// Of the time that an answer took, as the geometric mean.
    pub(crate) time: f64,
}

/// What a fit to proposals found, and whether it can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Approvals {
    /// Why it cannot be trusted; `None` if it can.
    pub(crate) uncalibrated: Option<String>,
    /// The proposals that were fitted to, and their answers.
    pub(crate) proposals: u32,
    pub(crate) answers: u32,
    /// The proposals after them.
    pub(crate) tested: u32,
    /// `None` where there were too few.
    pub(crate) errors: Option<ApprovalErrors>,
}

/// Why a fit to proposals cannot be trusted.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error(
        "too few proposals have ended: {fitted} to fit to and {tested} after them; {MIN_FITTED} and {TESTED} are needed"
    )]
    TooFew { fitted: usize, tested: usize },
    #[error(
        "too few answers: {good} on good proposals and {bad} on bad ones; {MIN_ANSWERS} of each are needed"
    )]
    OneSided { good: usize, bad: usize },
    #[error("the last proposals got no answer")]
    NoAnswers,
    #[error("the error of {what} is {error:.3}; it may be {limit:.3}")]
    Error {
        what: &'static str,
        error: f64,
        limit: f64,
    },
}

/// What proposals show.
#[derive(Debug, Default)]
struct Seen {
    proposals: f64,
    span_s: f64,
    required: f64,
    answers: Sample,
    /// Logarithms of times in s.
    times: Sample,
    bad: f64,
    judged: f64,
    good_votes: [usize; 2],
    bad_votes: [usize; 2],
}

/// A mean and a variance.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Sample {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(self) -> f64 {
        self.sum / self.count
    }

    fn variance(self) -> f64 {
        (self.squares / self.count - self.mean() * self.mean()).max(0.0)
    }

    /// The standard error of the difference between the means of two samples.
    fn standard_error(self, other: Self) -> f64 {
        (self.variance() / self.count + self.variance() / other.count).sqrt()
    }
}

/// A share of which half a case of either kind was seen before.
fn share(part: f64, whole: f64) -> f64 {
    (part + 0.5) / (whole + 1.0)
}

impl Seen {
    fn of(all: &[Decided]) -> Self {
        let mut seen = Self {
            proposals: all.len() as f64,
            ..Self::default()
        };
        let times = || all.iter().map(|one| one.proposed_us);
        if let (Some(first), Some(last)) = (times().min(), times().max()) {
            seen.span_s = last.saturating_sub(first) as f64 / 1e6;
        }
        all.iter().for_each(|one| seen.add(one));
        seen
    }

    fn add(&mut self, one: &Decided) {
        self.required += f64::from(one.required);
        self.answers.add(one.votes.len() as f64);
        for vote in &one.votes {
            let took_s = vote.at_us.saturating_sub(one.proposed_us) as f64 / 1e6;
            self.times.add(took_s.max(LEAST_S).ln());
            match one.quality {
                Some(Quality::Good) => self.good_votes[usize::from(vote.approves)] += 1,
                Some(Quality::Bad) => self.bad_votes[usize::from(vote.approves)] += 1,
                None => {}
            }
        }
        if let Some(quality) = one.quality {
            self.judged += 1.0;
            self.bad += f64::from(u8::from(quality == Quality::Bad));
        }
    }

    fn changes(&self, assumed: &Changes) -> Changes {
        let rejected = |votes: [usize; 2]| share(votes[0] as f64, (votes[0] + votes[1]) as f64);
        Changes {
            proposals: match self.span_s > 0.0 {
                true => (self.proposals - 1.0) / self.span_s,
                false => assumed.proposals,
            },
            bad: share(self.bad, self.judged),
            available: share(self.answers.sum, self.required).min(1.0),
            answer_s: self.times.mean().exp(),
            answer_sigma: self.times.variance().sqrt(),
            spots: rejected(self.bad_votes),
            false_alarms: rejected(self.good_votes),
            ..assumed.clone()
        }
    }

    /// How far what they show is from what others do, and how far it may be.
    fn errors(&self, tested: &Self) -> (ApprovalErrors, ApprovalErrors) {
        let answers = tested.answers.mean();
        let errors = ApprovalErrors {
            answers: (self.answers.mean() - answers).abs() / answers,
            time: ((self.times.mean() - tested.times.mean()).exp() - 1.0).abs(),
        };
        let chance = |sample: Sample, other| CHANCE * sample.standard_error(other);
        let limits = ApprovalErrors {
            answers: chance(self.answers, tested.answers) / answers,
            time: chance(self.times, tested.times).exp() - 1.0,
        };
        (errors, limits)
    }
}

impl Approvals {
    /// Fits to all proposals but the last ones, and tests by those. They are given the oldest first. Returns the
    /// assumed changes with what was fitted, if it can be trusted.
    pub(super) fn of(all: &[Decided], assumed: &Changes) -> (Self, Option<Changes>) {
        let (before, after) = all.split_at(all.len().saturating_sub(TESTED));
        let (fitted, tested) = (Seen::of(before), Seen::of(after));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut found = Self {
            uncalibrated: None,
            proposals: count(before.len()),
            answers: count(before.iter().map(|one| one.votes.len()).sum()),
            tested: count(after.len()),
            errors: None,
        };
        match found.judge(&fitted, &tested) {
            Ok(()) => (found, Some(fitted.changes(assumed))),
            Err(why) => {
                found.uncalibrated = Some(why.to_string());
                (found, None)
            }
        }
    }

    fn judge(&mut self, fitted: &Seen, tested: &Seen) -> Result<(), Unfit> {
        let (before, after) = (self.proposals as usize, self.tested as usize);
        if before < MIN_FITTED || after < TESTED {
            return Err(Unfit::TooFew {
                fitted: before,
                tested: after,
            });
        }
        let [good, bad] = [fitted.good_votes, fitted.bad_votes].map(|votes| votes[0] + votes[1]);
        if good < MIN_ANSWERS || bad < MIN_ANSWERS {
            return Err(Unfit::OneSided { good, bad });
        }
        if tested.times.count == 0.0 {
            return Err(Unfit::NoAnswers);
        }
        let (errors, chance) = fitted.errors(tested);
        self.errors = Some(errors);
        for (what, error, chance) in [
            ("the answers to a proposal", errors.answers, chance.answers),
            ("the time of an answer", errors.time, chance.time),
        ] {
            let limit = chance.max(MAX_TAIL_ERROR);
            if error > limit {
                return Err(Unfit::Error { what, error, limit });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
