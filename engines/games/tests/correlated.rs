//! Correlated and coarse correlated equilibria are optimal and agree with their definitions.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use tars_games::{Concept, Control, Correlated, Game, NeverStop, Objective, Options};

fn best(game: &Game, concept: Concept, objective: &Objective) -> Correlated {
    let found = game
        .correlated(concept, objective, &Options::default(), &NeverStop)
        .unwrap();
    assert!(found.converged() && found.optimal, "{found:?}");
    found
}

fn chicken() -> Game {
    let a = vec![6.0, 2.0, 7.0, 0.0];
    game(&[2, 2], &vec![a, vec![6.0, 7.0, 2.0, 0.0]])
}

#[test]
fn the_game_of_chicken_has_its_known_optimum() {
    let found = best(&chicken(), Concept::Correlated, &Objective::Welfare);
    assert!(
        near(&found.lottery, &[0.5, 0.25, 0.25, 0.0], 1e-6),
        "{found:?}"
    );
    assert!(near(&found.payoffs, &[5.25, 5.25], 1e-6));
    let coarse = best(&chicken(), Concept::Coarse, &Objective::Welfare);
    assert!(coarse.payoffs.iter().sum::<f64>() >= 10.5 - 1e-6);
    let selfish = best(
        &chicken(),
        Concept::Correlated,
        &Objective::Weighted(vec![1.0, 0.0]),
    );
    assert!(near(&selfish.payoffs, &[7.0, 2.0], 1e-6));
}

/// The largest regret by the definition.
fn regret(shape: &[usize], tensors: &Tensors, lottery: &[f64], coarse: bool) -> f64 {
    let mut worst = 0.0f64;
    for i in 0..shape.len() {
        let stride: usize = shape[i + 1..].iter().product();
        let own = |cell: usize| cell / stride % shape[i];
        let gain = |from: Option<usize>, to: usize| -> f64 {
            (0..lottery.len())
                .filter(|c| from.is_none_or(|f| own(*c) == f))
                .map(|c| {
                    let other = c - own(c) * stride + to * stride;
                    lottery[c] * (tensors[i][other] - tensors[i][c])
                })
                .sum()
        };
        let best = |from| (0..shape[i]).map(|to| gain(from, to)).fold(0.0, f64::max);
        worst = worst.max(if coarse {
            best(None)
        } else {
            (0..shape[i]).map(|from| best(Some(from))).sum()
        });
    }
    worst
}

#[test]
fn optima_are_equilibria_and_no_worse_than_nash() {
    for shape in [&[3, 3][..], &[2, 5], &[2, 3, 2], &[1, 4], &[3, 3, 3]] {
        for seed in 0..8 {
            let tensors = match seed % 2 {
                0 => random(seed, shape),
                _ => ties(seed, shape, 3),
            };
            let game = game(shape, &tensors);
            let nash = game.solve(&Options::default(), &NeverStop).unwrap();
            let welfare = nash.payoffs.iter().sum::<f64>();
            for concept in [Concept::Correlated, Concept::Coarse] {
                let found = best(&game, concept, &Objective::Welfare);
                let truth = regret(shape, &tensors, &found.lottery, concept == Concept::Coarse);
                assert!(truth <= 1e-6 * tensors.iter().flatten().fold(1.0f64, |m, v| m.max(*v)));
                assert!(found.payoffs.iter().sum::<f64>() >= welfare - 1e-6);
                best(&game, concept, &Objective::Fairness);
            }
        }
    }
}

#[test]
fn given_lotteries_are_verified_or_refused() {
    let verify = |lottery: &[f64], concept| chicken().verify_lottery(lottery, concept, 1e-9);
    assert!(
        verify(&[0.5, 0.25, 0.25, 0.0], Concept::Correlated)
            .unwrap()
            .converged()
    );
    let both_dare = verify(&[0.0, 0.0, 0.0, 1.0], Concept::Coarse).unwrap();
    assert!(!both_dare.converged() && near(&both_dare.regret, &[2.0, 2.0], 1e-12));
    assert!(verify(&[0.5, 0.5], Concept::Coarse).is_err());
    assert!(verify(&[0.5, 0.5, 0.5, -0.5], Concept::Coarse).is_err());
}

#[test]
fn programs_that_are_too_large_are_refused() {
    let shape = [30, 30];
    let large = game(&shape, &random(1, &shape));
    let options = Options::default();
    let refused = large.correlated(Concept::Coarse, &Objective::Welfare, &options, &NeverStop);
    assert_eq!(refused.unwrap_err().0, 30 * 30 * 58);
}

struct Stopped;

impl Control for Stopped {
    fn is_stopped(&self) -> bool {
        true
    }
}

#[test]
fn a_stopped_program_gives_a_lottery_that_is_not_marked_optimal() {
    let shape = [6, 6, 6];
    let game = game(&shape, &random(1, &shape));
    let objective = Objective::Welfare;
    let found = game
        .correlated(
            Concept::Correlated,
            &objective,
            &Options::default(),
            &Stopped,
        )
        .unwrap();
    assert!(!found.optimal || found.converged());
    assert!((found.lottery.iter().sum::<f64>() - 1.0).abs() < 1e-9);
}
