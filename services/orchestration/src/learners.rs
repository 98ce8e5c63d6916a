//! The threads that train: plain threads, as many as configured, with a bounded queue in front. A
//! run whose listener goes away stops.

use crate::OrchestrationError;
use arc_swap::ArcSwap;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tars_learn::{Outcome, Progress, Run, RunError, hyper::Values, train::Control};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Reports wait here for their listener; a slow one slows the run down.
const REPORTS: usize = 16;

#[derive(Debug)]
pub(crate) struct Learners {
    threads: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) enum Event {
    Progress(Progress),
    Ended(Result<Option<Outcome>, RunError>),
}

/// A run under way. Dropping it stops the run.
#[derive(Debug)]
pub(crate) struct Running {
    events: mpsc::Receiver<Event>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// The next report; `None` after the end, or when the thread died.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    pub(crate) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Live hyperparameters that a run follows.
pub(crate) type Live = Arc<ArcSwap<Values>>;

impl Learners {
    pub(crate) fn new(threads: usize, queue: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads)),
            places: Arc::new(Semaphore::new(threads + queue)),
        }
    }

    /// Starts a run, now or when a thread is free.
    pub(crate) fn start(
        &self,
        run: Run,
        live: Option<Live>,
    ) -> Result<Running, OrchestrationError> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| OrchestrationError::QueueFull)?;
        let (sender, events) = mpsc::channel(REPORTS);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = Arc::clone(&self.threads);
        let job = Job {
            run,
            live,
            sender,
            stop: Arc::clone(&stop),
        };
        tokio::spawn(async move {
            let Ok(thread) = threads.acquire_owned().await else {
                return;
            };
            job.spawn((thread, place));
        });
        Ok(Running { events, stop })
    }
}

struct Job {
    run: Run,
    live: Option<Live>,
    sender: mpsc::Sender<Event>,
    stop: Arc<AtomicBool>,
}

impl Job {
    fn spawn(self, permits: (OwnedSemaphorePermit, OwnedSemaphorePermit)) {
        let Self {
            run,
            live,
            sender,
            stop,
        } = self;
        let started = std::thread::Builder::new()
            .name("learner".to_owned())
            .spawn(move || {
                let seen = live.as_ref().map(|l| l.load_full());
                let mut steering = Steering {
                    sender: sender.clone(),
                    stop,
                    live,
                    seen,
                };
                let result = run.execute(&mut steering);
                // A listener that went away does not need the result.
                sender.blocking_send(Event::Ended(result)).ok();
                drop(permits);
            });
        if let Err(e) = started {
            tracing::error!(error = %e, "cannot start a learner thread");
        }
    }
}

struct Steering {
    sender: mpsc::Sender<Event>,
    stop: Arc<AtomicBool>,
    live: Option<Live>,
    seen: Option<Arc<Values>>,
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

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn reloaded(&mut self) -> Option<Values> {
        let current = self.live.as_ref()?.load_full();
        if self
            .seen
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, &current))
        {
            return None;
        }
        self.seen = Some(Arc::clone(&current));
        Some(Values::clone(&current))
    }
}
