//! Audits calls for which the contract asks for it, and every refusal of a known caller.
//!
//! A call of a high audit level reserves a slot in the queue before it begins: when the audit trail
//! has no room, such calls are refused rather than done unrecorded. What a call changed is recorded by
//! its service, in the transaction of the change. Records of refusals carry the reason and the owner
//! of the caller, by which the task that drains the queue folds repetitions.

use crate::{
    Call,
    observe::{Observe, Watch},
};
use http::{HeaderMap, Request};
use prometheus_client::metrics::counter::Counter;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tars_proto::{
    auth::v1::AuditEvent, binary, fault, reason, table::AuditLevel, time::timestamp,
    unavailable::Unavailable,
};
use tars_runtime::{
    audit::{Record, Severity, refusals},
    clock::Clock,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// The observer that audits the calls of one service. Clones share it.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: String,
    clock: Clock,
    queue: mpsc::Sender<Record>,
    dropped: Counter,
}

impl Audit {
    /// Creates the observer of `service`. Records go to `queue`; `dropped` counts those of a low
    /// level for which it has no room.
    pub fn new(service: &str, clock: Clock, queue: mpsc::Sender<Record>, dropped: Counter) -> Self {
        Self(Arc::new(Inner {
            service: service.to_owned(),
            clock,
            queue,
            dropped,
        }))
    }
}

/// Converts a record to the message in which services send it to Auth, and Auth lists it.
pub fn event(record: Record) -> AuditEvent {
    AuditEvent {
        event_id: record.event_id.to_string(),
        timestamp: Some(timestamp(record.at_us)),
        event_type: record.event_type,
        severity: record.severity.as_str().to_owned(),
        service: record.service,
        peer: record.peer,
        caller: record.caller,
        method: record.method,
        resource: record.resource,
        result: record.result,
        trace_id: record.trace_id,
        details: record.details,
    }
}

impl Observe for Audit {
    type Watch = AuditWatch;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<AuditWatch, Status> {
        let call = Call::in_extensions(request.extensions()).map(Arc::clone);
        let call = call.ok_or_else(|| Status::internal("the call has no record"))?;
        let place = if call.method.rule.audit >= AuditLevel::High {
            let place = self.0.queue.clone().try_reserve_owned();
            let full = |_| {
                fault::unavailable(
                    Unavailable::AuditFull,
                    "the audit trail has no room for more records",
                    Duration::from_secs(1),
                )
            };
            Some(place.map_err(full)?)
        } else {
            None
        };
        Ok(AuditWatch {
            audit: self.clone(),
            call,
            place,
            reason: OnceLock::new(),
        })
    }
}

/// Audits one call when it ends.
#[derive(Debug)]
pub struct AuditWatch {
    audit: Audit,
    call: Arc<Call>,
    place: Option<mpsc::OwnedPermit<Record>>,
    /// The reason in the response, when the call was refused.
    reason: OnceLock<String>,
}

impl AuditWatch {
    fn is_wanted(&self, code: Code) -> bool {
        let known = self.call.caller().is_some();
        match code {
            Code::ResourceExhausted if known && self.is_over_quota() => true,
            Code::PermissionDenied => true,
            Code::Unauthenticated | Code::ResourceExhausted | Code::InvalidArgument if !known => {
                false
            }
            // Strangers must not be able to fill the trail, whatever becomes of their calls; they show in metrics.
            _ if code != Code::Ok && self.call.is_of_stranger() => false,
            _ => self.call.method.rule.audit > AuditLevel::None,
        }
    }

    fn is_over_quota(&self) -> bool {
        let reason = self.reason.get();
        reason.is_some_and(|reason| reason == reason::QUOTA_EXCEEDED)
    }

    fn record(&self, code: Code) -> Record {
        let kind = match code {
            Code::PermissionDenied => "authz.access.denied",
            Code::ResourceExhausted if self.is_over_quota() => "usage.quota.exceeded",
            _ => "call",
        };
        let severity = match self.call.method.rule.audit {
            _ if kind != "call" => Severity::Warning,
            AuditLevel::Critical => Severity::Critical,
            _ => Severity::Info,
        };
        let mut record = Record::new(&self.audit.0.clock, &self.audit.0.service, kind)
            .severity(severity)
            .caller(self.call.actor())
            .method(&self.call.method.path)
            .result(fault::code_name(code));
        record.peer = self.call.peer.name().to_owned();
        record.trace_id = self.call.trace.trace_id_hex();
        if code == Code::Ok {
            return record;
        }
        if let Some(reason) = self.reason.get() {
            record = record.detail(refusals::REASON, reason);
        }
        record.detail(refusals::OWNER, self.call.owner())
    }
}

impl Watch for AuditWatch {
    fn answer(&self, headers: &mut HeaderMap) {
        let status = binary::status_in(headers);
        if let Some(reason) = status.as_ref().and_then(fault::reason) {
            // A call has one response.
            self.reason.set(reason).ok();
        }
    }

    fn end(mut self, code: Code) {
        if !self.is_wanted(code) {
            return;
        }
        let record = self.record(code);
        match self.place.take() {
            Some(place) => drop(place.send(record)),
            None => {
                // The queue's own health check reports that it is full.
                if self.audit.0.queue.try_send(record).is_err() {
                    self.audit.0.dropped.inc();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{by_credential, by_peer};
    use tars_certs::PeerClass;

    const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
    const ISSUE: &str = "/tars.auth.v1.CertificateService/IssueCertificate";

    /// Whether a call that ends with a code leaves a record.
    fn is_recorded(call: &Arc<Call>, code: Code) -> bool {
        let (queue, mut records) = mpsc::channel(1);
        let audit = Audit::new("test", Clock::system(), queue, Counter::default());
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::clone(call));
        audit.begin(&mut request).unwrap().end(code);
        records.try_recv().is_ok()
    }

    #[test]
    fn strangers_cannot_fill_the_trail_whatever_becomes_of_their_calls() {
        let by_stranger = by_peer(LOGIN, PeerClass::Gateway, "/gateway");
        let by_caller = by_credential(ISSUE, "/gateway", "ada", "user:ada");
        let by_workload = by_peer(ISSUE, PeerClass::Automl, "/automl");
        for code in [
            Code::DeadlineExceeded,
            Code::Unavailable,
            Code::Cancelled,
            Code::Internal,
            Code::FailedPrecondition,
        ] {
            assert!(!is_recorded(&by_stranger, code), "{code:?}");
            assert!(is_recorded(&by_caller, code), "{code:?}");
            assert!(is_recorded(&by_workload, code), "{code:?}");
        }
        for code in [Code::Ok, Code::PermissionDenied] {
            assert!(is_recorded(&by_stranger, code), "{code:?}");
        }
    }
}
