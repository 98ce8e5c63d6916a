//! The streams of one client connection. A server limits how many are open at once, and h2 queues further
//! ones silently, for as long as the others stay open. Here a caller that finds none free, and no further
//! connection either, is refused instead: at once, or after a moment where streams are short and one will
//! soon be free.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

#[derive(Debug)]
pub(super) struct StreamSlots {
    limit: AtomicUsize,
    taken: AtomicUsize,
    freed: Notify,
}

impl StreamSlots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// Sets the number of streams that the server allows.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The number of streams in use.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether a slot is free.
    pub(super) fn has_room(&self) -> bool {
        self.taken() < self.limit.load(Ordering::Relaxed)
    }

    /// Whether three quarters are taken: time to open a further connection, before the last one is.
    pub(super) fn is_short(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        self.taken() >= limit - limit / 4
    }

    /// Takes a slot; waits for up to `patience` until one is free.
    pub(super) async fn take(self: &Arc<Self>, patience: Duration) -> Option<StreamSlot> {
        if let Some(slot) = self.try_take() {
            return Some(slot);
        }
        if patience.is_zero() {
            return None;
        }
        let end = Instant::now() + patience;
        while timeout_at(end, self.freed.notified()).await.is_ok() {
            if let Some(slot) = self.try_take() {
                return Some(slot);
            }
        }
        None
    }

    /// Takes a slot if one is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<StreamSlot> {
        let limit = self.limit.load(Ordering::Relaxed);
        let free = |taken| (taken < limit).then_some(taken + 1);
        let taken = (self.taken).fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.ok().map(|_| StreamSlot(Arc::clone(self)))
    }
}

/// The slot of one stream, free again when it is dropped.
#[derive(Debug)]
pub(super) struct StreamSlot(Arc<StreamSlots>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_over_the_limit_is_refused_at_once_or_gets_the_next_slot() {
        let slots = StreamSlots::new(200);
        slots.set_limit(2);
        let first = slots.take(Duration::ZERO).await.unwrap();
        let second = slots.take(Duration::ZERO).await.unwrap();
        assert!(!slots.has_room() && slots.is_short());
        assert!(slots.take(Duration::ZERO).await.is_none());
        let waiting = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take(Duration::from_secs(60)).await }
        });
        drop(first);
        let third = waiting.await.unwrap();
        assert!(third.is_some());
        drop((second, third));
        assert_eq!(slots.taken(), 0);
    }

    #[tokio::test]
    async fn slots_are_short_before_the_last_is_taken() {
        let slots = StreamSlots::new(8);
        let mut taken: Vec<_> = (0..6).map(|_| slots.try_take().unwrap()).collect();
        assert!(slots.is_short() && slots.has_room());
        taken.pop();
        assert!(!slots.is_short());
    }
}
