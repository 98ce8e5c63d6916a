//! What the agents observe: by agent the components with their units, normalisers and sources, and the
//! numbers in the same order. A source is the metric that a live mesh measures the number by, or `computed`
//! where it is a setting, follows from the calibration, or has no metric by tenant or service.

use super::{
    calibration::{Calibration, MAX_SERVICES, MAX_TENANTS},
    controls::{CONSENSUS, ETHICAL, POLICY},
    interval::{Interval, share, sum},
    state::State,
};
use crate::{
    space::{ActionSpace, AgentSpace, Component, WorldSpec},
    world::Observations,
};

pub(crate) const NAMES: [&str; 4] = ["policy", "consensus", "ethical", "resource"];

const CALLS: &str = "rpc_server_calls";
const REFUSED: &str = "rpc_server_calls_refused";
const DURATION: &str = "rpc_server_call_duration_seconds";
const IN_FLIGHT: &str = "rpc_server_calls_in_flight";
const COMPUTED: &str = "computed";

/// A component that is never negative.
fn component(
    name: String,
    unit: &'static str,
    scale: f64,
    high: f32,
    source: &'static str,
) -> Component {
    Component {
        name: name.into(),
        unit: unit.into(),
        low: 0.0,
        high,
        scale: scale as f32,
        source: source.into(),
    }
}

fn ratio(name: &str, high: f32, source: &'static str) -> Component {
    component(name.into(), "1", 1.0, high, source)
}

fn hour() -> [Component; 2] {
    ["hour_sin", "hour_cos"].map(|name| Component::computed(name, "1", -1.0, 1.0))
}

/// For each tenant, and for those that the calibration does not have, which stay zero: its name and the rate
/// that it is entitled to.
fn tenants(calibration: &Calibration) -> impl Iterator<Item = (String, f64)> {
    let nominal = calibration.nominal_rate();
    (0..MAX_TENANTS).map(move |at| match calibration.tenants.get(at) {
        Some(tenant) => (tenant.name.clone(), tenant.entitlement * nominal),
        None => (format!("tenant_{}", at + 1), nominal),
    })
}

fn services(calibration: &Calibration) -> impl Iterator<Item = String> {
    (0..MAX_SERVICES).map(|at| match calibration.services.get(at) {
        Some(service) => service.name.clone(),
        None => format!("service_{}", at + 1),
    })
}

fn policy(calibration: &Calibration) -> Vec<Component> {
    let (nominal, objective) = (calibration.nominal_rate(), calibration.objective_s);
    let of = |(name, rate): (String, f64)| {
        [
            component(format!("{name}_offered"), "calls/s", rate, 8.0, COMPUTED),
            component(format!("{name}_admitted"), "calls/s", rate, 8.0, COMPUTED),
            ratio(&format!("{name}_shed"), 1.0, COMPUTED),
            ratio(&format!("{name}_timed_out"), 1.0, COMPUTED),
            component(format!("{name}_latency"), "s", objective, 8.0, COMPUTED),
        ]
    };
    let mut all: Vec<Component> = tenants(calibration).flat_map(of).collect();
    let percentile = |p: u32| component(format!("latency_p{p}"), "s", objective, 8.0, DURATION);
    let timeout = calibration.clients.patient.timeout_s;
    all.extend([
        percentile(50),
        percentile(95),
        percentile(99),
        component(
            "in_flight".into(),
            "calls",
            nominal * objective,
            8.0,
            IN_FLIGHT,
        ),
        component("queue_delay".into(), "s", timeout, 8.0, COMPUTED),
        ratio("retries", 2.0, COMPUTED),
        component("limit".into(), "calls/s", nominal, 4.0, COMPUTED),
        ratio("strict", 1.0, COMPUTED),
        ratio("utilisation", 4.0, DURATION),
        ratio("done", 1.0, CALLS),
    ]);
    all.extend(hour());
    all
}

