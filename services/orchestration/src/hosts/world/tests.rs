use super::super::{
    AgentAnswer, Answer, Conversation, Dtype, Message, Order, Terms, offer::tests::offer,
};
use super::*;
use futures_util::stream;
use rand::SeedableRng;
use std::{convert::Infallible, thread, time::Duration};
use tars_runtime::clock::Clock;
use tars_worlds::Copies;
use tokio::sync::mpsc;

const MESSAGE: usize = 1 << 20;

/// The orders that a host obeys before it hangs up.
type Obeys = usize;

fn hosts() -> Hosts {
    Hosts::new(Terms::default(), Clock::system())
}

/// Nobody waits long for a host that is gone.
fn impatient() -> Hosts {
    let terms = Terms {
        patience: Duration::from_millis(50),
        ..Terms::default()
    };
    Hosts::new(terms, Clock::system())
}

fn packed<T>(
    dtype: Dtype,
    shape: &[u32],
    values: Vec<T>,
    bytes: fn(T) -> Vec<u8>,
) -> Option<Packed> {
    let data = values.into_iter().flat_map(bytes).collect();
    let shape = shape.to_vec();
    Some(Packed { dtype, shape, data })
}

fn numbers(shape: &[u32], values: Vec<f32>) -> Option<Packed> {
    packed(Dtype::F32, shape, values, |v| v.to_le_bytes().to_vec())
}

fn flags(values: Vec<bool>) -> Option<Packed> {
    let shape = [u32::try_from(values.len()).unwrap()];
    packed(Dtype::Bool, &shape, values, |v| vec![u8::from(v)])
}

/// What the host's copies are: each counts its steps up to three, then terminates. The first agent sees
/// the copy's number and the count, the second the number that it pushed.
struct Counting(BTreeMap<u32, f32>);

impl Counting {
    fn obey(&mut self, order: Order) -> Message {
        let id = order.id;
        match order.work {
            Work::Reset { copies, .. } => {
                self.0.extend(copies.iter().map(|copy| (*copy, 0.0)));
                let agents = self.observe(&copies, vec![0.0; copies.len()]);
                Message::Reset(Answer { id, agents })
            }
            Work::Step { copies, actions } => {
                let pushed = actions[1]
                    .read_numbers("pushed", &[copies.len(), 1])
                    .unwrap();
                Message::Step(Answer {
                    id,
                    agents: self.step(&copies, pushed),
                })
            }
        }
    }

    fn observe(&self, copies: &[u32], pushed: Vec<f32>) -> Vec<AgentAnswer> {
        let n = u32::try_from(copies.len()).unwrap();
        let seen = copies.iter().flat_map(|c| [*c as f32, self.0[c]]);
        let agent = |observations| AgentAnswer {
            observations,
            ..AgentAnswer::default()
        };
        let masks = copies.iter().flat_map(|c| [true, self.0[c] > 0.0, true]);
        let mut agents = vec![
            agent(numbers(&[n, 2], seen.collect())),
            agent(numbers(&[n, 1], pushed)),
        ];
        agents[0].masks = packed(Dtype::Bool, &[n, 3], masks.collect(), |v| vec![u8::from(v)]);
        agents
    }

    fn step(&mut self, copies: &[u32], pushed: Vec<f32>) -> Vec<AgentAnswer> {
        copies
            .iter()
            .for_each(|c| *self.0.get_mut(c).unwrap() += 1.0);
        let ends: Vec<bool> = copies.iter().map(|c| self.0[c] >= 3.0).collect();
        let finals = self.observe(copies, pushed.clone());
        for (copy, end) in copies.iter().zip(&ends) {
            if *end {
                self.0.insert(*copy, 0.0);
            }
        }
        let mut agents = self.observe(copies, pushed);
        for (agent, last) in agents.iter_mut().zip(finals) {
            agent.rewards = numbers(&[u32::try_from(ends.len()).unwrap()], vec![1.0; ends.len()]);
            agent.terminated = flags(ends.clone());
            agent.truncated = flags(vec![false; ends.len()]);
            agent.final_observations = last.observations;
        }
        agents
    }
}

