//! What an agent can do instead of the action that it prefers, for the resolution of a conflict.
//!
//! A discrete agent has all of its actions, each worth what the agent's network says. A continuous one has its
//! own action and some that are spread evenly over its range. No network says what those are worth, so that
//! each loses in proportion to its distance from the agent's own.

use tars_worlds::{Action, ActionSpace, Component};

/// The actions of a continuous agent beside its own.
const SPREAD: u8 = 4;

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
