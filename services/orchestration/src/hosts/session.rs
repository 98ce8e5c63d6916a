//! The states of a session, without its transport: it is [`Idle`] or it has [`Asked`] the host for
//! something. Whatever the host sends is taken in by the state that it meets, which is gone afterwards
//! unless the host kept to the protocol.

use super::{
    Fault,
    offer::{Accepted, Offer},
    packed::Packed,
};
use std::{sync::Arc, time::Duration};
use tars_worlds::{ActionSpace, AgentBatch, AgentSpace};

/// What a host sends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Hello(Offer),
    Reset(Answer),
    Step(Answer),
}

/// The answer to a reset or a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) agents: Vec<AgentAnswer>,
}

/// What a host reports of one agent in the copies that it was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct AgentAnswer {
    pub(crate) observations: Option<Packed>,
    pub(crate) masks: Option<Packed>,
    pub(crate) rewards: Option<Packed>,
    pub(crate) terminated: Option<Packed>,
    pub(crate) truncated: Option<Packed>,
    pub(crate) final_observations: Option<Packed>,
}

/// What a host is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) work: Work,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// Begin new episodes in some copies.
    Reset { copies: Vec<u32>, seed: u32 },
    /// Take an action of each agent, by its position, in some copies.
    Step {
        copies: Vec<u32>,
        actions: Vec<Packed>,
    },
}

/// The kind of an order, and of the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reset,
    Step,
}

impl Work {
    fn kind_and_copies(&self) -> (Kind, usize) {
        match self {
            Self::Reset { copies, .. } => (Kind::Reset, copies.len()),
            Self::Step { copies, .. } => (Kind::Step, copies.len()),
        }
    }
}

/// What came of some work for one agent, with a row for each copy that it was about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AgentRows {
    /// After a reset, only the observations mean something.
    pub(crate) batch: AgentBatch,
    /// Copies × actions; empty when every action may be taken.
    pub(crate) masks: Vec<bool>,
}

/// A session in which the host waits.
#[derive(Debug)]
pub(crate) struct Idle {
    offer: Arc<Accepted>,
    last: u64,
}

/// A session in which the host owes an answer.
#[derive(Debug)]
pub(crate) struct Asked {
    idle: Idle,
    kind: Kind,
    copies: usize,
}

impl Idle {
    /// Opens a session by its first message; `None` when there was none.
    pub(crate) fn open(first: Option<Message>, max_message: usize) -> Result<Self, Fault> {
        let Some(Message::Hello(offer)) = first else {
            return Err(Fault::Unexpected("the first request must be a hello"));
        };
        Ok(Self {
            offer: Arc::new(offer.accept(max_message)?),
            last: 0,
        })
    }

    pub(crate) fn offer(&self) -> &Arc<Accepted> {
        &self.offer
    }

    pub(crate) fn ask(self, work: Work) -> (Asked, Order) {
        let (kind, copies) = work.kind_and_copies();
        let id = self.last + 1;
        let idle = Self { last: id, ..self };
        let asked = Asked { idle, kind, copies };
        (asked, Order { id, work })
    }

    fn read(
        &self,
        agents: &[AgentAnswer],
        read: Read,
        copies: usize,
    ) -> Result<Vec<AgentRows>, Fault> {
        let spaces = &self.offer.spec.agents;
        if agents.len() != spaces.len() {
            let problem = format!("has {} items; {} are required", agents.len(), spaces.len());
            return Err(Fault::answer("agents", problem));
        }
        let agents = agents.iter().zip(spaces).enumerate();
        let rows = agents.map(|(at, (agent, space))| read(&Report { at, agent }, space, copies));
        rows.collect()
    }

    /// What to answer to a host that speaks without being asked.
    pub(crate) fn interrupt(self, message: &Message) -> Fault {
        match message {
            Message::Hello(_) => Fault::Unexpected("a session has one hello"),
            Message::Reset(_) | Message::Step(_) => Fault::Unexpected("nothing was asked"),
        }
    }
}

impl Asked {
    /// Takes in the host's message, which has to be the answer.
    pub(crate) fn answer(self, message: Message) -> Result<(Idle, Vec<AgentRows>), Fault> {
        let Self { idle, kind, copies } = self;
        let (answer, read): (Answer, Read) = match (message, kind) {
            (Message::Reset(answer), Kind::Reset) => (answer, read_reset),
            (Message::Step(answer), Kind::Step) => (answer, read_step),
            (message @ Message::Hello(_), _) => return Err(idle.interrupt(&message)),
            _ => return Err(Fault::Unexpected("another kind of answer was asked for")),
        };
        if answer.id != idle.last {
            return Err(Fault::Unexpected(
                "the answer has another id than the question",
            ));
        }
        let rows = idle.read(&answer.agents, read, copies)?;
        if kind == Kind::Step {
            check_ends(&rows)?;
        }
        Ok((idle, rows))
    }

