//! Orchestration as a workload of a process.

use crate::{Orchestration, api, store};
use std::sync::Arc;
use tars_runtime::{
    db::{Db, Migration},
    lease::Leases,
    trace::Tracer,
};
use tars_workload::{OpenError, Parts, Workload};
use tonic::service::Routes;

impl Workload for Orchestration {
    const MIGRATIONS: &'static [Migration] = store::MIGRATIONS;

    async fn open(parts: Parts<'_>) -> Result<Arc<Self>, OpenError> {
        let settings = parts.config.orchestration.clone();
        Ok(Self::open(
            parts.dir,
            &parts.database,
            settings,
            parts.clock,
            parts.seeds,
            parts.bus,
        )
        .await?)
    }

    fn db(&self) -> &Db {
        self.store.db()
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }

    fn routes(self: Arc<Self>, _: Tracer, max_message_bytes: usize) -> Routes {
        api::routes(self, max_message_bytes)
    }

    async fn resume(self: Arc<Self>, _: Tracer) -> Result<(), OpenError> {
        self.start_cleaning();
        self.look_for_left_runs();
        Ok(())
    }
}
