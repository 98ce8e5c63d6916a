//! The management of configuration changes: proposals arrive at random, approvers answer independently, and a
//! proposal is accepted once it has a quorum of approvals. It is Condorcet's jury: the larger the quorum, the
//! fewer bad changes pass, and the fewer good ones.
//!
//! A proposal is decided under the quorum and the timeout that held when it was submitted.

use super::{
    calibration::{Changes, MAX_APPROVERS},
    controls::Controls,
    latency::normal_tail,
    traffic::{ends_within, switch},
};
use crate::world::Generator;
use rand::RngExt;
use rand_distr::{Exp1, StandardNormal};
use serde::{Deserialize, Serialize};

/// How many proposals can be pending. One more expires at once.
const MAX_PENDING: usize = 16;
/// How many bad changes can be in effect. One more has no further effect.
const MAX_BAD: usize = 8;
/// How many proposals can be submitted in an interval.
const MAX_SUBMITTED: usize = 4;
/// The weight of the latest decision in what is observed of decisions.
const SMOOTHING: f64 = 0.2;

/// A proposal that is being decided on. Its outcome is fixed when it is submitted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Proposal {
    bad: bool,
    accepted: bool,
    /// Intervals since it was submitted.
    age: u32,
    /// Intervals until it is decided.
    left: u32,
    /// In s, from its acceptance, if it is bad.
    rollback_s: f64,
    votes: Votes,
}

/// What the approvers of a proposal did within its timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Votes {
    /// The share of approvers that answered.
    answered: f64,
    /// The share of those who approved.
    approved: f64,
    /// The mean time of the answers in s.
    time_s: f64,
}

/// What is observed of decisions: means over the last few.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) accepted: f64,
    /// The share of accepted changes that had to be rolled back.
    pub(crate) rolled_back: f64,
    pub(crate) answered: f64,
    pub(crate) approved: f64,
    pub(crate) answer_s: f64,
    /// Proposals per interval.
    pub(crate) proposals: f64,
}

/// What was decided, since the episode began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// Good changes that were accepted.
    pub good_accepted: u32,
    /// Good changes that expired.
    pub good_expired: u32,
    /// Bad changes that were accepted.
    pub bad_accepted: u32,
    /// Bad changes that expired.
    pub bad_expired: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChangeState {
    risky: bool,
    pending: [Proposal; MAX_PENDING],
    pending_count: usize,
    /// By how much good changes raise the service rate now.
    pub(crate) gain: f64,
    /// When each bad change in effect is rolled back, in s.
    rollbacks: [f64; MAX_BAD],
    bad_count: usize,
    pub(crate) seen: Seen,
    pub(crate) decisions: Decisions,
}

/// The chance that an approver is available at an hour of the day, given as an angle.
fn available(changes: &Changes, angle: f64) -> f64 {
    changes.available * (1.0 - changes.night * (1.0 + angle.cos()) / 2.0)
}

/// The chance that a proposal is accepted: that at least `quorum` approvers are available, answer within the
/// timeout and approve, which is the tail of a binomial distribution. `angle` is the hour of the day, 0 at
/// midnight and π at noon.
pub fn acceptance(changes: &Changes, quorum: u32, timeout_s: f64, bad: bool, angle: f64) -> f64 {
    let approves = if bad {
        1.0 - changes.spots
    } else {
        1.0 - changes.false_alarms
    };
    let in_time = match changes.answer_sigma > 0.0 {
        true => 1.0 - normal_tail((timeout_s / changes.answer_s).ln() / changes.answer_sigma),
        false => f64::from(u8::from(timeout_s >= changes.answer_s)),
    };
    binomial_tail(
        changes.approvers,
        available(changes, angle) * in_time * approves,
        quorum,
    )
}

/// The chance of at least `least` successes of `n`.
fn binomial_tail(n: u32, chance: f64, least: u32) -> f64 {
    let mut distribution = [0.0; MAX_APPROVERS + 1];
    distribution[0] = 1.0;
    for trial in 1..=n as usize {
        for successes in (0..=trial).rev() {
            let one_fewer = if successes > 0 {
                distribution[successes - 1]
            } else {
                0.0
            };
            distribution[successes] = distribution[successes] * (1.0 - chance) + one_fewer * chance;
        }
    }
    distribution[least as usize..=n as usize].iter().sum()
}

