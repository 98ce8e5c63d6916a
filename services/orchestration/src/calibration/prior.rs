//! What a fit starts from.
//!
//! The shipped calibration describes an assumed mesh, and a live service may be a hundred times faster: a
//! prior of even a few calls of that would outweigh a thousand real ones. So the prior has what the first
//! window measured, and counts as a few calls more of that. What no window measures keeps its shipped value.

use tars_worlds::mesh::{
    Calibration, Service, Tenant,
    fit::{ServiceWindow, TenantWindow, Window},
};

/// The service that is measured.
const SERVICE: &str = "orchestration";
/// The smallest rate in calls/s or time in s that the model takes.
const LEAST: f64 = 1e-6;

/// The prior of a mesh of one service with so many places, and of callers with these names.
pub(super) fn prior(callers: &[String], first: &Window, places: u32) -> Calibration {
    let mut prior = Calibration::shipped();
    let shipped = prior.services.iter().find(|s| s.name == SERVICE);
    let shipped = shipped.expect("the shipped mesh has the service").clone();
    prior.name = "measured".to_owned();
    let callers = callers.iter().zip(&first.tenants);
    let count = first.tenants.len() as f64;
    prior.tenants = callers
        .map(|(name, calls)| tenant(name, calls, first.seconds, count))
        .collect();
    prior.services = vec![service(shipped, &first.services[0], places)];
    prior.clients.transient = failing(&first.tenants);
    prior
}

/// Callers have equal shares: what somebody is entitled to is decided, and not measured.
fn tenant(name: &str, calls: &TenantWindow, seconds: f64, count: f64) -> Tenant {
    Tenant {
        name: name.to_owned(),
        rate: (calls.attempts / seconds).max(LEAST),
        entitlement: 1.0 / count,
        work: 1.0,
        mix: Vec::new(),
    }
}

/// A replica of the model serves one call at a time, as a place of the service does.
fn service(shipped: Service, calls: &ServiceWindow, places: u32) -> Service {
    let mean = (calls.time_s / calls.calls.max(1.0)).max(LEAST);
    let square = calls.time_squared / calls.calls.max(1.0);
    Service {
        service_time_s: mean,
        service_cv2: (square / (mean * mean) - 1.0).max(0.0),
        min_replicas: places,
        max_replicas: places,
        ..shipped
    }
}

/// The share of admitted calls that fail.
fn failing(tenants: &[TenantWindow]) -> f64 {
    let admitted: f64 = tenants.iter().map(|t| t.admitted).sum();
    let failures: f64 = tenants.iter().map(|t| t.failures).sum();
    (failures / admitted.max(1.0)).clamp(0.0, 1.0)
}
