//! Runs game solvers on blocking threads: a few at a time, with bounded numbers of solves in total and
//! for each caller, who never occupies all threads. A solve whose caller goes away is stopped. The bounds
//! protect this process: other replicas have their own.

use crate::OrchestrationError;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars_games::{Control, Point};
use tars_interceptors::usage::Solving;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};

/// Solves of one caller that are running or waiting.
const OF_ONE_CALLER: usize = 8;
/// Solves of all callers that are running or waiting.
const OF_ALL: usize = 64;

#[derive(Debug)]
pub(crate) struct Solvers {
    threads: Arc<Semaphore>,
    /// Threads that one caller may occupy.
    share: usize,
    callers: Arc<Mutex<HashMap<String, Caller>>>,
}

#[derive(Debug)]
struct Caller {
    solves: usize,
    turns: Arc<Semaphore>,
}

/// The deadline, cancellation and progress of a solve.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    until: Option<Instant>,
    points: Option<mpsc::Sender<Point>>,
    gone: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn until(until: Option<Instant>) -> Self {
        Self {
            until,
            ..Self::default()
        }
    }
}

/// A solve that a caller asks for.
#[derive(Debug)]
pub(crate) struct Solve {
    caller: String,
    /// When it has to end.
    until: Option<Instant>,
    /// The solver time that is promised to it.
    solving: Solving,
}

impl Solve {
    /// A solve that has to end at `until`, and when the time that is promised to it does.
    pub(crate) fn new(caller: &str, until: Option<Instant>, solving: Solving) -> Self {
        let most = solving.most();
        let most = most.and_then(|most| Instant::now().checked_add(most));
        Self {
            caller: caller.to_owned(),
            until: most.into_iter().chain(until).min(),
            solving,
        }
    }
}

impl Control for Watch {
    fn is_stopped(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
            || self.until.is_some_and(|at| Instant::now() >= at)
            || self.points.as_ref().is_some_and(mpsc::Sender::is_closed)
    }

    fn progress(&self, point: &Point) {
        if let Some(points) = &self.points {
            // A watcher that went away stops the solve at its next poll.
            points.blocking_send(*point).ok();
        }
    }
}

/// A counted place among the solves, released when dropped.
struct Place {
    callers: Arc<Mutex<HashMap<String, Caller>>>,
    name: String,
    turns: Arc<Semaphore>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.callers.lock();
        if let Some(caller) = callers.get_mut(&self.name) {
            caller.solves -= 1;
            if caller.solves == 0 {
                callers.remove(&self.name);
            }
        }
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Solvers {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads)),
            share: (threads / 2).max(1),
            callers: Arc::default(),
        }
    }

    fn place(&self, name: &str) -> Result<Place, OrchestrationError> {
        let mut callers = self.callers.lock();
        let all: usize = callers.values().map(|c| c.solves).sum();
        let own = callers.get(name).map_or(0, |c| c.solves);
        if own >= OF_ONE_CALLER || all >= OF_ALL {
            return Err(OrchestrationError::SolversBusy);
        }
        let caller = callers.entry(name.to_owned()).or_insert_with(|| Caller {
            solves: 0,
            turns: Arc::new(Semaphore::new(self.share)),
        });
        caller.solves += 1;
        Ok(Place {
            callers: Arc::clone(&self.callers),
            name: name.to_owned(),
            turns: Arc::clone(&caller.turns),
        })
    }

    /// Runs a solve once a thread is free, and counts the time that it takes.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        solve: Solve,
        work: impl FnOnce(&Watch) -> T + Send + 'static,
    ) -> Result<T, OrchestrationError> {
        self.run_watched(solve, None, work).await
    }

    /// The same, telling a watcher of each improvement.
    pub(crate) async fn run_watched<T: Send + 'static>(
        &self,
        solve: Solve,
        points: Option<mpsc::Sender<Point>>,
        work: impl FnOnce(&Watch) -> T + Send + 'static,
    ) -> Result<T, OrchestrationError> {
        let Solve {
            caller,
            until,
            solving,
        } = solve;
        let watch = Watch {
            points,
            ..Watch::until(until)
        };
        let place = self.place(&caller)?;
        let closed = |_| OrchestrationError::Worker("the solvers are closed");
        let turn = Arc::clone(&place.turns)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let thread = Arc::clone(&self.threads)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let _stop = StopOnDrop(Arc::clone(&watch.gone));
        let solved = tokio::task::spawn_blocking(move || {
            let _held = (place, turn, thread);
            solving.time(|| work(&watch))
        });
        solved
            .await
            .map_err(|_| OrchestrationError::Worker("the solver stopped"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tars_interceptors::usage::{Allowance, Usage};
    use tars_runtime::{clock::Clock, usage::Dimension};

    fn solve(caller: &str, until: Option<Instant>) -> Solve {
        let usage = Usage::detached(Clock::system());
        let solving = usage.begin_solve(&Allowance::default(), None, None);
        Solve::new(caller, until, solving.unwrap())
    }

    fn until_stopped(watch: &Watch) {
        while !watch.is_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn the_solves_of_one_caller_are_bounded() {
        let solvers = Arc::new(Solvers::new(2));
        let waiting: Vec<_> = (0..OF_ONE_CALLER)
            .map(|_| {
                let solvers = Arc::clone(&solvers);
                tokio::spawn(async move { solvers.run(solve("one", None), until_stopped).await })
            })
            .collect();
        let solves = || solvers.callers.lock().get("one").map(|c| c.solves);
        while solves() != Some(OF_ONE_CALLER) {
            tokio::task::yield_now().await;
        }
        // The first caller has only its share of the threads, so another is served.
        let served = solvers.run(solve("two", None), |_| ());
        served.await.unwrap();
        let refused = solvers.run(solve("one", None), |_| ()).await;
        assert!(matches!(refused, Err(OrchestrationError::SolversBusy)));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        // The cancelled solves stop, so others get their threads.
        let served = solvers.run(solve("two", None), |_| ());
        served.await.unwrap();
        for cancelled in waiting {
            assert!(cancelled.await.unwrap_err().is_cancelled());
        }
        while !solvers.callers.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_solve_stops_at_its_deadline() {
        let solvers = Solvers::new(1);
        let until = Some(Instant::now() + Duration::from_millis(5));
        let ended = solvers.run(solve("one", until), until_stopped);
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn a_solve_stops_when_the_time_that_is_promised_to_it_does() {
        let allowance = Allowance::unlimited("one").with(Dimension::SolverSeconds, 5_000);
        let usage = Usage::detached(Clock::system());
        let solving = usage.begin_solve(&allowance, None, None).unwrap();
        let solve = Solve::new("one", None, solving);
        Solvers::new(1).run(solve, until_stopped).await.unwrap();
    }
}
