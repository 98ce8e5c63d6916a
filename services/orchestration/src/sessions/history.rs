//! Keeps the history of the distance from an equilibrium: measures it when an agent's weights have changed.
//!
//! It is always the same episode that leads to the measured state, so that points differ by what the agents do.
//! One replica measures for all, and not more often than once a minute, however often the weights change.

use super::{Measurement, Place};
use crate::{Orchestration, OrchestrationError, store::NashPoint};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tars_runtime::{changes::Position, lease::Lease};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// The lease of the replica that measures, and the owner of its solves.
const LEASE: &str = "nash";
/// The delay after a measurement.
const APART: Duration = Duration::from_secs(60);
/// How long a measurement may take.
const WITHIN: Duration = Duration::from_secs(30);
/// The episode, and the rollouts of each joint action.
const PLACE: Place = Place::Episode { seed: 1, steps: 60 };
const ROLLOUTS: usize = 8;

impl Orchestration {
    /// Measures in the background, as long as the service lives.
    pub(crate) fn start_measuring(self: &Arc<Self>) {
        let measure = keep_measured(Arc::downgrade(self), self.changes.subscribe());
        let measure = AbortOnDropHandle::new(tokio::spawn(measure));
        *self.measuring.lock() = Some(measure);
    }

    /// Measures if this replica does that for all, and the weights are others than at the last point; returns
    /// whether it did.
    pub(super) async fn measure_changed(
        self: &Arc<Self>,
        lease: &mut Option<Lease>,
    ) -> Result<bool, OrchestrationError> {
        lease.take_if(|lease| lease.loss().is_some());
        if lease.is_none() {
            *lease = self.leases.acquire(LEASE).await?;
        }
        let newest = self.store.nash_points(1).await?.pop();
        if lease.is_none() || newest.is_some_and(|point| self.is_current(&point)) {
            return Ok(false);
        }
        let measurement = Measurement {
            owner: LEASE.to_owned(),
            place: PLACE,
            rollouts: ROLLOUTS,
            run: self.newest_run().await?,
            until: Some(Instant::now() + WITHIN),
        };
        self.measure_equilibrium(measurement).await?;
        Ok(true)
    }

    /// The training run whose weights became live last; none where something else did since.
    pub(super) async fn newest_run(&self) -> Result<Option<Uuid>, OrchestrationError> {
        let mut newest = None;
        for agent in self.agents.iter() {
            let served = self.store.newest_served(agent.id()).await?;
            newest = newest.max(served.map(|version| {
                let is_new = version.restored_from.is_none();
                (version.at_us, version.run_id.filter(|_| is_new))
            }));
        }
        Ok(newest.and_then(|(_, run)| run))
    }

    /// Whether a point is of an episode, with the weights that are live.
    fn is_current(&self, point: &NashPoint) -> bool {
        let is_live = |(agent, version): (&String, &i64)| {
            let live = self.agents.get(agent).map(|agent| agent.live());
            live.is_ok_and(|live| live.row.weights_version == *version)
        };
        point.origin.session.is_none() && point.origin.weights.iter().all(is_live)
    }
}

async fn keep_measured(service: Weak<Orchestration>, mut changed: watch::Receiver<Position>) {
    let mut lease = None;
    while changed.changed().await.is_ok() {
        let Some(service) = service.upgrade() else {
            return;
        };
        let measured = service.measure_changed(&mut lease).await;
        drop(service);
        match measured {
            Ok(true) => sleep(APART).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the distance from an equilibrium was not measured");
                sleep(APART).await;
            }
        }
    }
}
