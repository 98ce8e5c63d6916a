//! The parameters of the mesh: what is fitted to measurements, or assumed where there are none.

mod check;

pub use check::BadCalibration;

use super::spread::Spread;
use serde::{Deserialize, Serialize};

/// The largest number of tenants. A live mesh with more groups the smaller ones.
pub const MAX_TENANTS: usize = 4;
/// The largest number of services, with the entry.
pub const MAX_SERVICES: usize = 4;
/// The largest number of approvers.
pub const MAX_APPROVERS: usize = 9;
/// The largest number of replicas of a service.
pub const MAX_REPLICAS: u32 = 64;

/// Everything that determines how the mesh behaves. [`Calibration::shipped`] is assumed; a fitted one says
/// from what it was fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Which calibration this is: `shipped` for the assumed one. It is shown beside every figure.
    pub name: String,
    /// The control interval, which is the length of a step, in s.
    pub interval_s: f64,
    /// The steps of an episode.
    pub max_steps: u32,
    /// How far the settings that an episode begins with may be from an operator's: 0 for not at all, 1 for
    /// as far as somebody may have left them. Agents that correct what they find do better than those that
    /// hold.
    pub disorder: f64,
    /// The tenants, up to [`MAX_TENANTS`].
    pub tenants: Vec<Tenant>,
    /// The services, up to [`MAX_SERVICES`]. Every call passes the first one, and then one of the others.
    pub services: Vec<Service>,
    /// How the times of all calls are spread, where that was measured; without it each call's are log-normal.
    #[serde(default)]
    pub spread: Option<Spread>,
    /// How load varies.
    pub traffic: Traffic,
    /// What callers do when a call fails.
    pub clients: Clients,
    /// How many seconds of the rate limit the token bucket holds.
    pub bucket_s: f64,
    /// The latency above which a call violates the objective, in s.
    pub objective_s: f64,
    /// How configuration changes are proposed, decided on, and what they do.
    pub changes: Changes,
    /// The weights of the rewards.
    pub rewards: Rewards,
}

/// Who calls the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The name.
    pub name: String,
    /// The mean rate of first attempts outside of bursts, in calls/s.
    pub rate: f64,
    /// The share of the mesh that the tenant is entitled to; the shares sum to 1.
    pub entitlement: f64,
    /// How much longer than the mean its calls take, as a factor.
    pub work: f64,
    /// The share of its calls that go to each service but the first; the shares sum to 1. Empty where there
    /// is only one service.
    pub mix: Vec<f64>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name.
    pub name: String,
    /// The mean service time of a call, without waiting, in s.
    pub service_time_s: f64,
    /// The squared coefficient of variation of service times: 1 for exponential ones.
    pub service_cv2: f64,
    /// The squared coefficient of variation of the times between arrivals: 1 for Poisson arrivals.
    pub arrival_cv2: f64,
    /// The fewest replicas. A replica serves one call at a time.
    pub min_replicas: u32,
    /// The most replicas.
    pub max_replicas: u32,
    /// How long a new replica takes until it serves, in s.
    pub start_up_s: f64,
    /// The price of a replica relative to the others.
    pub price: f64,
    /// The longest queue, in seconds of the service's full capacity; what comes on top is dropped.
    pub queue_s: f64,
}

/// How load varies: over the day, in bursts, and at random.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// By how much load rises and falls over the day, as a share of its mean.
    pub diurnal: f64,
    /// The hour of the day at which load is highest.
    pub peak_hour: f64,
    /// The factor of a tenant's rate in a burst (the second state of an MMPP).
    pub burst_factor: f64,
    /// The mean length of a burst, in s.
    pub burst_s: f64,
    /// The mean time between bursts, in s.
    pub calm_s: f64,
    /// The variance of the number of arrivals in an interval over their mean, at least 1. The variance of
    /// Poisson arrivals, which is 1, is part of the waiting-time formula; what exceeds it is drawn.
    pub dispersion: f64,
}