    /// The end of a session whose host took too long.
    pub(crate) fn expire(self, limit: Duration) -> Fault {
        Fault::Late(limit)
    }
}

/// Reads what a host reports of one agent.
type Read = fn(&Report<'_>, &AgentSpace, usize) -> Result<AgentRows, Fault>;

/// The report on the agent at a position.
struct Report<'a> {
    at: usize,
    agent: &'a AgentAnswer,
}

impl Report<'_> {
    /// What a fault calls a field.
    fn field(&self, name: &str) -> String {
        format!("agents[{}].{name}", self.at)
    }

    fn numbers(
        &self,
        of: fn(&AgentAnswer) -> &Option<Packed>,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, Fault> {
        let field = self.field(name);
        let packed = of(self.agent).as_ref();
        let packed = packed.ok_or_else(|| Fault::answer(&field, "is missing"))?;
        packed.read_numbers(&field, shape)
    }

    fn flags(
        &self,
        of: fn(&AgentAnswer) -> &Option<Packed>,
        name: &str,
        copies: usize,
    ) -> Result<Vec<bool>, Fault> {
        let field = self.field(name);
        let packed = of(self.agent).as_ref();
        let packed = packed.ok_or_else(|| Fault::answer(&field, "is missing"))?;
        packed.read_flags(&field, &[copies])
    }

    fn masks(&self, space: &AgentSpace, copies: usize) -> Result<Vec<bool>, Fault> {
        let field = self.field("masks");
        match (&self.agent.masks, &space.action) {
            (None, _) => Ok(Vec::new()),
            (Some(_), ActionSpace::Continuous(_)) => {
                Err(Fault::answer(&field, "is given for a continuous action"))
            }
            (Some(packed), ActionSpace::Discrete(names)) => {
                let masks = packed.read_flags(&field, &[copies, names.len()])?;
                let mut rows = masks.chunks_exact(names.len());
                match rows.all(|row| row.contains(&true)) {
                    true => Ok(masks),
                    false => Err(Fault::answer(&field, "lets an agent take no action")),
                }
            }
        }
    }
}

fn read_reset(report: &Report<'_>, space: &AgentSpace, copies: usize) -> Result<AgentRows, Fault> {
    let shape = [copies, space.observation.len()];
    let observations = report.numbers(|a| &a.observations, "observations", &shape)?;
    Ok(AgentRows {
        batch: AgentBatch {
            observations,
            ..AgentBatch::default()
        },
        masks: report.masks(space, copies)?,
    })
}

fn read_step(report: &Report<'_>, space: &AgentSpace, copies: usize) -> Result<AgentRows, Fault> {
    let shape = [copies, space.observation.len()];
    let AgentRows { mut batch, masks } = read_reset(report, space, copies)?;
    batch.rewards = report.numbers(|a| &a.rewards, "rewards", &[copies])?;
    batch.terminated = report.flags(|a| &a.terminated, "terminated", copies)?;
    batch.truncated = report.flags(|a| &a.truncated, "truncated", copies)?;
    let mut ends = batch.terminated.iter().zip(&batch.truncated);
    if ends
        .clone()
        .any(|(terminated, truncated)| *terminated && *truncated)
    {
        let field = report.field("truncated");
        return Err(Fault::answer(&field, "is set together with terminated"));
    }
    if ends.any(|(terminated, truncated)| *terminated || *truncated) {
        batch.final_observations =
            report.numbers(|a| &a.final_observations, "final_observations", &shape)?;
    }
    Ok(AgentRows { batch, masks })
}

/// An episode ends for all agents at once.
fn check_ends(rows: &[AgentRows]) -> Result<(), Fault> {
    let is_last =
        |rows: &AgentRows, copy| rows.batch.terminated[copy] || rows.batch.truncated[copy];
    let first = &rows[0];
    for copy in 0..first.batch.rewards.len() {
        let ends = is_last(first, copy);
        if rows.iter().any(|rows| is_last(rows, copy) != ends) {
            return Err(Fault::answer("agents", "end an episode at different steps"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "session/tests.rs"]
mod tests;
