//! A copy of a lent environment, as a world that a training steps.
//!
//! Copies that are stepped together announce their actions first; the first that is stepped has all of
//! them taken, in one exchange with the host. When that fails, the episode of every copy is truncated
//! where it is, and the next one begins in the environment that the host lends when it has come back.

use super::{Ask, Hosts, Lent, Packed, Work, offer::Accepted, session::AgentRows};
use parking_lot::Mutex;
use rand::RngExt;
use std::{collections::BTreeMap, sync::Arc};
use tars_runtime::clock::Monotonic;
use tars_worlds::{
    Action, ActionSpace, AgentSpace, Generator, Observations, Soundness, TimeStep, World,
    WorldSpec, world::BadSnapshot,
};
use tokio::sync::oneshot;

/// The failures after which a host is not worth waiting for.
const MAX_FAILURES: u32 = 100;
/// The seeds of copies have 31 bits, which every generator takes.
const SEEDS: u32 = 1 << 31;

/// What the copies of one training share. It goes from one session of the host to its next.
#[derive(Debug)]
pub(super) struct Link {
    hosts: Hosts,
    owner: String,
    offer: Arc<Accepted>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Absent from a failure until a copy begins its next episode.
    lent: Option<Arc<Lent>>,
    announced: BTreeMap<u32, Vec<Action>>,
    taken: BTreeMap<u32, Vec<Row>>,
    failures: u32,
    /// When the training first used the host.
    begun: Option<Monotonic>,
    lost: Option<Loss>,
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The host is gone, or was lost too often, or has no place for a copy.
    Gone,
    /// The training has used the host for as long as one may.
    Overdue,
}

impl Loss {
    fn soundness(self) -> Soundness {
        match self {
            Self::Gone => Soundness::Lost,
            Self::Overdue => Soundness::Overdue,
        }
    }
}

/// What one copy of one agent got.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    observation: Vec<f32>,
    mask: Vec<bool>,
    step: TimeStep,
    final_observation: Vec<f32>,
}

/// A copy's place at a host, which is given back when dropped.
#[derive(Debug)]
struct Seat {
    lent: Arc<Lent>,
    copy: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lent.free.lock().push(self.copy);
    }
}

/// A copy of a lent environment.
#[derive(Debug)]
pub(super) struct Copy {
    link: Arc<Link>,
    seat: Option<Seat>,
    /// What each agent sees, and may do.
    now: Vec<Row>,
    /// What each agent sees in the next episode, which the host has begun.
    next: Option<Vec<Vec<f32>>>,
    soundness: Soundness,
}

impl Lent {
    /// Has work done, and waits for what comes of it; `None` when the session has ended.
    fn ask(&self, work: Work) -> Option<Vec<AgentRows>> {
        let (reply, rows) = oneshot::channel();
        self.work.blocking_send(Ask { work, reply }).ok()?;
        rows.blocking_recv().ok()
    }

    fn seat(self: &Arc<Self>) -> Option<Seat> {
        let copy = self.free.lock().pop()?;
        let lent = Arc::clone(self);
        Some(Seat { lent, copy })
    }
}

/// The actions of each agent in some copies, in the form of its space.
fn pack(spaces: &[AgentSpace], joints: &[&[Action]]) -> Vec<Packed> {
    let copies = joints.len();
    let of_agent = |(at, space): (usize, &AgentSpace)| match &space.action {
        ActionSpace::Discrete(_) => {
            let position = |joint: &&[Action]| {
                u32::try_from(joint[at].index()).expect("the actions of offers are bounded")
            };
            Packed::positions(&[copies], joints.iter().map(position))
        }
        ActionSpace::Continuous(components) => {
            let numbers = joints.iter().flat_map(|joint| match &joint[at] {
                Action::Continuous(numbers) => numbers.iter().copied(),
                Action::Discrete(_) => [].iter().copied(),
            });
            Packed::numbers(&[copies, components.len()], numbers)
        }
    };
    spaces.iter().enumerate().map(of_agent).collect()
}