/// What callers do when a call fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// Timeout and retries as they usually are.
    pub patient: Patience,
    /// Timeout and retries in the mode that sheds load.
    pub strict: Patience,
    /// The share of calls that fail for reasons that have nothing to do with load.
    pub transient: f64,
    /// The share of calls that are repeated after they were shed or dropped.
    pub shed_retries: f64,
}

/// A timeout and how much is retried after it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patience {
    /// After this time a caller gives a call up, in s. The mesh finishes it nevertheless.
    pub timeout_s: f64,
    /// The share of failed calls that are tried again.
    pub retries: f64,
    /// The most retries, as a share of first attempts.
    pub budget: f64,
}

/// The management of configuration changes. A good change makes calls faster until it is out of date, a bad
/// one makes them slower until it is rolled back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// How many approvers there are, up to [`MAX_APPROVERS`].
    pub approvers: u32,
    /// The smallest quorum that may be set.
    pub min_quorum: u32,
    /// Proposals per second in quiet times.
    pub proposals: f64,
    /// The factor of the rate of proposals in risky times.
    pub risky_factor: f64,
    /// The share of bad proposals in quiet times.
    pub bad: f64,
    /// The share of bad proposals in risky times.
    pub risky_bad: f64,
    /// The mean length of risky times, in s.
    pub risky_s: f64,
    /// The mean length of quiet times, in s.
    pub quiet_s: f64,
    /// The chance that an approver is available at noon.
    pub available: f64,
    /// How much of that is lost at night, as a share.
    pub night: f64,
    /// The median time that an available approver takes to answer, in s.
    pub answer_s: f64,
    /// The standard deviation of the logarithm of that time.
    pub answer_sigma: f64,
    /// The chance that an approver spots a bad proposal.
    pub spots: f64,
    /// The chance that an approver rejects a good proposal.
    pub false_alarms: f64,
    /// The shortest and the longest time until an undecided proposal expires, in s.
    pub timeout_s: [f64; 2],
    /// By how much a good change raises the service rate, as a share.
    pub gain: f64,
    /// The time in which a good change loses all but 1/e of its effect, in s.
    pub gain_s: f64,
    /// By how much a bad change lowers the service rate, as a share.
    pub harm: f64,
    /// The mean time until a bad change is rolled back, in s.
    pub rollback_s: f64,
}

/// The weights of the rewards, which stay within -1 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewards {
    /// Policy: of calls above the latency objective, against a weight of 1 of completed ones.
    pub policy_slow: f64,
    /// Policy: of shed calls.
    pub policy_shed: f64,
    /// Consensus: of the gain of good changes, per share of the service rate.
    pub consensus_gain: f64,
    /// Consensus: of the harm of bad changes, per share of the service rate.
    pub consensus_harm: f64,
    /// Consensus: of the mean age of pending proposals, per longest timeout.
    pub consensus_age: f64,
    /// Ethical: of Jain's index of what tenants get of what they are entitled to.
    pub ethical_jain: f64,
    /// Ethical: of what the worst-off tenant gets.
    pub ethical_worst: f64,
    /// Ethical: of calls that were not completed.
    pub ethical_lost: f64,
    /// Resource: of the price of the replicas, as a share of that of the most replicas.
    pub resource_cost: f64,
    /// Resource: of calls that were refused or violated the latency objective.
    pub resource_slow: f64,
    /// Resource: of the change of the share of replicas.
    pub resource_change: f64,
}

fn tenant(name: &str, rate: f64, entitlement: f64, work: f64, mix: [f64; 3]) -> Tenant {
    Tenant {
        name: name.into(),
        rate,
        entitlement,
        work,
        mix: mix.to_vec(),
    }
}

fn service(name: &str, service_time_s: f64, replicas: [u32; 2], start_up_s: f64) -> Service {
    Service {
        name: name.into(),
        service_time_s,
        service_cv2: 1.0,
        arrival_cv2: 1.0,
        min_replicas: replicas[0],
        max_replicas: replicas[1],
        start_up_s,
        price: 1.0,
        queue_s: 2.0,
    }
}

