//! Seeded games for tests.

use crate::{Game, random::Stream};

pub(crate) fn random(seed: u64, shape: &[usize]) -> Game {
    let mut stream = Stream::new(seed);
    let cells = shape.iter().product();
    let tensors = shape
        .iter()
        .map(|_| (0..cells).map(|_| stream.unit()).collect())
        .collect();
    Game::new(shape.to_vec(), tensors).unwrap()
}

/// A random game in which the payoffs of every joint action sum to zero.
pub(crate) fn constant_sum(seed: u64, shape: &[usize]) -> Game {
    let mut stream = Stream::new(seed);
    let cells: usize = shape.iter().product();
    let mut tensors = vec![vec![0.0; cells]; shape.len()];
    for cell in 0..cells {
        let drawn: Vec<f64> = shape.iter().map(|_| stream.unit()).collect();
        let mean = drawn.iter().sum::<f64>() / shape.len() as f64;
        for (tensor, value) in tensors.iter_mut().zip(drawn) {
            tensor[cell] = value - mean;
        }
    }
    Game::new(shape.to_vec(), tensors).unwrap()
}

pub(crate) fn random_profile(seed: u64, game: &Game) -> Vec<f64> {
    let mut stream = Stream::new(seed);
    let strategies: Vec<Vec<f64>> = game
        .shape()
        .iter()
        .map(|a| {
            let raw: Vec<f64> = (0..*a).map(|_| stream.unit()).collect();
            let sum: f64 = raw.iter().sum();
            raw.iter().map(|p| p / sum).collect()
        })
        .collect();
    game.profile(&strategies).unwrap()
}