/// What a step of the game gives to the changes.
pub(crate) struct Context<'a> {
    pub(crate) changes: &'a Changes,
    pub(crate) controls: &'a Controls,
    pub(crate) interval: f64,
    /// The hour of the day as an angle.
    pub(crate) angle: f64,
}

impl Context<'_> {
    /// Draws a proposal and how its approvers answer.
    fn draw(&self, bad_share: f64, rng: &mut Generator) -> Proposal {
        let Changes {
            approvers,
            rollback_s,
            ..
        } = *self.changes;
        let bad = rng.random::<f64>() < bad_share;
        let exponential: f64 = rng.sample(Exp1);
        let mut approvals = [f64::INFINITY; MAX_APPROVERS];
        let (mut answers, mut approved, mut time) = (0.0, 0.0, 0.0);
        for approval in approvals.iter_mut().take(approvers as usize) {
            let Some((at, approves)) = self.answer(bad, rng) else {
                continue;
            };
            (answers, time) = (answers + 1.0, time + at);
            if approves {
                (approved, *approval) = (approved + 1.0, at);
            }
        }
        approvals.sort_unstable_by(f64::total_cmp);
        let quorum_at = approvals[self.controls.quorum as usize - 1];
        let timeout = self.controls.timeout_s;
        let or_none = |sum: f64| if answers > 0.0 { sum / answers } else { 0.0 };
        Proposal {
            bad,
            accepted: quorum_at <= timeout,
            age: 0,
            left: (quorum_at.min(timeout) / self.interval).ceil() as u32,
            rollback_s: exponential * rollback_s,
            votes: Votes {
                answered: answers / f64::from(approvers),
                approved: or_none(approved),
                time_s: or_none(time),
            },
        }
    }

    /// When an approver answers, if in time, and whether they approve. It always takes the same draws.
    fn answer(&self, bad: bool, rng: &mut Generator) -> Option<(f64, bool)> {
        let changes = self.changes;
        let present = rng.random::<f64>() < available(changes, self.angle);
        let normal: f64 = rng.sample(StandardNormal);
        let mistaken_or_right: f64 = rng.random();
        let at = changes.answer_s * (changes.answer_sigma * normal).exp();
        let rejects = if bad {
            changes.spots
        } else {
            changes.false_alarms
        };
        (present && at <= self.controls.timeout_s).then_some((at, mistaken_or_right >= rejects))
    }
}

/// A number of a Poisson distribution with a small mean, by inversion of one draw.
fn poisson(mean: f64, draw: f64) -> usize {
    let (mut count, mut term) = (0, (-mean).exp());
    let mut sum = term;
    while draw > sum && count < MAX_SUBMITTED {
        count += 1;
        term *= mean / count as f64;
        sum += term;
    }
    count
}

fn smooth(mean: &mut f64, latest: f64) {
    *mean += SMOOTHING * (latest - *mean);
}

impl ChangeState {
    /// A state in which nothing is pending.
    pub(crate) fn start(changes: &Changes, rng: &mut Generator) -> Self {
        let risky = changes.risky_s / (changes.risky_s + changes.quiet_s);
        let typical = 1.0 - changes.false_alarms;
        Self {
            risky: rng.random::<f64>() < risky,
            seen: Seen {
                accepted: 0.5,
                answered: changes.available,
                approved: typical,
                answer_s: changes.answer_s,
                ..Seen::default()
            },
            ..Self::default()
        }
    }

    /// Whether the counts are within what the state holds.
    pub(crate) fn is_sound(&self) -> bool {
        let numbers = [self.gain].into_iter().chain(self.rollbacks);
        self.pending_count <= MAX_PENDING
            && self.bad_count <= MAX_BAD
            && numbers.into_iter().all(f64::is_finite)
    }

    /// The factor of the service rate.
    pub(crate) fn efficiency(&self, changes: &Changes) -> f64 {
        (1.0 + self.gain) * (1.0 - changes.harm).powi(self.bad_count as i32)
    }

