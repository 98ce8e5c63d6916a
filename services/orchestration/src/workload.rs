//! Orchestration as a workload of a process.

use crate::{HostTerms, Orchestration, Setup, api, store};
use std::sync::Arc;
use tars_runtime::{
    db::{Db, Migration},
    health::{Check, State, check},
    lease::{Leases, Terms},
};
use tars_workload::{OpenError, Parts, Workload};
use tonic::service::Routes;

impl Workload for Orchestration {
    const MIGRATIONS: &'static [Migration] = store::MIGRATIONS;

    async fn open(parts: Parts<'_>) -> Result<Arc<Self>, OpenError> {
        let setup = Setup {
            settings: parts.config.orchestration.clone(),
            clock: parts.clock,
            hosts: HostTerms::default(),
            seeds: parts.seeds,
            bus: parts.bus,
            metrics: parts.metrics.clone(),
            calls: parts.calls,
            usage: parts.usage,
            places: parts.config.connections.max_in_flight,
        };
        let terms = |db: &Db| Terms::of(db, parts.dir);
        Ok(Self::open_at(parts.dir, &parts.database, terms, setup).await?)
    }

    fn db(&self) -> &Db {
        self.store.db()
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }

    /// A replica that does not know what is live must not be sent work. One that is alone always knows.
    fn checks(self: &Arc<Self>) -> Vec<(&'static str, Check)> {
        if !self.presence.is_shared() {
            return Vec::new();
        }
        let service = Arc::downgrade(self);
        let serving = check(move || match service.upgrade().map(|this| this.tenure()) {
            Some(Err(behind)) => State::Failed(behind.to_string()),
            Some(Ok(_)) | None => State::Ok,
        });
        vec![("serving", serving)]
    }

    fn routes(self: Arc<Self>, max_message_bytes: usize) -> Routes {
        api::routes(self, max_message_bytes)
    }

    async fn resume(self: Arc<Self>) -> Result<(), OpenError> {
        self.start_cleaning();
        self.start_calibrating();
        self.start_measuring();
        self.look_for_left_runs();
        Ok(())
    }
}
