//! What the agents set, and what each action changes.

use super::{
    calibration::{Calibration, Patience},
    fair::{Alpha, PerTenant},
    interval::Interval,
};
use crate::{space::Action, world::Generator};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Policy's actions: a change of the rate limit, and whether timeout and retry budget change between the
/// patient and the strict mode. The last two are drastic; the conflict rules of Orchestration count on it.
pub(crate) const POLICY: [(&str, f64, bool); 10] = [
    ("hold", 1.0, false),
    ("limit_up_5", 1.05, false),
    ("limit_up_20", 1.2, false),
    ("switch_retries", 1.0, true),
    ("limit_up_5_switch_retries", 1.05, true),
    ("limit_up_20_switch_retries", 1.2, true),
    ("limit_down_5", 0.95, false),
    ("limit_down_5_switch_retries", 0.95, true),
    ("limit_down_20", 0.8, false),
    ("limit_down_20_switch_retries", 0.8, true),
];

pub(crate) const CONSENSUS: [&str; 5] = [
    "hold",
    "quorum_up",
    "quorum_down",
    "timeout_double",
    "timeout_halve",
];

pub(crate) const ETHICAL: [&str; 8] = [
    "hold",
    "boost_worst",
    "cap_top",
    "alpha_half",
    "alpha_one",
    "alpha_two",
    "alpha_infinite",
    "reset_to_entitlement",
];

/// The rate limit, as a multiple of the nominal rate.
const LIMITS: [f64; 2] = [0.2, 3.0];
/// The smallest weight of a tenant, as a share of what it is entitled to, and the largest.
const WEIGHTS: [f64; 2] = [0.25, 4.0];

/// Everything that the agents set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Policy: the calls of mean work per second that all tenants together are admitted with.
    pub limit: f64,
    /// Policy: whether callers give up early and retry little.
    pub strict: bool,
    /// Consensus: how many approvals a proposal needs.
    pub quorum: u32,
    /// Consensus: when an undecided proposal expires, in s.
    pub timeout_s: f64,
    /// Ethical: each tenant's weight where the limit or a service's capacity is divided; they sum to 1.
    pub weights: PerTenant,
    /// Ethical: how both are divided.
    pub alpha: Alpha,
    /// Resource: the share of the way from the fewest replicas to the most.
    pub share: f64,
    /// By how much Resource last changed the share.
    pub share_change: f64,
}

impl Controls {
    /// The settings of an operator who has no controllers: room for half as much load again, a majority,
    /// entitlements, half of the replicas.
    pub fn initial(calibration: &Calibration) -> Self {
        let changes = &calibration.changes;
        let [shortest, longest] = changes.timeout_s;
        Self {
            limit: 1.5 * calibration.nominal_rate(),
            strict: false,
            quorum: (changes.approvers / 2 + 1).max(changes.min_quorum),
            timeout_s: 60f64.clamp(shortest, longest),
            weights: entitlements(calibration),
            alpha: Alpha::One,
            share: 0.5,
            share_change: 0.0,
        }
    }

    /// The settings that an episode begins with: the operator's, as far from them as the calibration says.
    pub(crate) fn start(calibration: &Calibration, rng: &mut Generator) -> Self {
        let changes = &calibration.changes;
        let [shortest, longest] = changes.timeout_s;
        let mut controls = Self::initial(calibration);
        let disorder = calibration.disorder;
        let mut up_to_double = || (disorder * rng.random_range(-1.0..1.0)).exp2();
        controls.limit *= up_to_double();
        controls.timeout_s = (controls.timeout_s * up_to_double()).clamp(shortest, longest);
        controls.weights = controls.weights.map(|weight| weight * up_to_double());
        controls.normalise();
        controls.share += disorder * rng.random_range(-0.2..0.2);
        if rng.random::<f64>() < disorder {
            controls.strict = rng.random();
            controls.quorum = rng.random_range(changes.min_quorum..=changes.approvers);
            controls.alpha = Alpha::ALL[rng.random_range(0..Alpha::ALL.len())];
        }
        controls
    }

    fn normalise(&mut self) {
        let sum: f64 = self.weights.iter().sum();
        self.weights = self.weights.map(|weight| weight / sum);
    }

    /// Whether these can be settings of this mesh.
    pub(crate) fn is_sound(&self, calibration: &Calibration) -> bool {
        let changes = &calibration.changes;
        let numbers = self
            .weights
            .iter()
            .chain([&self.limit, &self.timeout_s, &self.share]);
        numbers
            .into_iter()
            .all(|number| number.is_finite() && *number >= 0.0)
            && (1..=changes.approvers).contains(&self.quorum)
            && self.share <= 1.0
            && self.share_change.is_finite()
    }

    /// How long callers wait and how much they retry.
    pub fn patience(&self, calibration: &Calibration) -> Patience {
        match self.strict {
            true => calibration.clients.strict,
            false => calibration.clients.patient,
        }
    }

