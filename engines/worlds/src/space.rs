//! What agents observe and how they act, with names, units and bounds.

use std::borrow::Cow;

/// A name, a unit or a description: static in a built-in world, owned in one that is described from outside.
pub type Text = Cow<'static, str>;

/// One number of an observation or of a continuous action.
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// The name, such as `pole_angle`.
    pub name: Text,
    /// The unit, such as `rad`; `1` for a ratio.
    pub unit: Text,
    /// The lowest value; negative infinity where there is no bound.
    pub low: f32,
    /// The highest value; infinity where there is no bound.
    pub high: f32,
    /// How many units a value of 1 stands for. An observation is the measured quantity divided by this,
    /// within `low` and `high`; 1 where it is not normalised.
    pub scale: f32,
    /// Where the number comes from: a formula of the world, or the metric that a live mesh measures it
    /// by.
    pub source: Text,
}

/// How an agent acts.
#[derive(Debug, Clone, PartialEq)]
pub enum ActionSpace {
    /// One of the named actions, which are numbered by their position.
    Discrete(Vec<Text>),
    /// A number for each component, within its bounds, which are finite.
    Continuous(Vec<Component>),
}

/// What one agent observes and how it acts.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSpace {
    /// The agent's name in its world, such as `policy`.
    pub name: Text,
    /// The components of every observation.
    pub observation: Vec<Component>,
    /// The actions.
    pub action: ActionSpace,
}

impl AgentSpace {
    /// Whether an agent of the other space can do here what it learned there: it observes as many components, and
    /// has as many actions, or the same bounds of each control. What the components are called does not matter.
    pub fn is_alike(&self, other: &Self) -> bool {
        self.observation.len() == other.observation.len() && self.action.is_alike(&other.action)
    }

    /// What it has, in a few words: `4 observed, 2 actions`.
    pub fn shape(&self) -> String {
        let (observed, acts) = (self.observation.len(), self.action.len());
        match &self.action {
            ActionSpace::Discrete(_) => format!("{observed} observed, {acts} actions"),
            ActionSpace::Continuous(components) => {
                let bounds = components.iter().map(|c| format!("{}..={}", c.low, c.high));
                let bounds: Vec<String> = bounds.collect();
                format!("{observed} observed, controls of {}", bounds.join(", "))
            }
        }
    }
}

/// The fixed part of a world.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldSpec {
    /// The name in the registry.
    pub name: Text,
    /// The agents, of which there is at least one. Actions, observations and outcomes are in this order.
    pub agents: Vec<AgentSpace>,
    /// The steps after which an episode is truncated; `None` when only the world ends it.
    pub max_steps: Option<u32>,
    /// The name of the calibration that a simulated mesh has its numbers from; `None` for a world that models none.
    pub calibration: Option<Text>,
}

/// An agent's action.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The position of a discrete action.
    Discrete(usize),
    /// The components of a continuous action.
    Continuous(Vec<f32>),
}

impl Action {
    /// The position of a discrete action, for a world whose space is discrete.
    ///
    /// # Panics
    ///
    /// When the action is continuous: its caller did not [check](ActionSpace::check) it.
    pub fn index(&self) -> usize {
        match self {
            Self::Discrete(at) => *at,
            Self::Continuous(_) => unreachable!("a discrete space contains discrete actions only"),
        }
    }

    /// The first component of a continuous action, for a world whose space is continuous.
    ///
    /// # Panics
    ///
    /// When the action is discrete: its caller did not [check](ActionSpace::check) it.
    pub fn number(&self) -> f32 {
        match self {
            Self::Continuous(numbers) => numbers[0],
            Self::Discrete(_) => {
                unreachable!("a continuous space contains continuous actions only")
            }
        }
    }
}

/// An action that is not in its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the action is not in the agent's action space")]
pub struct NotInSpace;

impl Component {
    /// A component of a world that is computed rather than measured.
    pub const fn computed(name: &'static str, unit: &'static str, low: f32, high: f32) -> Self {
        Self {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed(unit),
            low,
            high,
            scale: 1.0,
            source: Cow::Borrowed("computed"),
        }
    }

    /// A component without bounds.
    pub const fn unbounded(name: &'static str, unit: &'static str) -> Self {
        Self::computed(name, unit, f32::NEG_INFINITY, f32::INFINITY)
    }
}

impl ActionSpace {
    /// A discrete space of named actions.
    pub fn named(names: &[&'static str]) -> Self {
        Self::Discrete(names.iter().map(|name| Cow::Borrowed(*name)).collect())
    }

    fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Discrete(own), Self::Discrete(others)) => own.len() == others.len(),
            (Self::Continuous(own), Self::Continuous(others)) => {
                let bounds = |all: &[Component]| -> Vec<(f32, f32)> {
                    all.iter().map(|c| (c.low, c.high)).collect()
                };
                bounds(own) == bounds(others)
            }
            _ => false,
        }
    }

    /// The number of actions of a discrete space, or of components of a continuous one.
    pub fn len(&self) -> usize {
        match self {
            Self::Discrete(names) => names.len(),
            Self::Continuous(components) => components.len(),
        }
    }

    /// Whether there is nothing to choose.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An action of the right form, to be overwritten: the first one, or each component's lowest value.
    pub fn first(&self) -> Action {
        match self {
            Self::Discrete(_) => Action::Discrete(0),
            Self::Continuous(components) => {
                Action::Continuous(components.iter().map(|c| c.low).collect())
            }
        }
    }

    /// Checks that an action is in the space; a component that is not a number is in none.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn check(&self, action: &Action) -> Result<(), NotInSpace> {
        let contained = match (self, action) {
            (Self::Discrete(names), Action::Discrete(at)) => *at < names.len(),
            (Self::Continuous(components), Action::Continuous(values)) => {
                components.len() == values.len()
                    && components
                        .iter()
                        .zip(values)
                        .all(|(c, v)| *v >= c.low && *v <= c.high)
            }
            _ => false,
        };
        contained.then_some(()).ok_or(NotInSpace)
    }
}

impl AgentSpace {
    /// The position of an observation's component, by its name.
    pub fn position(&self, component: &str) -> Option<usize> {
        self.observation.iter().position(|c| c.name == component)
    }
}

impl WorldSpec {
    /// The position of an agent, by its name.
    pub fn agent(&self, name: &str) -> Option<usize> {
        self.agents.iter().position(|agent| agent.name == name)
    }
}
