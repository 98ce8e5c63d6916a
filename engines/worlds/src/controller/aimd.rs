//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease
//! Algorithms for Congestion Avoidance in Computer Networks", 1989): the rate limit rises in small steps while
//! calls are refused although the mesh is fast, and falls by a fifth when it is slow.

use super::{Controller, Gauge, choose, find_action};
use crate::{
    mesh::{Calibration, MAX_TENANTS},
    space::{Action, AgentSpace},
};

/// The mesh is slow when the 95th percentile of latency exceeds the objective by this factor.
const TOLERANCE: f64 = 1.5;

struct Aimd {
    p95: Gauge,
    shed: Vec<Gauge>,
    slow: f64,
    up: usize,
    down: usize,
}

pub(super) fn make(space: &AgentSpace, calibration: &Calibration) -> Option<Box<dyn Controller>> {
    let tenants = calibration.tenants.iter().take(MAX_TENANTS);
    let shed = tenants.map(|tenant| Gauge::find(space, &format!("{}_shed", tenant.name)));
    Some(Box::new(Aimd {
        p95: Gauge::find(space, "latency_p95")?,
        shed: shed.collect::<Option<_>>()?,
        slow: TOLERANCE * calibration.objective_s,
        up: find_action(space, "limit_up_5")?,
        down: find_action(space, "limit_down_20")?,
    }))
}

impl Controller for Aimd {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let slow = self.p95.read(observation) > self.slow;
        let refuses = self.shed.iter().any(|shed| shed.read(observation) > 0.01);
        choose(
            action,
            match (slow, refuses) {
                (true, _) => self.down,
                (false, true) => self.up,
                (false, false) => 0,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MeshEnv, World};

    fn act(p95: f32, shed: f32) -> usize {
        let mesh = MeshEnv::shipped();
        let space = &mesh.spec().agents[0];
        let mut observation = vec![0.0; space.observation.len()];
        observation[space.position("latency_p95").unwrap()] = p95;
        observation[space.position("api_shed").unwrap()] = shed;
        let mut action = Action::Discrete(0);
        make(space, mesh.calibration())
            .unwrap()
            .act(&observation, &mut action);
        action.index()
    }

    #[test]
    fn the_limit_falls_when_the_mesh_is_slow_and_rises_when_a_fast_one_refuses_calls() {
        assert_eq!(act(0.5, 0.0), 0);
        assert_eq!(act(0.5, 0.2), 1);
        assert_eq!(act(3.0, 0.0), 8);
        assert_eq!(act(3.0, 0.2), 8);
    }
}
