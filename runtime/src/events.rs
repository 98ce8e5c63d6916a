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
    closed: bool,
    /// The size of the events in bytes.
    bytes: usize,
}

/// A log of the newest events, with any number of readers.
#[derive(Debug)]
pub struct EventLog<T> {
    state: Arc<Mutex<State<T>>>,
    /// Changes whenever there is something new to read.
    changed: watch::Sender<u64>,
    capacity: usize,
    room: Room<T>,
}

/// A bound on the total size of a log's events, and how to measure one.
#[derive(Debug)]
pub struct Room<T> {
    /// The maximum size of all events in bytes.
    pub bytes: usize,
    /// Returns the size of one event in bytes.
    pub of: fn(&T) -> usize,
}

impl<T> Default for Room<T> {
    /// No bound, for events that are all small.
    fn default() -> Self {
        Self {
            bytes: usize::MAX,
            of: |_| 0,
        }
    }
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
            closed: false,
            bytes: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            capacity,
            room: Room::default(),
        }
    }

    /// Bounds the size of the events as well; the newest one is retained whatever its size.
    #[must_use]
    pub fn with_room(mut self, room: Room<T>) -> Self {
        self.room = room;
        self
    }

    /// Appends an event and returns the number of the newest one. A log that has ended takes no more
    /// events, so that its end stays the last of them.
    pub fn push(&self, item: T) -> u64 {
        let last = {
            let mut state = self.state.lock();
            if state.closed {
                return state.last;
            }
            self.append(&mut state, item);
            state.last
        };
        self.changed.send_modify(|n| *n += 1);
        last
    }

    fn append(&self, state: &mut State<T>, item: T) {
        state.bytes += (self.room.of)(&item);
        state.items.push_back(item);
        state.last += 1;
        while state.items.len() > self.capacity {
            self.forget_oldest(state);
        }
        self.shrink(state, self.room.bytes);
    }

    fn shrink(&self, state: &mut State<T>, bytes: usize) {
        while state.items.len() > 1 && state.bytes > bytes {
            self.forget_oldest(state);
        }
    }

    fn forget_oldest(&self, state: &mut State<T>) {
        if let Some(oldest) = state.items.pop_front() {
            state.bytes -= (self.room.of)(&oldest);
        }
    }

    /// Drops every event and continues after `last`: readers that have not read so far receive
    /// [`Trimmed`].
    pub fn skip_to(&self, last: u64) {
        {
            let mut state = self.state.lock();
            state.items.clear();
            state.bytes = 0;
            state.last = last;
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends the log: readers receive the remaining events, then the end.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends the log with a last event, unless it has ended already.
    pub fn close_with(&self, item: T) {
        {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closed, true) {
                return;
            }
            self.append(&mut state, item);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns the size of the events in the log, in bytes.
    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Drops the oldest events until the log has at most this many bytes; the newest one is retained.
    pub fn shrink_to(&self, bytes: usize) {
        self.shrink(&mut self.state.lock(), bytes);
    }

    /// Returns whether the log has ended.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
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
            after,
        })
    }
}

/// Reads a log at its own pace.
#[derive(Debug)]
pub struct Reader<T> {
    state: Arc<Mutex<State<T>>>,
    changed: watch::Receiver<u64>,
    after: u64,
}

impl<T: Clone> Reader<T> {
    /// Returns the number of the last event that was read.
    pub fn position(&self) -> u64 {
        self.after
    }

    /// Waits for the next event and returns it with its number; `None` at the end of the log.
    ///
    /// # Errors
    ///
    /// [`Trimmed`] when this reader was too slow.
    pub async fn next(&mut self) -> Result<Option<(u64, T)>, Trimmed> {
        loop {
            self.changed.borrow_and_update();
            match self.take()? {
                Taken::Item(n, item) => return Ok(Some((n, item))),
                Taken::End => return Ok(None),
                Taken::Wait if self.changed.changed().await.is_err() => return Ok(None),
                Taken::Wait => {}
            }
        }
    }

    fn take(&mut self) -> Result<Taken<T>, Trimmed> {
        let state = self.state.lock();
        let first = state.last - state.items.len() as u64 + 1;
        if self.after + 1 < first || self.after > state.last {
            return Err(Trimmed { first_kept: first });
        }
        let offset = usize::try_from(self.after + 1 - first).unwrap_or(usize::MAX);
        if let Some(item) = state.items.get(offset) {
            self.after += 1;
            return Ok(Taken::Item(self.after, item.clone()));
        }
        Ok(if state.closed {
            Taken::End
        } else {
            Taken::Wait
        })
    }
}

enum Taken<T> {
    Item(u64, T),
    End,
    Wait,
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
        log.close();
        let mut reader = log.read(1).unwrap();
        assert_eq!(reader.next().await.unwrap(), Some((2, 2)));
        assert_eq!(reader.next().await.unwrap(), Some((3, 3)));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn nothing_follows_the_end_of_a_log() {
        let log = EventLog::new(10);
        log.push("trial");
        log.close_with("end");
        assert_eq!(log.push("late"), 2);
        let mut reader = log.read(1).unwrap();
        assert_eq!(reader.next().await.unwrap(), Some((2, "end")));
        assert_eq!(reader.next().await.unwrap(), None);
        assert!(log.read(2).unwrap().next().await.unwrap().is_none());
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
    async fn large_events_displace_more_than_small_ones_and_the_newest_stays() {
        let room = Room {
            bytes: 10,
            of: String::len,
        };
        let log = EventLog::new(100).with_room(room);
        for _ in 0..5 {
            log.push("ab".to_owned());
        }
        assert!(log.read(0).is_ok());
        log.push("abc".to_owned());
        assert_eq!(log.read(0).unwrap_err(), Trimmed { first_kept: 3 });
        log.push("a".repeat(50));
        let mut reader = log.read(6).unwrap();
        assert_eq!(log.read(5).unwrap_err(), Trimmed { first_kept: 7 });
        assert_eq!(reader.next().await.unwrap().unwrap().0, 7);
        for _ in 0..5 {
            log.push("ab".to_owned());
        }
        assert_eq!(log.read(0).unwrap_err(), Trimmed { first_kept: 8 });
    }

    #[tokio::test]
    async fn a_log_shrinks_to_its_bound_and_retains_the_newest() {
        let room = Room {
            bytes: 100,
            of: String::len,
        };
        let log = EventLog::new(100).with_room(room);
        for _ in 0..5 {
            log.push("ab".to_owned());
        }
        log.shrink_to(5);
        assert_eq!((log.bytes(), log.last()), (4, 5));
        assert_eq!(log.read(2).unwrap_err(), Trimmed { first_kept: 4 });
        log.shrink_to(0);
        assert_eq!(log.bytes(), 2);
        let mut reader = log.read(4).unwrap();
        assert_eq!(reader.next().await.unwrap(), Some((5, "ab".to_owned())));
    }

    #[tokio::test]
    async fn a_log_has_a_single_last_event() {
        let log = EventLog::new(10);
        log.close_with("end");
        log.close_with("another");
        let mut reader = log.read(0).unwrap();
        assert_eq!(reader.next().await.unwrap(), Some((1, "end")));
        assert_eq!(reader.next().await.unwrap(), None);
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
