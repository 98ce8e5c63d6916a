//! How a running learner is steered: it reports, leaves checkpoints, takes on the live hyperparameters, and stops.

use arc_swap::ArcSwap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// A report, and the versions of the hyperparameters that the learners follow; none in an evaluation.
    Progress(Progress, Vec<i64>),
    /// Everything up to here.
    Checkpoint(Checkpoint),
    Ended(Result<Option<Outcome>, TrainingError>),
}

/// A checkpoint of a run.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) bytes: Vec<u8>,
    /// The steps before it.
    pub(crate) step: u64,
    /// The versions of the hyperparameters that the learners follow.
    pub(crate) versions: Vec<i64>,
}

/// The live hyperparameters that a learner follows.
pub(crate) type Live = Arc<ArcSwap<Followed>>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Followed {
    pub(crate) version: i64,
    pub(crate) values: Values,
}

/// What a run of live agents has beside its task.
#[derive(Debug)]
pub(crate) struct Durable {
    /// What each learner follows, in the order of the task.
    pub(crate) follows: Vec<Follows>,
    /// Where it continues.
    pub(crate) checkpoint: Option<Vec<u8>>,
    /// The time between two checkpoints.
    pub(crate) every: Duration,
    pub(crate) clock: Clock,
}

/// What one learner follows.
#[derive(Debug)]
pub(crate) struct Follows {
    pub(crate) live: Live,
    /// The version of the hyperparameters that it begins with, or has taken on.
    pub(crate) version: i64,
}

/// What the learners of live agents follow and leave.
#[derive(Debug)]
pub(super) struct Following {
    /// By the position of the agent in its environment.
    learners: Vec<(usize, Follows)>,
    every: Duration,
    clock: Clock,
    /// When the last checkpoint was taken, or the run began.
    last: Monotonic,
}

impl Durable {
    /// Where the run continues, and what its learners follow, who have these positions.
    pub(super) fn split(self, positions: Vec<usize>) -> (Option<Vec<u8>>, Option<Following>) {
        let following = Following {
            learners: positions.into_iter().zip(self.follows).collect(),
            every: self.every,
            last: self.clock.monotonic(),
            clock: self.clock,
        };
        (self.checkpoint, Some(following))
    }
}

impl Follows {
    /// New hyperparameters, if there are some since these were last taken.
    fn take(&mut self) -> Option<Values> {
        let current = self.live.load();
        if current.version == self.version {
            return None;
        }
        self.version = current.version;
        Some(current.values.clone())
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

    fn versions(&self) -> Vec<i64> {
        let learners = self.learners.iter();
        learners.map(|(_, follows)| follows.version).collect()
    }
}

/// What is wanted of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Continue,
    /// A checkpoint, and then the end.
    Pause,
    Stop,
}

/// Tells a run what is wanted of it, and others how far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Signal {
    pause: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    reached: Arc<AtomicU64>,
}

impl Signal {
    /// From now on this is wanted, unless more was wanted before.
    pub(super) fn send(&self, want: Want) {
        match want {
            Want::Continue => {}
            Want::Pause => self.pause.store(true, Ordering::Relaxed),
            Want::Stop => self.stop.store(true, Ordering::Relaxed),
        }
    }

    pub(super) fn get(&self) -> Want {
        if self.stop.load(Ordering::Relaxed) {
            Want::Stop
        } else if self.pause.load(Ordering::Relaxed) {
            Want::Pause
        } else {
            Want::Continue
        }
    }

    /// The steps that the run has taken, those of a checkpoint that it began with included.
    pub(super) fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// Set when the end is wanted.
    pub(super) fn stopped(&self) -> &AtomicBool {
        &self.stop
    }
}

#[derive(Debug)]
pub(super) struct Steering {
    pub(super) sender: mpsc::Sender<Event>,
    pub(super) signal: Signal,
    /// Whether the checkpoint before a pause was taken.
    pub(super) has_paused: bool,
    pub(super) following: Option<Following>,
}

impl Control for Steering {
    fn report(&mut self, progress: Progress) {
        let following = self.following.as_ref();
        let versions = following.map(Following::versions).unwrap_or_default();
        let event = Event::Progress(progress, versions);
        if self.sender.blocking_send(event).is_err() {
            self.signal.send(Want::Stop);
        }
    }

