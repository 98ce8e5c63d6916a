//! The event logs of studies, which watchers read, and the cancellation of running studies.
//!
//! The number of logs is bounded. A log that is in use is never evicted, because the run of a study
//! must be notified of its cancellation and a watcher of its events. Of the others, logs of ended
//! studies are evicted before those of studies whose trials the caller runs.
//!
//! The total size of all logs is bounded too. Beyond it, the largest log drops the older half of its
//! events, so that a caller who fills many logs shrinks these and not the others.

use crate::store::TrialRow;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_runtime::events::{EventLog, Room};
use tars_search::Value;
use tokio::sync::{Notify, futures::Notified};
use uuid::Uuid;

/// Events of one log.
const EVENTS: usize = 4096;
/// The size of one log. Each report of a trial is an event with all of the trial's values, and their
/// number is up to the caller.
const EVENT_BYTES: usize = 2 << 20;
/// The size of all logs together, whether in use or not.
const ALL_BYTES: usize = 32 << 20;
/// The number of logs that are not in use.
const KEPT: usize = 128;

#[derive(Debug, Clone)]
pub(crate) enum StudyEvent {
    Trial(Box<TrialRow>),
    Ended,
}

impl StudyEvent {
    /// The approximate size of an event.
    fn bytes(&self) -> usize {
        let parameter = |(name, value): (&String, &Value)| {
            let text = match value {
                Value::Text(text) => text.len(),
                Value::Flag(_) | Value::Number(_) => 0,
            };
            size_of_val(name) + name.len() + size_of_val(value) + text
        };
        match self {
            Self::Ended => 0,
            Self::Trial(row) => {
                size_of::<TrialRow>()
                    + row.parameters.iter().map(parameter).sum::<usize>()
                    + size_of_val(row.intermediate.as_slice())
                    + row.error.len()
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) log: EventLog<StudyEvent>,
    cancelled: AtomicBool,
    stop: Notify,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            log: EventLog::new(EVENTS).with_room(Room {
                bytes: EVENT_BYTES,
                of: StudyEvent::bytes,
            }),
            cancelled: AtomicBool::new(false),
            stop: Notify::new(),
        }
    }
}

impl Watched {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.stop.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Completes when the study is cancelled from now on. Create it before checking
    /// [`is_cancelled`](Self::is_cancelled), so that no cancellation is missed in between.
    pub(crate) fn stopped(&self) -> Notified<'_> {
        self.stop.notified()
    }

    /// Waits, and returns whether the study was cancelled before or meanwhile.
    pub(crate) async fn is_cancelled_within(&self, pause: Duration) -> bool {
        let stopped = self.stopped();
        self.is_cancelled() || tokio::time::timeout(pause, stopped).await.is_ok()
    }
}

/// The logs of all studies.
#[derive(Debug, Default)]
pub(crate) struct AllWatched(Mutex<HashMap<Uuid, Arc<Watched>>>);

impl AllWatched {
    /// The log of a study, which is created on first use.
    pub(crate) fn of(&self, id: Uuid) -> Arc<Watched> {
        let mut all = self.0.lock();
        if !all.contains_key(&id) {
            make_room(&mut all);
        }
        Arc::clone(all.entry(id).or_default())
    }

    /// Adds an event to a study's log.
    pub(crate) fn push(&self, id: Uuid, event: StudyEvent) {
        self.of(id).log.push(event);
        bound(&self.0.lock(), ALL_BYTES);
    }

    /// Closes a study's log, once. Without a log there is no watcher, and a later one sees the end in
    /// the database.
    pub(crate) fn end(&self, id: Uuid) {
        if let Some(watched) = self.0.lock().get(&id) {
            watched.log.close_with(StudyEvent::Ended);
        }
    }

    /// Notifies the run of a study that it is cancelled.
    pub(crate) fn cancel(&self, id: Uuid) {
        if let Some(watched) = self.0.lock().get(&id) {
            watched.cancel();
        }
    }
}

/// Shrinks the largest logs until their total size is at most `bytes`, or each has one event.
fn bound(all: &HashMap<Uuid, Arc<Watched>>, bytes: usize) {
    loop {
        let sizes = || all.values().map(|w| (w.log.bytes(), w));
        if sizes().map(|(size, _)| size).sum::<usize>() <= bytes {
            return;
        }
        let Some((size, largest)) = sizes().max_by_key(|(size, _)| *size) else {
            return;
        };
        largest.log.shrink_to(size / 2);
        if largest.log.bytes() == size {
            return;
        }
    }
}

