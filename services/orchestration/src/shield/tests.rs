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
            shield: match environment {
                "mesh" => Shield::of_mesh(&space),
                _ => Shield::of_space(&space),
            },
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
        let at = find_action(&self.space, name).unwrap();
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

#[test]
fn every_agent_of_the_mesh_is_guarded_and_no_other_one() {
    for agent in ["policy", "consensus", "ethical", "resource"] {
        assert!(Rig::of(agent).shield.is_guarded(), "{agent}");
    }
    let mut space = Rig::of("consensus").space;
    assert!(!Shield::of_space(&space).is_guarded());
    // A component that has another name is not guarded any more.
    let at = space.position("answer_time").unwrap();
    space.observation[at].name = "response_time".into();
    assert!(!Shield::of_mesh(&space).is_guarded());
}