/// Lends the counting environment from a thread, one session after the other, and notes the orders.
fn lend(hosts: &Hosts, sessions: Vec<Obeys>) -> std::sync::mpsc::Receiver<Work> {
    let (notes, noted) = std::sync::mpsc::channel();
    let mut open = Some(open(hosts));
    let hosts = hosts.clone();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        for obeys in sessions {
            let session = open.take().unwrap_or_else(|| self::open(&hosts));
            runtime.block_on(serve(session, obeys, &notes));
        }
    });
    noted
}

fn open(hosts: &Hosts) -> Conversation {
    let hello = Some(Message::Hello(offer()));
    hosts.open("a", hello, MESSAGE).unwrap().1
}

async fn serve(session: Conversation, obeys: Obeys, notes: &std::sync::mpsc::Sender<Work>) {
    let (says, heard) = mpsc::channel::<Result<Message, Infallible>>(1);
    let messages = stream::unfold(heard, |mut r| async { Some((r.recv().await?, r)) });
    let (sender, mut orders) = mpsc::channel(1);
    let session = session.run(Box::pin(messages), sender);
    let host = async move {
        let mut counting = Counting(BTreeMap::new());
        for _ in 0..obeys {
            let Some(order) = orders.recv().await else {
                return;
            };
            notes.send(order.work.clone()).ok();
            says.send(Ok(counting.obey(order))).await.ok();
        }
        // It takes one more order, and hangs up instead of an answer.
        orders.recv().await;
    };
    let (ended, ()) = tokio::join!(session, host);
    assert_eq!(ended, Ok(()));
}

fn copies(hosts: &Hosts, count: usize) -> Copies {
    let external = hosts.external("a", "external/my-env").unwrap();
    Copies::new(&*external.make, count, 5)
}

fn act(copies: &mut Copies) {
    let joint = |at: usize| {
        let push = Action::Continuous(vec![at as f32 / 10.0]);
        [Action::Discrete(2), push]
    };
    let actions: Vec<Action> = (0..copies.len()).flat_map(joint).collect();
    copies.step(&actions);
}

#[test]
fn all_copies_are_stepped_in_one_exchange() {
    let hosts = hosts();
    let orders = lend(&hosts, vec![100]);
    let mut copies = copies(&hosts, 3);
    act(&mut copies);
    assert_eq!(copies.agent(0).observations, [0.0, 1.0, 1.0, 1.0, 2.0, 1.0]);
    assert_eq!(copies.agent(1).observations, [0.0, 0.1, 0.2]);
    assert_eq!(copies.agent(1).rewards, [1.0; 3]);
    let orders: Vec<Work> = orders.try_iter().collect();
    assert_eq!(orders.len(), 4, "a reset for each copy, a step for all");
    let Work::Step { copies, actions } = &orders[3] else {
        panic!("{orders:?}");
    };
    assert_eq!(copies, &[0, 1, 2]);
    assert_eq!(actions[0], Packed::positions(&[3], [2, 2, 2].into_iter()));
}

#[test]
fn an_episode_that_ends_is_followed_by_the_one_that_the_host_began() {
    let hosts = hosts();
    let _orders = lend(&hosts, vec![100]);
    let mut copies = copies(&hosts, 2);
    for _ in 0..3 {
        act(&mut copies);
    }
    let batch = copies.agent(0);
    assert_eq!(batch.terminated, [true, true]);
    assert_eq!(batch.final_observations, [0.0, 3.0, 1.0, 3.0]);
    assert_eq!(batch.observations, [0.0, 0.0, 1.0, 0.0]);
    let mut masks = [true; 6];
    copies.write_masks(0, &mut masks);
    assert_eq!(masks, [true, false, true, true, false, true]);
}