fn consensus(calibration: &Calibration) -> Vec<Component> {
    let changes = &calibration.changes;
    let longest = changes.timeout_s[1];
    let mut all = vec![
        component(
            "quorum".into(),
            "approvals",
            f64::from(changes.approvers),
            1.0,
            COMPUTED,
        ),
        component("timeout".into(), "s", longest, 1.0, COMPUTED),
        component("pending".into(), "proposals", 8.0, 2.0, COMPUTED),
        component("mean_age".into(), "s", longest, 1.1, COMPUTED),
        component("oldest_age".into(), "s", longest, 1.1, COMPUTED),
        component("proposals".into(), "proposals/s", 0.1, 8.0, COMPUTED),
        ratio("accepted", 1.0, COMPUTED),
        ratio("rolled_back", 1.0, COMPUTED),
        ratio("approved", 1.0, COMPUTED),
        component("answer_time".into(), "s", changes.answer_s, 8.0, COMPUTED),
        ratio("answered", 1.0, COMPUTED),
        ratio("service_rate", 2.0, DURATION),
        ratio("utilisation", 4.0, DURATION),
        ratio("slow", 1.0, DURATION),
    ];
    all.extend(hour());
    all
}

fn ethical(calibration: &Calibration) -> Vec<Component> {
    let objective = calibration.objective_s;
    let of = |(name, rate): (String, f64)| {
        [
            ratio(&format!("{name}_satisfaction"), 1.0, COMPUTED),
            component(format!("{name}_demand"), "calls/s", rate, 8.0, COMPUTED),
            ratio(&format!("{name}_weight"), 8.0, COMPUTED),
            component(format!("{name}_latency"), "s", objective, 8.0, COMPUTED),
        ]
    };
    let mut all: Vec<Component> = tenants(calibration).flat_map(of).collect();
    all.extend([
        ratio("jain", 1.0, COMPUTED),
        ratio("worst_satisfaction", 1.0, COMPUTED),
        component("inverse_alpha".into(), "1", 2.0, 1.0, COMPUTED),
        component(
            "limit".into(),
            "calls/s",
            calibration.nominal_rate(),
            4.0,
            COMPUTED,
        ),
        ratio("utilisation", 4.0, DURATION),
        ratio("shed", 1.0, REFUSED),
    ]);
    all.extend(hour());
    all
}

fn resource(calibration: &Calibration) -> Vec<Component> {
    let objective = calibration.objective_s;
    let mut all = Vec::new();
    for name in services(calibration) {
        all.extend([
            ratio(&format!("{name}_utilisation"), 4.0, DURATION),
            component(format!("{name}_wait"), "s", objective, 8.0, DURATION),
            ratio(&format!("{name}_ready"), 1.0, COMPUTED),
        ]);
    }
    let nominal = calibration.nominal_rate();
    all.extend([
        ratio("starting", 1.0, COMPUTED),
        ratio("share", 1.0, COMPUTED),
        component("offered".into(), "calls/s", nominal, 8.0, CALLS),
        Component {
            low: -8.0,
            ..component("offered_change".into(), "calls/s", nominal, 8.0, CALLS)
        },
        ratio("service_rate", 2.0, DURATION),
        ratio("slow", 1.0, DURATION),
    ]);
    all.extend(hour());
    all
}

/// The agents and their spaces.
pub(crate) fn spec(calibration: &Calibration) -> WorldSpec {
    let agent = |at: usize, observation, action| AgentSpace {
        name: NAMES[at].into(),
        observation,
        action,
    };
    let share = Component::computed("share", "1", 0.0, 1.0);
    WorldSpec {
        name: "mesh".into(),
        agents: vec![
            agent(
                0,
                policy(calibration),
                ActionSpace::named(&POLICY.map(|(name, ..)| name)),
            ),
            agent(1, consensus(calibration), ActionSpace::named(&CONSENSUS)),
            agent(2, ethical(calibration), ActionSpace::named(&ETHICAL)),
            agent(
                3,
                resource(calibration),
                ActionSpace::Continuous(vec![share]),
            ),
        ],
        max_steps: Some(calibration.max_steps),
        calibration: Some(calibration.name.clone().into()),
    }
}

/// Writes one agent's numbers in the order of its components, each divided by its scale.
struct Writer<'a> {
    components: std::slice::Iter<'a, Component>,
    seen: std::slice::IterMut<'a, f32>,
}

impl Writer<'_> {
    fn push(&mut self, number: f64) {
        if let (Some(component), Some(seen)) = (self.components.next(), self.seen.next()) {
            *seen = (number as f32 / component.scale).clamp(component.low, component.high);
        }
    }

    fn extend(&mut self, numbers: &[f64]) {
        for number in numbers {
            self.push(*number);
        }
    }
}