    fn poll(&mut self, step: u64) -> Command {
        self.signal.reached.store(step, Ordering::Relaxed);
        let is_due = |following: &mut Following| {
            step > 0 && step.is_multiple_of(POLLED) && following.is_due()
        };
        match self.signal.get() {
            Want::Stop => Command::Stop,
            Want::Pause if std::mem::replace(&mut self.has_paused, true) => Command::Stop,
            Want::Pause => Command::Checkpoint,
            Want::Continue if self.following.as_mut().is_some_and(is_due) => Command::Checkpoint,
            Want::Continue => Command::Continue,
        }
    }

    fn is_stopped(&self) -> bool {
        self.signal.get() == Want::Stop
    }

    fn checkpoint(&mut self, checkpoint: Option<Vec<u8>>) {
        if let (Some(bytes), Some(following)) = (checkpoint, &self.following) {
            // A receiver that went away needs none.
            let taken = Checkpoint {
                bytes,
                step: self.signal.reached(),
                versions: following.versions(),
            };
            self.sender.blocking_send(Event::Checkpoint(taken)).ok();
        }
    }

    fn take_reload(&mut self, agent: usize) -> Option<Values> {
        let learners = &mut self.following.as_mut()?.learners;
        let found = learners.iter_mut().find(|(at, _)| *at == agent);
        found.and_then(|(_, follows)| follows.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_learn::hyper::Value;

    fn live(version: i64) -> Followed {
        Followed {
            version,
            values: Values::from([("tau".to_owned(), Value::Number(version as f64))]),
        }
    }

    /// Learners at the second and the fourth place of a world, and what they follow.
    fn steering() -> (Steering, mpsc::Receiver<Event>, Vec<Live>) {
        let lives: Vec<Live> = (0..2)
            .map(|_| Live::new(ArcSwap::from_pointee(live(1))))
            .collect();
        let follows = lives.iter().map(|live| Follows {
            live: Arc::clone(live),
            version: 1,
        });
        let durable = Durable {
            follows: follows.collect(),
            checkpoint: None,
            every: Duration::MAX,
            clock: Clock::manual(Duration::ZERO),
        };
        let (sender, events) = mpsc::channel(8);
        let steering = Steering {
            sender,
            signal: Signal::default(),
            has_paused: false,
            following: durable.split(vec![1, 3]).1,
        };
        (steering, events, lives)
    }

    fn report(steering: &mut Steering) {
        steering.report(Progress {
            step: 1,
            episodes: 0,
            agents: Vec::new(),
        });
    }

    fn versions(events: &mut mpsc::Receiver<Event>) -> Vec<i64> {
        match events.try_recv() {
            Ok(Event::Progress(_, versions)) => versions,
            Ok(Event::Checkpoint(taken)) => taken.versions,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_report_has_the_versions_that_the_learners_have_taken() {
        let (mut steering, mut events, lives) = steering();
        report(&mut steering);
        assert_eq!(versions(&mut events), [1, 1]);
        lives[1].store(Arc::new(live(2)));
        report(&mut steering);
        assert_eq!(versions(&mut events), [1, 1], "live, but not taken");
        assert_eq!(steering.take_reload(3), Some(live(2).values));
        assert_eq!(steering.take_reload(3), None, "once");
        for unchanged in [0, 1, 2] {
            assert_eq!(steering.take_reload(unchanged), None);
        }
        report(&mut steering);
        steering.checkpoint(Some(vec![7]));
        assert_eq!(versions(&mut events), [1, 2]);
        assert_eq!(versions(&mut events), [1, 2]);
    }

    #[test]
    fn an_evaluation_follows_nothing() {
        let (mut steering, mut events, _) = steering();
        steering.following = None;
        assert_eq!(steering.take_reload(1), None);
        report(&mut steering);
        assert!(versions(&mut events).is_empty());
        steering.checkpoint(Some(vec![7]));
        assert!(events.try_recv().is_err());
        drop(events);
        report(&mut steering);
        assert_eq!(steering.poll(0), Command::Stop, "nobody receives it");
    }
}
