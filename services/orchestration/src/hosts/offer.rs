//! What a host offers in its hello, and what is accepted.

use super::Fault;
use tars_worlds::{ActionSpace, AgentSpace, Component, WorldSpec};

/// The version of the protocol.
pub(crate) const PROTOCOL: u32 = 1;

const MAX_NAME: usize = 32;
const MAX_AGENTS: usize = 16;
/// Components of the observations of all agents.
const MAX_OBSERVED: usize = 4096;
/// Components of an agent's continuous action.
const MAX_CONTROLS: usize = 64;
const MAX_ACTIONS: usize = 1000;
const MAX_COPIES: u32 = 256;
/// Of the names of agents, components and actions, and of units, in bytes.
const MAX_TEXT: usize = 64;
/// The bytes that a message takes for an agent besides its numbers, generously.
const AGENT_OVERHEAD: usize = 256;
/// The bytes that a message takes for a copy besides its numbers: its index.
const COPY_OVERHEAD: usize = 5;

/// An environment that a host offers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    pub(crate) version: u32,
    pub(crate) name: String,
    pub(crate) agents: Vec<AgentSpace>,
    pub(crate) max_copies: u32,
    pub(crate) max_steps: Option<u32>,
}

impl Offer {
    /// Accepts the offer when everything is within its bounds, and an answer for all copies within a
    /// message of at most `max_message` bytes.
    pub(super) fn accept(self, max_message: usize) -> Result<Accepted, Fault> {
        if self.version != PROTOCOL {
            return Err(Fault::Version {
                given: self.version,
                required: PROTOCOL,
            });
        }
        let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = (1..=MAX_NAME).contains(&self.name.len()) && self.name.bytes().all(of_name);
        require(named, "name", "must have up to 32 of a-z, 0-9 and -")?;
        let copies = (1..=MAX_COPIES).contains(&self.max_copies);
        require(copies, "max_copies", "must be between 1 and 256")?;
        require(self.max_steps != Some(0), "max_steps", "must be above 0")?;
        let some = (1..=MAX_AGENTS).contains(&self.agents.len());
        require(some, "agents", "must be between 1 and 16")?;
        for (at, agent) in self.agents.iter().enumerate() {
            check_agent(&format!("agents[{at}]"), agent)?;
            let earlier = self.agents[..at].iter().any(|a| a.name == agent.name);
            require(!earlier, &format!("agents[{at}].agent"), "is given twice")?;
        }
        let observed: usize = self.agents.iter().map(|a| a.observation.len()).sum();
        require(
            observed <= MAX_OBSERVED,
            "agents",
            "observe more than 4096 components",
        )?;
        let fits = message_size(&self.agents, self.max_copies) <= max_message;
        require(
            fits,
            "max_copies",
            "an answer for all copies exceeds the size of a message",
        )?;
        Ok(Accepted {
            spec: WorldSpec {
                name: format!("external/{}", self.name).into(),
                agents: self.agents,
                max_steps: self.max_steps,
                calibration: None,
            },
            name: self.name,
            max_copies: self.max_copies,
        })
    }
}

/// An offer within all bounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) name: String,
    pub(crate) spec: WorldSpec,
    pub(crate) max_copies: u32,
}

fn require(is_met: bool, field: &str, problem: &str) -> Result<(), Fault> {
    match is_met {
        true => Ok(()),
        false => Err(Fault::offer(field, problem)),
    }
}

fn check_text(field: &str, text: &str) -> Result<(), Fault> {
    let fits = (1..=MAX_TEXT).contains(&text.len()) && !text.contains(char::is_control);
    require(
        fits,
        field,
        "must have between 1 and 64 bytes, and no control characters",
    )
}

fn check_agent(field: &str, agent: &AgentSpace) -> Result<(), Fault> {
    check_text(&format!("{field}.agent"), &agent.name)?;
    let observes = format!("{field}.observation");
    require(!agent.observation.is_empty(), &observes, "has no component")?;
    for (at, component) in agent.observation.iter().enumerate() {
        check_component(&format!("{observes}[{at}]"), component)?;
    }
    match &agent.action {
        ActionSpace::Discrete(names) => {
            let field = format!("{field}.discrete.actions");
            let some = (1..=MAX_ACTIONS).contains(&names.len());
            require(some, &field, "must be between 1 and 1000")?;
            names.iter().try_for_each(|name| check_text(&field, name))
        }
        ActionSpace::Continuous(controls) => {
            let field = format!("{field}.continuous.components");
            let some = (1..=MAX_CONTROLS).contains(&controls.len());
            require(some, &field, "must be between 1 and 64")?;
            for (at, control) in controls.iter().enumerate() {
                let field = format!("{field}[{at}]");
                check_component(&field, control)?;
                let bounded = control.low.is_finite() && control.high.is_finite();
                require(bounded, &field, "must have finite bounds")?;
            }
            Ok(())
        }
    }
}

