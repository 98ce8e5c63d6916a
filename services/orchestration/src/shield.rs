//! The action shield: what an agent of the mesh may not do, whatever its weights or its rule say.
//!
//! It reads what the agent observes and the action that it prefers, and nothing else. An action that is not
//! allowed is replaced by holding; a share of replicas that goes too far is cut. Components and actions are
//! found by their names (`tars_worlds::mesh`), so that an agent of another environment is only held to finite
//! numbers within the bounds of its space.

use std::borrow::Cow;
use tars_worlds::{Action, ActionSpace, AgentSpace, MeshEnv};

/// How far the share of replicas may move in one step.
pub(crate) const SHARE_STEP: f64 = 0.25;

/// What an action is refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// The numbers of the action are finite.
    Finite,
    /// The action is in the agent's space.
    Bounds,
    /// The share of replicas moves by [`SHARE_STEP`] at most.
    ShareStep,
    /// A quorum is a majority of the approvers.
    Majority,
    /// A timeout is not below what half of the answers, or calls, take.
    Timeout,
}

/// An action that was replaced.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blocked {
    pub(crate) limit: Limit,
    pub(crate) instead: Action,
    pub(crate) why: Cow<'static, str>,
}

/// The limits of an agent.
#[derive(Debug, Clone)]
pub(crate) struct Shield {
    space: ActionSpace,
    /// What an agent with a discrete space does to hold.
    hold: Action,
    guard: Guard,
}

/// What is particular to an agent of the mesh.
#[derive(Debug, Clone)]
enum Guard {
    None,
    Replicas {
        share: Gauge,
    },
    Approvals {
        quorum: Gauge,
        majority: f64,
        quorum_down: usize,
        timeout: Gauge,
        answer_time: Gauge,
        halve: usize,
    },
    Calls {
        strict: Gauge,
        median: Gauge,
        /// The timeouts of the patient and the strict mode.
        timeouts: [f64; 2],
        /// The actions that switch between them.
        switches: Vec<usize>,
    },
}

/// A component of an observation in its own unit.
#[derive(Debug, Clone, Copy)]
struct Gauge {
    at: usize,
    scale: f32,
}

impl Gauge {
    fn find(space: &AgentSpace, name: &str) -> Option<Self> {
        let at = space.position(name)?;
        let scale = space.observation[at].scale;
        Some(Self { at, scale })
    }

    fn read(self, observation: &[f32]) -> f64 {
        observation
            .get(self.at)
            .map_or(f64::NAN, |seen| f64::from(seen * self.scale))
    }
}

impl Limit {
    /// The name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Finite => "finite",
            Self::Bounds => "bounds",
            Self::ShareStep => "share_step",
            Self::Majority => "majority",
            Self::Timeout => "timeout",
        }
    }
}

impl Shield {
    pub(crate) fn of(space: &AgentSpace, is_mesh: bool) -> Self {
        let guard = match is_mesh {
            true => Guard::replicas(space)
                .or_else(|| Guard::approvals(space))
                .or_else(|| Guard::calls(space)),
            false => None,
        };
        let hold = position(&space.action, "hold").unwrap_or(0);
        Self {
            space: space.action.clone(),
            hold: Action::Discrete(hold),
            guard: guard.unwrap_or(Guard::None),
        }
    }