    /// Applies an action of each agent: policy, consensus, ethical, resource.
    pub(crate) fn apply(&mut self, actions: &[Action], calibration: &Calibration, last: &Interval) {
        self.apply_policy(actions[0].index(), calibration);
        self.apply_consensus(actions[1].index(), calibration);
        self.apply_ethical(actions[2].index(), calibration, last);
        let share = f64::from(actions[3].number()).clamp(0.0, 1.0);
        self.share_change = share - self.share;
        self.share = share;
    }

    fn apply_policy(&mut self, action: usize, calibration: &Calibration) {
        let (_, factor, switch) = POLICY[action];
        let nominal = calibration.nominal_rate();
        self.limit = (self.limit * factor).clamp(LIMITS[0] * nominal, LIMITS[1] * nominal);
        self.strict ^= switch;
    }

    fn apply_consensus(&mut self, action: usize, calibration: &Calibration) {
        let changes = &calibration.changes;
        let [shortest, longest] = changes.timeout_s;
        match action {
            1 => self.quorum = (self.quorum + 1).min(changes.approvers),
            2 => self.quorum = (self.quorum - 1).max(changes.min_quorum),
            3 => self.timeout_s = (self.timeout_s * 2.0).min(longest),
            4 => self.timeout_s = (self.timeout_s / 2.0).max(shortest),
            _ => {}
        }
    }

    fn apply_ethical(&mut self, action: usize, calibration: &Calibration, last: &Interval) {
        let tenants = calibration.tenants.len();
        match action {
            1 => self.reweigh(calibration, last.worst(tenants), 1.25),
            2 => self.reweigh(calibration, last.top(calibration), 0.8),
            3 => self.alpha = Alpha::Half,
            4 => self.alpha = Alpha::One,
            5 => self.alpha = Alpha::Two,
            6 => self.alpha = Alpha::Infinite,
            7 => self.weights = entitlements(calibration),
            _ => {}
        }
    }

    /// Multiplies the weight of a tenant, within its bounds, and scales all weights to sum to 1.
    fn reweigh(&mut self, calibration: &Calibration, tenant: usize, factor: f64) {
        let entitlement = calibration.tenants[tenant].entitlement;
        let [least, most] = WEIGHTS.map(|bound| bound * entitlement);
        self.weights[tenant] = (self.weights[tenant] * factor).clamp(least, most);
        self.normalise();
    }
}

/// The weights that tenants are entitled to.
pub(crate) fn entitlements(calibration: &Calibration) -> PerTenant {
    let mut weights = PerTenant::default();
    for (weight, tenant) in weights.iter_mut().zip(&calibration.tenants) {
        *weight = tenant.entitlement;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> (Calibration, Controls) {
        let calibration = Calibration::shipped();
        let controls = Controls::initial(&calibration);
        (calibration, controls)
    }

    #[test]
    fn the_first_action_of_each_catalogue_holds() {
        let (calibration, before) = controls();
        let mut after = before;
        let hold = [0, 0, 0].map(Action::Discrete);
        let same = Action::Continuous(vec![before.share as f32]);
        let actions = [&hold[..], &[same]].concat();
        after.apply(&actions, &calibration, &Interval::default());
        assert_eq!(before, after);
    }

    #[test]
    fn limits_quorums_and_timeouts_stay_within_their_bounds() {
        let (calibration, mut controls) = controls();
        let nominal = calibration.nominal_rate();
        for (policy, consensus) in [(2, 1), (2, 3), (8, 2), (8, 4)] {
            for _ in 0..40 {
                controls.apply_policy(policy, &calibration);
                controls.apply_consensus(consensus, &calibration);
            }
            let high = policy == 2;
            assert_eq!(controls.limit, nominal * if high { 3.0 } else { 0.2 });
        }
        let changes = &calibration.changes;
        assert_eq!(
            (controls.quorum, controls.timeout_s),
            (changes.min_quorum, changes.timeout_s[0])
        );
    }

    #[test]
    fn only_the_actions_that_say_so_switch_the_retries() {
        let (calibration, initial) = controls();
        for (action, (name, _, _)) in POLICY.iter().enumerate() {
            let mut controls = initial;
            controls.apply_policy(action, &calibration);
            assert_eq!(controls.strict, name.contains("switch"), "{name}");
        }
    }

    #[test]
    fn weights_sum_to_one_and_a_reset_restores_them() {
        let (calibration, initial) = controls();
        let mut controls = initial;
        let last = Interval::default();
        for action in [1, 1, 2, 1, 2, 2, 2, 1] {
            controls.apply_ethical(action, &calibration, &last);
            assert!((controls.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert_ne!(controls.weights, initial.weights);
        controls.apply_ethical(7, &calibration, &last);
        assert_eq!(controls.weights, initial.weights);
    }
}
