use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    train: Train,
}

fn local(args: &str) -> Local {
    let line = format!("train --eval-episodes 2 {args}");
    let line = Line::parse_from(line.split(' '));
    line.train.local.expect("it has no subcommand")
}

fn train(args: &str) -> Result<Vec<Seed>, CommandError> {
    Ok(local(args).train()?.seeds(0))
}

#[test]
fn each_algorithm_trains_with_several_seeds_that_replay() {
    for algorithm in ALGORITHMS {
        let env = match algorithm.name {
            "ddpg" => "pendulum",
            _ => "cartpole",
        };
        let args = format!(
            "--env {env} --algo {} --steps 600 --seeds 2",
            algorithm.name
        );
        let (one, two) = (train(&args).unwrap(), train(&args).unwrap());
        assert_eq!((one.len(), one[1].seed), (2, 2));
        assert!(one[0].evaluations.len() >= 2 && one[0].steps_per_cpu_s > 0.0);
        for (a, b) in one.iter().zip(&two) {
            assert_eq!(a.best_mean_return, b.best_mean_return);
        }
    }
}

#[test]
fn the_learning_curve_is_written_with_every_evaluation_of_every_seed() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, path) = (folder.path().join("new"), folder.path().display());
    let args = format!("--steps 600 --seeds 2 --out {path}/new");
    let seeds = train(&format!("--env cartpole --algo a2c {args}")).unwrap();
    let csv = std::fs::read_to_string(inner.join("cartpole-a2c.csv")).unwrap();
    for (seed, point) in seeds
        .iter()
        .flat_map(|s| s.evaluations.iter().map(|e| (s.seed, e)))
    {
        let row = format!(
            "\n{seed},{},evaluation,2,{},",
            point.steps, point.mean_return
        );
        assert!(csv.contains(&row), "{row}");
    }
    assert!(csv.contains(",training,"));
    let svg = std::fs::read_to_string(inner.join("cartpole-a2c.svg")).unwrap();
    let dots = svg.matches("<circle").count();
    assert_eq!(dots, seeds[0].evaluations.len());
    train(&format!(
        "--env mesh --algo ppo --agent ethical --steps 64 --out {path}"
    ))
    .unwrap();
    assert!(folder.path().join("mesh-ethical-ppo.svg").exists());
    train("--env mesh --algo ppo --agent ethical --steps 64 --out /dev/null/x").unwrap_err();
}

#[test]
fn an_agent_of_several_is_found_by_its_name_or_by_what_it_does() {
    let one = |args: &str| train(&format!("--env mesh --steps 64 {args}"));
    assert!(one("--algo ddpg").is_ok(), "there is one continuous agent");
    assert!(one("--algo a2c --agent consensus").is_ok());
    let nobody = one("--algo a2c --agent nobody").unwrap_err().to_string();
    assert!(nobody.contains("consensus"), "{nobody}");
    let wrong = |args: &str| match train(args).unwrap_err() {
        CommandError::Usage(text) => text,
        other => panic!("it is a mistake of the caller: {other}"),
    };
    let discrete = wrong("--env cartpole --algo ddpg --steps 10");
    let fitting = discrete.split_once("agent by ").expect(&discrete).1;
    let names = fitting.split([',', ' ']).filter(|word| !word.is_empty());
    let mut names: Vec<&str> = names.filter(|word| *word != "or").collect();
    names.sort_unstable();
    assert_eq!(names, ["a2c", "dqn", "ppo"]);
    let unfit = wrong("--env mesh --algo dqn --agent resource --steps 10");
    assert!(unfit.ends_with("resource by a2c, ddpg or ppo"), "{unfit}");
}

#[test]
fn what_is_printed_names_the_calibration_of_a_world_that_has_one() {
    let printed = |args: &str| {
        let local = local(args);
        local.printed(&local.train().unwrap())
    };
    let of_mesh = printed("--env mesh --algo ppo --steps 64");
    assert_eq!(of_mesh["calibration"], "shipped");
    let other = printed("--env cartpole --algo ppo --steps 64");
    assert!(other.get("calibration").is_none(), "{other}");
}

#[test]
fn agents_learn_together_each_by_its_own_algorithm_or_all_by_one() {
    let together = |args: &str| {
        let local = local(&format!("--together {args}"));
        let trained = local.train()?;
        Ok::<_, CommandError>(local.printed(&trained)["agents"].take())
    };
    let of = |all: &Value, name: &str| -> Vec<Value> {
        let each = all.as_array().unwrap().iter();
        each.map(|agent| agent[name].clone()).collect()
    };
    let all = together("--env mesh --steps 128 --seeds 2").unwrap();
    let names = ["policy", "consensus", "ethical", "resource"];
    assert_eq!(of(&all, "agent"), names);
    assert_eq!(of(&all, "algorithm"), ["dqn", "a2c", "ppo", "ddpg"]);
    for agent in all.as_array().unwrap() {
        let seeds = agent["seeds"].as_array().unwrap();
        assert_eq!((seeds.len(), &seeds[1]["seed"]), (2, &json!(2)));
        let points = seeds[0]["evaluations"].as_array().unwrap();
        let returns = || {
            points
                .iter()
                .map(|point| point["mean_return"].as_f64().unwrap())
        };
        let best = returns().fold(f64::MIN, f64::max);
        assert_eq!(seeds[0]["best_mean_return"], best, "{agent}");
    }
    let game = together("--env stag_hunt --algo ppo --steps 128").unwrap();
    assert_eq!(of(&game, "algorithm"), ["ppo", "ppo"]);
    let market = together("--env cournot_2 --steps 64").unwrap();
    assert_eq!(
        of(&market, "algorithm"),
        ["ddpg", "ddpg"],
        "it has a preset"
    );
    let unfit = together("--env mesh --algo dqn --steps 10").unwrap_err();
    assert!(unfit.to_string().contains("resource by"), "{unfit}");
    for wrong in [
        "train --env mesh --together --agent policy --steps 10",
        "train --env mesh --steps 10",
    ] {
        assert!(Line::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
    }
}

#[test]
fn those_who_learn_together_have_a_curve_each() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display();
    let args = format!("--together --env chicken --algo a2c --steps 128 --out {out}");
    local(&args).train().unwrap();
    let world = make_world("chicken").unwrap();
    for agent in &world.spec().agents {
        for kind in ["csv", "svg"] {
            let file = format!("chicken-{}-a2c.{kind}", agent.name);
            assert!(folder.path().join(&file).exists(), "{file}");
        }
    }
}

#[test]
fn hyperparameters_are_replaced_or_refused_by_name() {
    let base = "--env cartpole --algo dqn --steps 64";
    assert!(train(&format!("{base} --set gamma=0.9 --set double_dqn=false")).is_ok());
    let refused = train(&format!("{base} --set gamma=7 --set nothing=1")).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("gamma") && text.contains("nothing"), "{text}");
    for wrong in ["gamma", "gamma=", "gamma=x", "gamma=nan"] {
        assert!(assignment(wrong).is_err(), "{wrong}");
    }
}
