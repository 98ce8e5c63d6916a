//! Hyperparameters that are known to learn an environment, as live values of the agents of a mesh. A mesh
//! starts with the defaults of the algorithms.

use super::{
    CommandError,
    advice::{self, Advice},
    listing::{number, short, text},
};
use crate::rest::Rest;
use serde_json::{Map, Value, json};
use tars_learn::{hyper, presets::preset};

const AGENTS: &str = "/api/v1/orchestration/agents";
/// Why values are reloaded, in the audit trail.
const REASON: &str = "preset";

/// What is known for an agent's algorithm in its environment.
pub(super) fn of(agent: &Value) -> Result<Map<String, Value>, CommandError> {
    let (algorithm, environment) = (text(&agent["agent_type"]), text(&agent["environment"]));
    let known = preset(&algorithm, &environment);
    if known.is_empty() {
        return Err(CommandError::Failed(format!(
            "no preset of {algorithm} in {environment} is known; `tars studies create` searches for hyperparameters"
        )));
    }
    let sent = |(name, value)| {
        let value = match value {
            hyper::Value::Flag(flag) => json!(flag),
            hyper::Value::Number(number) => json!(number),
        };
        (name, value)
    };
    Ok(known.into_iter().map(sent).collect())
}

/// Makes the presets of these agents live, or of all agents; those that have theirs are left alone.
pub(super) async fn make_live(
    rest: &Rest,
    named: &[String],
    table: &[Advice],
) -> Result<(), CommandError> {
    let agents = rest.get(&format!("{AGENTS}/state")).await?["agents"].take();
    let agents = agents.as_array().into_iter().flatten();
    let is_meant = |agent: &&Value| {
        let mut named_ones = named.iter();
        named.is_empty() || named_ones.any(|name| agent["agent_id"] == name.as_str())
    };
    for agent in agents.filter(is_meant) {
        let (id, values) = (text(&agent["agent_id"]), of(agent)?);
        if is_live(agent, &values) {
            continue;
        }
        let body = json!({ "hyperparameters": values, "reason": REASON });
        let answer = rest.post(&format!("{AGENTS}/{id}/reload"), body).await;
        let answer = answer.map_err(|e| advice::add(e, table, &id))?;
        let version = short(&answer["version"]);
        note!("{id}: version {version} of the hyperparameters has the preset");
    }
    Ok(())
}

fn is_live(agent: &Value, values: &Map<String, Value>) -> bool {
    let live = &agent["hyperparameters"];
    values.iter().all(|(name, value)| match number(value) {
        Some(value) => number(&live[name]) == Some(value),
        None => live[name] == *value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_its_preset_when_every_value_of_it_is_live() {
        let mut agent = json!({ "agent_type": "ddpg", "environment": "mesh" });
        let values = of(&agent).unwrap();
        assert!(values.contains_key("noise_sigma"));
        assert!(!is_live(&agent, &values));
        agent["hyperparameters"] = Value::from(values.clone());
        agent["hyperparameters"]["warmup_steps"] = json!(2_000);
        agent["hyperparameters"]["tau"] = json!(0.5);
        assert!(is_live(&agent, &values), "others are not looked at");
        agent["hyperparameters"]["gamma"] = json!(0.5);
        assert!(!is_live(&agent, &values));
    }

    #[test]
    fn flags_are_sent_as_flags() {
        let dqn = of(&json!({ "agent_type": "dqn", "environment": "mesh" })).unwrap();
        assert_eq!((&dqn["dueling"], &dqn["tau"]), (&json!(true), &json!(1.0)));
    }

    #[test]
    fn an_agent_without_a_preset_is_named_with_its_environment() {
        let unknown = of(&json!({ "agent_type": "ppo", "environment": "taxi" })).unwrap_err();
        assert!(unknown.to_string().contains("ppo in taxi"), "{unknown}");
    }
}