/// The row of one copy among those that work was about.
fn row(rows: &AgentRows, at: usize, of: usize) -> Row {
    fn part<T: Clone>(all: &[T], at: usize, of: usize) -> Vec<T> {
        let width = all.len() / of;
        all[at * width..][..width].to_vec()
    }
    let batch = &rows.batch;
    let flag = |all: &[bool]| all.get(at).copied().unwrap_or_default();
    Row {
        observation: part(&batch.observations, at, of),
        mask: part(&rows.masks, at, of),
        step: TimeStep {
            reward: batch.rewards.get(at).copied().unwrap_or_default(),
            terminated: flag(&batch.terminated),
            truncated: flag(&batch.truncated),
        },
        final_observation: part(&batch.final_observations, at, of),
    }
}

impl Link {
    pub(super) fn new(hosts: Hosts, owner: &str, lent: Arc<Lent>) -> Arc<Self> {
        let offer = Arc::clone(&lent.offer);
        Arc::new(Self {
            hosts,
            owner: owner.to_owned(),
            offer,
            state: Mutex::new(State {
                lent: Some(lent),
                announced: BTreeMap::new(),
                taken: BTreeMap::new(),
                failures: 0,
                begun: None,
                lost: None,
            }),
        })
    }

    pub(super) fn world(self: &Arc<Self>) -> Copy {
        let unseen = |agent: &AgentSpace| Row {
            observation: vec![0.0; agent.observation.len()],
            ..Row::default()
        };
        Copy {
            link: Arc::clone(self),
            seat: None,
            now: self.offer.spec.agents.iter().map(unseen).collect(),
            next: None,
            soundness: Soundness::Sound,
        }
    }

    /// A place for a copy, at the session that is open, or at the host's next.
    fn seat(&self) -> Option<Seat> {
        let mut state = self.state.lock();
        if state.lost.is_some() || self.is_overdue(&mut state) {
            return None;
        }
        if state.lent.is_none() {
            state.lent = self.hosts.wait_for(&self.owner, &self.offer);
        }
        let seat = state.lent.as_ref().and_then(Lent::seat);
        if seat.is_none() {
            state.lost = Some(Loss::Gone);
        }
        seat
    }

    /// Whether the training has used the host for as long as one may; nothing more is asked of it then.
    fn is_overdue(&self, state: &mut State) -> bool {
        let now = self.hosts.0.clock.monotonic();
        let begun = *state.begun.get_or_insert(now);
        let is_over = now.since(begun) >= self.hosts.terms().run_within;
        if is_over {
            state.give_up(Loss::Overdue);
        }
        is_over
    }

    fn soundness(&self) -> Soundness {
        let lost = self.state.lock().lost;
        lost.map_or(Soundness::Interrupted, Loss::soundness)
    }

    /// Begins an episode in a copy; `None` when that failed.
    fn reset(&self, seat: &Seat, seed: u32) -> Option<Vec<Row>> {
        let mut state = self.state.lock();
        if self.is_overdue(&mut state) {
            return None;
        }
        let copies = vec![seat.copy];
        let done = seat.lent.ask(Work::Reset { copies, seed });
        if done.is_none() {
            state.fail(&seat.lent);
        }
        let rows = done?;
        Some(rows.iter().map(|rows| row(rows, 0, 1)).collect())
    }

    /// Takes the actions of a copy, and with them all that are announced; `None` when that failed.
    fn step(&self, seat: &Seat, actions: &[Action]) -> Option<Vec<Row>> {
        let mut state = self.state.lock();
        if let Some(rows) = state.taken.remove(&seat.copy) {
            return Some(rows);
        }
        if self.is_overdue(&mut state) || !state.is_at(seat) {
            return None;
        }
        state.announced.insert(seat.copy, actions.to_vec());
        let announced = std::mem::take(&mut state.announced);
        let copies: Vec<u32> = announced.keys().copied().collect();
        let joints: Vec<&[Action]> = announced.values().map(Vec::as_slice).collect();
        let actions = pack(&self.offer.spec.agents, &joints);
        let work = Work::Step {
            copies: copies.clone(),
            actions,
        };
        let Some(done) = seat.lent.ask(work) else {
            state.fail(&seat.lent);
            return None;
        };
        for (at, copy) in copies.iter().enumerate() {
            let rows = done.iter().map(|rows| row(rows, at, copies.len()));
            state.taken.insert(*copy, rows.collect());
        }
        state.taken.remove(&seat.copy)
    }
}

