//! What a call counts for in the load of its process. Only the call's own task changes it: it is shared with
//! the layers that decide about it, and with the gate of its request.

use crate::holders::{Holder, Kind};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

/// Whether a call is counted.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// In the process.
    counted: AtomicBool,
    /// In its caller's part as well.
    shared: AtomicBool,
    share: OnceLock<Arc<Holder>>,
    /// Whether its request was not taken up when it came.
    shed: AtomicBool,
}

impl Flight {
    pub(crate) fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Relaxed)
    }

    pub(crate) fn is_shed(&self) -> bool {
        self.shed.load(Ordering::Relaxed)
    }

    pub(crate) fn shed(&self) {
        self.shed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self) {
        self.counted.store(true, Ordering::Relaxed);
    }

    /// Takes a place of the caller's part, unless it has as many as `most`.
    pub(crate) fn enter(&self, share: impl FnOnce() -> Arc<Holder>, most: usize) -> bool {
        let entered = self.share.get_or_init(share).enter(Kind::Calls, most);
        self.shared.store(entered, Ordering::Relaxed);
        entered
    }

    /// Gives back what was taken, and returns whether the call was counted.
    pub(crate) fn end(&self) -> bool {
        if let Some(share) = self.share.get()
            && self.shared.swap(false, Ordering::Relaxed)
        {
            share.leave(Kind::Calls);
        }
        // A call most often ends uncounted, as its answer was: no write then.
        self.is_counted() && self.counted.swap(false, Ordering::Relaxed)
    }
}
