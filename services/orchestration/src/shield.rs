//! The action shield: what an agent of the mesh may not do, whatever its weights or its rule say.
//!
//! It reads what the agent observes and the action that it prefers, and nothing else. An action that is not
//! allowed is replaced by holding; a share of replicas that goes too far is cut. What the mesh has of approvers,
//! and which timeouts its callers switch between, is that of the shipped calibration: nothing measures either.
//!
//! Components and actions are found by their names (`tars_worlds::mesh`). An agent in whose space they are not
//! found has no [guard](Shield::is_guarded): it is only held to finite numbers within the bounds of its space, and
//! cannot be bound to the live mesh.

use std::borrow::Cow;
use tars_worlds::{
    Action, ActionSpace, AgentSpace, Gauge, MeshEnv, find_action, mesh::Calibration,
};

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
    /// What is particular to an agent of the mesh; absent for others.
    guard: Option<Guard>,
}

/// What is particular to an agent of the mesh.
#[derive(Debug, Clone)]
enum Guard {
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
    /// Every division of capacity that can be chosen leaves each tenant a part, so that none is refused.
    Shares,
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
    /// The limits of an agent of the mesh.
    pub(crate) fn of_mesh(space: &AgentSpace) -> Self {
        let mesh = MeshEnv::shipped();
        Self {
            guard: Guard::of(space, mesh.calibration()),
            ..Self::of_space(space)
        }
    }

    /// The limits of an agent of any other world.
    pub(crate) fn of_space(space: &AgentSpace) -> Self {
        Self {
            space: space.action.clone(),
            hold: Action::Discrete(find_action(space, "hold").unwrap_or(0)),
            guard: None,
        }
    }

    /// Whether it knows what the agent acts on.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// What the agent does instead of an action that was chosen by these values; `None` where it may take it.
    pub(crate) fn judge(
        &self,
        observation: &[f32],
        action: &Action,
        values: &[f32],
    ) -> Option<Blocked> {
        match values.iter().all(|value| value.is_finite()) {
            true => self.check(observation, action),
            false => Some(self.not_finite(observation)),
        }
    }

    /// What the agent does instead of an action that it may not take; `None` for one that it may.
    fn check(&self, observation: &[f32], action: &Action) -> Option<Blocked> {
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
        let (limit, instead, why) = self.guard.as_ref()?.check(observation, action)?;
        let instead = instead.unwrap_or_else(|| self.held(observation));
        blocked(limit, instead, why.into())
    }

    /// What the agent does instead of an action that is not finite, or was chosen by what is not.
    fn not_finite(&self, observation: &[f32]) -> Blocked {
        let why = "the action, or what it was chosen by, is infinite or not a number";
        Blocked {
            limit: Limit::Finite,
            instead: self.held(observation),
            why: why.into(),
        }
    }

    /// The action, or what the agent does instead of it where the guard does not allow it.
    fn guarded(&self, observation: &[f32], action: Action) -> Action {
        let guard = self.guard.as_ref();
        match guard.and_then(|guard| guard.check(observation, &action)) {
            Some((_, instead, _)) => instead.unwrap_or_else(|| self.held(observation)),
            None => action,
        }
    }

    /// Holding: the action of that name, or the share of replicas as it is.
    fn held(&self, observation: &[f32]) -> Action {
        let ActionSpace::Continuous(components) = &self.space else {
            return self.hold.clone();
        };
        let present = match &self.guard {
            Some(Guard::Replicas { share }) => Some(share.read(observation) as f32),
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

/// What a guard says: the limit, the action instead unless it is holding, and why.
type Verdict = (Limit, Option<Action>, String);

impl Guard {
    /// The guard of the agent that acts in a space.
    fn of(space: &AgentSpace, mesh: &Calibration) -> Option<Self> {
        Self::replicas(space)
            .or_else(|| Self::approvals(space, mesh))
            .or_else(|| Self::calls(space, mesh))
            .or_else(|| Self::shares(space))
    }

    fn replicas(space: &AgentSpace) -> Option<Self> {
        let share = Gauge::find(space, "share")?;
        Some(Self::Replicas { share })
    }

    fn approvals(space: &AgentSpace, mesh: &Calibration) -> Option<Self> {
        Some(Self::Approvals {
            quorum: Gauge::find(space, "quorum")?,
            majority: f64::from(mesh.changes.approvers / 2 + 1),
            quorum_down: find_action(space, "quorum_down")?,
            timeout: Gauge::find(space, "timeout")?,
            answer_time: Gauge::find(space, "answer_time")?,
            halve: find_action(space, "timeout_halve")?,
        })
    }

    fn calls(space: &AgentSpace, mesh: &Calibration) -> Option<Self> {
        let ActionSpace::Discrete(names) = &space.action else {
            return None;
        };
        let clients = &mesh.clients;
        let switches = (0..names.len()).filter(|at| names[*at].ends_with("switch_retries"));
        Some(Self::Calls {
            strict: Gauge::find(space, "strict")?,
            median: Gauge::find(space, "latency_p50")?,
            timeouts: [clients.patient.timeout_s, clients.strict.timeout_s],
            switches: switches.collect(),
        })
    }

    fn shares(space: &AgentSpace) -> Option<Self> {
        find_action(space, "reset_to_entitlement")?;
        Some(Self::Shares)
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
mod tests;
