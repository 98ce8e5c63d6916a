//! Two fixed ways to divide capacity: by quotas, which are what tenants are entitled to, or evenly.

use super::{Controller, Gauge, choose, find_action};
use crate::{
    mesh::{Calibration, MAX_TENANTS},
    space::{Action, AgentSpace},
    world::{self, BadSnapshot},
};

/// Sets what it wants once, step by step, and then holds.
struct Fixed {
    actions: [usize; 2],
    /// The tenants' weights, as multiples of their entitlements.
    weights: Vec<Gauge>,
    inverse_alpha: Gauge,
    /// What the inverse is to be.
    wanted: f64,
    /// How many of them it has taken in this episode.
    taken: usize,
}

/// How far a number may be from what it is to be.
const TOLERANCE: f64 = 1e-3;

fn fixed(
    space: &AgentSpace,
    calibration: &Calibration,
    (alpha, wanted): (&str, f64),
) -> Option<Box<dyn Controller>> {
    let tenants = calibration.tenants.iter().take(MAX_TENANTS);
    let weights = tenants.map(|tenant| Gauge::find(space, &format!("{}_weight", tenant.name)));
    Some(Box::new(Fixed {
        actions: [
            find_action(space, "reset_to_entitlement")?,
            find_action(space, alpha)?,
        ],
        weights: weights.collect::<Option<_>>()?,
        inverse_alpha: Gauge::find(space, "inverse_alpha")?,
        wanted,
        taken: 0,
    }))
}

/// Quotas: weights are entitlements, and capacity is divided in proportion to them.
pub(super) fn make_static(space: &AgentSpace, of: &Calibration) -> Option<Box<dyn Controller>> {
    fixed(space, of, ("alpha_one", 1.0))
}

/// Max-min fairness: nobody gets more as long as somebody who gets less could have it.
pub(super) fn make_max_min(space: &AgentSpace, of: &Calibration) -> Option<Box<dyn Controller>> {
    fixed(space, of, ("alpha_infinite", 0.0))
}

impl Controller for Fixed {
    fn reset(&mut self) {
        self.taken = 0;
    }

    fn act(&mut self, _: &[f32], action: &mut Action) {
        choose(action, self.actions.get(self.taken).copied().unwrap_or(0));
        self.taken = (self.taken + 1).min(self.actions.len());
    }

    /// Sets what it does not observe to be set.
    fn act_once(&mut self, observation: &[f32], action: &mut Action) {
        let is = |gauge: &Gauge, wanted: f64| (gauge.read(observation) - wanted).abs() <= TOLERANCE;
        let is_divided = self.weights.iter().all(|weight| is(weight, 1.0));
        let [reset, alpha] = self.actions;
        choose(
            action,
            match is_divided {
                false => reset,
                true if !is(&self.inverse_alpha, self.wanted) => alpha,
                true => 0,
            },
        );
    }

    fn save(&self) -> Vec<u8> {
        world::save(&self.taken).unwrap_or_default()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), BadSnapshot> {
        let taken: usize = world::load(saved)?;
        let possible = taken <= self.actions.len();
        self.taken = possible.then_some(taken).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MeshEnv, World,
        testing::{Episode, mesh_hold},
    };

    /// The actions at the beginning of an episode.
    fn set(controller: &mut dyn Controller) -> [usize; 4] {
        let mut action = Action::Discrete(0);
        [(); 4].map(|()| {
            controller.act(&[], &mut action);
            action.index()
        })
    }

    #[test]
    fn without_an_episode_it_sets_what_is_not_set() {
        let spec = MeshEnv::shipped();
        let space = &spec.spec().agents[2];
        for make in [make_static, make_max_min] {
            let mut controller = make(space, spec.calibration()).unwrap();
            let mut mesh = Episode::start(MeshEnv::shipped(), 3);
            let mut joint = mesh_hold(0.5);
            // Another division, by other weights.
            for action in [1, 2, 5] {
                joint[2] = Action::Discrete(action);
                mesh.step(&joint);
            }
            let taken = [(); 4].map(|()| {
                controller.act_once(mesh.seen.of(2), &mut joint[2]);
                mesh.step(&joint);
                joint[2].index()
            });
            let set = set(&mut *controller);
            assert_eq!(taken, [set[0], set[1], 0, 0]);
        }
    }

    #[test]
    fn a_fixed_division_is_set_once_in_each_episode() {
        let mesh = MeshEnv::shipped();
        let mut controller = make_max_min(&mesh.spec().agents[2], mesh.calibration()).unwrap();
        for _ in 0..2 {
            assert_eq!(set(&mut *controller), [7, 6, 0, 0]);
            controller.reset();
        }
    }
}
