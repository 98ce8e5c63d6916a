//! HyperSync as a workload of a process.

use crate::{
    HyperSync, api,
    peers::{Channels, Peers},
    store,
};
use std::sync::Arc;
use tars_runtime::{
    db::{Db, Migration},
    lease::Leases,
    trace::Tracer,
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
        Ok(Self::open(parts.dir, &parts.database, peers, parts.clock, parts.bus).await?)
    }

    fn db(&self) -> &Db {
        self.store.db()
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }

    fn routes(self: Arc<Self>, tracer: Tracer, max_message_bytes: usize) -> Routes {
        api::routes(self, tracer, max_message_bytes)
    }

    async fn resume(self: Arc<Self>, tracer: Tracer) -> Result<(), OpenError> {
        self.resume_proposals(&tracer).await?;
        Ok(())
    }
}
