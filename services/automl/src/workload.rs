//! AutoML as a workload of a process.

use crate::{Automl, api, peers::Peers, store};
use std::sync::Arc;
use tars_runtime::{
    db::{Db, Migration},
    lease::Leases,
    trace::Tracer,
};
use tars_workload::{OpenError, Parts, Workload};
use tonic::service::Routes;

impl Workload for Automl {
    const MIGRATIONS: &'static [Migration] = store::MIGRATIONS;

    async fn open(parts: Parts<'_>) -> Result<Arc<Self>, OpenError> {
        let peers = Peers::over(parts.peers.dial("orchestration")?);
        let settings = parts.config.automl.clone();
        let (dir, database) = (parts.dir, &parts.database);
        Ok(Self::open(dir, database, settings, peers, parts.clock, parts.seeds).await?)
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
        self.resume_studies(&tracer).await?;
        Ok(())
    }
}
