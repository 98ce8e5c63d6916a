//! The hashing threads. The memory that passwords are hashed in is allocated when a thread first needs it
//! and is reused from then on: as many times 19 MiB as passwords were ever hashed at once, at most one for
//! each thread.
//!
//! A waiting job holds a place. Places are few, and one network may hold only some of them. The
//! first job of each network runs before the second of any other: a flood delays the network it
//! comes from.

use super::kdf::Matrix;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
    thread,
};
use tars_runtime::shares::{Full, Place, Shares};
use tokio::sync::oneshot;

/// More threads would cost memory that nothing else needs: 19 MiB each.
const MAX_THREADS: usize = 4;
const PLACES: usize = 64;
/// The places of one network while there is room; fewer when many networks wait.
const SHARE: usize = 16;

type Work = Box<dyn FnOnce(&mut Matrix) + Send>;

struct Job {
    work: Work,
    network: u64,
    _place: Place<u64>,
}

#[derive(Default)]
struct State {
    /// Ordered by the number of earlier jobs of the same network, then by arrival.
    waiting: BTreeMap<(usize, u64), Job>,
    by_network: HashMap<u64, usize>,
    arrivals: u64,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The memory of idle threads, wiped.
    idle: Mutex<Vec<Matrix>>,
}

/// Its threads end when it is dropped.
pub(super) struct Pool {
    queue: Arc<Queue>,
    places: Shares<u64>,
}

impl Pool {
    pub(super) fn start() -> io::Result<Self> {
        let pool = Self {
            queue: Arc::default(),
            places: Shares::new(PLACES),
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for n in 0..cores.min(MAX_THREADS) {
            let queue = Arc::clone(&pool.queue);
            let named = thread::Builder::new().name(format!("password-{n}"));
            named.spawn(move || queue.work())?;
        }
        Ok(pool)
    }

    /// Runs `work` on a thread, unless nobody waits for the answer any more.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        network: u64,
        work: impl FnOnce(&mut Matrix) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Full> {
        let place = self.places.take_fairly(network, SHARE)?;
        let (answer, result) = oneshot::channel();
        let work = Box::new(move |matrix: &mut Matrix| {
            if !answer.is_closed() {
                answer.send(work(matrix)).ok();
            }
        });
        self.queue.add(Job {
            work,
            network,
            _place: place,
        });
        Ok(result)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn add(&self, job: Job) {
        self.state.lock().add(job);
        self.changed.notify_one();
    }

    fn work(&self) {
        while let Some(job) = self.wait() {
            let stocked = self.idle.lock().pop();
            let mut matrix = stocked.unwrap_or_else(Matrix::new);
            self.run(job, &mut matrix);
            matrix.wipe();
            self.idle.lock().push(matrix);
        }
    }

    /// Runs a job, and then all that wait, in the same memory.
    fn run(&self, first: Job, matrix: &mut Matrix) {
        let mut next = Some(first);
        while let Some(job) = next {
            (job.work)(matrix);
            next = self.state.lock().take();
        }
    }

    /// Waits for a job; `None` once the pool is closed.
    fn wait(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.take() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

impl State {
    fn add(&mut self, job: Job) {
        let before = self.by_network.entry(job.network).or_default();
        let at = (*before, self.arrivals);
        *before += 1;
        self.arrivals += 1;
        self.waiting.insert(at, job);
    }

    fn take(&mut self) -> Option<Job> {
        let (_, job) = self.waiting.pop_first()?;
        if let Some(count) = self.by_network.get_mut(&job.network) {
            *count -= 1;
            if *count == 0 {
                self.by_network.remove(&job.network);
            }
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn memory_is_allocated_for_what_runs_at_once_and_reused() {
        let pool = Pool::start().unwrap();
        assert_eq!(pool.queue.idle.lock().len(), 0);
        for _ in 0..8 {
            pool.submit(1, |_| ()).unwrap().await.unwrap();
            let is_idle = async || {
                while pool.queue.idle.lock().len() != 1 {
                    tokio::task::yield_now().await;
                }
            };
            let waited = tokio::time::timeout(Duration::from_secs(10), is_idle()).await;
            waited.expect("one piece of memory is idle again");
        }
    }

    #[test]
    fn the_first_job_of_each_network_runs_before_any_second() {
        let places = Shares::new(10);
        let mut state = State::default();
        for n in [1, 1, 1, 2, 3, 2] {
            state.add(Job {
                work: Box::new(|_| ()),
                network: n,
                _place: places.take(n, 10).unwrap(),
            });
        }
        let order: Vec<u64> = std::iter::from_fn(|| state.take())
            .map(|j| j.network)
            .collect();
        assert_eq!(order, [1, 2, 3, 1, 2, 1]);
        assert!(
            state.by_network.is_empty(),
            "finished networks are forgotten"
        );
        assert_eq!(places.taken(), 0);
    }

    #[tokio::test]
    async fn a_flood_from_one_network_leaves_places_for_others() {
        let pool = Pool::start().unwrap();
        let mut answers = Vec::new();
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let stop = Arc::new(Mutex::new(stop));
        let full = loop {
            let stop = Arc::clone(&stop);
            match pool.submit(1, move |_| stop.lock().recv().ok()) {
                Ok(answer) => answers.push(answer),
                Err(full) => break full,
            }
        };
        assert_eq!((full, answers.len()), (Full::Share, SHARE));
        let honest = pool.submit(2, |_| "served").unwrap();
        drop(go);
        assert_eq!(honest.await.unwrap(), "served");
        for answer in answers {
            answer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_flood_from_many_networks_leaves_a_place_for_another() {
        let pool = Pool::start().unwrap();
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let stop = Arc::new(Mutex::new(stop));
        let mut held = Vec::new();
        for network in 0..8 {
            let flood = || {
                let stop = Arc::clone(&stop);
                pool.submit(network, move |_| stop.lock().recv().ok()).ok()
            };
            let before = held.len();
            held.extend(std::iter::from_fn(flood));
            assert!(held.len() > before, "network {network} has a place, too");
        }
        let honest = pool.submit(99, |_| "served").unwrap();
        drop(go);
        assert_eq!(honest.await.unwrap(), "served");
    }

    #[tokio::test]
    async fn abandoned_work_is_not_started() {
        let pool = Pool::start().unwrap();
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let stop = Arc::new(Mutex::new(stop));
        let busy: Vec<_> = (0..MAX_THREADS)
            .map(|_| {
                let stop = Arc::clone(&stop);
                pool.submit(1, move |_| stop.lock().recv().ok()).unwrap()
            })
            .collect();
        let (done, was_done) = std::sync::mpsc::channel();
        drop(pool.submit(2, move |_| done.send(()).ok()).unwrap());
        drop(go);
        for answer in busy {
            answer.await.unwrap();
        }
        let after = pool.submit(2, |_| ()).unwrap();
        after.await.unwrap();
        assert!(
            was_done.recv().is_err(),
            "the work was dropped, and with it the sender"
        );
    }
}