fn check_component(field: &str, component: &Component) -> Result<(), Fault> {
    check_text(&format!("{field}.name"), &component.name)?;
    check_text(&format!("{field}.unit"), &component.unit)?;
    check_text(&format!("{field}.source"), &component.source)?;
    let ordered = component.low < component.high;
    require(ordered, field, "must have a low that is below its high")?;
    let positive = component.scale > 0.0 && component.scale.is_finite();
    let field = format!("{field}.scale");
    require(positive, &field, "must be a finite number above 0")
}

/// The most that a message takes: all agents of all copies, with masks and final observations.
fn message_size(agents: &[AgentSpace], copies: u32) -> usize {
    let of_copy = |agent: &AgentSpace| {
        let actions = match &agent.action {
            ActionSpace::Discrete(names) => names.len(),
            ActionSpace::Continuous(components) => 4 * components.len(),
        };
        // Two observations, a reward and two flags.
        8 * agent.observation.len() + 6 + actions
    };
    let copy: usize = agents.iter().map(of_copy).sum::<usize>() + COPY_OVERHEAD;
    copies as usize * copy + agents.len() * AGENT_OVERHEAD
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MESSAGE: usize = 1 << 20;

    /// Two agents: one chooses among three actions, one between two numbers.
    pub(in crate::hosts) fn offer() -> Offer {
        let seen = |name| Component::computed(name, "1", -1.0, 1.0);
        let agents = vec![
            AgentSpace {
                name: "chooser".into(),
                observation: vec![seen("a"), seen("b")],
                action: ActionSpace::named(&["left", "stay", "right"]),
            },
            AgentSpace {
                name: "driver".into(),
                observation: vec![Component::unbounded("speed", "m/s")],
                action: ActionSpace::Continuous(vec![seen("push")]),
            },
        ];
        Offer {
            version: PROTOCOL,
            name: "my-env".into(),
            agents,
            max_copies: 4,
            max_steps: Some(50),
        }
    }

    fn refused(change: impl FnOnce(&mut Offer)) -> String {
        let mut changed = offer();
        change(&mut changed);
        changed.accept(MESSAGE).unwrap_err().to_string()
    }

    #[test]
    fn an_accepted_environment_is_named_as_external() {
        let accepted = offer().accept(MESSAGE).unwrap();
        assert_eq!(accepted.spec.name, "external/my-env");
        assert_eq!(
            (accepted.max_copies, accepted.spec.max_steps),
            (4, Some(50))
        );
    }

    #[test]
    fn another_version_is_refused() {
        let mut newer = offer();
        newer.version = 2;
        let refused = Fault::Version {
            given: 2,
            required: PROTOCOL,
        };
        assert_eq!(newer.accept(MESSAGE), Err(refused));
    }

    #[test]
    fn names_numbers_and_lists_have_bounds() {
        for name in ["", "A", "a_b", "a/b", "a.b", &"a".repeat(33)] {
            assert!(
                refused(|o| o.name = name.into()).starts_with("name"),
                "{name}"
            );
        }
        assert!(refused(|o| o.max_copies = 0).starts_with("max_copies"));
        assert!(refused(|o| o.max_copies = 257).starts_with("max_copies"));
        assert!(refused(|o| o.max_steps = Some(0)).starts_with("max_steps"));
        assert!(refused(|o| o.agents.clear()).starts_with("agents"));
        assert!(refused(|o| o.agents = vec![o.agents[0].clone(); 17]).starts_with("agents"));
        let twice = refused(|o| o.agents[1].name = "chooser".into());
        assert!(twice.starts_with("agents[1].agent"), "{twice}");
    }

    #[test]
    fn spaces_have_something_in_them_and_bounds_in_order() {
        let empty = refused(|o| o.agents[0].observation.clear());
        assert!(empty.starts_with("agents[0].observation"), "{empty}");
        let none = refused(|o| o.agents[0].action = ActionSpace::Discrete(vec![]));
        assert!(none.starts_with("agents[0].discrete"), "{none}");
        let many = vec![Component::computed("x", "1", 0.0, 1.0); MAX_OBSERVED];
        assert!(refused(|o| o.agents[0].observation = many).contains("4096"));
        let open = ActionSpace::Continuous(vec![Component::unbounded("x", "1")]);
        assert!(refused(|o| o.agents[1].action = open).contains("finite bounds"));
        for (low, high) in [(1.0, 1.0), (2.0, 1.0), (f32::NAN, 1.0)] {
            let text = refused(|o| {
                (
                    o.agents[0].observation[1].low,
                    o.agents[0].observation[1].high,
                ) = (low, high);
            });
            assert!(text.starts_with("agents[0].observation[1]"), "{text}");
        }
        for scale in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let text = refused(|o| o.agents[0].observation[1].scale = scale);
            assert!(text.starts_with("agents[0].observation[1].scale"), "{text}");
        }
        let control = refused(|o| o.agents[0].observation[0].unit = "\n".into());
        assert!(control.contains("unit"), "{control}");
    }

    #[test]
    fn an_answer_for_all_copies_has_to_fit_into_a_message() {
        let wide = |o: &mut Offer| {
            o.max_copies = 256;
            o.agents[0].observation = vec![o.agents[0].observation[0].clone(); 600];
        };
        assert!(refused(wide).starts_with("max_copies"));
        assert!(offer().accept(500).is_err());
    }
}
