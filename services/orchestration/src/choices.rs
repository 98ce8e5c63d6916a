//! What an agent can do instead of the action that it prefers, for the resolution of a conflict.
//!
//! A discrete agent has all of its actions, each worth what the agent's network says. A continuous one has its
//! own action and some that are spread evenly over its range. No network says what those are worth, so that
//! each loses in proportion to its distance from the agent's own.
//!
//! Where the joint actions are measured in a world, each agent has few actions, because there are as many joint
//! actions as their product: what changes nothing, its own, and those that its policy likes next.

use tars_worlds::{Action, ActionSpace, Component};

/// The actions of a continuous agent beside its own.
const SPREAD: u8 = 4;
/// The most actions of an agent that are measured.
const MEASURED: usize = 5;
/// Where other actions of a continuous agent are in its range, the first of which complete the choices; and how
/// much of the range they keep away from those that are chosen.
const PLACES: [f32; 5] = [0.5, 0.0, 1.0, 0.25, 0.75];
const APART: f32 = 0.01;

/// One action of an agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) action: Action,
    /// The action's name; of a continuous one, its number.
    pub(crate) name: String,
    /// What constraints compare: the position of a discrete action, or the number of a continuous one.
    pub(crate) number: f64,
    /// What the agent gets by it.
    pub(crate) payoff: f64,
}

/// All actions of an agent, and the position of its own one among them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choices {
    pub(crate) all: Vec<Choice>,
    pub(crate) own: usize,
}

/// The actions of an agent that are measured, and the position of the one that changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    pub(crate) choices: Choices,
    pub(crate) hold: usize,
}

impl Measured {
    /// The choices of an agent that prefers an action: holding, that one, and others that are allowed, in the order
    /// of the values that it was chosen by. Without values they are in the order of the space.
    pub(crate) fn of(
        space: &ActionSpace,
        preferred: &Action,
        values: &[f32],
        hold: &Action,
        allowed: &[bool],
    ) -> Self {
        let mut actions = vec![hold.clone()];
        if preferred != hold {
            actions.push(preferred.clone());
        }
        match space {
            ActionSpace::Discrete(_) => add_preferred(&mut actions, values, allowed),
            ActionSpace::Continuous(components) => add_places(&mut actions, components),
        }
        let choice = |action: Action| match (space, action) {
            (ActionSpace::Discrete(names), Action::Discrete(at)) => discrete(at, &names[at], 0.0),
            (_, Action::Continuous(numbers)) => at_distance(numbers, 0.0),
            _ => unreachable!("a policy fits the space of its agent"),
        };
        Self {
            choices: Choices {
                all: actions.into_iter().map(choice).collect(),
                own: usize::from(preferred != hold),
            },
            hold: 0,
        }
    }
}

fn add_preferred(actions: &mut Vec<Action>, values: &[f32], allowed: &[bool]) {
    let value = |at: &usize| values.get(*at).copied().unwrap_or(0.0);
    let mut others: Vec<usize> = (0..allowed.len()).filter(|at| allowed[*at]).collect();
    others.sort_by(|a, b| value(b).total_cmp(&value(a)));
    for other in others.into_iter().map(Action::Discrete) {
        if actions.len() < MEASURED && !actions.contains(&other) {
            actions.push(other);
        }
    }
}

/// An action of several numbers has no others.
fn add_places(actions: &mut Vec<Action>, components: &[Component]) {
    let [component] = components else {
        return;
    };
    let range = component.high - component.low;
    for place in PLACES.map(|place| component.low + place * range) {
        let is_near = |action: &Action| (action.number() - place).abs() < APART * range;
        if actions.len() < MEASURED && !actions.iter().any(is_near) {
            actions.push(Action::Continuous(vec![place]));
        }
    }
}

impl Choices {
    /// The choices of an agent that prefers an action, by the values that it was chosen by.
    pub(crate) fn of(space: &ActionSpace, preferred: &Action, values: &[f32]) -> Self {
        match (space, preferred) {
            (ActionSpace::Discrete(names), Action::Discrete(own)) => {
                let choice = |(at, (name, value)): (usize, (&_, &f32))| discrete(at, name, *value);
                let all = names.iter().zip(values).enumerate().map(choice).collect();
                Self { all, own: *own }
            }
            (ActionSpace::Continuous(components), Action::Continuous(own)) => {
                continuous(components, own)
            }
            _ => unreachable!("a policy fits the space of its agent"),
        }
    }
}

fn discrete(at: usize, name: &impl ToString, value: f32) -> Choice {
    Choice {
        action: Action::Discrete(at),
        name: name.to_string(),
        number: at as f64,
        payoff: f64::from(value),
    }
}

/// An action of several numbers is not negotiable.
fn continuous(components: &[Component], own: &[f32]) -> Choices {
    let mut all = vec![at_distance(own.to_vec(), 0.0)];
    if let ([component], [own]) = (components, own) {
        let range = component.high - component.low;
        let spread = (0..SPREAD).map(|n| f32::from(n) / f32::from(SPREAD - 1));
        let others = spread.map(|share| component.low + share * range);
        all.extend(others.map(|other| at_distance(vec![other], (other - own).abs() / range)));
    }
    Choices { all, own: 0 }
}

