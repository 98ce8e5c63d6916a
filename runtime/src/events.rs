//! Bounded logs of numbered events, from which streams read and into which they resume.
//!
//! Numbers start at 1. A reader asks for the events after a number; when those have been trimmed it
//! receives an error instead of silently missing events.

use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::watch;

#[derive(Debug)]
struct State<T> {
    /// The events from `last - items.len() + 1` to `last`.
    items: VecDeque<T>,
    last: u64,
    /// How often the log was continued elsewhere.
    skips: u64,
}

/// A log of the newest events, with any number of readers.
#[derive(Debug)]
pub struct EventLog<T> {
    state: Arc<Mutex<State<T>>>,
    /// Changes whenever there is something new to read.
    changed: watch::Sender<u64>,
    capacity: usize,
}

/// The requested events are no longer in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was asked for is not kept: the events begin with {first_kept}")]
pub struct Trimmed {
    /// The number of the oldest event in the log.
    pub first_kept: u64,
}

impl<T: Clone> EventLog<T> {
    /// Creates an empty log of up to `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self::after(0, capacity)
    }

    /// Creates an empty log whose first event will have the number after `last`.
    pub fn after(last: u64, capacity: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            last,
            skips: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            capacity,
        }
    }

    /// Appends an event and returns its number.
    pub fn push(&self, item: T) -> u64 {
        let last = {
            let mut state = self.state.lock();
            state.items.push_back(item);
            state.last += 1;
            if state.items.len() > self.capacity {
                state.items.pop_front();
            }
            state.last
        };
        self.changed.send_modify(|n| *n += 1);
        last
    }

    /// Drops every event and continues after `last`, which may also be before it: every reader there is
    /// receives [`Trimmed`], wherever it stands, since the numbers may be those of other events.
    pub fn skip_to(&self, last: u64) {
        {
            let mut state = self.state.lock();
            state.items.clear();
            state.last = last;
            state.skips += 1;
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns the number of the newest event; zero when there never was one.
    pub fn last(&self) -> u64 {
        self.state.lock().last
    }

    /// Returns a reader of the events after `after`.
    ///
    /// # Errors
    ///
    /// [`Trimmed`] when some of them are no longer in the log, or `after` lies beyond its end.
    pub fn read(&self, after: u64) -> Result<Reader<T>, Trimmed> {
        let state = self.state.lock();
        let first = state.last - state.items.len() as u64 + 1;
        if after.saturating_add(1) < first || after > state.last {
            return Err(Trimmed { first_kept: first });
        }
        Ok(Reader {
            state: Arc::clone(&self.state),
            changed: self.changed.subscribe(),
            skips: state.skips,
            after,
        })
    }
}

/// Reads a log at its own pace.
#[derive(Debug)]
pub struct Reader<T> {
    state: Arc<Mutex<State<T>>>,
    changed: watch::Receiver<u64>,
    skips: u64,
    after: u64,
}

impl<T: Clone> Reader<T> {
    /// Returns the number of the last event that was read.
    pub fn position(&self) -> u64 {
        self.after
    }

    /// Waits for the next event and returns it with its number; `None` once the log is gone.
    ///
    /// # Errors
    ///
    /// [`Trimmed`] when this reader was too slow.
    pub async fn next(&mut self) -> Result<Option<(u64, T)>, Trimmed> {
        loop {
            self.changed.borrow_and_update();
            let item = self.take()?;
            if item.is_some() || self.changed.changed().await.is_err() {
                return Ok(item);
            }
        }
    }

    fn take(&mut self) -> Result<Option<(u64, T)>, Trimmed> {
        let state = self.state.lock();
        let first = state.last - state.items.len() as u64 + 1;
        if self.skips != state.skips || self.after + 1 < first {
            return Err(Trimmed { first_kept: first });
        }
        let offset = usize::try_from(self.after + 1 - first).unwrap_or(usize::MAX);
        let Some(item) = state.items.get(offset) else {
            return Ok(None);
        };
        self.after += 1;
        Ok(Some((self.after, item.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_resume_where_they_left_off() {
        let log = EventLog::new(10);
        for n in 1..=3 {
            log.push(n);
        }
        let mut reader = log.read(1).unwrap();
        drop(log);
        assert_eq!(reader.next().await.unwrap(), Some((2, 2)));
        assert_eq!(reader.next().await.unwrap(), Some((3, 3)));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn trimmed_events_are_refused_and_slow_readers_receive_an_error() {
        let log = EventLog::new(2);
        let mut slow = log.read(0).unwrap();
        for n in 1..=4 {
            log.push(n);
        }
        assert_eq!(log.read(1).unwrap_err(), Trimmed { first_kept: 3 });
        for ahead in [9, u64::MAX] {
            assert_eq!(log.read(ahead).unwrap_err(), Trimmed { first_kept: 3 });
        }
        assert_eq!(slow.next().await.unwrap_err(), Trimmed { first_kept: 3 });
        assert!(log.read(2).is_ok());
        let text = log.read(1).unwrap_err().to_string();
        assert!(text.ends_with("begin with 3"), "{text}");
    }

    #[tokio::test]
    async fn a_log_continues_where_another_ended_and_can_skip() {
        let log = EventLog::after(40, 2);
        assert_eq!(log.read(0).unwrap_err(), Trimmed { first_kept: 41 });
        let mut reader = log.read(40).unwrap();
        assert_eq!(log.push("a"), 41);
        assert_eq!(reader.next().await.unwrap(), Some((41, "a")));
        assert_eq!(reader.position(), 41);
        log.skip_to(60);
        assert_eq!(reader.next().await.unwrap_err(), Trimmed { first_kept: 61 });
        let mut reader = log.read(60).unwrap();
        log.push("b");
        assert_eq!(reader.next().await.unwrap(), Some((61, "b")));
        let mut ahead = log.read(61).unwrap();
        log.skip_to(50);
        assert_eq!(ahead.next().await.unwrap_err(), Trimmed { first_kept: 51 });
        let mut level = log.read(50).unwrap();
        log.skip_to(50);
        assert_eq!(level.next().await.unwrap_err(), Trimmed { first_kept: 51 });
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes() {
        let log = Arc::new(EventLog::new(4));
        let mut reader = log.read(0).unwrap();
        let waiting = tokio::spawn(async move { reader.next().await });
        log.push("x");
        assert_eq!(waiting.await.unwrap().unwrap(), Some((1, "x")));
    }
}