impl Calibration {
    /// The calibration that simulated worlds use. It is assumed, not measured: a small mesh whose load
    /// comes close to its capacity by day and exceeds it in bursts.
    pub fn shipped() -> Self {
        Self {
            name: "shipped".into(),
            interval_s: 5.0,
            max_steps: 200,
            disorder: 1.0,
            tenants: vec![
                tenant("web", 50.0, 0.4, 0.8, [0.6, 0.2, 0.2]),
                tenant("api", 36.0, 0.3, 1.0, [0.4, 0.2, 0.4]),
                tenant("batch", 16.0, 0.2, 2.0, [0.2, 0.7, 0.1]),
                tenant("partner", 10.0, 0.1, 1.0, [0.3, 0.4, 0.3]),
            ],
            services: vec![
                service("gateway", 0.020, [1, 8], 5.0),
                service("orchestration", 0.050, [1, 8], 15.0),
                service("automl", 0.090, [1, 12], 15.0),
                service("hypersync", 0.060, [1, 6], 15.0),
            ],
            spread: None,
            traffic: Traffic {
                diurnal: 0.5,
                peak_hour: 14.0,
                burst_factor: 2.5,
                burst_s: 120.0,
                calm_s: 360.0,
                dispersion: 3.0,
            },
            clients: Clients {
                patient: Patience {
                    timeout_s: 2.0,
                    retries: 0.9,
                    budget: 2.0,
                },
                strict: Patience {
                    timeout_s: 1.0,
                    retries: 0.9,
                    budget: 0.1,
                },
                transient: 0.03,
                shed_retries: 0.2,
            },
            bucket_s: 2.0,
            objective_s: 0.5,
            changes: Changes::shipped(),
            rewards: Rewards::shipped(),
        }
    }

    /// One tenant with constant load on one service with a fixed number of replicas, without anything that
    /// varies: the special case that queueing theory has closed forms for.
    pub fn constant(rate: f64, service_time_s: f64, replicas: u32) -> Self {
        let mut only = service("only", service_time_s, [replicas, replicas], 0.0);
        only.queue_s = f64::MAX;
        let mut calibration = Self::shipped();
        calibration.name = "constant".into();
        calibration.disorder = 0.0;
        calibration.services = vec![only];
        calibration.tenants = vec![Tenant {
            mix: Vec::new(),
            ..tenant("only", rate, 1.0, 1.0, [0.0; 3])
        }];
        calibration.traffic = Traffic {
            diurnal: 0.0,
            burst_factor: 1.0,
            dispersion: 1.0,
            ..calibration.traffic
        };
        calibration.clients.transient = 0.0;
        calibration.changes.proposals = 0.0;
        calibration
    }

    /// The mean rate of first attempts of all tenants, in calls/s, which rate limits are relative to.
    pub fn nominal_rate(&self) -> f64 {
        self.tenants.iter().map(|tenant| tenant.rate).sum()
    }

    /// The price of the most replicas of all services.
    pub(crate) fn full_price(&self) -> f64 {
        let services = self.services.iter();
        services.map(|s| s.price * f64::from(s.max_replicas)).sum()
    }
}

impl Changes {
    fn shipped() -> Self {
        Self {
            approvers: 7,
            min_quorum: 2,
            proposals: 1.0 / 30.0,
            risky_factor: 2.0,
            bad: 0.05,
            risky_bad: 0.7,
            risky_s: 300.0,
            quiet_s: 500.0,
            available: 0.95,
            night: 0.6,
            answer_s: 20.0,
            answer_sigma: 0.8,
            spots: 0.4,
            false_alarms: 0.1,
            timeout_s: [15.0, 240.0],
            gain: 0.05,
            gain_s: 200.0,
            harm: 0.2,
            rollback_s: 90.0,
        }
    }
}

impl Rewards {
    fn shipped() -> Self {
        Self {
            policy_slow: 0.5,
            policy_shed: 0.3,
            consensus_gain: 3.0,
            consensus_harm: 2.0,
            consensus_age: 0.3,
            ethical_jain: 0.5,
            ethical_worst: 0.5,
            ethical_lost: 1.0,
            resource_cost: 0.4,
            resource_slow: 0.6,
            resource_change: 0.1,
        }
    }
}
