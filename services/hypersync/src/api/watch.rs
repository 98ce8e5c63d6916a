//! The stream of one proposal's states.

use super::{Items, proposal};
use crate::{HyperSync, progress::Progress, store::Proposal};
use futures_util::stream;
use std::sync::Arc;
use tars_proto::hypersync::v1::{MeasurementProgress, WatchProposalResponse};
use tars_runtime::changes::Position;
use tokio::sync::watch;
use tonic::Status;
use uuid::Uuid;

/// What a watcher has been sent.
pub(super) struct Watcher {
    service: Arc<HyperSync>,
    changed: watch::Receiver<Position>,
    id: Uuid,
    with_progress: bool,
    /// The last revision, or the one after which the watcher asked to begin.
    seen: u64,
    progress: Option<Progress>,
    is_over: bool,
}

impl Watcher {
    pub(super) fn new(service: Arc<HyperSync>, id: Uuid, after: u64, with_progress: bool) -> Self {
        Self {
            changed: service.subscribe(),
            service,
            id,
            with_progress,
            seen: after,
            progress: None,
            is_over: false,
        }
    }

    pub(super) fn items(self) -> Items {
        Box::pin(stream::try_unfold(self, |mut watcher| async move {
            Ok(watcher.next().await?.map(|item| (item, watcher)))
        }))
    }

    /// An item's sequence number is the proposal's revision, also where only the progress is new. A
    /// watcher that reconnects gets the newest revision; the ones it missed are not replayed.
    async fn next(&mut self) -> Result<Option<WatchProposalResponse>, Status> {
        while !self.is_over {
            self.changed.borrow_and_update();
            let row = self.service.get(self.id).await?;
            self.is_over = row.state.is_final();
            if let Some((sequence, progress)) = self.news(&row) {
                (self.seen, self.progress) = (sequence, progress);
                return Ok(Some(WatchProposalResponse {
                    sequence,
                    proposal: Some(proposal(self.service.view(row).await)),
                    progress: progress.map(|progress| MeasurementProgress {
                        runs_ended: progress.ended,
                        runs: progress.runs,
                    }),
                }));
            }
            if self.is_over || self.changed.changed().await.is_err() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn news(&self, row: &Proposal) -> Option<(u64, Option<Progress>)> {
        let sequence = u64::try_from(row.revision).unwrap_or_default();
        let progress = self.service.measurements.of(row);
        let progress = progress.filter(|_| self.with_progress);
        let has_moved = progress.is_some() && progress != self.progress && sequence == self.seen;
        (sequence > self.seen || has_moved).then_some((sequence, progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake::Rig, saga::measure::Purpose, store::State};

    fn sent(item: Option<WatchProposalResponse>) -> Option<(u32, u32)> {
        let progress = item.expect("an item").progress;
        progress.map(|p| (p.runs_ended, p.runs))
    }

    #[tokio::test]
    async fn a_watcher_that_asked_for_it_is_sent_the_progress_of_a_measurement() {
        let rig = Rig::start().await;
        let row = rig.put(State::Verifying).await;
        let (service, id) = (&rig.service, row.id);
        let revision = u64::try_from(row.revision).unwrap();
        let watcher = |after, progress| Watcher::new(Arc::clone(service), id, after, progress);
        let measured = service.measurements.begin(id, Purpose::Verification, 4);
        let (mut asked, mut plain) = (watcher(0, true), watcher(0, false));
        assert_eq!(sent(asked.next().await.unwrap()), Some((0, 4)));
        assert_eq!(sent(plain.next().await.unwrap()), None);
        assert_eq!(asked.news(&row), None, "it was sent that already");
        measured.run_ended();
        service.changes.wake();
        assert_eq!(sent(asked.next().await.unwrap()), Some((1, 4)));
        assert_eq!(plain.news(&row), None);
        let mut resumed = watcher(revision, true);
        assert_eq!(sent(resumed.next().await.unwrap()), Some((1, 4)));
        assert_eq!(watcher(revision + 1, true).news(&row), None);
        drop(measured);
        assert_eq!(asked.news(&row), None, "the next item is the result");
    }
}
