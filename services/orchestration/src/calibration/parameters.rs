//! The parameters of a calibration, each with whether it was measured.

use serde::{Deserialize, Serialize};
use tars_worlds::mesh::{Calibration, fit::Window};

/// One number of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
    pub(crate) fitted: bool,
}

/// What agents act on beside the calls of the mesh, as the beginning of the names of its parameters.
const ACTS_ON: &[(&str, &str)] = &[("consensus", "changes.")];

/// Whether what an agent acts on was measured, as far as these parameters say. That calls were is what makes a
/// calibration one.
pub(crate) fn are_of(agent: &str, all: &[Parameter]) -> bool {
    let acts_on = ACTS_ON.iter().find(|(whose, _)| *whose == agent);
    acts_on.is_none_or(|(_, names)| {
        let own = all.iter().filter(|one| one.name.starts_with(names));
        own.clone().next().is_some() && own.clone().all(|one| one.fitted)
    })
}

/// What windows measure.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    calls: bool,
    /// How often callers retry shows where calls fail.
    failures: bool,
}

/// The parameters of a calibration that was fitted to windows, and to proposals or not; of one that was not fitted,
/// without any.
pub(crate) fn parameters(
    mesh: &Calibration,
    windows: &[Window],
    approvals: bool,
) -> Vec<Parameter> {
    let mut tenants = windows.iter().flat_map(|window| &window.tenants);
    let evidence = Evidence {
        calls: !windows.is_empty(),
        failures: tenants.any(|tenant| tenant.failures > 0.0),
    };
    let mut all = Vec::new();
    let mut add = |name: &str, unit: &str, value, fitted| {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        all.push(Parameter {
            name,
            unit,
            value,
            fitted,
        });
    };
    for tenant in &mesh.tenants {
        add(
            &format!("{}.rate", tenant.name),
            "calls/s",
            tenant.rate,
            evidence.calls,
        );
        add(
            &format!("{}.work", tenant.name),
            "1",
            tenant.work,
            evidence.calls,
        );
        add(
            &format!("{}.entitlement", tenant.name),
            "1",
            tenant.entitlement,
            false,
        );
    }
    for service in &mesh.services {
        let name = |what| format!("{}.{what}", service.name);
        add(
            &name("service_time"),
            "s",
            service.service_time_s,
            evidence.calls,
        );
        add(
            &name("service_cv2"),
            "1",
            service.service_cv2,
            evidence.calls,
        );
        add(&name("arrival_cv2"), "1", service.arrival_cv2, false);
        add(&name("start_up"), "s", service.start_up_s, false);
    }
    let (clients, changes) = (&mesh.clients, &mesh.changes);
    add("clients.transient", "1", clients.transient, evidence.calls);
    add(
        "clients.retries",
        "1",
        clients.patient.retries,
        evidence.failures,
    );
    for (name, unit, value) in [
        ("proposals", "1/s", changes.proposals),
        ("bad", "1", changes.bad),
        ("available", "1", changes.available),
        ("answer", "s", changes.answer_s),
        ("answer_sigma", "1", changes.answer_sigma),
        ("spots", "1", changes.spots),
        ("false_alarms", "1", changes.false_alarms),
    ] {
        add(&format!("changes.{name}"), unit, value, approvals);
    }
    all
}
