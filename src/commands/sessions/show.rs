//! How steps and games are shown.

use crate::commands::{
    listing::{number, short, text, world_of},
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
        "{}: step {} of episode {}{}",
        short(&world["step"]),
        short(&world["episode_step"]),
        short(&world["episode"]),
        end(world)
    );
    let reward = format!(
        "{} = (weighted sum {} * cooperation {} - conflicts {}) * causal modifier {}",
        rounded(&total["value"]),
        rounded(&total["weighted_sum"]),
        rounded(&total["cooperation_multiplier"]),
        rounded(&total["conflict_penalty"]),
        rounded(&total["causal_modifier"])
    );
    let all = [
        ("step", step),
        ("reward", reward),
        ("nash conv", interval(&stepped["nash_convergence_distance"])),
        ("calibration", text(&world["game"]["calibration"])),
        ("resolved by", resolved_by(stepped)),
    ];
    all.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// How conflicts were resolved, and whose actions that changed.
fn resolved_by(stepped: &Value) -> String {
    let method = text(&stepped["resolution_method"]);
    let chosen = stepped["agent_actions"].as_object().into_iter().flatten();
    let changed = chosen.filter(|(agent, chose)| {
        let took = &stepped["resolved_actions"][agent.as_str()];
        !took.is_null() && action(chose) != action(took)
    });
    let changed: Vec<&str> = changed.map(|(agent, _)| agent.as_str()).collect();
    match changed.is_empty() || method.is_empty() {
        true => method,
        false => format!(
            "{method}, by which {} took another action than chosen",
            changed.join(" and ")
        ),
    }
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
            "{:>7}  {:>9}  {:>9}  {:>9}  REWARDS",
            "STEP",
            "GLOBAL",
            "NASH CONV",
            "CONFLICTS"
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
    say!("{:<12} {}", "equilibrium", certificate(found));
    say!(
        "{:<12} {}: {} joint actions * {} rollouts * {} steps in {}",
        "measured",
        world_of(measured),
        short(&game["joint_actions"]),
        short(&game["rollouts"]),
        short(&game["rollout_steps"]),
        seconds(&game["duration"])
    );
}

/// How an equilibrium was found, and how good it is.
fn certificate(found: &Value) -> String {
    let share = number(&found["relative_regret"]).unwrap_or(f64::NAN) * 100.0;
    let quality = match found["converged"] == true {
        true => "it is one",
        false => "it is not one yet",
    };
    format!(
        "found by {}; {quality}: no agent gains more than {share:.2} % of its range of payoffs by another action",
        text(&found["method"])
    )
}

/// A duration as `0.21 s`.
fn seconds(duration: &Value) -> String {
    let text = text(duration);
    let seconds = text.strip_suffix('s').and_then(|s| s.parse::<f64>().ok());
    seconds.map_or(text, |seconds| format!("{seconds:.2} s"))
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
    fn an_action_that_a_resolution_changed_is_named() {
        let action = |name: &str| json!({ "action_name": name });
        let mut stepped = json!({
            "resolution_method": "weighted_vote",
            "agent_actions": { "ethical": action("hold"), "policy": action("up") },
            "resolved_actions": { "ethical": action("hold"), "policy": action("down") },
        });
        let changed = "weighted_vote, by which policy took another action than chosen";
        assert_eq!(resolved_by(&stepped), changed);
        stepped["resolved_actions"]["policy"] = action("up");
        assert_eq!(resolved_by(&stepped), "weighted_vote");
        assert_eq!(resolved_by(&json!({})), "");
    }

    #[test]
    fn an_equilibrium_is_described_in_a_sentence() {
        let found = json!({ "method": "pure", "converged": true, "relative_regret": 0.0012 });
        let sentence = "found by pure; it is one: no agent gains more than 0.12 % of its range of payoffs by another action";
        assert_eq!(certificate(&found), sentence);
        for (duration, shown) in [("0.209938s", "0.21 s"), ("3s", "3.00 s"), ("", "")] {
            assert_eq!(seconds(&json!(duration)), shown);
        }
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
        let facts = super::facts(&stepped);
        assert_eq!(facts.len(), 2, "{facts:?}");
        let game = json!({ "world": { "game": { "calibration": "shipped" } } });
        assert!(super::facts(&game).contains(&("calibration", "shipped".to_owned())));
        assert!(facts[0].1.ends_with("which ended with its time"));
        assert_eq!(player(&Value::Null, "policy"), &Value::Null);
    }
}
