//! Keeps the history of the distance from an equilibrium: measures it when an agent's weights have changed.
//!
//! It is always the same episode that leads to the measured state, so that the regular points of the history differ
//! by what the agents do. What callers measure elsewhere is stored beside them and does not count as one.
//! One replica measures for all, and not more often than once a minute, however often the weights change. Each looks
//! once a minute, so that a change is not missed that came while nobody could measure.

use super::{Measurement, Place};
use crate::{
    Orchestration, OrchestrationError,
    store::{Episode, NashPoint, Points},
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tars_interceptors::usage::Allowance;
use tars_runtime::{changes::Position, lease::Lease};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// The lease of the replica that measures, and the owner of its solves.
const LEASE: &str = "nash";
/// The delay after a measurement, and the longest time between two looks.
const APART: Duration = Duration::from_secs(60);
/// How long a measurement may take.
const WITHIN: Duration = Duration::from_secs(30);
/// The episode, and the rollouts of each joint action.
const EPISODE: Episode = Episode { seed: 1, steps: 60 };
const ROLLOUTS: usize = 8;

impl Orchestration {
    /// Measures in the background, as long as the service lives.
    pub(crate) fn start_measuring(self: &Arc<Self>) {
        let measure = keep_measured(Arc::downgrade(self), self.changes.subscribe(), APART);
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
        let newest = self.store.nash_points(Points::Regular, 1).await?.pop();
        if lease.is_none() || newest.is_some_and(|point| self.is_current(&point)) {
            return Ok(false);
        }
        let measurement = Measurement {
            owner: LEASE.to_owned(),
            allowance: Allowance::default(),
            place: Place::Episode {
                seed: EPISODE.seed,
                steps: EPISODE.steps,
            },
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

    /// Whether a regular point is of the weights that are live.
    fn is_current(&self, point: &NashPoint) -> bool {
        let is_live = |(agent, version): (&String, &i64)| {
            let live = self.agents.get(agent).map(|agent| agent.live());
            live.is_ok_and(|live| live.row.weights_version == *version)
        };
        point.origin.weights.iter().all(is_live)
    }
}

impl Measurement {
    /// Whether it is of the game that is always measured.
    pub(super) fn is_regular(&self) -> bool {
        let Place::Episode { seed, steps } = self.place else {
            return false;
        };
        Episode { seed, steps } == EPISODE && self.rollouts == ROLLOUTS
    }
}

/// Looks after each change, and after some time without one.
pub(super) async fn keep_measured(
    service: Weak<Orchestration>,
    mut changed: watch::Receiver<Position>,
    apart: Duration,
) {
    let mut lease = None;
    loop {
        if let Ok(Err(_)) = timeout(apart, changed.changed()).await {
            return;
        }
        let Some(service) = service.upgrade() else {
            return;
        };
        let measured = service.measure_changed(&mut lease).await;
        drop(service);
        match measured {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                tracing::warn!(%error, "the distance from an equilibrium was not measured");
            }
        }
        // What changes meanwhile is seen afterwards.
        sleep(apart).await;
    }
}
