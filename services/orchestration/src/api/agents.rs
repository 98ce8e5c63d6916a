//! Agents, their versions and their stages, between the wire and the domain.

use super::{
    environments::calibration,
    numbers::{given, signed, unsigned},
};
use crate::{
    OrchestrationError,
    agents::{Agent as Slot, LiveAgent},
    changes::ParameterDrift,
    serving::Rollout,
    stage::{LastFall, Stage},
    store::{HoldRow, ListedVersion},
    versions::Target,
};
use tars_learn::hyper::{ParamViolation, Value, Values};
use tars_proto::{
    Struct,
    orchestration::v1::*,
    params::{self, Param},
    time::timestamp,
};

pub(super) fn values(from: Option<Struct>) -> Result<Values, OrchestrationError> {
    let mut out = Values::new();
    for (name, param) in params::from_struct(from.unwrap_or_default())? {
        let value = match param {
            Param::Flag(b) => Value::Flag(b),
            Param::Number(n) => Value::Number(n),
            Param::Text(_) => {
                let problem = "must be a number or a boolean".to_owned();
                return Err(OrchestrationError::Hyperparameters(vec![ParamViolation {
                    name,
                    problem,
                }]));
            }
        };
        out.insert(name, value);
    }
    Ok(out)
}

pub(super) fn to_struct(values: &Values) -> Struct {
    let params = values
        .iter()
        .map(|(name, value)| (name.clone(), param(*value)))
        .collect();
    params::to_struct(&params)
}

pub(super) fn param(value: Value) -> Param {
    match value {
        Value::Flag(b) => Param::Flag(b),
        Value::Number(n) => Param::Number(n),
    }
}

pub(super) fn hold(row: &HoldRow) -> Hold {
    Hold {
        change_id: row.change_id.clone(),
        on_behalf_of: row.on_behalf_of.clone(),
        since: Some(timestamp(row.since_us)),
        awaits_person: row.awaits_person,
    }
}

fn drift(from: Vec<ParameterDrift>) -> Option<Drift> {
    let parameter = |d: ParameterDrift| DriftedParameter {
        name: d.name,
        approved: d.approved.map(|v| param(v).into()),
        live: d.live.map(|v| param(v).into()),
    };
    let parameters: Vec<DriftedParameter> = from.into_iter().map(parameter).collect();
    (!parameters.is_empty()).then_some(Drift { parameters })
}

pub(super) fn agent(slot: &Slot) -> Agent {
    agent_as(slot, &slot.live())
}

/// An agent with the live state that a change has left.
pub(super) fn agent_as(slot: &Slot, live: &LiveAgent) -> Agent {
    let observed = slot.definition.space.observation.iter();
    Agent {
        agent_id: slot.definition.id.to_owned(),
        agent_type: slot.definition.algorithm.name.to_owned(),
        environment: slot.definition.environment.clone(),
        hyperparameters: Some(to_struct(&live.row.hyperparameters)),
        version: unsigned(live.row.version),
        weights_version: unsigned(live.row.weights_version),
        last_return: live.row.last_return,
        total_steps: unsigned(live.row.total_steps),
        total_episodes: unsigned(live.row.total_episodes),
        observation_names: observed
            .map(|component| component.name.to_string())
            .collect(),
        action_names: slot.action_names(),
        updated_at: Some(timestamp(live.row.updated_us)),
        approved_version: unsigned(live.approved.version),
        drift: drift(live.drift()),
        hold: live.hold.as_ref().map(hold),
        rule: live.row.rule.clone().unwrap_or_default(),
        bound: slot.is_bound(),
        shadow_version: live.row.shadow.map(unsigned),
        canary_version: live.row.canary.map(unsigned),
        default_rule: slot.definition.default_rule().to_owned(),
        calibration: calibration(&slot.definition.environment),
        rules: slot
            .definition
            .rules
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

pub(super) fn version(listed: ListedVersion) -> AgentVersion {
    let stage = stage_as(Stage::of(&listed.row, listed.places()));
    let ListedVersion {
        row,
        live,
        counts,
        last_fall,
        ..
    } = listed;
    AgentVersion {
        stage: stage.into(),
        version: unsigned(row.version),
        live_since: row.served.then(|| timestamp(row.at_us)),
        live: row.version == live,
        agent_type: row.algorithm,
        run_id: row.run_id.map(|id| id.to_string()).unwrap_or_default(),
        mean_return: row.mean_return,
        restored_from: row.restored_from.map(unsigned),
        rule: row.rule.unwrap_or_default(),
        digest: row.blob.unwrap_or_default(),
        shadow_steps: counts.shadow_steps,
        agreed: counts.agreed,
        canary_steps: counts.canary_steps,
        blocked: counts.blocked,
        last_fall: last_fall.map(fall),
    }
}

fn fall(from: LastFall) -> AgentFall {
    AgentFall {
        at: from.at_us.map(timestamp),
        from: from.from.map_or(AgentStage::Unspecified, stage_as).into(),
        reason: from.why,
    }
}

/// The version that is meant; without one, the live one.
pub(super) fn version_of(slot: &Slot, version: Option<u64>) -> Result<i64, OrchestrationError> {
    let given = given("version", version)?;
    match given.unwrap_or_else(|| slot.live().row.weights_version) {
        0 => Err(OrchestrationError::NoneLive),
        version => Ok(version),
    }
}

pub(super) fn stage_as(stage: Stage) -> AgentStage {
    match stage {
        Stage::Sim => AgentStage::Sim,
        Stage::Shadow => AgentStage::Shadow,
        Stage::Canary => AgentStage::Canary,
        Stage::Active => AgentStage::Active,
        Stage::Retired => AgentStage::Retired,
    }
}

/// The stage that a promotion asks for, if it names one.
pub(super) fn stage(from: i32) -> Result<Option<Stage>, OrchestrationError> {
    let named = AgentStage::try_from(from).map_err(|_| OrchestrationError::UnknownStage)?;
    Ok(match named {
        AgentStage::Unspecified => None,
        AgentStage::Sim => Some(Stage::Sim),
        AgentStage::Shadow => Some(Stage::Shadow),
        AgentStage::Canary => Some(Stage::Canary),
        AgentStage::Active => Some(Stage::Active),
        AgentStage::Retired => Some(Stage::Retired),
    })
}

/// What a promotion asks for: a version or a rule.
pub(super) fn target(version: u64, rule: String) -> Result<Target, OrchestrationError> {
    match (version, rule.is_empty()) {
        (0, false) => Ok(Target::Rule(rule)),
        (version, true) if version > 0 => Ok(Target::Version(signed("version", version)?)),
        _ => Err(OrchestrationError::OneTarget),
    }
}

pub(super) fn pending(rollout: Rollout) -> Vec<String> {
    match rollout {
        Rollout::Everywhere => Vec::new(),
        Rollout::Pending(replicas) => replicas,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stage::Counts, store::VersionRow};

    #[test]
    fn a_version_that_never_answered_is_not_live_since_anything() {
        let listed = |served| ListedVersion {
            row: VersionRow {
                version: 2,
                at_us: 7,
                served,
                ..VersionRow::of_rule("hold")
            },
            live: 3,
            shadow: None,
            canary: None,
            counts: Counts::default(),
            fell: None,
            last_fall: None,
        };
        assert_eq!(version(listed(false)).live_since, None);
        assert_eq!(version(listed(true)).live_since, Some(timestamp(7)));
    }
}