fn at_distance(numbers: Vec<f32>, distance: f32) -> Choice {
    let number = numbers.first().copied().map_or(0.0, f64::from);
    Choice {
        name: format!("{number:.3}"),
        action: Action::Continuous(numbers),
        number,
        payoff: -f64::from(distance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discrete_agent_chooses_among_all_of_its_actions() {
        let space = ActionSpace::named(&["hold", "more", "less"]);
        let choices = Choices::of(&space, &Action::Discrete(1), &[0.5, 2.0, -1.0]);
        let seen: Vec<_> = choices
            .all
            .iter()
            .map(|c| (c.name.as_str(), c.number, c.payoff))
            .collect();
        assert_eq!(
            seen,
            [("hold", 0.0, 0.5), ("more", 1.0, 2.0), ("less", 2.0, -1.0)]
        );
        assert_eq!(choices.own, 1);
    }

    #[test]
    fn a_continuous_agent_loses_with_the_distance_from_its_own_action() {
        let space = ActionSpace::Continuous(vec![Component::computed("torque", "Nm", -2.0, 2.0)]);
        let choices = Choices::of(&space, &Action::Continuous(vec![1.0]), &[1.0]);
        let numbers: Vec<f64> = choices.all.iter().map(|c| c.number).collect();
        assert_eq!(numbers.len(), 5);
        assert_eq!((numbers[0], numbers[1], numbers[4]), (1.0, -2.0, 2.0));
        let payoffs: Vec<f64> = choices.all.iter().map(|c| c.payoff).collect();
        assert_eq!((payoffs[0], payoffs[1], payoffs[4]), (0.0, -0.75, -0.25));
        for choice in &choices.all {
            space.check(&choice.action).unwrap();
        }
    }

    fn names(measured: &Measured) -> Vec<&str> {
        let all = measured.choices.all.iter();
        all.map(|choice| choice.name.as_str()).collect()
    }

    #[test]
    fn a_discrete_agent_is_measured_with_what_it_likes_best() {
        let space = ActionSpace::named(&["hold", "a", "b", "c", "d", "e"]);
        let of = |own: usize, values: &[f32], allowed: [bool; 6]| {
            let (own, hold) = (Action::Discrete(own), Action::Discrete(0));
            Measured::of(&space, &own, values, &hold, &allowed)
        };
        let values = [0.0, 1.0, 5.0, 4.0, 3.0, 2.0];
        let found = of(2, &values, [true; 6]);
        assert_eq!(names(&found), ["hold", "b", "c", "d", "e"]);
        assert_eq!((found.choices.own, found.hold), (1, 0));
        // One that holds has four others, and what is not allowed is none of them.
        let found = of(0, &values, [true, true, false, true, true, true]);
        assert_eq!(names(&found), ["hold", "c", "d", "e", "a"]);
        assert_eq!(found.choices.own, 0);
        assert_eq!(names(&of(5, &[], [true; 6])), ["hold", "e", "a", "b", "c"]);
        let two = ActionSpace::named(&["hold", "go"]);
        let (go, hold) = (Action::Discrete(1), Action::Discrete(0));
        let found = Measured::of(&two, &go, &[], &hold, &[true; 2]);
        assert_eq!(names(&found), ["hold", "go"]);
    }

    #[test]
    fn a_continuous_agent_is_measured_with_actions_apart_from_each_other() {
        let space = ActionSpace::Continuous(vec![Component::computed("share", "1", 0.0, 1.0)]);
        let of = |own: f32, hold: f32| {
            let [own, hold] = [own, hold].map(|number| Action::Continuous(vec![number]));
            Measured::of(&space, &own, &[], &hold, &[])
        };
        let found = of(0.8, 0.3);
        assert_eq!(names(&found), ["0.300", "0.800", "0.500", "0.000", "1.000"]);
        let found = of(0.995, 0.5);
        assert_eq!(names(&found), ["0.500", "0.995", "0.000", "0.250", "0.750"]);
        let found = of(0.5, 0.5);
        assert_eq!(names(&found), ["0.500", "0.000", "1.000", "0.250", "0.750"]);
        assert_eq!((found.choices.own, found.hold), (0, 0));
        let all = [found, of(0.8, 0.3)];
        for choice in all.iter().flat_map(|found| &found.choices.all) {
            space.check(&choice.action).unwrap();
        }
    }

    #[test]
    fn an_action_of_several_numbers_is_not_negotiable() {
        let component = || Component::computed("force", "N", 0.0, 1.0);
        let space = ActionSpace::Continuous(vec![component(), component()]);
        let own = Action::Continuous(vec![0.25, 0.75]);
        let choices = Choices::of(&space, &own, &[]);
        assert_eq!(choices.all.len(), 1);
        assert_eq!(choices.all[0].action, own);
    }
}