    /// The share of the service rate that bad changes take now.
    pub(crate) fn harm(&self, changes: &Changes) -> f64 {
        1.0 - (1.0 - changes.harm).powi(self.bad_count as i32)
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending_count
    }

    /// The mean and the highest age of pending proposals, in intervals.
    pub(crate) fn ages(&self) -> [f64; 2] {
        let pending = &self.pending[..self.pending_count];
        let sum: u32 = pending.iter().map(|proposal| proposal.age).sum();
        let oldest = pending.iter().map(|proposal| proposal.age).max();
        [
            f64::from(sum) / self.pending_count.max(1) as f64,
            f64::from(oldest.unwrap_or(0)),
        ]
    }

    /// Moves on by an interval. What is drawn does not depend on what the agents do.
    pub(crate) fn advance(&mut self, context: &Context<'_>, rng: &mut Generator) {
        let (changes, interval) = (context.changes, context.interval);
        self.gain *= (-interval / changes.gain_s).exp();
        self.roll_back(interval);
        self.decide(changes);
        let ends = ends_within(interval, changes.risky_s);
        let begins = ends_within(interval, changes.quiet_s);
        self.risky = switch(self.risky, rng.random(), ends, begins);
        let (factor, bad) = match self.risky {
            true => (changes.risky_factor, changes.risky_bad),
            false => (1.0, changes.bad),
        };
        let submitted = poisson(changes.proposals * factor * interval, rng.random());
        smooth(&mut self.seen.proposals, submitted as f64);
        for _ in 0..submitted {
            self.submit(context.draw(bad, rng));
        }
    }

    fn roll_back(&mut self, interval: f64) {
        let mut kept = 0;
        for at in 0..self.bad_count {
            let left = self.rollbacks[at] - interval;
            if left > 0.0 {
                self.rollbacks[kept] = left;
                kept += 1;
            } else {
                smooth(&mut self.seen.rolled_back, 1.0);
            }
        }
        self.bad_count = kept;
    }

    fn decide(&mut self, changes: &Changes) {
        let mut kept = 0;
        for at in 0..self.pending_count {
            let mut proposal = self.pending[at];
            proposal.age += 1;
            proposal.left = proposal.left.saturating_sub(1);
            if proposal.left > 0 {
                self.pending[kept] = proposal;
                kept += 1;
            } else {
                self.close(&proposal, changes);
            }
        }
        self.pending_count = kept;
    }

    fn close(&mut self, proposal: &Proposal, changes: &Changes) {
        let Proposal {
            bad,
            accepted,
            votes,
            ..
        } = *proposal;
        smooth(&mut self.seen.accepted, f64::from(u8::from(accepted)));
        smooth(&mut self.seen.answered, votes.answered);
        smooth(&mut self.seen.approved, votes.approved);
        smooth(&mut self.seen.answer_s, votes.time_s);
        let count = match (bad, accepted) {
            (false, true) => &mut self.decisions.good_accepted,
            (false, false) => &mut self.decisions.good_expired,
            (true, true) => &mut self.decisions.bad_accepted,
            (true, false) => &mut self.decisions.bad_expired,
        };
        *count += 1;
        match (bad, accepted) {
            (false, true) => {
                self.gain += changes.gain;
                smooth(&mut self.seen.rolled_back, 0.0);
            }
            (true, true) if self.bad_count < MAX_BAD => {
                self.rollbacks[self.bad_count] = proposal.rollback_s;
                self.bad_count += 1;
            }
            _ => {}
        }
    }