fn make_room(all: &mut HashMap<Uuid, Arc<Watched>>) {
    while all.len() >= KEPT {
        // Logs are handed out under this lock only, so an unused one stays unused here.
        let idle = all.iter().filter(|(_, w)| Arc::strong_count(w) == 1);
        let rank = |(id, w): (&Uuid, &Arc<Watched>)| (!w.log.is_closed(), *id);
        let Some((_, oldest)) = idle.map(rank).min() else {
            return;
        };
        all.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TrialState;

    fn ended(all: &AllWatched) -> Uuid {
        let id = Uuid::now_v7();
        all.of(id).log.close();
        id
    }

    fn has(all: &AllWatched, id: Uuid) -> bool {
        all.0.lock().contains_key(&id)
    }

    #[test]
    fn a_running_study_is_notified_of_its_cancellation_after_many_others() {
        let all = AllWatched::default();
        let (id, watcher) = (Uuid::now_v7(), Uuid::now_v7());
        let (run, stream) = (all.of(id), all.of(watcher));
        for _ in 0..10 * KEPT {
            all.of(Uuid::now_v7());
            ended(&all);
        }
        assert!(all.0.lock().len() <= KEPT);
        all.cancel(id);
        assert!(run.is_cancelled());
        all.of(watcher).log.push(StudyEvent::Ended);
        assert_eq!(stream.log.last(), 1);
        drop((run, stream));
    }

    #[test]
    fn a_log_is_bounded_in_bytes() {
        let watched = Watched::default();
        for n in 0..1000 {
            let event = report(n);
            assert!(event.bytes() >= 16 * n as usize);
            watched.log.push(event);
        }
        let kept = 1001 - watched.log.read(0).unwrap_err().first_kept;
        assert!(
            kept < 200 && kept * 16 * 800 <= EVENT_BYTES as u64,
            "{kept}"
        );
        // All events of a study that the server runs fit.
        let watched = Watched::default();
        for n in 0..1200 {
            watched.log.push(report(n % 12));
        }
        assert!(watched.log.read(0).is_ok());
    }

    fn report(steps: u64) -> StudyEvent {
        StudyEvent::Trial(Box::new(TrialRow {
            study_id: Uuid::nil(),
            number: 0,
            state: TrialState::Running,
            parameters: [("x".to_owned(), Value::Number(0.5))].into(),
            score: None,
            intermediate: (0..steps).map(|step| (step, 0.5)).collect(),
            attempt: 1,
            error: String::new(),
            started_us: 1,
            ended_us: None,
        }))
    }

    #[test]
    fn a_caller_that_fills_many_logs_shrinks_only_these() {
        let all = AllWatched::default();
        let sum = || -> usize { all.0.lock().values().map(|w| w.log.bytes()).sum() };
        let (honest, many) = (Uuid::now_v7(), [(); 40].map(|()| Uuid::now_v7()));
        let (in_hand, _hands) = (all.of(honest), many.map(|id| all.of(id)));
        for n in 0..300 {
            all.push(honest, report(n % 12));
        }
        for _ in 0..150 {
            for id in many {
                all.push(id, report(1000));
                assert!(sum() <= ALL_BYTES);
            }
        }
        assert!(sum() > ALL_BYTES / 2, "the logs are full");
        assert!(in_hand.log.read(0).is_ok(), "a small log is whole");
    }

    #[test]
    fn ending_a_study_closes_its_log_once_and_creates_none() {
        let (all, id) = (AllWatched::default(), Uuid::now_v7());
        all.end(id);
        assert!(!has(&all, id));
        let watched = all.of(id);
        all.end(id);
        all.end(id);
        assert!(watched.log.is_closed() && watched.log.last() == 1);
    }

    #[test]
    fn the_oldest_log_of_an_ended_study_is_evicted_first() {
        let all = AllWatched::default();
        let open = Uuid::now_v7();
        all.of(open);
        let (first, second) = (ended(&all), ended(&all));
        for _ in 3..KEPT {
            ended(&all);
        }
        assert!(has(&all, first));
        ended(&all);
        assert_eq!(
            [has(&all, open), has(&all, first), has(&all, second)],
            [true, false, true]
        );
    }

    #[test]
    fn unused_logs_of_open_studies_are_bounded() {
        let all = AllWatched::default();
        let first = Uuid::now_v7();
        all.of(first);
        for _ in 0..KEPT {
            all.of(Uuid::now_v7());
        }
        assert!(!has(&all, first) && all.0.lock().len() <= KEPT);
    }

    #[test]
    fn a_log_in_use_is_evicted_only_after_it_is_released() {
        let all = AllWatched::default();
        let hands: Vec<_> = (0..2 * KEPT).map(|_| all.of(Uuid::now_v7())).collect();
        assert_eq!(all.0.lock().len(), 2 * KEPT);
        drop(hands);
        all.of(Uuid::now_v7());
        assert_eq!(all.0.lock().len(), KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_trial_is_notified_of_its_cancellation() {
        let watched = Watched::default();
        assert!(!watched.is_cancelled_within(Duration::from_secs(1)).await);
        let day = Duration::from_secs(86_400);
        let begun = tokio::time::Instant::now();
        let cancel = async {
            tokio::task::yield_now().await;
            watched.cancel();
        };
        let (cancelled, ()) = tokio::join!(watched.is_cancelled_within(day), cancel);
        assert!(cancelled && begun.elapsed() < day);
        assert!(watched.is_cancelled_within(day).await);
    }
}
