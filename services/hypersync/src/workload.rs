//! HyperSync as a workload of a process.

use crate::{
    HyperSync, Setup, api,
    pauses::Pacing,
    peers::{Channels, Peers},
    saga::Watch,
    store,
};
use std::{sync::Arc, time::Duration};
use tars_runtime::{
    db::{Db, Migration},
    lease::{Leases, Terms},
};
use tars_workload::{OpenError, Parts, Workload};
use tonic::service::Routes;

impl Workload for HyperSync {
    const MIGRATIONS: &'static [Migration] = store::MIGRATIONS;

    async fn open(parts: Parts<'_>) -> Result<Arc<Self>, OpenError> {
        let peers = Peers::over(Channels {
            automl_for_caller: parts.peers.dial("automl")?,
            orchestration_for_caller: parts.peers.dial("orchestration")?,
            orchestration: parts.peers.dial("orchestration")?,
        });
        let verification = &parts.config.hypersync;
        let watch = Watch {
            steps: verification.verification_steps,
            longest: Duration::from_secs(verification.verification_seconds),
        };
        let setup = Setup {
            peers,
            clock: parts.clock,
            pacing: Pacing::default(),
            watch,
            bus: parts.bus,
            tracer: parts.tracer,
            metrics: parts.metrics.clone(),
            usage: parts.usage,
        };
        let terms = |db: &Db| Terms::of(db, parts.dir);
        Ok(Self::open_at(&parts.database, terms, setup).await?)
    }

    fn db(&self) -> &Db {
        self.store.db()
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }

    fn routes(self: Arc<Self>, max_message_bytes: usize) -> Routes {
        api::routes(self, max_message_bytes)
    }

    async fn resume(self: Arc<Self>) -> Result<(), OpenError> {
        self.start_reporting();
        self.resume_proposals().await?;
        Ok(())
    }
}
