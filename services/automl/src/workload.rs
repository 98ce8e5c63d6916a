//! AutoML as a workload of a process.

use crate::{Automl, Setup, api, peers::Peers, retries::Pacing, store};
use std::sync::Arc;
use tars_runtime::{
    db::{Db, Migration},
    lease::{Leases, Terms},
};
use tars_workload::{OpenError, Parts, Workload};
use tonic::service::Routes;

impl Workload for Automl {
    const MIGRATIONS: &'static [Migration] = store::MIGRATIONS;

    async fn open(parts: Parts<'_>) -> Result<Arc<Self>, OpenError> {
        let setup = Setup {
            settings: parts.config.automl.clone(),
            peers: Peers::over(parts.peers.dial("orchestration")?),
            clock: parts.clock,
            seeds: parts.seeds,
            pacing: Pacing::default(),
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
        self.resume_studies().await?;
        Ok(())
    }
}