    /// What the agent does instead of an action that it may not take; `None` for one that it may.
    pub(crate) fn check(&self, observation: &[f32], action: &Action) -> Option<Blocked> {
        let blocked = |limit, instead, why: Cow<'static, str>| {
            Some(Blocked {
                limit,
                instead,
                why,
            })
        };
        if !is_finite(action) {
            return Some(self.not_finite(observation));
        }
        if self.space.check(action).is_err() {
            let nearest = self.bounded(observation, action);
            let instead = self.guarded(observation, nearest);
            return blocked(Limit::Bounds, instead, "the action is out of bounds".into());
        }
        let (limit, instead, why) = self.guard.check(observation, action)?;
        let instead = instead.unwrap_or_else(|| self.held(observation));
        blocked(limit, instead, why.into())
    }

    /// What the agent does instead of an action that is not finite, or was chosen by what is not.
    pub(crate) fn not_finite(&self, observation: &[f32]) -> Blocked {
        let why = "the action, or what it was chosen by, is infinite or not a number";
        Blocked {
            limit: Limit::Finite,
            instead: self.held(observation),
            why: why.into(),
        }
    }

    /// The action, or what the agent does instead of it where the guard does not allow it.
    fn guarded(&self, observation: &[f32], action: Action) -> Action {
        match self.guard.check(observation, &action) {
            Some((_, instead, _)) => instead.unwrap_or_else(|| self.held(observation)),
            None => action,
        }
    }

    /// Holding: the action of that name, or the share of replicas as it is.
    fn held(&self, observation: &[f32]) -> Action {
        let ActionSpace::Continuous(components) = &self.space else {
            return self.hold.clone();
        };
        let present = match self.guard {
            Guard::Replicas { share } => Some(share.read(observation) as f32),
            _ => None,
        };
        let held = components.iter().map(|component| {
            let present = present.filter(|share| share.is_finite());
            let middle = f32::midpoint(component.low, component.high);
            present
                .unwrap_or(middle)
                .clamp(component.low, component.high)
        });
        Action::Continuous(held.collect())
    }

    /// The nearest action of the space.
    fn bounded(&self, observation: &[f32], action: &Action) -> Action {
        match (&self.space, action) {
            (ActionSpace::Continuous(components), Action::Continuous(numbers))
                if components.len() == numbers.len() =>
            {
                let pairs = components.iter().zip(numbers);
                Action::Continuous(pairs.map(|(c, n)| n.clamp(c.low, c.high)).collect())
            }
            _ => self.held(observation),
        }
    }
}

fn is_finite(action: &Action) -> bool {
    match action {
        Action::Discrete(_) => true,
        Action::Continuous(numbers) => numbers.iter().all(|number| number.is_finite()),
    }
}

fn position(space: &ActionSpace, name: &str) -> Option<usize> {
    match space {
        ActionSpace::Discrete(names) => names.iter().position(|n| n == name),
        ActionSpace::Continuous(_) => None,
    }
}

/// What a guard says: the limit, the action instead unless it is holding, and why.
type Verdict = (Limit, Option<Action>, String);

impl Guard {
    fn replicas(space: &AgentSpace) -> Option<Self> {
        let share = Gauge::find(space, "share")?;
        Some(Self::Replicas { share })
    }

    fn approvals(space: &AgentSpace) -> Option<Self> {
        let quorum = Gauge::find(space, "quorum")?;
        let approvers = quorum.scale;
        Some(Self::Approvals {
            quorum,
            majority: f64::from((approvers / 2.0).floor() + 1.0),
            quorum_down: position(&space.action, "quorum_down")?,
            timeout: Gauge::find(space, "timeout")?,
            answer_time: Gauge::find(space, "answer_time")?,
            halve: position(&space.action, "timeout_halve")?,
        })
    }

    fn calls(space: &AgentSpace) -> Option<Self> {
        let ActionSpace::Discrete(names) = &space.action else {
            return None;
        };
        let mesh = MeshEnv::shipped();
        let clients = &mesh.calibration().clients;
        let switches = (0..names.len()).filter(|at| names[*at].ends_with("switch_retries"));
        Some(Self::Calls {
            strict: Gauge::find(space, "strict")?,
            median: Gauge::find(space, "latency_p50")?,
            timeouts: [clients.patient.timeout_s, clients.strict.timeout_s],
            switches: switches.collect(),
        })
    }

    fn check(&self, observation: &[f32], action: &Action) -> Option<Verdict> {
        match (self, action) {
            (Self::Replicas { share }, Action::Continuous(numbers)) => {
                share_step(share.read(observation), numbers.first().copied()?)
            }
            (
                Self::Approvals {
                    quorum,
                    majority,
                    quorum_down,
                    ..
                },
                Action::Discrete(at),
            ) if at == quorum_down => {
                let next = quorum.read(observation).round() - 1.0;
                // Also where the quorum is not a number.
                let allowed = next >= *majority;
                let why =
                    || format!("a quorum of {next:.0} is below the majority of {majority:.0}");
                (!allowed).then(|| (Limit::Majority, None, why()))
            }
            (
                Self::Approvals {
                    timeout,
                    answer_time,
                    halve,
                    ..
                },
                Action::Discrete(at),
            ) if at == halve => too_short(
                timeout.read(observation) / 2.0,
                answer_time.read(observation),
                "an approver takes",
            ),
            (
                Self::Calls {
                    strict,
                    median,
                    timeouts,
                    switches,
                },
                Action::Discrete(at),
            ) if switches.contains(at) => {
                let [patient, hasty] = timeouts;
                let is_strict = strict.read(observation) >= 0.5;
                let next = if is_strict { patient } else { hasty };
                too_short(*next, median.read(observation), "half of the calls take")
            }
            _ => None,
        }
    }
}