#[test]
fn a_host_that_hangs_up_truncates_every_episode_and_goes_on_when_it_is_back() {
    let hosts = hosts();
    // Two resets and a step; then it is back.
    let _orders = lend(&hosts, vec![3, 100]);
    let mut copies = copies(&hosts, 2);
    act(&mut copies);
    act(&mut copies);
    assert_eq!(copies.soundness(), Soundness::Interrupted);
    let batch = copies.agent(0);
    assert_eq!(batch.truncated, [true, true]);
    assert_eq!(batch.rewards, [0.0, 0.0]);
    assert_eq!(batch.final_observations, [0.0, 1.0, 1.0, 1.0]);
    assert_eq!(batch.observations, [0.0, 0.0, 1.0, 0.0]);
    act(&mut copies);
    assert_eq!(copies.soundness(), Soundness::Sound);
    assert_eq!(copies.agent(0).observations, [0.0, 1.0, 1.0, 1.0]);
}

#[test]
fn a_host_that_does_not_come_back_is_lost() {
    let hosts = impatient();
    let _orders = lend(&hosts, vec![3]);
    let mut copies = copies(&hosts, 2);
    act(&mut copies);
    act(&mut copies);
    assert_eq!(copies.soundness(), Soundness::Lost);
    act(&mut copies);
    assert_eq!(copies.soundness(), Soundness::Lost);
    assert_eq!(copies.agent(0).truncated, [true, true]);
}

#[test]
fn a_training_may_use_a_host_for_so_long_and_then_asks_nothing_more_of_it() {
    let clock = Clock::manual(Duration::ZERO);
    let terms = Terms {
        run_within: Duration::from_secs(60),
        ..Terms::default()
    };
    let hosts = Hosts::new(terms, clock.clone());
    let orders = lend(&hosts, vec![100]);
    let mut used = copies(&hosts, 2);
    clock.advance(Duration::from_secs(59));
    act(&mut used);
    assert_eq!(used.soundness(), Soundness::Sound);
    clock.advance(Duration::from_secs(1));
    let asked = orders.try_iter().count();
    for _ in 0..2 {
        act(&mut used);
        assert_eq!(used.soundness(), Soundness::Overdue);
        assert_eq!(used.agent(0).truncated, [true, true]);
    }
    assert_eq!((asked, orders.try_iter().count()), (3, 0));
    drop(used);
    let mut next = copies(&hosts, 2);
    act(&mut next);
    assert_eq!(next.soundness(), Soundness::Sound, "another may use it");
}

#[test]
fn a_copy_beyond_those_that_a_host_can_run_is_lost_and_copies_are_given_back() {
    let hosts = hosts();
    let _orders = lend(&hosts, vec![100]);
    let external = hosts.external("a", "external/my-env").unwrap();
    let four = Copies::new(&*external.make, 4, 1);
    let none = hosts.external("a", "external/my-env").unwrap();
    assert_eq!(none.free_copies, 0);
    let mut fifth = Copies::new(&*none.make, 1, 1);
    act(&mut fifth);
    assert_eq!(fifth.soundness(), Soundness::Lost);
    drop(four);
    assert_eq!(
        hosts.external("a", "external/my-env").unwrap().free_copies,
        4
    );
}

#[test]
fn a_copy_is_no_file_and_cannot_be_saved() {
    let hosts = hosts();
    let _orders = lend(&hosts, vec![100]);
    let external = hosts.external("a", "external/my-env").unwrap();
    let mut world = (external.make)();
    let mut rng = Generator::seed_from_u64(1);
    let mut seen = Observations::new(world.spec());
    world.reset(&mut rng, &mut seen);
    assert_eq!(world.snapshot(), None);
    assert_eq!(world.restore(&[]), Err(BadSnapshot));
    world.observe(&mut seen);
    assert_eq!(seen.of(0), [0.0, 0.0]);
}
