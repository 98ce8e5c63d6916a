//! Bounded logs of numbered events that streams read from and resume into.
//!
//! Numbers start at 1. A reader asks for what came after a number; when that has been trimmed it
//! is told so, instead of silently missing events.

use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::watch;

#[derive(Debug)]
struct State<T> {
    /// The events from `last - items.len() + 1` to `last`.
    items: VecDeque<T>,
    last: u64,
    closed: bool,
    /// The bytes of the events.
    bytes: usize,
}

#[derive(Debug)]
pub struct EventLog<T> {
    state: Arc<Mutex<State<T>>>,
    /// Changes whenever there is something new to read.
    changed: watch::Sender<u64>,
    capacity: usize,
    room: Room<T>,
}

/// How many bytes the events of a log may have, and how many one has.
#[derive(Debug)]
pub struct Room<T> {
    pub bytes: usize,
    pub of: fn(&T) -> usize,
}

impl<T> Default for Room<T> {
    /// For events that are all small.
    fn default() -> Self {
        Self {
            bytes: usize::MAX,
            of: |_| 0,
        }
    }
}

/// What was asked for is no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was asked for is not kept: the events begin with {first_kept}")]
pub struct Trimmed {
    pub first_kept: u64,
}

impl<T: Clone> EventLog<T> {
    pub fn new(capacity: usize) -> Self {
        Self::after(0, capacity)
    }

    /// A log whose first event will have the number after `last`.
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

    /// Bounds the bytes of the events as well; the newest one is kept whatever it has.
    #[must_use]
    pub fn with_room(mut self, room: Room<T>) -> Self {
        self.room = room;
        self
    }

    /// Adds an event and returns its number.
    pub fn push(&self, item: T) -> u64 {
        let last = {
            let mut state = self.state.lock();
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

    /// Forgets everything and goes on after `last`: readers that have not come so far are told that
    /// they were too slow.
    pub fn skip_to(&self, last: u64) {
        {
            let mut state = self.state.lock();
            state.items.clear();
            state.bytes = 0;
            state.last = last;
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends the log: readers get what is left, then the end.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends the log with a last event; one that has ended stays as it is.
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

    /// The bytes of the events that are kept.
    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Forgets the oldest events until the others have at most so many bytes; the newest one stays.
    pub fn shrink_to(&self, bytes: usize) {
        self.shrink(&mut self.state.lock(), bytes);
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub fn last(&self) -> u64 {
        self.state.lock().last
    }

    /// A reader of what comes after `after`.
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

#[derive(Debug)]
pub struct Reader<T> {
    state: Arc<Mutex<State<T>>>,
    changed: watch::Receiver<u64>,
    after: u64,
}

impl<T: Clone> Reader<T> {
    /// The number of the last event that was read.
    pub fn position(&self) -> u64 {
        self.after
    }

    /// The next event with its number; `None` at the end; an error when this reader was too slow.
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
    async fn readers_resume_where_they_left() {
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
    async fn what_was_trimmed_is_refused_and_slow_readers_are_told() {
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
    async fn large_events_push_out_more_than_small_ones_and_the_newest_stays() {
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
    async fn a_log_shrinks_to_what_it_may_have_and_keeps_the_newest() {
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
    async fn a_log_has_one_last_event() {
        let log = EventLog::new(10);
        log.close_with("end");
        log.close_with("another");
        let mut reader = log.read(0).unwrap();
        assert_eq!(reader.next().await.unwrap(), Some((1, "end")));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_log_goes_on_where_another_ended_and_can_skip() {
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