/// A state and what its numbers are relative to.
pub(crate) struct View<'a> {
    pub(crate) calibration: &'a Calibration,
    pub(crate) spec: &'a WorldSpec,
    pub(crate) state: &'a State,
}

impl View<'_> {
    /// Writes the observations of all agents.
    pub(crate) fn write(&self, observations: &mut Observations) {
        let (sin, cos) = self.state.load.angle().sin_cos();
        let parts = [Self::policy, Self::consensus, Self::ethical, Self::resource];
        for (at, part) in parts.into_iter().enumerate() {
            let mut writer = Writer {
                components: self.spec.agents[at].observation.iter(),
                seen: observations.of_mut(at).iter_mut(),
            };
            part(self, &mut writer);
            writer.extend(&[sin, cos]);
        }
    }

    fn policy(&self, writer: &mut Writer<'_>) {
        let (state, last, interval) = (self.state, &self.state.last, self.calibration.interval_s);
        for at in 0..MAX_TENANTS {
            writer.extend(&[
                last.offered[at] / interval,
                last.admitted[at] / interval,
                share(last.shed[at], last.offered[at], 0.0),
                share(last.timed_out[at], last.admitted[at], 0.0),
                last.latency[at],
            ]);
        }
        writer.extend(&last.quantiles);
        writer.extend(&[
            last.in_flight,
            last.waits.iter().sum(),
            share(state.retrying(), sum(&last.demand), 0.0),
            state.controls.limit,
            f64::from(u8::from(state.controls.strict)),
            last.bottleneck(),
            1.0 - last.lost(),
        ]);
    }

    fn consensus(&self, writer: &mut Writer<'_>) {
        let (controls, changes) = (&self.state.controls, &self.state.changes);
        let interval = self.calibration.interval_s;
        let (seen, [mean_age, oldest_age]) = (&changes.seen, changes.ages());
        writer.extend(&[
            f64::from(controls.quorum),
            controls.timeout_s,
            changes.pending() as f64,
            mean_age * interval,
            oldest_age * interval,
            seen.proposals / interval,
            seen.accepted,
            seen.rolled_back,
            seen.approved,
            seen.answer_s,
            seen.answered,
            changes.efficiency(&self.calibration.changes),
            self.state.last.bottleneck(),
            self.state.last.slow,
        ]);
    }

    fn ethical(&self, writer: &mut Writer<'_>) {
        let (controls, last) = (&self.state.controls, &self.state.last);
        let tenants = self.calibration.tenants.len();
        for at in 0..MAX_TENANTS {
            let entitlement = self
                .calibration
                .tenants
                .get(at)
                .map(|tenant| tenant.entitlement);
            writer.extend(&[
                if at < tenants {
                    last.satisfaction[at]
                } else {
                    0.0
                },
                last.demand[at] / self.calibration.interval_s,
                entitlement.map_or(0.0, |entitlement| controls.weights[at] / entitlement),
                last.latency[at],
            ]);
        }
        writer.extend(&[
            last.fairness(tenants),
            last.satisfaction[last.worst(tenants)],
            controls.alpha.inverse(),
            controls.limit,
            last.bottleneck(),
            last.shed_share(),
        ]);
    }

    fn resource(&self, writer: &mut Writer<'_>) {
        let (state, last) = (self.state, &self.state.last);
        let (mut starting, mut most) = (0.0, 0.0);
        for at in 0..MAX_SERVICES {
            let service = self.calibration.services.get(at);
            let max = service.map_or(1.0, |service| f64::from(service.max_replicas));
            let replicas = state.fleet[at];
            starting += f64::from(replicas.starting());
            most += service.map_or(0.0, |_| max);
            writer.extend(&[
                last.utilisation[at],
                last.waits[at],
                f64::from(replicas.ready) / max,
            ]);
        }
        let Interval { offered, slow, .. } = last;
        let interval = self.calibration.interval_s;
        writer.extend(&[
            starting / most,
            state.controls.share,
            sum(offered) / interval,
            (sum(offered) - state.offered_before) / interval,
            state.changes.efficiency(&self.calibration.changes),
            *slow,
        ]);
    }
}
