//! Sheds load: past a number of calls in flight, more are refused at once instead of queued.

use crate::observe::{Observe, Watch};
use http::Request;
use std::{sync::Arc, time::Duration};
use tars_proto::fault;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

#[derive(Debug, Clone)]
pub struct Shed {
    slots: Arc<Semaphore>,
}

impl Shed {
    pub fn new(max_in_flight: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(max_in_flight)),
        }
    }
}

impl Observe for Shed {
    type Watch = Slot;

    fn begin<B>(&self, _: &mut Request<B>) -> Result<Slot, Status> {
        Arc::clone(&self.slots)
            .try_acquire_owned()
            .map(Slot)
            .map_err(|_| {
                fault::unavailable(
                    "OVERLOADED",
                    "too many calls in flight",
                    Duration::from_secs(1),
                )
            })
    }
}

/// Given back when the call has ended.
#[derive(Debug)]
pub struct Slot(OwnedSemaphorePermit);

impl Watch for Slot {
    fn end(self, _: Code) {
        drop(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back() {
        let shed = Shed::new(1);
        let held = shed.begin(&mut Request::new(())).unwrap();
        let refused = shed.begin(&mut Request::new(())).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        held.end(Code::Ok);
        assert!(shed.begin(&mut Request::new(())).is_ok());
    }
}
