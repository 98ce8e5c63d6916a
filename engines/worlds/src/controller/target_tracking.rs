//! Target tracking, as Kubernetes' horizontal pod autoscaler does it: each service wants
//! `ceil(replicas × utilisation / target)` replicas, changes of less than a tenth are ignored, and it scales
//! down only to the most that it wanted during the last minutes. The share that the busiest service wants
//! applies to all, because there is one share.

use super::{Controller, Gauge, set};
use crate::{
    mesh::{Calibration, Service},
    space::{Action, AgentSpace},
    world::{self, BadSnapshot},
};
use std::collections::VecDeque;

const TARGET: f64 = 0.7;
const TOLERANCE: f64 = 0.1;
/// How long a wish for more replicas holds off scaling down, in s.
const STABILISATION_S: f64 = 60.0;

struct TargetTracking {
    services: Vec<Tracked>,
    share: Gauge,
    /// The shares that were wanted during the stabilisation window.
    wanted: VecDeque<f64>,
    window: usize,
}

struct Tracked {
    utilisation: Gauge,
    ready: Gauge,
    least: f64,
    most: f64,
}

pub(super) fn make(space: &AgentSpace, calibration: &Calibration) -> Option<Box<dyn Controller>> {
    let services = calibration
        .services
        .iter()
        .map(|service| Tracked::find(space, service));
    let window = (STABILISATION_S / calibration.interval_s).ceil().max(1.0) as usize;
    Some(Box::new(TargetTracking {
        services: services.collect::<Option<_>>()?,
        share: Gauge::find(space, "share")?,
        wanted: VecDeque::with_capacity(window + 1),
        window,
    }))
}

impl Tracked {
    fn find(space: &AgentSpace, service: &Service) -> Option<Self> {
        let gauge = |what: &str| Gauge::find(space, &format!("{}_{what}", service.name));
        Some(Self {
            utilisation: gauge("utilisation")?,
            ready: gauge("ready")?,
            least: f64::from(service.min_replicas),
            most: f64::from(service.max_replicas),
        })
    }

    /// The share at which the service has as many replicas as it wants.
    fn wants(&self, observation: &[f32]) -> f64 {
        let replicas = self.ready.read(observation) * self.most;
        let ratio = self.utilisation.read(observation) / TARGET;
        let wanted = match (ratio - 1.0).abs() <= TOLERANCE {
            true => replicas.round(),
            false => (replicas * ratio).ceil(),
        };
        ((wanted - self.least) / (self.most - self.least).max(1.0)).clamp(0.0, 1.0)
    }
}

impl TargetTracking {
    /// The share at which every service has as many replicas as it wants.
    fn wants(&self, observation: &[f32]) -> f64 {
        let services = self.services.iter();
        let wants = services.map(|service| service.wants(observation));
        wants.fold(0.0, f64::max)
    }
}

impl Controller for TargetTracking {
    fn reset(&mut self) {
        self.wanted.clear();
    }

    fn act(&mut self, observation: &[f32], action: &mut Action) {
        self.wanted.push_back(self.wants(observation));
        if self.wanted.len() > self.window {
            self.wanted.pop_front();
        }
        let most = self.wanted.iter().copied().fold(0.0, f64::max);
        let short = self.wanted.len() < self.window;
        // A window that is not full yet does not scale down.
        let floor = if short {
            self.share.read(observation)
        } else {
            0.0
        };
        set(action, most.max(floor).min(1.0));
    }

    /// Without the wishes of the last minute it does not wait before it scales down.
    fn act_once(&mut self, observation: &[f32], action: &mut Action) {
        set(action, self.wants(observation).min(1.0));
    }

    fn save(&self) -> Vec<u8> {
        world::save(&self.wanted).unwrap_or_default()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), BadSnapshot> {
        let wanted: VecDeque<f64> = world::load(saved)?;
        let shares = wanted.iter().all(|share| (0.0..=1.0).contains(share));
        if wanted.len() > self.window || !shares {
            return Err(BadSnapshot);
        }
        self.wanted.clear();
        self.wanted.extend(wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MeshEnv, World};

    /// A controller, and an observation in which automl, of at most 12 replicas, has 6.
    fn tracked(utilisation: f32) -> (Box<dyn Controller>, Vec<f32>) {
        let mesh = MeshEnv::shipped();
        let space = &mesh.spec().agents[3];
        let mut observation = vec![0.0; space.observation.len()];
        observation[space.position("automl_utilisation").unwrap()] = utilisation;
        observation[space.position("automl_ready").unwrap()] = 0.5;
        (make(space, mesh.calibration()).unwrap(), observation)
    }

    #[test]
    fn a_busy_service_gets_replicas_in_proportion_and_one_near_its_target_is_left_alone() {
        // 6 × 1.05 / 0.7 = 9 of 1 to 12.
        for (utilisation, replicas) in [(1.05, 9.0), (0.75, 6.0)] {
            let (mut controller, observation) = tracked(utilisation);
            let mut action = Action::Continuous(vec![0.0]);
            controller.act(&observation, &mut action);
            assert!((action.number() - (replicas - 1.0) / 11.0).abs() < 1e-5);
        }
    }

    #[test]
    fn without_an_episode_it_scales_down_at_once() {
        let (mut controller, busy) = tracked(1.05);
        let (_, idle) = tracked(0.1);
        let mut action = Action::Continuous(vec![0.0]);
        controller.act_once(&busy, &mut action);
        assert!((action.number() - 8.0 / 11.0).abs() < 1e-5);
        controller.act_once(&idle, &mut action);
        assert!(action.number() < 0.1);
    }

    #[test]
    fn scaling_down_waits_for_the_window() {
        let (mut controller, busy) = tracked(1.05);
        let (_, idle) = tracked(0.1);
        let mut action = Action::Continuous(vec![0.0]);
        controller.act(&busy, &mut action);
        for _ in 0..11 {
            controller.act(&idle, &mut action);
            assert!(action.number() > 0.7);
        }
        controller.act(&idle, &mut action);
        assert!(action.number() < 0.1);
    }
}