/// Cuts a change of the share of replicas.
fn share_step(present: f64, wanted: f32) -> Option<Verdict> {
    let change = f64::from(wanted) - present;
    // Single precision of an observation is no change.
    if change.abs() <= SHARE_STEP + 1e-6 {
        return None;
    }
    let cut = present + change.signum() * SHARE_STEP;
    let why =
        format!("the share may move by {SHARE_STEP} at once, not from {present:.2} to {wanted:.2}");
    let instead = cut
        .is_finite()
        .then(|| Action::Continuous(vec![cut.clamp(0.0, 1.0) as f32]));
    Some((Limit::ShareStep, instead, why))
}

/// Refuses a timeout below what is observed, and any where nothing can be read.
fn too_short(timeout: f64, observed: f64, who: &str) -> Option<Verdict> {
    let allowed = timeout >= observed;
    let why =
        || format!("a timeout of {timeout:.2} s is shorter than the {observed:.2} s that {who}");
    (!allowed).then(|| (Limit::Timeout, None, why()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    struct Rig {
        space: AgentSpace,
        shield: Shield,
        seen: Vec<f32>,
    }

    impl Rig {
        fn of(agent: &str) -> Self {
            Self::in_world("mesh", agent)
        }

        fn in_world(environment: &str, agent: &str) -> Self {
            let space = task::space(environment, agent).unwrap();
            Self {
                shield: Shield::of(&space, environment == "mesh"),
                seen: vec![0.0; space.observation.len()],
                space,
            }
        }

        /// Observes a component, in its own unit.
        fn see(mut self, name: &str, value: f32) -> Self {
            let at = self.space.position(name).unwrap();
            self.seen[at] = value / self.space.observation[at].scale;
            self
        }

        fn take(&self, name: &str) -> Option<Blocked> {
            let at = position(&self.space.action, name).unwrap();
            self.shield.check(&self.seen, &Action::Discrete(at))
        }

        fn set(&self, share: f32) -> Option<Blocked> {
            let action = Action::Continuous(vec![share]);
            self.shield.check(&self.seen, &action)
        }
    }

    fn limit(blocked: Option<Blocked>) -> Option<Limit> {
        blocked.map(|blocked| blocked.limit)
    }

    #[test]
    fn numbers_that_are_not_finite_hold() {
        let rig = Rig::of("resource").see("share", 0.4);
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let blocked = rig.set(number).unwrap();
            assert_eq!(blocked.limit, Limit::Finite);
            assert_eq!(blocked.instead, Action::Continuous(vec![0.4]));
        }
        // Where the share cannot be read, an action of the space is left.
        let blind = Rig::of("resource").see("share", f32::NAN);
        let blocked = blind.set(f32::NAN).unwrap();
        assert_eq!(blind.space.action.check(&blocked.instead), Ok(()));
        assert_eq!(limit(blind.set(0.5)), Some(Limit::ShareStep));
    }

    #[test]
    fn actions_outside_of_the_space_are_brought_into_it() {
        let rig = Rig::of("resource").see("share", 0.9);
        // Also then it moves in steps.
        for (wanted, instead) in [(1.5, 1.0), (-0.1, 0.65)] {
            let blocked = rig.set(wanted).unwrap();
            assert_eq!(blocked.limit, Limit::Bounds);
            assert_eq!(blocked.instead, Action::Continuous(vec![instead]));
        }
        let two = Action::Continuous(vec![0.5, 0.5]);
        assert_eq!(
            limit(rig.shield.check(&rig.seen, &two)),
            Some(Limit::Bounds)
        );
        for agent in ["policy", "consensus", "ethical"] {
            let rig = Rig::of(agent);
            for wrong in [Action::Discrete(99), Action::Continuous(vec![0.5])] {
                let blocked = rig.shield.check(&rig.seen, &wrong).unwrap();
                assert_eq!(blocked.limit, Limit::Bounds);
                assert_eq!(blocked.instead, Action::Discrete(0), "it holds");
            }
        }
    }

    #[test]
    fn the_share_of_replicas_moves_in_steps() {
        let rig = Rig::of("resource").see("share", 0.5);
        for allowed in [0.25, 0.4, 0.5, 0.6, 0.75] {
            assert_eq!(rig.set(allowed), None, "{allowed}");
        }
        for (wanted, instead) in [(0.0, 0.25), (0.24, 0.25), (0.76, 0.75), (1.0, 0.75)] {
            let blocked = rig.set(wanted).unwrap();
            assert_eq!(blocked.limit, Limit::ShareStep, "{wanted}");
            assert_eq!(blocked.instead, Action::Continuous(vec![instead]));
        }
        let low = Rig::of("resource").see("share", 0.1);
        assert_eq!(low.set(0.0), None);
    }

    #[test]
    fn a_quorum_stays_a_majority() {
        // Of seven approvers.
        let at = |quorum| {
            Rig::of("consensus")
                .see("quorum", quorum)
                .see("timeout", 60.0)
        };
        assert_eq!(at(6.0).take("quorum_down"), None);
        assert_eq!(at(5.0).take("quorum_down"), None);
        for quorum in [4.0, 3.0, 0.0, f32::NAN] {
            let blocked = at(quorum).take("quorum_down").unwrap();
            assert_eq!(blocked.limit, Limit::Majority, "{quorum}");
            assert_eq!(blocked.instead, Action::Discrete(0));
        }
        assert_eq!(at(4.0).take("quorum_up"), None);
    }

    #[test]
    fn the_timeout_of_approvals_stays_above_the_time_of_an_answer() {
        let at = |timeout, answer| {
            let rig = Rig::of("consensus").see("timeout", timeout);
            rig.see("answer_time", answer)
        };
        assert_eq!(at(60.0, 20.0).take("timeout_halve"), None);
        for (timeout, answer) in [
            (60.0, 31.0),
            (30.0, 20.0),
            (f32::NAN, 20.0),
            (60.0, f32::NAN),
        ] {
            let blocked = at(timeout, answer).take("timeout_halve").unwrap();
            assert_eq!(blocked.limit, Limit::Timeout, "{timeout} {answer}");
            assert_eq!(blocked.instead, Action::Discrete(0));
        }
        assert_eq!(at(30.0, 20.0).take("timeout_double"), None);
    }

    #[test]
    fn the_timeout_of_calls_stays_above_their_median() {
        let at = |strict, median| {
            let rig = Rig::of("policy").see("strict", strict);
            rig.see("latency_p50", median)
        };
        let switches = [
            "switch_retries",
            "limit_up_5_switch_retries",
            "limit_down_20_switch_retries",
        ];
        for switch in switches {
            // A second in the strict mode, and two in the patient one.
            assert_eq!(at(0.0, 0.9).take(switch), None);
            assert_eq!(at(1.0, 1.5).take(switch), None);
            for (strict, median) in [(0.0, 1.5), (1.0, 2.5), (0.0, f32::NAN)] {
                let blocked = at(strict, median).take(switch).unwrap();
                assert_eq!(blocked.limit, Limit::Timeout, "{switch} {strict} {median}");
            }
        }
        assert_eq!(at(0.0, 1.5).take("limit_down_20"), None);
    }

    #[test]
    fn agents_of_other_worlds_are_held_to_their_space_only() {
        let rig = Rig::in_world("pendulum", "resource");
        assert_eq!(rig.set(2.0), None);
        assert_eq!(limit(rig.set(2.5)), Some(Limit::Bounds));
        assert_eq!(limit(rig.set(f32::NAN)), Some(Limit::Finite));
    }

    #[test]
    fn what_the_shield_does_instead_passes_it() {
        for agent in ["policy", "consensus", "ethical", "resource"] {
            let rig = Rig::of(agent);
            let all: Vec<Action> = match &rig.space.action {
                ActionSpace::Discrete(names) => (0..names.len()).map(Action::Discrete).collect(),
                ActionSpace::Continuous(_) => [-9.0, 0.0, 0.5, 1.0, 9.0, f32::NAN]
                    .map(|share| Action::Continuous(vec![share]))
                    .to_vec(),
            };
            for action in all {
                if let Some(blocked) = rig.shield.check(&rig.seen, &action) {
                    let again = rig.shield.check(&rig.seen, &blocked.instead);
                    assert_eq!(again, None, "{agent} {action:?}");
                }
            }
        }
    }
}
