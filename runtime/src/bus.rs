//! The event bus between replicas: wake-up hints, and nothing else.
//!
//! The truth is a table of the database, ordered by the sequence number that each change took in its
//! own transaction. After the commit a hint with the topic and that number is published. Whoever
//! follows the table ([`Follower`]) reads it from where it stands, on a hint at once and otherwise
//! periodically. A hint that is lost, late, repeated or out of order therefore costs time and never
//! correctness, and publishing can be best effort: it does not wait, does not fail, and keeps one
//! number for each topic, whatever happens to the server.
//!
//! Inside the process hints are delivered directly. With `[redis]` in the configuration they go to the
//! other replicas by Redis pub/sub as well. Redis Streams and PostgreSQL's `LISTEN/NOTIFY` were left
//! out on purpose: a second record of changes would have to agree with the first.

mod follower;
pub(crate) mod limit;
pub(crate) mod link;
mod server;

pub use follower::{Follower, Wake};
pub use server::{PASSWORD_VARIABLE, Server, ServerError};

use crate::{health::Condition, seeds::Seeds};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, watch};

/// The name of a table of changes, as in `auth.credentials`. Every replica uses the same one.
pub type Topic = &'static str;

/// The event bus of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Bus(Arc<Shared>);

impl Bus {
    /// Creates a bus that stays inside the process.
    pub fn local() -> Self {
        Self(Arc::new(Shared::new(State::Local)))
    }

    /// Creates a bus over a Redis server, and the work that keeps it connected, which the caller runs
    /// for the lifetime of the process. `condition` holds what is wrong with the connection.
    pub fn over(
        server: Server,
        condition: Condition,
        seeds: Seeds,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared::new(State::Down));
        let work = link::run(Arc::clone(&shared), server, condition, seeds);
        (Self(shared), work)
    }

    /// Publishes that a topic's table has changes up to `sequence`. To be called after their commit.
    pub fn publish(&self, topic: Topic, sequence: u64) {
        self.0.deliver(topic, sequence);
        self.0.enqueue(topic, sequence);
    }

    /// Follows a topic's table.
    pub fn follow(&self, topic: Topic) -> Follower {
        let mailbox = Arc::<Mailbox>::default();
        self.0.register(topic, &mailbox);
        Follower::new(mailbox, self.0.state.subscribe())
    }
}

/// Whether hints reach the other replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no server, and a hint does not leave the process.
    Local,
    /// The server is out of reach.
    Down,
    /// The server confirmed every subscription; the number changes with each time that it did.
    Up(u64),
}

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    /// How often the server has confirmed every subscription.
    connections: AtomicU64,
    /// The followers by topic.
    mailboxes: Mutex<BTreeMap<Topic, Vec<Weak<Mailbox>>>>,
    /// The topics that have ever had a follower.
    topics: watch::Sender<Vec<Topic>>,
    /// The newest number of each topic that is to be sent.
    outgoing: Mutex<BTreeMap<Topic, u64>>,
    enqueued: Notify,
}

impl Shared {
    fn new(state: State) -> Self {
        Self {
            state: watch::Sender::new(state),
            connections: AtomicU64::new(0),
            mailboxes: Mutex::default(),
            topics: watch::Sender::default(),
            outgoing: Mutex::default(),
            enqueued: Notify::new(),
        }
    }

    fn register(&self, topic: Topic, mailbox: &Arc<Mailbox>) {
        let mut mailboxes = self.mailboxes.lock();
        let of_topic = mailboxes.entry(topic).or_default();
        of_topic.retain(|mailbox| mailbox.strong_count() > 0);
        of_topic.push(Arc::downgrade(mailbox));
        self.topics.send_if_modified(|topics| {
            let is_new = !topics.contains(&topic);
            if is_new {
                topics.push(topic);
            }
            is_new
        });
    }

    /// The server has confirmed every subscription: from now on no hint is missed.
    fn connected(&self) {
        let connections = self.connections.fetch_add(1, Ordering::Relaxed);
        self.state.send_replace(State::Up(connections));
    }

    /// Wakes the followers in this process.
    fn deliver(&self, topic: &str, sequence: u64) {
        let mailboxes = self.mailboxes.lock();
        let of_topic = mailboxes.get(topic).into_iter().flatten();
        for mailbox in of_topic.filter_map(Weak::upgrade) {
            mailbox.put(sequence);
        }
    }

    fn enqueue(&self, topic: Topic, sequence: u64) {
        if *self.state.borrow() == State::Local {
            return;
        }
        let mut outgoing = self.outgoing.lock();
        let newest = outgoing.entry(topic).or_default();
        *newest = sequence.max(*newest);
        drop(outgoing);
        self.enqueued.notify_one();
    }
}

/// Hints that are being sent. Dropped before they were, they are put back, and sent on the next connection.
#[derive(Debug)]
struct Unsent<'s> {
    shared: &'s Shared,
    hints: BTreeMap<Topic, u64>,
}

impl<'s> Unsent<'s> {
    fn take(shared: &'s Shared) -> Self {
        let hints = std::mem::take(&mut *shared.outgoing.lock());
        Self { shared, hints }
    }

    fn sent(mut self) {
        self.hints.clear();
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        for (topic, sequence) in &self.hints {
            self.shared.enqueue(topic, *sequence);
        }
    }
}

/// The newest hint that a follower has not looked at.
#[derive(Debug, Default)]
struct Mailbox {
    newest: AtomicU64,
    arrived: Notify,
}

impl Mailbox {
    fn put(&self, sequence: u64) {
        self.newest.fetch_max(sequence, Ordering::AcqRel);
        self.arrived.notify_one();
    }

    /// Waits for a hint of a change after `position`. Older ones are dropped.
    async fn beyond(&self, position: u64) {
        while self.newest.swap(0, Ordering::AcqRel) <= position {
            self.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests;
