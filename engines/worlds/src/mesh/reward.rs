//! What each agent is rewarded for. The mesh has one capacity that all four act on, and each of them wants
//! something else of it: Policy that what is admitted is done in time, Consensus good changes, Ethical that
//! everybody gets their due, Resource few replicas.

use super::{
    calibration::Calibration,
    interval::{share, sum},
    state::State,
};

/// The rewards of the last interval, in the order of the agents, within -1 and 1.
pub(crate) fn rewards(calibration: &Calibration, state: &State) -> [f64; 4] {
    [
        policy(calibration, state),
        consensus(calibration, state),
        ethical(calibration, state),
        resource(calibration, state),
    ]
    .map(|reward| reward.clamp(-1.0, 1.0))
}

fn policy(calibration: &Calibration, state: &State) -> f64 {
    let (weights, last) = (&calibration.rewards, &state.last);
    let done = share(sum(&last.done), sum(&last.demand), 1.0);
    done - weights.policy_slow * last.slow - weights.policy_shed * last.shed_share()
}

fn consensus(calibration: &Calibration, state: &State) -> f64 {
    let (weights, changes) = (&calibration.rewards, &calibration.changes);
    let [age, _] = state.changes.ages();
    let age = age * calibration.interval_s / changes.timeout_s[1];
    // A slower mesh hurts the more the busier it is.
    let harm = state.changes.harm(changes) * (0.5 + state.last.bottleneck().min(1.5));
    weights.consensus_gain * state.changes.gain
        - weights.consensus_harm * harm
        - weights.consensus_age * age
}

fn ethical(calibration: &Calibration, state: &State) -> f64 {
    let (weights, last) = (&calibration.rewards, &state.last);
    let tenants = calibration.tenants.len();
    let worst = last.satisfaction[last.worst(tenants)];
    weights.ethical_jain * last.fairness(tenants) + weights.ethical_worst * worst
        - weights.ethical_lost * last.lost()
}

fn resource(calibration: &Calibration, state: &State) -> f64 {
    let weights = &calibration.rewards;
    let fleet = calibration.services.iter().zip(&state.fleet);
    let price: f64 = fleet
        .map(|(s, r)| s.price * f64::from(r.ready + r.starting()))
        .sum();
    let cost = price / calibration.full_price();
    let change = state.controls.share_change.abs();
    -weights.resource_cost * cost
        - weights.resource_slow * state.last.violated()
        - weights.resource_change * change
}
