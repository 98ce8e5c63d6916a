//! The gRPC health protocol (`grpc.health.v1`), with what tonic's own service lacks: `List`, and a `Watch`
//! that reports SERVICE_UNKNOWN and continues.

use futures_util::{Stream, StreamExt, stream::unfold};
use std::{collections::BTreeMap, pin::Pin};
use tars_proto::{
    fault,
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
        health_server::{self, HealthServer},
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

type Statuses = BTreeMap<String, ServingStatus>;

/// The health of the services of one listener; `""` is the listener as a whole. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(watch::Sender<Statuses>);

impl Default for Health {
    fn default() -> Self {
        let whole = (String::new(), ServingStatus::Serving);
        Self(watch::Sender::new(Statuses::from([whole])))
    }
}

impl Health {
    /// Sets the status of a service, and notifies its watchers if it has changed.
    pub fn set(&self, service: &str, status: ServingStatus) {
        self.0.send_if_modified(|all| {
            let before = all.insert(service.to_owned(), status);
            before != Some(status)
        });
    }

    /// Sets every service to NOT_SERVING.
    pub fn stop(&self) {
        self.0.send_modify(|all| {
            for status in all.values_mut() {
                *status = ServingStatus::NotServing;
            }
        });
    }

    /// Returns the gRPC service.
    pub fn server(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone())
    }

    fn status(&self, service: &str) -> Option<ServingStatus> {
        self.0.borrow().get(service).copied()
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

/// The status of a service at once, then whenever it changes.
fn changes(
    statuses: watch::Receiver<Statuses>,
    service: String,
) -> impl Stream<Item = HealthCheckResponse> {
    unfold((statuses, None), move |(mut statuses, sent)| {
        let service = service.clone();
        async move {
            loop {
                let now = statuses.borrow_and_update().get(&service).copied();
                let now = now.unwrap_or(ServingStatus::ServiceUnknown);
                if sent != Some(now) {
                    return Some((response(now), (statuses, Some(now))));
                }
                statuses.changed().await.ok()?;
            }
        }
    })
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.status(&service) {
            Some(status) => Ok(Response::new(response(status))),
            None => Err(fault::not_found("service", &service)),
        }
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let all = self.0.borrow();
        let each = all.iter().map(|(name, s)| (name.clone(), response(*s)));
        let statuses = each.collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let items = changes(self.0.subscribe(), service).map(Ok);
        Ok(Response::new(Box::pin(items)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use health_server::Health as _;
    use tonic::Code;

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.to_owned(),
        })
    }

    #[tokio::test]
    async fn check_and_list_report_what_is_known() {
        let health = Health::default();
        health.set("a.B", ServingStatus::Serving);
        let whole = health.check(ask("")).await.unwrap().into_inner();
        assert_eq!(whole.status(), ServingStatus::Serving);
        let unknown = health.check(ask("no.Such")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        health.stop();
        let list = health.list(Request::new(HealthListRequest {})).await;
        let statuses = list.unwrap().into_inner().statuses;
        assert_eq!(statuses.keys().collect::<Vec<_>>(), ["", "a.B"]);
        assert!(
            statuses
                .values()
                .all(|s| s.status() == ServingStatus::NotServing)
        );
    }

    #[tokio::test]
    async fn a_watch_of_an_unknown_service_reports_it_and_continues() {
        let health = Health::default();
        let mut items = health.watch(ask("late")).await.unwrap().into_inner();
        let mut next = async || items.next().await.unwrap().unwrap().status();
        assert_eq!(next().await, ServingStatus::ServiceUnknown);
        health.set("other", ServingStatus::Serving);
        health.set("late", ServingStatus::Serving);
        assert_eq!(next().await, ServingStatus::Serving);
        health.set("late", ServingStatus::NotServing);
        assert_eq!(next().await, ServingStatus::NotServing);
    }
}
