//! Environments that run in processes of users', which dial in and lend them for as long as a session is
//! open.
//!
//! What is lent belongs to the caller who lent it: nobody else finds it. It is known to this replica
//! alone, since the session is a connection to it. Sessions are bounded for each caller and in total.

mod conversation;
mod fault;
mod offer;
mod packed;
mod session;
mod world;

pub(crate) use conversation::{Conversation, Ended};
pub(crate) use fault::Fault;
pub(crate) use offer::{Accepted, Offer};
pub(crate) use packed::{Dtype, Packed};
pub(crate) use session::{AgentAnswer, Answer, Idle, Message, Order, Work};

use conversation::Ask;
use parking_lot::{Condvar, Mutex};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tars_learn::training::MakeWorld;
use tars_runtime::clock::Clock;
use tars_worlds::{WorldSpec, make_world};
use tokio::sync::mpsc;
use world::Link;

/// What the names of such environments begin with.
const PREFIX: &str = "external/";
/// Work that waits while a host answers.
const WAITING: usize = 16;

/// Whether an environment of this name is lent, if there is one.
pub(crate) fn is_external(environment: &str) -> bool {
    environment.starts_with(PREFIX)
}

/// The bounds of sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// How long a host may take for an answer.
    pub(crate) answer_within: Duration,
    /// How long a training waits for a host that has gone away.
    pub(crate) patience: Duration,
    /// How long a training may use a host in total. One that answers just in time would otherwise keep a learner
    /// for years.
    pub(crate) run_within: Duration,
    /// Sessions of one caller.
    pub(crate) of_one_caller: usize,
    /// Sessions of all callers.
    pub(crate) of_all: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_secs(10),
            patience: Duration::from_secs(15),
            run_within: Duration::from_secs(24 * 3600),
            of_one_caller: 8,
            of_all: 64,
        }
    }
}

/// The environments that are lent here. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Hosts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    terms: Terms,
    clock: Clock,
    /// By caller and name.
    lent: Mutex<BTreeMap<(String, String), Arc<Lent>>>,
    came: Condvar,
}

/// An environment that is lent, by one session.
#[derive(Debug)]
struct Lent {
    offer: Arc<Accepted>,
    work: mpsc::Sender<Ask>,
    /// The copies that nobody uses.
    free: Mutex<Vec<u32>>,
}

/// The place of an open session, which is given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    hosts: Hosts,
    key: (String, String),
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hosts.0.lent.lock().remove(&self.key);
    }
}

/// An external environment for a training.
#[derive(Clone)]
pub(crate) struct External {
    /// Its agents and their spaces.
    pub(crate) spec: WorldSpec,
    /// Makes a copy, which a thread without an async runtime steps: it blocks. A training makes its copies
    /// and, for each evaluation, one more.
    pub(crate) make: MakeWorld,
    /// How many copies can be made at the moment.
    pub(crate) free_copies: usize,
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("External")
            .field("environment", &self.spec.name)
            .field("free_copies", &self.free_copies)
            .finish_non_exhaustive()
    }
}

impl Hosts {
    pub(crate) fn new(terms: Terms, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            terms,
            clock,
            lent: Mutex::default(),
            came: Condvar::default(),
        }))
    }

    pub(crate) fn terms(&self) -> Terms {
        self.0.terms
    }

    /// Opens a session by the first message of its host.
    ///
    /// # Errors
    ///
    /// When it is no acceptable hello, or the caller has no place left.
    pub(crate) fn open(
        &self,
        owner: &str,
        first: Option<Message>,
        max_message: usize,
    ) -> Result<(Arc<Accepted>, Conversation), Fault> {
        let idle = Idle::open(first, max_message)?;
        let offer = Arc::clone(idle.offer());
        let (work, asks) = mpsc::channel(WAITING);
        let place = self.place(owner, Arc::clone(&offer), work)?;
        let answer_within = self.terms().answer_within;
        let conversation = Conversation {
            idle,
            asks,
            answer_within,
            place,
        };
        Ok((offer, conversation))
    }

    fn place(
        &self,
        owner: &str,
        offer: Arc<Accepted>,
        work: mpsc::Sender<Ask>,
    ) -> Result<Place, Fault> {
        let key = (owner.to_owned(), offer.name.clone());
        let mut lent = self.0.lent.lock();
        if lent.contains_key(&key) {
            return Err(Fault::NameTaken(key.1));
        }
        if lent.keys().filter(|(of, _)| of == owner).count() >= self.terms().of_one_caller {
            return Err(Fault::CallerFull);
        }
        if lent.len() >= self.terms().of_all {
            return Err(Fault::Full);
        }
        let free = Mutex::new((0..offer.max_copies).rev().collect());
        lent.insert(key.clone(), Arc::new(Lent { offer, work, free }));
        self.0.came.notify_all();
        let hosts = self.clone();
        Ok(Place { hosts, key })
    }

    fn find(&self, owner: &str, environment: &str) -> Option<Arc<Lent>> {
        let name = environment.strip_prefix(PREFIX)?;
        let key = (owner.to_owned(), name.to_owned());
        self.0.lent.lock().get(&key).cloned()
    }

    /// The environments that a caller lends, as `external/NAME`.
    pub(crate) fn environments(&self, owner: &str) -> Vec<String> {
        let lent = self.0.lent.lock();
        let own = lent.iter().filter(|((of, _), _)| of == owner);
        own.map(|(_, lent)| lent.offer.spec.name.to_string())
            .collect()
    }

    /// The spaces of an environment that a caller lends.
    pub(crate) fn spec(&self, owner: &str, environment: &str) -> Option<WorldSpec> {
        Some(self.find(owner, environment)?.offer.spec.clone())
    }

    /// The spaces of an environment that a caller may use: a built-in one, or one that the caller lends.
    pub(crate) fn spec_for(&self, caller: &str, environment: &str) -> Option<WorldSpec> {
        let built_in = make_world(environment).map(|world| world.spec().clone());
        built_in.or_else(|| self.spec(caller, environment))
    }

    /// An environment that a caller lends, for a training.
    pub(crate) fn external(&self, owner: &str, environment: &str) -> Option<External> {
        let lent = self.find(owner, environment)?;
        let spec = lent.offer.spec.clone();
        let free_copies = lent.free.lock().len();
        let link = Link::new(self.clone(), owner, lent);
        let make: MakeWorld = Arc::new(move || Box::new(link.world()));
        Some(External {
            spec,
            make,
            free_copies,
        })
    }

    /// Waits for an environment with the same spaces as before.
    fn wait_for(&self, owner: &str, offer: &Accepted) -> Option<Arc<Lent>> {
        let key = (owner.to_owned(), offer.name.clone());
        let is_open = |found: &&Arc<Lent>| !found.work.is_closed();
        let mut lent = self.0.lent.lock();
        let is_away = |lent: &mut BTreeMap<_, _>| lent.get(&key).filter(is_open).is_none();
        self.0
            .came
            .wait_while_for(&mut lent, is_away, self.terms().patience);
        let found = lent.get(&key).filter(is_open)?;
        let is_same = found.offer.spec == offer.spec;
        is_same.then(|| Arc::clone(found))
    }
}

#[cfg(test)]
mod tests;