    fn submit(&mut self, proposal: Proposal) {
        if self.pending_count < MAX_PENDING {
            self.pending[self.pending_count] = proposal;
            self.pending_count += 1;
        } else if proposal.bad {
            self.decisions.bad_expired += 1;
        } else {
            self.decisions.good_expired += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Calibration;
    use rand::SeedableRng;
    use std::f64::consts::PI;

    /// Decides on many proposals and returns the shares of good and bad ones that were accepted.
    fn simulate(changes: &Changes, quorum: u32, timeout_s: f64, angle: f64) -> [f64; 2] {
        let calibration = Calibration::shipped();
        let controls = Controls {
            quorum,
            timeout_s,
            ..Controls::initial(&calibration)
        };
        let context = Context {
            changes,
            controls: &controls,
            interval: 5.0,
            angle,
        };
        let mut rng = Generator::seed_from_u64(1);
        let mut accepted = |bad_share: f64| {
            let draws = (0..40_000).filter(|_| context.draw(bad_share, &mut rng).accepted);
            draws.count() as f64 / 40_000.0
        };
        [accepted(0.0), accepted(1.0)]
    }

    #[test]
    fn the_share_of_accepted_proposals_is_the_binomial_tail() {
        let changes = Calibration::shipped().changes;
        for (quorum, timeout, angle) in [
            (2, 60.0, 0.0),
            (4, 60.0, PI),
            (5, 30.0, 1.0),
            (7, 240.0, 3.0),
        ] {
            let simulated = simulate(&changes, quorum, timeout, angle);
            for (bad, simulated) in [(false, simulated[0]), (true, simulated[1])] {
                let exact = acceptance(&changes, quorum, timeout, bad, angle);
                assert!(
                    (simulated - exact).abs() < 0.01,
                    "{quorum} {bad}: {simulated} {exact}"
                );
            }
        }
    }

    #[test]
    fn the_binomial_tail_is_its_textbook_sum() {
        let exact =
            10.0 * 0.3f64.powi(3) * 0.7f64.powi(2) + 5.0 * 0.3f64.powi(4) * 0.7 + 0.3f64.powi(5);
        assert!((binomial_tail(5, 0.3, 3) - exact).abs() < 1e-12);
        assert!((binomial_tail(5, 0.3, 0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_larger_quorum_accepts_less_of_everything_and_tells_better() {
        let changes = Calibration::shipped().changes;
        let chance = |quorum, bad| acceptance(&changes, quorum, 60.0, bad, PI);
        for quorum in 2..7 {
            assert!(chance(quorum + 1, false) < chance(quorum, false));
            let [now, then] = [quorum, quorum + 1].map(|q| chance(q, true) / chance(q, false));
            assert!(then < now);
        }
    }

    #[test]
    fn a_good_change_fades_and_a_bad_one_is_rolled_back() {
        let changes = Changes {
            proposals: 0.0,
            ..Calibration::shipped().changes
        };
        let controls = Controls::initial(&Calibration::shipped());
        let context = Context {
            changes: &changes,
            controls: &controls,
            interval: 5.0,
            angle: 0.0,
        };
        let mut state = ChangeState::default();
        for bad in [false, true] {
            let rollback_s = 12.0;
            state.submit(Proposal {
                bad,
                accepted: true,
                left: 1,
                rollback_s,
                ..Proposal::default()
            });
        }
        let mut rng = Generator::seed_from_u64(1);
        state.advance(&context, &mut rng);
        assert!((state.efficiency(&changes) - 1.05 * 0.8).abs() < 1e-12);
        for _ in 0..3 {
            state.advance(&context, &mut rng);
        }
        assert!(state.efficiency(&changes) > 1.04 && state.harm(&changes) == 0.0);
        for _ in 0..400 {
            state.advance(&context, &mut rng);
        }
        assert!((state.efficiency(&changes) - 1.0).abs() < 1e-3);
        let decided = Decisions {
            good_accepted: 1,
            bad_accepted: 1,
            ..Decisions::default()
        };
        assert_eq!(state.decisions, decided);
    }

    #[test]
    fn more_proposals_than_can_be_pending_expire() {
        let mut state = ChangeState::default();
        for _ in 0..MAX_PENDING + 3 {
            state.submit(Proposal::default());
        }
        assert_eq!(
            (state.pending(), state.decisions.good_expired),
            (MAX_PENDING, 3)
        );
    }

    #[test]
    fn poisson_numbers_have_their_mean() {
        let mut rng = Generator::seed_from_u64(1);
        let sum: usize = (0..50_000).map(|_| poisson(0.3, rng.random())).sum();
        assert!((sum as f64 / 50_000.0 - 0.3).abs() < 0.01);
    }
}
