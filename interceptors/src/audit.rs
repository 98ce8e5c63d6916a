//! Records calls that the rule wants recorded, and every refusal of a caller that is known.
//!
//! A record needs a place in the queue before the call may begin: when the audit trail cannot take
//! more, calls that must be recorded are refused rather than done in the dark. What a call changed
//! is recorded by its service, in the transaction of the change. Refusals say why and whose they are;
//! whoever writes the queue down folds those that repeat.

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
use tars_proto::{fault, table::AuditLevel};
use tars_runtime::{
    audit::{Record, Severity, refusals},
    clock::Clock,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

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
    pub fn new(service: &str, clock: Clock, queue: mpsc::Sender<Record>, dropped: Counter) -> Self {
        Self(Arc::new(Inner {
            service: service.to_owned(),
            clock,
            queue,
            dropped,
        }))
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
                    "AUDIT_FULL",
                    "the audit trail cannot take more now",
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

#[derive(Debug)]
pub struct AuditWatch {
    audit: Audit,
    call: Arc<Call>,
    place: Option<mpsc::OwnedPermit<Record>>,
    /// Why the call was refused, as its answer says it.
    reason: OnceLock<String>,
}

impl AuditWatch {
    fn is_wanted(&self, code: Code) -> bool {
        let known = self.call.caller().is_some();
        match code {
            // Strangers must not be able to fill the trail; metrics count them.
            Code::Unauthenticated | Code::ResourceExhausted | Code::InvalidArgument if !known => {
                false
            }
            Code::PermissionDenied => true,
            _ => self.call.method.rule.audit > AuditLevel::None,
        }
    }

    fn record(&self, code: Code) -> Record {
        let denied = code == Code::PermissionDenied;
        let kind = if denied {
            "authz.access.denied"
        } else {
            "call"
        };
        let severity = match self.call.method.rule.audit {
            _ if denied => Severity::Warning,
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
        let status = Status::from_header_map(headers);
        if let Some(reason) = status.as_ref().and_then(fault::reason) {
            // There is one answer.
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
                // That the queue is full is said by its check, once.
                if self.audit.0.queue.try_send(record).is_err() {
                    self.audit.0.dropped.inc();
                }
            }
        }
    }
}
