//! Two fixed ways to divide capacity: by quotas, which are what tenants are entitled to, or evenly.

use super::{Controller, choose, find_action};
use crate::{
    mesh::Calibration,
    space::{Action, AgentSpace},
    world::{self, BadSnapshot},
};

/// Sets what it wants once, step by step, and then holds.
struct Fixed {
    actions: Vec<usize>,
    /// How many of them it has taken in this episode.
    taken: usize,
}

fn fixed(space: &AgentSpace, names: &[&str]) -> Option<Box<dyn Controller>> {
    let actions = names.iter().map(|name| find_action(space, name));
    let actions = actions.collect::<Option<_>>()?;
    Some(Box::new(Fixed { actions, taken: 0 }))
}

/// Quotas: weights are entitlements, and capacity is divided in proportion to them.
pub(super) fn make_static(space: &AgentSpace, _: &Calibration) -> Option<Box<dyn Controller>> {
    fixed(space, &["reset_to_entitlement", "alpha_one"])
}

/// Max-min fairness: nobody gets more as long as somebody who gets less could have it.
pub(super) fn make_max_min(space: &AgentSpace, _: &Calibration) -> Option<Box<dyn Controller>> {
    fixed(space, &["reset_to_entitlement", "alpha_infinite"])
}

impl Controller for Fixed {
    fn reset(&mut self) {
        self.taken = 0;
    }

    fn act(&mut self, _: &[f32], action: &mut Action) {
        choose(action, self.actions.get(self.taken).copied().unwrap_or(0));
        self.taken = (self.taken + 1).min(self.actions.len());
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
    use crate::{MeshEnv, World};

    #[test]
    fn a_fixed_division_is_set_once_in_each_episode() {
        let mesh = MeshEnv::shipped();
        let mut controller = make_max_min(&mesh.spec().agents[2], mesh.calibration()).unwrap();
        for _ in 0..2 {
            let mut action = Action::Discrete(0);
            let taken = [(); 4].map(|()| {
                controller.act(&[], &mut action);
                action.index()
            });
            assert_eq!(taken, [7, 6, 0, 0]);
            controller.reset();
        }
    }
}