impl State {
    fn is_at(&self, seat: &Seat) -> bool {
        let lent = self.lent.as_ref();
        lent.is_some_and(|lent| Arc::ptr_eq(lent, &seat.lent))
    }

    /// A session has ended, with all that was to be done in it.
    fn fail(&mut self, session: &Arc<Lent>) {
        let is_current = |lent: &mut Arc<Lent>| Arc::ptr_eq(lent, session);
        if self.lent.take_if(is_current).is_some() {
            self.failures += 1;
            if self.failures >= MAX_FAILURES {
                self.lost = Some(Loss::Gone);
            }
            self.announced.clear();
            self.taken.clear();
        }
    }

    /// Nothing more is asked of any session.
    fn give_up(&mut self, why: Loss) {
        self.lent = None;
        self.lost.get_or_insert(why);
        self.announced.clear();
        self.taken.clear();
    }
}

impl Copy {
    fn write(&self, observations: &mut Observations) {
        for (agent, row) in self.now.iter().enumerate() {
            observations.of_mut(agent).copy_from_slice(&row.observation);
        }
    }

    /// Begins an episode, unless the environment is lost.
    fn begin(&mut self, rng: &mut Generator) -> Option<Vec<Row>> {
        loop {
            let seat = match self.seat.take() {
                Some(seat) if self.link.state.lock().is_at(&seat) => seat,
                _ => self.link.seat()?,
            };
            let begun = self.link.reset(&seat, rng.random_range(0..SEEDS));
            self.seat = Some(seat);
            if begun.is_some() {
                return begun;
            }
        }
    }

    /// Truncates the episode where it is.
    fn interrupt(&mut self, steps: &mut [TimeStep]) {
        self.soundness = self.link.soundness();
        steps.fill(TimeStep {
            truncated: true,
            ..TimeStep::default()
        });
    }
}

impl World for Copy {
    fn spec(&self) -> &WorldSpec {
        &self.link.offer.spec
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        if let Some(next) = self.next.take() {
            for (row, observation) in self.now.iter_mut().zip(next) {
                row.observation = observation;
            }
        } else if let Some(rows) = self.begin(rng) {
            self.now = rows;
        } else {
            self.soundness = self.link.soundness();
            return;
        }
        self.write(observations);
    }

    fn announce(&mut self, actions: &[Action]) {
        let Some(seat) = &self.seat else { return };
        let mut state = self.link.state.lock();
        if state.is_at(seat) {
            state.announced.insert(seat.copy, actions.to_vec());
        }
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        let seat = self.seat.as_ref();
        let Some(mut rows) = seat.and_then(|seat| self.link.step(seat, actions)) else {
            return self.interrupt(steps);
        };
        for (step, row) in steps.iter_mut().zip(&rows) {
            *step = row.step;
        }
        if steps.iter().all(TimeStep::is_last) {
            // The host has begun the next episode; what ended this one comes first.
            let end = |row: &mut Row| {
                let last = std::mem::take(&mut row.final_observation);
                std::mem::replace(&mut row.observation, last)
            };
            self.next = Some(rows.iter_mut().map(end).collect());
        }
        self.now = rows;
        self.soundness = Soundness::Sound;
        self.write(observations);
    }

    fn observe(&self, observations: &mut Observations) {
        self.write(observations);
    }

    fn write_mask(&self, agent: usize, mask: &mut [bool]) {
        let row = &self.now[agent];
        if row.mask.is_empty() {
            mask.fill(true);
        } else {
            mask.copy_from_slice(&row.mask);
        }
    }

    fn soundness(&self) -> Soundness {
        self.soundness
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), BadSnapshot> {
        Err(BadSnapshot)
    }
}

#[cfg(test)]
#[path = "world/tests.rs"]
mod tests;
