//! The calibration of the mesh's model to the calls that this service serves.
//!
//! Every window, one replica fits the model to the windows before the last one and lets it predict the last
//! one (`tars_worlds::mesh::fit`). What it found is stored, whether or not the model can be trusted: with
//! which parameters were measured, from how many calls, and how far the prediction was off.
//!
//! A service measures the calls that it serves itself. The model that is fitted is therefore of one service,
//! and of the replica that has the lease of it; its "replicas" are the places of calls in flight. A service
//! time is what a caller waits for at this service, with all that the service itself waits for. Demand is what
//! was admitted; what a limit turned away is counted apart.
//!
//! Approvals are not calls of a minute: what HyperSync records of the proposals that have ended is fitted by itself,
//! and tested on the last of them ([`Approvals`]).

mod approvals;
mod finding;
mod parameters;
mod prior;
#[cfg(test)]
mod tests;
mod windows;

pub(crate) use approvals::{ApprovalErrors, Approvals, Decided, Quality, Vote};
pub(crate) use finding::Finding;
pub(crate) use parameters::{Parameter, parameters};

use crate::{
    OrchestrationError,
    store::{CalibrationRow, Store},
};
use std::time::Duration;
use tars_runtime::{
    clock::Clock,
    lease::{Fence, Lease, Leases},
    metrics::calls::CallRecorder,
    page,
};
use tars_worlds::mesh::MAX_REPLICAS;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;
use windows::{Measured, Windows};

/// How many are retained: a day's at the usual length of a window.
const RETAINED: i64 = 1_440;
/// For how many windows a calibration counts. Each window makes a new one, so that an old one means that none
/// could be made.
const LIFE: u32 = 10;
/// The lease of the replica that does this for all.
const LEASE: &str = "calibration";

/// Where the measurements of a calibration come from.
pub(crate) const SOURCE: &str = "calls that one replica of orchestration served";

#[derive(Debug, Clone)]
pub(crate) struct Calibrations {
    store: Store,
    calls: CallRecorder,
    clock: Clock,
    /// How long a window lasts.
    window: Duration,
    /// How many calls the service serves at once, as far as the model goes.
    places: u32,
}

impl Calibrations {
    pub(crate) fn new(
        store: Store,
        calls: CallRecorder,
        clock: Clock,
        window: Duration,
        places: usize,
    ) -> Self {
        let places = u32::try_from(places).map_or(MAX_REPLICAS, |n| n.clamp(1, MAX_REPLICAS));
        Self {
            store,
            calls,
            clock,
            window,
            places,
        }
    }

    /// For how long a calibration counts after its last window.
    pub(crate) fn life(&self) -> Duration {
        self.window * LIFE
    }

    /// The latest calibration.
    pub(crate) async fn latest(&self) -> Result<Option<CalibrationRow>, OrchestrationError> {
        let mut latest = self.store.calibrations(i64::MAX, page::size(1)).await?;
        Ok(latest.rows.pop())
    }

    /// Records what came of proposals.
    pub(crate) async fn record(
        &self,
        decided: &[(Uuid, Decided)],
    ) -> Result<(), OrchestrationError> {
        self.store.put_decisions(decided).await
    }

    /// A page of calibrations, newest first, and the token of the next page.
    pub(crate) async fn list(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<CalibrationRow>, String), OrchestrationError> {
        let size = page::size(page_size);
        let before = page::start(token, i64::MAX)?;
        let rows = self.store.calibrations(before, size).await?;
        Ok(rows.cut(|row| row.number.to_string()))
    }

    /// Ends a window again and again. Every replica does, so that its windows have their length when it gets
    /// the lease; the one that has it calibrates.
    pub(crate) async fn keep_calibrated(self, leases: Leases) {
        let mut tick = interval(self.window);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut windows, mut lease) = (Windows::new(self.window), None);
        loop {
            tick.tick().await;
            self.end_window(&mut windows);
            if let Err(e) = self.calibrate_as_owner(&windows, &leases, &mut lease).await {
                tracing::warn!(error = %e, "the calibration could not be stored");
            }
        }
    }

    fn end_window(&self, windows: &mut Windows) {
        if let Some(calls) = self.calls.end_window(self.clock.monotonic()) {
            let ended_us = self.clock.now_us();
            windows.add(Measured { ended_us, calls });
        }
    }

    async fn calibrate_as_owner(
        &self,
        windows: &Windows,
        leases: &Leases,
        lease: &mut Option<Lease>,
    ) -> Result<(), OrchestrationError> {
        lease.take_if(|lease| lease.loss().is_some());
        if lease.is_none() {
            *lease = leases.acquire(LEASE).await?;
        }
        match lease {
            Some(lease) => self.calibrate(windows, &lease.fence()).await,
            None => Ok(()),
        }
    }

    async fn calibrate(&self, windows: &Windows, fence: &Fence) -> Result<(), OrchestrationError> {
        if windows.is_empty() {
            return Ok(());
        }
        let decided = self.store.decisions().await?;
        let Some(finding) = Finding::of(windows, &decided, self.places) else {
            return Ok(());
        };
        let at_us = self.clock.now_us();
        let number = self
            .store
            .insert_calibration(fence, at_us, &finding, RETAINED)
            .await?;
        let uncalibrated = finding.uncalibrated.as_deref();
        tracing::debug!(number, uncalibrated, "the mesh's model was calibrated");
        Ok(())
    }
}
