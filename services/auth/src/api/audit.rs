//! The handlers of the audit log.

use super::Api;
use crate::audit::Filter;
use tars_interceptors::{Call, audit::event};
use tars_proto::{auth::v1::*, time::micros};
use tars_runtime::audit::{Record, Severity};
use tonic::{Request, Response, Status};
use uuid::Uuid;

fn record(event: AuditEvent, service: &str) -> Result<Record, Status> {
    let bad =
        |field: &str| tars_proto::fault::invalid_field(field, "is not valid in an audit record");
    let severity = Severity::parse(&event.severity).ok_or_else(|| bad("events.severity"))?;
    Ok(Record {
        event_id: Uuid::try_parse(&event.event_id).map_err(|_| bad("events.event_id"))?,
        at_us: event
            .timestamp
            .as_ref()
            .map(micros)
            .ok_or_else(|| bad("events.timestamp"))?,
        event_type: event.event_type,
        severity,
        // A service can only append records of its own.
        service: service.to_owned(),
        peer: event.peer,
        caller: event.caller,
        method: event.method,
        resource: event.resource,
        result: event.result,
        trace_id: event.trace_id,
        details: event.details,
    })
}

#[tonic::async_trait]
impl audit_service_server::AuditService for Api {
    async fn list_audit_events(
        &self,
        request: Request<ListAuditEventsRequest>,
    ) -> Result<Response<ListAuditEventsResponse>, Status> {
        let asked = request.into_inner();
        let filter = Filter {
            event_type: asked.event_type,
            caller: asked.caller,
            service: asked.service,
            from_us: asked.start_time.as_ref().map(micros),
            to_us: asked.end_time.as_ref().map(micros),
        };
        let (records, next_page_token) = self
            .0
            .list_audit(&filter, &asked.page_token, asked.page_size)
            .await?;
        Ok(Response::new(ListAuditEventsResponse {
            events: records.into_iter().map(event).collect(),
            next_page_token,
        }))
    }

    async fn append_audit_events(
        &self,
        request: Request<AppendAuditEventsRequest>,
    ) -> Result<Response<AppendAuditEventsResponse>, Status> {
        let class = Call::of(&request)?.peer.class;
        let service = class
            .ok_or_else(|| Status::internal("the peer policy lets only known classes in"))?
            .as_str();
        let events = request.into_inner().events;
        let records = events
            .into_iter()
            .map(|e| record(e, service))
            .collect::<Result<Vec<_>, _>>()?;
        self.0.append_audit(&records).await?;
        Ok(Response::new(AppendAuditEventsResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_runtime::clock::Clock;

    #[test]
    fn a_record_arrives_as_it_was_sent_and_names_the_service_that_sent_it() {
        for severity in [
            Severity::Info,
            Severity::Warning,
            Severity::Error,
            Severity::Critical,
        ] {
            let sent = Record::new(&Clock::system(), "automl", "study.failed")
                .severity(severity)
                .caller("user:ada")
                .method("/x")
                .resource("study")
                .result("ABORTED")
                .detail("agent", "policy");
            assert_eq!(record(event(sent.clone()), "automl").unwrap(), sent);
            let claimed = record(event(sent), "hypersync").unwrap();
            assert_eq!(claimed.service, "hypersync");
        }
        let mut unknown = event(Record::new(&Clock::system(), "automl", "x"));
        unknown.severity = "fatal".to_owned();
        assert!(record(unknown, "automl").is_err());
    }
}
