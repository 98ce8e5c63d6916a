//! Every kind of certificate is confirmed from the raw payoffs by a program that shares no code with
//! the solver: `tests/games/check.py`.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};
use tars_games::{
    Algorithm, Concept, Correlated, NeverStop, Objective, Options, Process, Solution,
};

fn claim(shape: &[usize], tensors: &Tensors, solution: &Solution) -> Value {
    json!({
        "shape": shape, "payoffs": tensors, "profile": solution.profile, "regret": solution.regret,
        "expected": solution.payoffs, "nash_conv": solution.nash_conv(),
        "relative_regret": solution.relative_regret, "tolerance": solution.tolerance,
        "converged": solution.converged(),
    })
}

fn lottery(shape: &[usize], tensors: &Tensors, concept: &str, found: &Correlated) -> Value {
    json!({
        "shape": shape, "payoffs": tensors, "lottery": found.lottery, "concept": concept,
        "regret": found.regret, "expected": found.payoffs, "relative_regret": found.relative_regret,
        "tolerance": found.tolerance, "converged": found.converged(),
    })
}

/// The checker's answers, one for each claim.
fn check(claims: &[Value]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/games/check.py");
    let mut child = Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = claims.iter().map(|c| format!("{c}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

const SHAPES: [&[usize]; 8] = [
    &[1, 4],
    &[3, 3],
    &[5, 8],
    &[12, 12],
    &[2, 2, 2],
    &[3, 4, 2],
    &[3, 3, 3, 3],
    &[2, 2, 2, 2, 2],
];

fn classes(seed: u64, shape: &[usize]) -> Vec<Tensors> {
    let mut huge = random(seed, shape);
    huge.iter_mut()
        .flatten()
        .for_each(|v| *v = (*v - 0.5) * 1e250);
    let mut tiny = random(seed, shape);
    tiny.iter_mut().flatten().for_each(|v| *v *= 1e-250);
    let mut far = random(seed, shape);
    far.iter_mut().flatten().for_each(|v| *v += 1e6);
    vec![
        random(seed, shape),
        ties(seed, shape, 3),
        constant_sum(seed, shape),
        huge,
        tiny,
        far,
    ]
}

#[test]
#[ignore = "needs Python: cargo xtask test"]
fn certificates_are_confirmed_by_another_program() {
    let mut claims = Vec::new();
    for shape in SHAPES {
        for seed in 0..4 {
            for tensors in classes(seed, shape) {
                let game = game(shape, &tensors);
                let approximate = Options {
                    algorithm: Algorithm::Learning(Process::RegretMatchingPlus),
                    rounds: 50,
                    ..Options::default()
                };
                for options in [Options::default(), approximate] {
                    let solution = game.solve(&options, &NeverStop).unwrap();
                    claims.push(claim(shape, &tensors, &solution));
                }
            }
            let tensors = ties(seed, shape, 4);
            let game = game(shape, &tensors);
            for (name, concept) in [
                ("correlated", Concept::Correlated),
                ("coarse", Concept::Coarse),
            ] {
                let options = Options::default();
                let found = game
                    .correlated(concept, &Objective::Welfare, &options, &NeverStop)
                    .unwrap();
                claims.push(lottery(shape, &tensors, name, &found));
            }
            if shape.iter().product::<usize>() <= 40 {
                let all = game.equilibria(&Options::default(), &NeverStop);
                claims.extend(all.found.iter().map(|s| claim(shape, &tensors, s)));
            }
        }
    }
    let answers = check(&claims);
    assert_eq!(answers.len(), claims.len());
    for (answer, claim) in answers.iter().zip(&claims) {
        assert_eq!(answer, "ok", "{claim}");
    }
}

#[test]
#[ignore = "needs Python: cargo xtask test"]
fn false_certificates_are_detected() {
    let tensors = random(3, &[3, 3]);
    let solution = game(&[3, 3], &tensors)
        .solve(&Options::default(), &NeverStop)
        .unwrap();
    let honest = claim(&[3, 3], &tensors, &solution);
    let with = |field: &str, value: Value| {
        let mut lie = honest.clone();
        lie[field] = value;
        lie
    };
    let even = vec![vec![1.0 / 3.0; 3]; 2];
    let claims = [
        with("profile", json!(even)),
        with("regret", json!([0.1, 0.0])),
        with("nash_conv", json!(0.5)),
        with("expected", json!([9.0, 9.0])),
        with("profile", json!([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]])),
        with("profile", json!([[1.5, -0.5, 0.0], [1.0, 0.0, 0.0]])),
        with("profile", json!([[1.0, 0.0], [1.0, 0.0, 0.0]])),
    ];
    for (answer, claim) in check(&claims).iter().zip(&claims) {
        assert_ne!(answer, "ok", "{claim}");
    }
}
