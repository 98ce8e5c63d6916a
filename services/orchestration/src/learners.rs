//! The training threads: plain threads behind a bounded queue. A run whose receiver goes away stops, or
//! leaves the queue.
//!
//! There are three classes of work, so that none waits behind the long runs of the others: a run starts
//! when one of the shared threads is free, or when no run of its class is running. There are thus up to
//! two threads more than configured. The queue is bounded for each class, and for each caller within it.
//!
//! Threads, queue and bounds are those of this process, which they protect: other replicas have their own.

mod priority;
mod steering;

pub(crate) use steering::{Checkpoint, Durable, Event, Followed, Follows, Live};

use crate::{OrchestrationError, task::Task};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
};
use steering::{Signal, Steering, Want};
use tars_learn::training::Training;
use tokio::sync::{mpsc, oneshot};

/// The capacity of a run's event channel. A slow receiver slows the run down.
const REPORTS: usize = 16;
/// One caller has at most one part in this many of a class's queue.
const SHARE: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Trainings of an agent.
    Training,
    /// Trials of studies, and assessments of proposals.
    Search,
    /// Verifications of applied proposals.
    Verification,
}

/// The class and the caller of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) class: Class,
    pub(crate) caller: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Learners(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    threads: usize,
    places: usize,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Owner>,
    waiting: Vec<Waiting>,
    /// Those whose runs began, the latest last, as long as they have runs.
    served: Vec<Owner>,
    last_ticket: u64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    owner: Owner,
    job: Job,
}

/// A queued or running run. Dropping it stops the run.
#[derive(Debug)]
pub(crate) struct Running {
    events: mpsc::Receiver<Event>,
    stop: Stop,
}

/// Queued or running work with a result. Dropping it stops the work.
#[derive(Debug)]
pub(crate) struct Computing<T> {
    result: oneshot::Receiver<T>,
    stop: Stop,
}

/// Stops or pauses a run, whether it is queued or running.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    signal: Signal,
    ticket: u64,
    queue: Arc<Queue>,
}

// === impl Learners ===

impl Learners {
    pub(crate) fn new(threads: usize, places: usize) -> Self {
        Self(Arc::new(Queue {
            state: Mutex::default(),
            threads,
            places,
        }))
    }

    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.0.state.lock().running.is_empty()
    }

    /// Starts a run at once or queues it.
    pub(crate) fn start(
        &self,
        owner: Owner,
        task: Task,
        durable: Option<Durable>,
    ) -> Result<Running, OrchestrationError> {
        let (training, positions) = task.training()?;
        let (sender, events) = mpsc::channel(REPORTS);
        let signal = Signal::default();
        let (checkpoint, following) = match durable {
            Some(durable) => durable.split(positions),
            None => (None, None),
        };
        let steering = Steering {
            sender,
            signal: signal.clone(),
            has_paused: false,
            following,
        };
        let job = Job::train(training, checkpoint, steering);
        let ticket = self.0.enter(owner, job)?;
        self.0.begin_next();
        let queue = Arc::clone(&self.0);
        Ok(Running {
            events,
            stop: Stop {
                signal,
                ticket,
                queue,
            },
        })
    }
}

impl Learners {
    /// Does other work on a thread, at once or in its turn. The work looks at the flag, which is set when its
    /// result is not waited for any more.
    pub(crate) fn compute<T: Send + 'static>(
        &self,
        owner: Owner,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> Result<Computing<T>, OrchestrationError> {
        let (sender, result) = oneshot::channel();
        let signal = Signal::default();
        let seen = signal.clone();
        let job = Job(Box::new(move || {
            // A receiver that went away needs no result.
            sender.send(work(seen.stopped())).ok();
        }));
        let ticket = self.0.enter(owner, job)?;
        self.0.begin_next();
        let queue = Arc::clone(&self.0);
        Ok(Computing {
            result,
            stop: Stop {
                signal,
                ticket,
                queue,
            },
        })
    }
}

// === impl Computing ===

impl<T> Computing<T> {
    /// Waits for the result.
    pub(crate) async fn result(mut self) -> Result<T, OrchestrationError> {
        let result = (&mut self.result).await;
        result.map_err(|_| OrchestrationError::Worker("a computation of a learner"))
    }
}

