//! Properties that hold for every solution of every game.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::sync::atomic::{AtomicU64, Ordering};
use tars_games::{
    Algorithm, Control, Game, Method, NeverStop, Options, Preference, Process, Solution,
    UnsuitableAlgorithm,
};

fn solve(game: &Game) -> Solution {
    game.solve(&Options::default(), &NeverStop).unwrap()
}

/// Checks that the certificate agrees with the definition and is within tolerance.
fn assert_solved(shape: &[usize], tensors: &Tensors) -> Solution {
    let solution = solve(&game(shape, tensors));
    assert!(solution.converged(), "{shape:?} {tensors:?} {solution:?}");
    let scale = tensors
        .iter()
        .flatten()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let truth = regrets(shape, tensors, &solution.profile);
    assert!(
        near(&truth, &solution.regret, 1e-12 * scale),
        "{truth:?} {solution:?}"
    );
    for strategy in &solution.profile {
        assert!((strategy.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(strategy.iter().all(|p| *p >= 0.0));
    }
    let last = solution.history.last().unwrap();
    assert_eq!(last.method, solution.method);
    assert!(near(
        &[last.nash_conv],
        &[solution.nash_conv()],
        1e-12 * scale
    ));
    let points = solution.history.windows(2);
    assert!(points.into_iter().all(|w| w[0].iteration <= w[1].iteration));
    solution
}

const SHAPES: [&[usize]; 16] = [
    &[1],
    &[7],
    &[1, 1],
    &[1, 6],
    &[5, 1],
    &[2, 2],
    &[3, 3],
    &[2, 9],
    &[8, 5],
    &[12, 12],
    &[2, 2, 2],
    &[1, 3, 2],
    &[3, 3, 3],
    &[4, 2, 3],
    &[2, 3, 2, 3],
    &[2, 2, 2, 2, 2],
];

#[test]
fn every_class_of_game_is_solved() {
    for shape in SHAPES {
        for seed in 0..25 {
            assert_solved(shape, &random(seed, shape));
            assert_solved(shape, &ties(seed, shape, 2));
            assert_solved(shape, &ties(seed, shape, 4));
            assert_solved(shape, &constant_sum(seed, shape));
            if shape.len() == 2 {
                assert_solved(shape, &nearly_opposed(seed, shape));
            }
        }
        let flat = shape.iter().map(|_| vec![3.0; shape.iter().product()]);
        assert_solved(shape, &flat.collect());
    }
}

#[test]
fn games_with_payoffs_of_any_magnitude_are_solved() {
    for shape in [&[3, 3][..], &[4, 6], &[2, 3, 2]] {
        for seed in 0..20 {
            for scale in [1e-300, 1e-12, 1e12, 1e299] {
                let tensors = drawn(seed, shape, |s| (s.unit() - 0.5) * scale);
                assert_solved(shape, &tensors);
            }
            // Tiny payoffs, huge payoffs, and payoffs far from zero.
            let mut mixed = random(seed, shape);
            mixed[0].iter_mut().for_each(|v| *v *= 1e-9);
            mixed[1].iter_mut().for_each(|v| *v = *v * 1e9 - 1e9);
            let solution = solve(&game(shape, &mixed));
            assert!(solution.converged(), "{solution:?}");
        }
    }
}

#[test]
fn equilibria_are_invariant_under_positive_affine_transformations() {
    for shape in [&[4, 4][..], &[3, 5], &[2, 3, 3]] {
        for seed in 0..40 {
            let tensors = ties(seed, shape, 100);
            let mut other = tensors.clone();
            for (i, tensor) in other.iter_mut().enumerate() {
                let factor = f64::from(1u32 << (3 * i + 1));
                tensor.iter_mut().for_each(|v| *v = *v * factor - 64.0);
            }
            let (one, other) = (solve(&game(shape, &tensors)), solve(&game(shape, &other)));
            assert_eq!(one.profile, other.profile);
            assert_eq!(one.relative_regret, other.relative_regret);
        }
    }
}

fn sorted(mut profiles: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let key = |p: &Vec<f64>| {
        p.iter()
            .map(|v| (v * 1e6).round() as i64)
            .collect::<Vec<_>>()
    };
    profiles.sort_by_key(key);
    profiles
}

fn all(shape: &[usize], tensors: &Tensors) -> Vec<Vec<f64>> {
    let all = game(shape, tensors).equilibria(&Options::default(), &NeverStop);
    assert!(all.complete, "{shape:?}");
    sorted(all.found.iter().map(|s| s.profile.concat()).collect())
}

fn same(one: &[Vec<f64>], other: &[Vec<f64>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| near(a, b, 1e-7))
}

#[test]
fn equilibria_are_invariant_under_permutations() {
    for seed in 0..60 {
        let (m, n) = (2 + seed as usize % 4, 2 + seed as usize % 3);
        let tensors = match seed % 3 {
            0 => random(seed, &[m, n]),
            1 => ties(seed, &[m, n], 3),
            _ => nearly_opposed(seed, &[m, n]),
        };
        let before = all(&[m, n], &tensors);
        // Rows are rotated, columns are reversed, players are swapped.
        let turn = |i: usize| (i + 1) % m;
        let mut renamed = vec![vec![0.0; m * n]; 2];
        for i in 0..m {
            for j in 0..n {
                for player in 0..2 {
                    renamed[1 - player][(n - 1 - j) * m + turn(i)] = tensors[player][i * n + j];
                }
            }
        }
        let after = all(&[n, m], &renamed);
        let mapped = before.iter().map(|p| {
            let mut q = vec![0.0; m + n];
            (0..m).for_each(|i| q[n + turn(i)] = p[i]);
            (0..n).for_each(|j| q[n - 1 - j] = p[m + j]);
            q
        });
        assert!(same(&sorted(mapped.collect()), &after), "{tensors:?}");
    }
}

/// Support enumeration with plain elimination, for games without ties.
fn brute_force(m: usize, n: usize, tensors: &Tensors) -> Vec<Vec<f64>> {
    let mut found = Vec::new();
    for rows in 1u32..1 << m {
        for columns in 1u32..1 << n {
            if rows.count_ones() != columns.count_ones() {
                continue;
            }
            let own: Vec<usize> = (0..m).filter(|i| rows >> i & 1 == 1).collect();
            let other: Vec<usize> = (0..n).filter(|j| columns >> j & 1 == 1).collect();
            let y = mix(&own, &other, |i, j| tensors[0][i * n + j]);
            let x = mix(&other, &own, |j, i| tensors[1][i * n + j]);
            let (Some(x), Some(y)) = (x, y) else { continue };
            let mut profile = [vec![0.0; m], vec![0.0; n]];
            own.iter().zip(&x).for_each(|(i, p)| profile[0][*i] = *p);
            other.iter().zip(&y).for_each(|(j, p)| profile[1][*j] = *p);
            if regrets(&[m, n], tensors, &profile)
                .iter()
                .all(|r| *r < 1e-9)
            {
                found.push(profile.concat());
            }
        }
    }
    sorted(found)
}

/// Weights over `over` that give all of `equal` the same value, by Gaussian elimination.
fn mix(equal: &[usize], over: &[usize], payoff: impl Fn(usize, usize) -> f64) -> Option<Vec<f64>> {
    let k = over.len();
    let mut rows: Vec<Vec<f64>> = (0..k)
        .map(|r| {
            let mut row: Vec<f64> = if r + 1 == k {
                vec![1.0; k]
            } else {
                let cell = |i: usize, j: usize| payoff(equal[i], over[j]);
                (0..k).map(|j| cell(r, j) - cell(r + 1, j)).collect()
            };
            row.push(if r + 1 == k { 1.0 } else { 0.0 });
            row
        })
        .collect();
    for c in 0..k {
        let pivot = (c..k).max_by(|a, b| rows[*a][c].abs().total_cmp(&rows[*b][c].abs()))?;
        if rows[pivot][c].abs() < 1e-12 {
            return None;
        }
        rows.swap(c, pivot);
        for r in (0..k).filter(|r| *r != c) {
            let factor = rows[r][c] / rows[c][c];
            let pivot = rows[c].clone();
            for (cell, above) in rows[r].iter_mut().zip(pivot).skip(c) {
                *cell -= factor * above;
            }
        }
    }
    let weights: Vec<f64> = (0..k).map(|r| rows[r][k] / rows[r][r]).collect();
    weights.iter().all(|w| *w > 0.0).then_some(weights)
}

#[test]
fn all_equilibria_agree_with_brute_force() {
    for seed in 0..120 {
        let (m, n) = (1 + seed as usize % 5, 1 + (seed as usize / 5) % 5);
        let tensors = match seed % 2 {
            0 => random(seed, &[m, n]),
            _ => nearly_opposed(seed, &[m, n]),
        };
        let (found, truth) = (all(&[m, n], &tensors), brute_force(m, n, &tensors));
        assert!(same(&found, &truth), "{tensors:?}\n{found:?}\n{truth:?}");
        assert_eq!(found.len() % 2, 1, "a game without ties has an odd number");
    }
}

#[test]
fn all_equilibria_of_games_with_ties_include_every_pure_one() {
    for seed in 0..120 {
        let (m, n) = (2 + seed as usize % 4, 2 + seed as usize % 3);
        let tensors = ties(seed, &[m, n], 3);
        let game = game(&[m, n], &tensors);
        let all = game.equilibria(&Options::default(), &NeverStop);
        assert!(all.complete && !all.found.is_empty());
        assert!(all.found.iter().all(Solution::converged));
        for cell in 0..m * n {
            let (i, j) = (cell / n, cell % n);
            let mut profile = [vec![0.0; m], vec![0.0; n]];
            (profile[0][i], profile[1][j]) = (1.0, 1.0);
            let is_one = regrets(&[m, n], &tensors, &profile)
                .iter()
                .all(|r| *r == 0.0);
            let listed = all.found.iter().any(|s| s.profile == profile);
            assert_eq!(is_one, listed, "{tensors:?} {profile:?}");
        }
        // Every mixture of neighbours within a component is an equilibrium.
        for (a, one) in all.found.iter().enumerate() {
            for (b, other) in all.found.iter().enumerate().take(a) {
                if one.profile[0] == other.profile[0] {
                    assert_eq!(all.components[a], all.components[b]);
                    let middle = |k: usize| 0.5 * (one.profile[1][k] + other.profile[1][k]);
                    let middle = (0..n).map(middle).collect();
                    let mixed = game
                        .verify(&[one.profile[0].clone(), middle], 1e-9)
                        .unwrap();
                    assert!(mixed.converged());
                }
            }
        }
    }
}

#[test]
fn equilibria_of_more_players_are_profiles_and_differ() {
    for seed in 0..30 {
        let shape = [2, 3, 2];
        let tensors = match seed % 2 {
            0 => random(seed, &shape),
            _ => ties(seed, &shape, 3),
        };
        let all = game(&shape, &tensors).equilibria(&Options::default(), &NeverStop);
        assert!(!all.complete && !all.found.is_empty());
        for (a, one) in all.found.iter().enumerate() {
            assert!(one.converged() && one.profile.iter().flatten().all(|p| *p >= 0.0));
            let twin =
                |other: &Solution| near(&one.profile.concat(), &other.profile.concat(), 1e-9);
            assert!(!all.found[..a].iter().any(twin), "{tensors:?}");
        }
    }
}

#[test]
fn a_single_player_takes_its_best_action() {
    let alone = game(&[4], &vec![vec![1.0, 3.0, 2.0, 3.0]]);
    let all = alone.equilibria(&Options::default(), &NeverStop);
    assert_eq!((all.found.len(), all.complete), (2, true));
    assert_eq!(all.components, [0, 0]);
    for preference in [Preference::Welfare, Preference::Fairness, Preference::Logit] {
        let (best, _) = alone.select(preference, &Options::default(), &NeverStop);
        assert!(best.converged() && best.payoffs == [3.0]);
    }
    for algorithm in [
        Algorithm::SupportEnumeration,
        Algorithm::IteratedPolymatrix,
        Algorithm::LogitHomotopy,
        Algorithm::Learning(Process::FictitiousPlay),
    ] {
        let options = Options {
            algorithm,
            ..Options::default()
        };
        assert!(
            alone.solve(&options, &NeverStop).unwrap().converged(),
            "{algorithm:?}"
        );
    }
}

#[test]
fn symmetric_games_have_a_symmetric_equilibrium() {
    for seed in 0..40 {
        let n = 2 + seed as usize % 4;
        let a = random(seed, &[n, n])[0].clone();
        let b = (0..n * n).map(|k| a[k % n * n + k / n]).collect();
        let found = all(&[n, n], &vec![a, b]);
        assert!(found.iter().any(|p| near(&p[..n], &p[n..], 1e-9)));
        // The set of equilibria is symmetric.
        let swapped = found.iter().map(|p| [&p[n..], &p[..n]].concat());
        assert!(same(&sorted(swapped.collect()), &found));
    }
}

#[test]
fn textbook_games_have_their_known_equilibria() {
    let tensors = |a: &[f64], b: &[f64]| vec![a.to_vec(), b.to_vec()];
    let dilemma = tensors(&[3.0, 0.0, 5.0, 1.0], &[3.0, 5.0, 0.0, 1.0]);
    assert_eq!(all(&[2, 2], &dilemma), [[0.0, 1.0, 0.0, 1.0]]);
    assert_eq!(solve(&game(&[2, 2], &dilemma)).method, Method::Pure);

    let sexes = tensors(&[3.0, 0.0, 0.0, 2.0], &[2.0, 0.0, 0.0, 3.0]);
    let found = all(&[2, 2], &sexes);
    assert_eq!(found.len(), 3);
    assert!(found.iter().any(|p| near(p, &[0.6, 0.4, 0.4, 0.6], 1e-12)));

    let pennies = tensors(&[1.0, -1.0, -1.0, 1.0], &[-1.0, 1.0, 1.0, -1.0]);
    let even = solve(&game(&[2, 2], &pennies));
    assert_eq!(even.method, Method::LinearProgram);
    assert!(
        near(&even.profile.concat(), &[0.5; 4], 1e-15) && near(&even.payoffs, &[0.0; 2], 1e-15)
    );

    // The degenerate example of Avis, Rosenberg, Savani and von Stengel, with a component.
    let a = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0];
    let component = tensors(&a, &[3.0, 3.0, 1.0, 1.0, 3.0, 1.0]);
    let listed = game(&[3, 2], &component).equilibria(&Options::default(), &NeverStop);
    assert!(listed.complete && listed.found.len() > 1);

    // Jordan's three-player matching pennies, whose only equilibrium is uniform.
    let wants = |i: usize| {
        (0..8)
            .map(|cell| {
                let bit = |j: usize| cell >> (2 - j % 3) & 1;
                let alike = bit(i) == bit(i + 1);
                f64::from(u8::from(if i == 2 { !alike } else { alike }))
            })
            .collect()
    };
    let jordan: Tensors = (0..3).map(wants).collect();
    let even = assert_solved(&[2, 2, 2], &jordan);
    assert!(near(&even.profile.concat(), &[0.5; 6], 1e-12), "{even:?}");
}

#[test]
fn dominated_actions_are_never_played() {
    for seed in 0..30 {
        let mut tensors = nearly_opposed(seed, &[5, 6]);
        for j in 0..6 {
            tensors[0][2 * 6 + j] = tensors[0][4 * 6 + j] - 0.01;
        }
        let solution = assert_solved(&[5, 6], &tensors);
        assert_eq!(solution.profile[0][2], 0.0);
    }
}

#[test]
fn algorithms_agree_where_they_apply() {
    let by = |game: &Game, algorithm: Algorithm| {
        let options = Options {
            algorithm,
            ..Options::default()
        };
        game.solve(&options, &NeverStop)
    };
    for seed in 0..20 {
        let zero = game(&[4, 5], &constant_sum(seed, &[4, 5]));
        let value = by(&zero, Algorithm::LinearProgram).unwrap().payoffs[0];
        for algorithm in [
            Algorithm::LemkeHowson,
            Algorithm::SupportEnumeration,
            Algorithm::IteratedPolymatrix,
            Algorithm::LogitHomotopy,
        ] {
            let solution = by(&zero, algorithm).unwrap();
            assert!(solution.converged(), "{algorithm:?} {seed} {solution:?}");
            assert!((solution.payoffs[0] - value).abs() < 1e-8);
        }
        let three = game(&[3, 2, 3], &random(seed, &[3, 2, 3]));
        for algorithm in [Algorithm::IteratedPolymatrix, Algorithm::LogitHomotopy] {
            assert!(
                by(&three, algorithm).unwrap().converged(),
                "{algorithm:?} {seed}"
            );
        }
        let refused = |algorithm| by(&three, algorithm).unwrap_err();
        assert_eq!(
            refused(Algorithm::LemkeHowson),
            UnsuitableAlgorithm::TwoPlayers
        );
        assert_eq!(
            refused(Algorithm::LinearProgram),
            UnsuitableAlgorithm::ZeroSum
        );
    }
}

#[test]
fn learning_processes_certify_how_close_they_came() {
    let zero = game(&[6, 6], &constant_sum(7, &[6, 6]));
    let learnt = |process, rounds| {
        let options = Options {
            tolerance: Some(1e-2),
            algorithm: Algorithm::Learning(process),
            rounds,
            ..Options::default()
        };
        zero.solve(&options, &NeverStop).unwrap()
    };
    for process in [Process::FictitiousPlay, Process::RegretMatchingPlus] {
        let (short, long) = (learnt(process, 2), learnt(process, 200_000));
        assert!(
            !short.converged() && long.converged(),
            "{process:?} {long:?}"
        );
        assert!(long.relative_regret > 1e-9, "it is an approximation");
    }
    // Replicators cycle in a zero-sum game and converge in the dilemma.
    let dilemma = game(
        &[2, 2],
        &vec![vec![3.0, 0.0, 5.0, 1.0], vec![3.0, 5.0, 0.0, 1.0]],
    );
    for process in [Process::Replicator, Process::ProjectedReplicator] {
        let options = Options {
            tolerance: Some(1e-3),
            algorithm: Algorithm::Learning(process),
            ..Options::default()
        };
        let settled = dilemma.solve(&options, &NeverStop).unwrap();
        assert!(
            settled.converged() && settled.profile[0][1] > 0.99,
            "{settled:?}"
        );
    }
}

#[test]
fn preferences_choose_among_the_equilibria_found() {
    let hunt = game(
        &[2, 2],
        &vec![vec![4.0, 0.0, 3.0, 2.0], vec![4.0, 3.0, 0.0, 2.0]],
    );
    let choose = |game: &Game, preference| game.select(preference, &Options::default(), &NeverStop);
    let (best, from) = choose(&hunt, Preference::Welfare);
    assert_eq!(
        (best.payoffs, from.found.len(), from.complete),
        (vec![4.0, 4.0], 3, true)
    );
    let sexes = game(
        &[2, 2],
        &vec![vec![9.0, 0.0, 0.0, 2.0], vec![2.0, 0.0, 0.0, 3.0]],
    );
    assert_eq!(choose(&sexes, Preference::Welfare).0.payoffs, [9.0, 2.0]);
    let (logit, from) = choose(&hunt, Preference::Logit);
    assert!(logit.converged() && logit.method == Method::LogitHomotopy && !from.complete);
    let three = game(&[2, 2, 2], &random(3, &[2, 2, 2]));
    let (best, from) = choose(&three, Preference::Fairness);
    assert!(best.converged() && !from.complete && !from.found.is_empty());
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    for shape in [&[6, 6][..], &[4, 4, 4], &[3, 3, 3, 3]] {
        for seed in 0..5 {
            let game = game(shape, &constant_sum(seed, shape));
            assert_eq!(solve(&game), solve(&game));
        }
    }
}

/// Stops the search at the n-th poll.
struct After(AtomicU64);

impl Control for After {
    fn is_stopped(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }
}

#[test]
fn a_stopped_search_returns_the_best_profile_so_far() {
    let shape = [5, 5, 5, 5];
    for algorithm in [
        Algorithm::Automatic,
        Algorithm::SupportEnumeration,
        Algorithm::IteratedPolymatrix,
        Algorithm::LogitHomotopy,
        Algorithm::Learning(Process::FictitiousPlay),
    ] {
        let mut last = f64::INFINITY;
        for questions in [0, 1, 3, 10, 30] {
            let tensors = constant_sum(2, &shape);
            let options = Options {
                algorithm,
                ..Options::default()
            };
            let control = After(AtomicU64::new(questions));
            let solution = game(&shape, &tensors).solve(&options, &control).unwrap();
            let truth = regrets(&shape, &tensors, &solution.profile);
            assert!(near(&truth, &solution.regret, 1e-12));
            assert_eq!(solution.converged(), solution.relative_regret <= 1e-6);
            assert!(solution.relative_regret <= last, "more time is never worse");
            last = solution.relative_regret;
        }
    }
    let big = game(&[12, 12], &random(1, &[12, 12]));
    let all = big.equilibria(&Options::default(), &After(AtomicU64::new(2)));
    assert!(!all.complete);
}
