//! How steps and games are shown.

use crate::commands::{
    listing::{number, short, text},
    output,
};
use serde_json::Value;

/// A step on one screen: what each agent did and got, and what that adds up to.
pub(super) fn step(stepped: &Value) {
    let world = &stepped["world"];
    let header = [
        "agent", "chose", "took", "by", "reward", "weighted", "regret",
    ];
    let agents = world["agents"].as_object().into_iter().flatten();
    let row = |(agent, outcome): (&String, &Value)| {
        let player = player(&world["game"], agent);
        vec![
            agent.clone(),
            action(&stepped["agent_actions"][agent]),
            action(&stepped["resolved_actions"][agent]),
            by(&stepped["agent_actions"][agent]),
            short(&outcome["reward"]),
            short(&world["global_reward"]["contributions"][agent]),
            short(&player["regret"]),
        ]
    };
    output::table(&header, &agents.map(row).collect::<Vec<_>>());
    say!("");
    for (name, value) in facts(stepped) {
        say!("{name:<12} {value}");
    }
    for conflict in stepped["conflicts_detected"]
        .as_array()
        .into_iter()
        .flatten()
    {
        say!(
            "{:<12} {}: {}",
            "conflict",
            text(&conflict["name"]),
            text(&conflict["description"])
        );
    }
}

/// What is known of a whole step; what is absent is left out.
fn facts(stepped: &Value) -> Vec<(&'static str, String)> {
    let (world, total) = (&stepped["world"], &stepped["world"]["global_reward"]);
    let step = format!(
        "{}, the {}. of episode {}{}",
        short(&world["step"]),
        short(&world["episode_step"]),
        short(&world["episode"]),
        end(world)
    );
    let reward = format!(
        "{} = ({} * {} - {}) * {}",
        short(&total["value"]),
        short(&total["weighted_sum"]),
        short(&total["cooperation_multiplier"]),
        short(&total["conflict_penalty"]),
        short(&total["causal_modifier"])
    );
    let all = [
        ("step", step),
        ("reward", reward),
        ("nash conv", interval(&stepped["nash_convergence_distance"])),
        ("resolved by", text(&stepped["resolution_method"])),
    ];
    all.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn end(world: &Value) -> &'static str {
    if world["terminated"] == true {
        ", which the world ended"
    } else if world["truncated"] == true {
        ", which ended with its time"
    } else {
        ""
    }
}

/// A step of several on one line.
pub(super) fn line(stepped: &Value, is_first: bool) {
    if is_first {
        say!(
            "{:>7}  {:>9}  {:>9}  {:>9}  rewards",
            "step",
            "global",
            "nash conv",
            "conflicts"
        );
    }
    let world = &stepped["world"];
    let rewards = stepped["agent_rewards"].as_object().into_iter().flatten();
    let rewards = rewards.map(|(agent, reward)| format!("{agent} {}", rounded(reward)));
    let conflicts = stepped["conflicts_detected"].as_array().map_or(0, Vec::len);
    say!(
        "{:>7}  {:>9}  {:>9}  {conflicts:>9}  {}{}",
        short(&world["step"]),
        rounded(&stepped["global_reward"]),
        rounded(&stepped["nash_convergence_distance"]["value"]),
        rewards.collect::<Vec<_>>().join(", "),
        end(world)
    );
}

/// A measured game and an equilibrium of it: each agent's actions with how often it takes them there.
pub(super) fn equilibrium(measured: &Value) {
    let (game, found) = (&measured["game"], &measured["equilibrium"]);
    let header = ["agent", "does", "regret", "by", "in equilibrium"];
    let players = game["players"].as_array().into_iter().flatten();
    let row = |player: &Value| {
        let agent = text(&player["agent"]);
        let mix = mix(player, &found["strategy_profile"][&agent]);
        vec![
            agent,
            text(&player["own_action"]),
            short(&player["regret"]),
            by(player),
            mix,
        ]
    };
    output::table(&header, &players.map(row).collect::<Vec<_>>());
    say!("");
    say!(
        "{:<12} {}",
        "nash conv",
        interval(&game["nash_convergence_distance"])
    );
    let converged = if found["converged"] == true {
        ""
    } else {
        "; not an equilibrium yet"
    };
    let certificate = format!(
        "regret of {} of a payoff range, by {}{converged}",
        short(&found["relative_regret"]),
        text(&found["method"])
    );
    say!("{:<12} {certificate}", "certificate");
    say!(
        "{:<12} {} joint actions * {} rollouts * {} steps in {}",
        "measured",
        short(&game["joint_actions"]),
        short(&game["rollouts"]),
        short(&game["rollout_steps"]),
        text(&game["duration"])
    );
}

fn player<'a>(game: &'a Value, agent: &str) -> &'a Value {
    let mut players = game["players"].as_array().into_iter().flatten();
    players
        .find(|player| player["agent"] == agent)
        .unwrap_or(&Value::Null)
}

fn action(action: &Value) -> String {
    match text(&action["action_name"]) {
        name if !name.is_empty() => name,
        _ => {
            let numbers = action["continuous_action"].as_array().into_iter().flatten();
            numbers.map(rounded).collect::<Vec<_>>().join(", ")
        }
    }
}

/// The rule or the version of the weights that chose.
fn by(chosen: &Value) -> String {
    match text(&chosen["rule"]) {
        rule if !rule.is_empty() => format!("rule {rule}"),
        _ => format!("weights {}", short(&chosen["weights_version"])),
    }
}

fn mix(player: &Value, strategy: &Value) -> String {
    let actions = player["actions"].as_array().into_iter().flatten();
    let chances = strategy["probabilities"].as_array().into_iter().flatten();
    let taken = actions.zip(chances).filter_map(|(action, chance)| {
        let chance = number(chance).filter(|chance| *chance >= 0.005)?;
        Some(format!("{} {:.0}%", text(action), chance * 100.0))
    });
    taken.collect::<Vec<_>>().join(", ")
}

fn interval(from: &Value) -> String {
    match from["value"].is_null() {
        true => String::new(),
        false => format!(
            "{} (95 % within {} and {})",
            rounded(&from["value"]),
            rounded(&from["low"]),
            rounded(&from["high"])
        ),
    }
}

/// A number with four decimals; `-` for nothing.
fn rounded(value: &Value) -> String {
    number(value).map_or_else(|| "-".to_owned(), |number| format!("{number:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn actions_are_shown_by_name_or_by_number() {
        assert_eq!(action(&json!({ "action_name": "hold" })), "hold");
        let share = json!({ "action_name": "", "continuous_action": [0.25, 1] });
        assert_eq!(action(&share), "0.2500, 1.0000");
        let chosen = json!({ "rule": "aimd", "weights_version": "0" });
        assert_eq!(by(&chosen), "rule aimd");
        let chosen = json!({ "rule": "", "weights_version": "7" });
        assert_eq!(by(&chosen), "weights 7");
    }

    #[test]
    fn a_mix_leaves_out_what_is_hardly_taken() {
        let player = json!({ "actions": ["hold", "a", "b"] });
        let strategy = json!({ "probabilities": [0.75, 0.0001, 0.25] });
        assert_eq!(mix(&player, &strategy), "hold 75%, b 25%");
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        assert_eq!(interval(&Value::Null), "");
        let stepped = json!({ "world": { "step": "3", "truncated": true } });
        let facts = facts(&stepped);
        assert_eq!(facts.len(), 2, "{facts:?}");
        assert!(facts[0].1.ends_with("which ended with its time"));
        assert_eq!(player(&Value::Null, "policy"), &Value::Null);
    }
}