impl<T> Drop for Computing<T> {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

// === impl Queue ===

impl Queue {
    /// Enqueues a run, unless its class or its caller has too many waiting.
    fn enter(&self, owner: Owner, job: Job) -> Result<u64, OrchestrationError> {
        let mut state = self.state.lock();
        let in_class = state
            .waiting
            .iter()
            .filter(|w| w.owner.class == owner.class)
            .count();
        let own = state.waiting.iter().filter(|w| w.owner == owner).count();
        let at_once = state.may_begin(owner.class, self.threads);
        if !at_once && (in_class >= self.places || own >= (self.places / SHARE).max(1)) {
            return Err(OrchestrationError::QueueFull);
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        state.waiting.push(Waiting { ticket, owner, job });
        Ok(ticket)
    }

    /// Starts every run that may start.
    fn begin_next(self: &Arc<Self>) {
        while let Some((owner, job)) = self.take_next() {
            let busy = Busy {
                queue: Arc::clone(self),
                owner,
            };
            job.spawn(busy);
        }
    }

    fn take_next(&self) -> Option<(Owner, Job)> {
        let mut state = self.state.lock();
        let next = state.order(self.threads).into_iter().next()?;
        let Waiting { owner, job, .. } = state.waiting.remove(next);
        state.serve(&owner);
        Some((owner, job))
    }
}

// === impl State ===

impl State {
    fn may_begin(&self, class: Class, threads: usize) -> bool {
        self.running.len() < threads || !self.running.iter().any(|o| o.class == class)
    }

    /// The waiting runs that may start, in order: first those of a class without a running run, then
    /// those of the caller with the fewest running runs, then those of the caller whose turn is longest ago,
    /// then the oldest.
    fn order(&self, threads: usize) -> Vec<usize> {
        let mut free: Vec<usize> = (0..self.waiting.len())
            .filter(|i| self.may_begin(self.waiting[*i].owner.class, threads))
            .collect();
        free.sort_by_key(|i| self.rank(&self.waiting[*i]));
        free
    }

    /// Records that a run of an owner begins.
    fn serve(&mut self, owner: &Owner) {
        self.running.push(owner.clone());
        self.served.retain(|served| served != owner);
        self.served.push(owner.clone());
        let has_runs = |owner: &Owner| {
            self.running.contains(owner) || self.waiting.iter().any(|w| w.owner == *owner)
        };
        self.served.retain(has_runs);
    }

    fn rank(&self, waiting: &Waiting) -> (usize, usize, usize, u64) {
        let count = |same: &dyn Fn(&Owner) -> bool| self.running.iter().filter(|o| same(o)).count();
        let owner = &waiting.owner;
        (
            count(&|o| o.class == owner.class).min(1),
            count(&|o| o == owner),
            self.served
                .iter()
                .position(|o| o == owner)
                .map_or(0, |at| at + 1),
            waiting.ticket,
        )
    }
}

/// An occupied thread, released when dropped.
#[derive(Debug)]
struct Busy {
    queue: Arc<Queue>,
    owner: Owner,
}

impl Drop for Busy {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            if let Some(at) = state.running.iter().position(|o| *o == self.owner) {
                state.running.swap_remove(at);
            }
        }
        self.queue.begin_next();
    }
}

// === impl Running ===

impl Running {
    /// The next event; `None` after the end, when the run was stopped while it was queued, or when its
    /// thread died.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

// === impl Stop ===

impl Stop {
    pub(crate) fn stop(&self) {
        self.end(Want::Stop);
    }

    /// Stops the run after a checkpoint.
    pub(crate) fn pause(&self) {
        self.end(Want::Pause);
    }

    fn end(&self, want: Want) {
        self.signal.send(want);
        let mut state = self.queue.state.lock();
        let left = state.waiting.iter().position(|w| w.ticket == self.ticket);
        // Dropping the sender notifies the receiver.
        drop(left.map(|at| state.waiting.remove(at)));
    }

    /// The steps that the run has taken; zero before it began.
    pub(crate) fn reached(&self) -> u64 {
        self.signal.reached()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.signal.get() != Want::Continue
    }

    /// The position in the queue of its class, starting at 1; `None` when it is not queued.
    pub(crate) fn position(&self) -> Option<u32> {
        let state = self.queue.state.lock();
        let own = state.waiting.iter().find(|w| w.ticket == self.ticket)?;
        let rank = state.rank(own);
        let before = state
            .waiting
            .iter()
            .filter(|w| w.owner.class == own.owner.class && state.rank(w) < rank);
        u32::try_from(before.count() + 1).ok()
    }
}

/// What a thread does.
struct Job(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

impl Job {
    fn train(training: Training, checkpoint: Option<Vec<u8>>, mut steering: Steering) -> Self {
        Self(Box::new(move || {
            // A receiver that went away needs neither event.
            steering.sender.blocking_send(Event::Began).ok();
            let result = training.execute(checkpoint.as_deref(), &mut steering);
            steering.sender.blocking_send(Event::Ended(result)).ok();
        }))
    }

    fn spawn(self, busy: Busy) {
        let started = std::thread::Builder::new()
            .name("learner".to_owned())
            .spawn(move || {
                let _busy = busy;
                priority::lower();
                (self.0)();
            });
        if let Err(e) = started {
            tracing::error!(error = %e, "failed to start a learner thread");
        }
    }
}

#[cfg(test)]
mod tests;
