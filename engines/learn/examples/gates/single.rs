//! A gate in a world of one agent, by `tars train`.

use crate::{
    Failure,
    options::Options,
    report::{Point, Seed},
    table::{Gate, Goal},
};
use serde::Deserialize;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// What `tars train --json` prints.
#[derive(Deserialize)]
struct Trained {
    seeds: Vec<Curve>,
}

#[derive(Deserialize)]
struct Curve {
    seed: u64,
    best_mean_return: f64,
    evaluations: Vec<Evaluation>,
}

#[derive(Deserialize)]
struct Evaluation {
    steps: u64,
    mean_return: f64,
}

/// Trains with each seed. The curves are files in the folder, and what the binary printed is a third one.
pub(crate) fn measure(gate: &Gate, options: &Options) -> Result<Vec<Seed>, Failure> {
    let name = format!("{}-{}.json", gate.world, gate.algorithm);
    let path = options.out.join(name);
    let stored = options.resume.then(|| fs::read_to_string(&path).ok());
    let stored = stored.flatten().map(|text| parse(gate, &text));
    let mut trained = stored.transpose()?;
    trained = trained.filter(|trained| trained.seeds.len() as u64 == options.seeds);
    let trained = match trained {
        Some(trained) => trained,
        None => {
            let text = train(gate, options.seeds, &options.out)?;
            fs::write(&path, &text)?;
            parse(gate, &text)?
        }
    };
    Ok(trained.seeds.into_iter().map(|c| judge(gate, c)).collect())
}

fn train(gate: &Gate, seeds: u64, out: &Path) -> Result<String, Failure> {
    let binary = std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?;
    let mut command = Command::new(binary);
    command.args(["train", "--algo", gate.algorithm, "--env", gate.world]);
    command.args(["--steps", &gate.steps.to_string()]);
    command.args(["--seeds", &seeds.to_string()]);
    command.arg("--json").arg("--out").arg(out);
    let output = command.stderr(Stdio::inherit()).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("{command:?}: {}", output.status).into()),
    }
}

/// # Errors
///
/// When it is no result, or of another number of steps.
fn parse(gate: &Gate, text: &str) -> Result<Trained, Failure> {
    let trained: Trained = serde_json::from_str(text)?;
    let ends = |seed: &Curve| {
        seed.evaluations
            .last()
            .is_some_and(|e| e.steps >= gate.steps)
    };
    match trained.seeds.iter().all(ends) {
        true => Ok(trained),
        false => Err(format!("{} ends before {} steps", gate.name(), gate.steps).into()),
    }
}

fn judge(gate: &Gate, curve: Curve) -> Seed {
    let last = curve.evaluations.last().map(|e| e.mean_return);
    let reaches = |mean: f64| matches!(gate.goal, Goal::Return(goal) if mean >= goal);
    Seed {
        seed: curve.seed,
        reached: reaches(curve.best_mean_return),
        measured: curve.best_mean_return,
        reached_at_the_end: last.is_some_and(reaches),
        curve: (curve.evaluations.iter())
            .map(|at| Point {
                steps: at.steps,
                value: at.mean_return,
            })
            .collect(),
    }
}
