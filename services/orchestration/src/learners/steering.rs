//! How a running learner is steered: it reports, leaves checkpoints, takes on the live hyperparameters, and stops.

use arc_swap::ArcSwap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_learn::{
    hyper::Values,
    training::{Command, Control, Outcome, Progress, TrainingError},
};
use tars_runtime::clock::{Clock, Monotonic};
use tokio::sync::mpsc;

/// Steps between two looks at the time.
const POLLED: u64 = 64;

#[derive(Debug)]
pub(crate) enum Event {
    /// The run left the queue.
    Began,
    Progress(Progress),
    /// Everything up to here, and the version of the hyperparameters that the run follows.
    Checkpoint(Vec<u8>, i64),
    Ended(Result<Option<Outcome>, TrainingError>),
}

/// The live hyperparameters that a run follows.
pub(crate) type Live = Arc<ArcSwap<Followed>>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Followed {
    pub(crate) version: i64,
    pub(crate) values: Values,
}

/// What a run of a live agent has beside its task.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) live: Live,
    /// The version of the hyperparameters that it begins with.
    pub(crate) follows: i64,
    /// Where it continues.
    pub(crate) checkpoint: Option<Vec<u8>>,
    /// The time between two checkpoints.
    pub(crate) every: Duration,
    pub(crate) clock: Clock,
}

/// What a learner of a live agent follows and leaves.
#[derive(Debug)]
pub(super) struct Following {
    live: Live,
    version: i64,
    every: Duration,
    clock: Clock,
    /// When the last checkpoint was taken, or the run began.
    last: Monotonic,
}

impl Durable {
    pub(super) fn split(self) -> (Option<Vec<u8>>, Option<Following>) {
        let following = Following {
            live: self.live,
            version: self.follows,
            every: self.every,
            last: self.clock.monotonic(),
            clock: self.clock,
        };
        (self.checkpoint, Some(following))
    }
}

impl Following {
    /// Whether a checkpoint is due; the next one is then due after another interval.
    fn is_due(&mut self) -> bool {
        let now = self.clock.monotonic();
        let due = now.since(self.last) >= self.every;
        if due {
            self.last = now;
        }
        due
    }
}

#[derive(Debug)]
pub(super) struct Steering {
    pub(super) sender: mpsc::Sender<Event>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) following: Option<Following>,
}

impl Control for Steering {
    fn report(&mut self, progress: Progress) {
        if self
            .sender
            .blocking_send(Event::Progress(progress))
            .is_err()
        {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn poll(&mut self, step: u64) -> Command {
        let is_due = |following: &mut Following| {
            step > 0 && step.is_multiple_of(POLLED) && following.is_due()
        };
        if self.stop.load(Ordering::Relaxed) {
            Command::Stop
        } else if self.following.as_mut().is_some_and(is_due) {
            Command::Checkpoint
        } else {
            Command::Continue
        }
    }

    fn checkpoint(&mut self, checkpoint: Option<Vec<u8>>) {
        let version = self.following.as_ref().map_or(0, |f| f.version);
        if let Some(bytes) = checkpoint {
            // A receiver that went away needs none.
            let event = Event::Checkpoint(bytes, version);
            self.sender.blocking_send(event).ok();
        }
    }

    fn take_reload(&mut self, _: usize) -> Option<Values> {
        let following = self.following.as_mut()?;
        let current = following.live.load();
        if current.version == following.version {
            return None;
        }
        following.version = current.version;
        Some(current.values.clone())
    }
}
