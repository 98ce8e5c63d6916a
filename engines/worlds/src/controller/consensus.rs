//! Two ways to set quorum and timeout of approvals: a majority with a fixed timeout, and the pair that the
//! closed form of the jury says is best for the share of bad proposals that the approvers' answers suggest.

use super::{Controller, Gauge, choose, find_action};
use crate::{
    mesh::{Calibration, acceptance},
    space::{Action, AgentSpace},
};

/// The fixed timeout in s.
const TIMEOUT_S: f64 = 60.0;

/// What both look at and do.
struct Knobs {
    quorum: Gauge,
    timeout: Gauge,
    quorum_up: usize,
    quorum_down: usize,
    timeout_double: usize,
    timeout_halve: usize,
}

struct Majority {
    knobs: Knobs,
    quorum: f64,
}

struct Planned {
    knobs: Knobs,
    approved: Gauge,
    proposals: Gauge,
    utilisation: Gauge,
    hour_sin: Gauge,
    hour_cos: Gauge,
    calibration: Calibration,
}

pub(super) fn majority(
    space: &AgentSpace,
    calibration: &Calibration,
) -> Option<Box<dyn Controller>> {
    let changes = &calibration.changes;
    let quorum = (changes.approvers / 2 + 1).max(changes.min_quorum);
    let knobs = Knobs::find(space)?;
    Some(Box::new(Majority {
        knobs,
        quorum: f64::from(quorum),
    }))
}

pub(super) fn planned(
    space: &AgentSpace,
    calibration: &Calibration,
) -> Option<Box<dyn Controller>> {
    Some(Box::new(Planned {
        knobs: Knobs::find(space)?,
        approved: Gauge::find(space, "approved")?,
        proposals: Gauge::find(space, "proposals")?,
        utilisation: Gauge::find(space, "utilisation")?,
        hour_sin: Gauge::find(space, "hour_sin")?,
        hour_cos: Gauge::find(space, "hour_cos")?,
        calibration: calibration.clone(),
    }))
}

impl Knobs {
    fn find(space: &AgentSpace) -> Option<Self> {
        Some(Self {
            quorum: Gauge::find(space, "quorum")?,
            timeout: Gauge::find(space, "timeout")?,
            quorum_up: find_action(space, "quorum_up")?,
            quorum_down: find_action(space, "quorum_down")?,
            timeout_double: find_action(space, "timeout_double")?,
            timeout_halve: find_action(space, "timeout_halve")?,
        })
    }
}

impl Controller for Majority {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let knobs = &self.knobs;
        let missing = (self.quorum - knobs.quorum.read(observation)).round();
        let ratio = TIMEOUT_S / knobs.timeout.read(observation).max(1.0);
        choose(
            action,
            match (missing, ratio) {
                (missing, _) if missing > 0.0 => knobs.quorum_up,
                (missing, _) if missing < 0.0 => knobs.quorum_down,
                (_, ratio) if ratio > 1.5 => knobs.timeout_double,
                (_, ratio) if ratio < 0.7 => knobs.timeout_halve,
                _ => 0,
            },
        );
    }
}

impl Planned {
    /// The share of bad proposals that explains how many answers approve.
    fn bad_share(&self, observation: &[f32]) -> f64 {
        let changes = &self.calibration.changes;
        let (good, bad) = (1.0 - changes.false_alarms, 1.0 - changes.spots);
        let approved = self.approved.read(observation);
        if (good - bad).abs() < 1e-6 {
            return changes.bad;
        }
        ((good - approved) / (good - bad)).clamp(0.0, 1.0)
    }

    /// The expected reward for each interval in the long run, with a quorum and a timeout.
    fn value(&self, observation: &[f32], quorum: u32, timeout: f64) -> f64 {
        let (changes, weights) = (&self.calibration.changes, &self.calibration.rewards);
        let angle = self
            .hour_sin
            .read(observation)
            .atan2(self.hour_cos.read(observation));
        let accepted = |bad| acceptance(changes, quorum, timeout, bad, angle);
        let bad = self.bad_share(observation);
        let rate = self.proposals.read(observation).max(changes.proposals);
        let gain = rate * (1.0 - bad) * accepted(false) * changes.gain * changes.gain_s;
        let harm = rate * bad * accepted(true) * changes.harm * changes.rollback_s;
        let busy = 0.5 + self.utilisation.read(observation).min(1.5);
        let expires = 1.0 - (1.0 - bad) * accepted(false) - bad * accepted(true);
        let age = expires * timeout / 2.0 / changes.timeout_s[1];
        weights.consensus_gain * gain
            - weights.consensus_harm * harm.min(1.0) * busy
            - weights.consensus_age * age
    }
}

impl Controller for Planned {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let (knobs, changes) = (&self.knobs, &self.calibration.changes);
        let quorum = knobs.quorum.read(observation).round() as u32;
        let timeout = knobs.timeout.read(observation);
        let [shortest, longest] = changes.timeout_s;
        let next = [
            (0, quorum, timeout),
            (
                knobs.quorum_up,
                (quorum + 1).min(changes.approvers),
                timeout,
            ),
            (
                knobs.quorum_down,
                quorum.saturating_sub(1).max(changes.min_quorum),
                timeout,
            ),
            (knobs.timeout_double, quorum, (timeout * 2.0).min(longest)),
            (knobs.timeout_halve, quorum, (timeout / 2.0).max(shortest)),
        ];
        let values =
            next.map(|(at, quorum, timeout)| (at, self.value(observation, quorum, timeout)));
        // Holding comes first, so that it wins a tie.
        let best = values
            .into_iter()
            .reduce(|best, one| if one.1 > best.1 + 1e-9 { one } else { best });
        choose(action, best.map_or(0, |(at, _)| at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MeshEnv, World,
        testing::{Episode, mesh_hold},
    };

    /// Plays with a fixed share of approvals and returns the quorum in the end.
    fn settles(
        make: fn(&AgentSpace, &Calibration) -> Option<Box<dyn Controller>>,
        approved: f32,
    ) -> u32 {
        let mut mesh = Episode::start(MeshEnv::shipped(), 1);
        let space = mesh.world.spec().agents[1].clone();
        let at = space.position("approved").unwrap();
        let mut controller = make(&space, mesh.world.calibration()).unwrap();
        let mut joint = mesh_hold(0.5);
        for _ in 0..20 {
            mesh.seen.of_mut(1)[at] = approved;
            controller.act(mesh.seen.of(1), &mut joint[1]);
            mesh.step(&joint);
        }
        mesh.world.controls().quorum
    }

    #[test]
    fn a_majority_is_kept_whatever_the_approvers_say() {
        assert_eq!(settles(majority, 0.9), 4);
        assert_eq!(settles(majority, 0.6), 4);
    }

    #[test]
    fn the_planned_quorum_rises_with_the_share_of_bad_proposals() {
        let (trusting, wary) = (settles(planned, 0.9), settles(planned, 0.6));
        assert!(trusting < wary, "{trusting} {wary}");
    }
}
