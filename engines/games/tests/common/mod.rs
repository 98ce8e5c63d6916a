//! Seeded random games, and certificates computed from their definition.

#![allow(dead_code, unreachable_pub)]

use tars_games::Game;

/// A splitmix64 stream.
pub struct Stream(pub u64);

impl Stream {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub type Tensors = Vec<Vec<f64>>;

pub fn drawn(seed: u64, shape: &[usize], mut draw: impl FnMut(&mut Stream) -> f64) -> Tensors {
    let mut stream = Stream(seed);
    let cells: usize = shape.iter().product();
    shape
        .iter()
        .map(|_| (0..cells).map(|_| draw(&mut stream)).collect())
        .collect()
}

pub fn random(seed: u64, shape: &[usize]) -> Tensors {
    drawn(seed, shape, Stream::unit)
}

pub fn ties(seed: u64, shape: &[usize], levels: u64) -> Tensors {
    drawn(seed, shape, |s| s.below(levels) as f64)
}

pub fn constant_sum(seed: u64, shape: &[usize]) -> Tensors {
    let mut tensors = random(seed, shape);
    for cell in 0..tensors[0].len() {
        let mean = tensors.iter().map(|t| t[cell]).sum::<f64>() / tensors.len() as f64;
        tensors.iter_mut().for_each(|t| t[cell] -= mean);
    }
    tensors
}

pub fn nearly_opposed(seed: u64, shape: &[usize]) -> Tensors {
    let mut tensors = random(seed, shape);
    for cell in 0..tensors[0].len() {
        tensors[1][cell] = 0.1 * tensors[1][cell] - tensors[0][cell];
    }
    tensors
}

pub fn game(shape: &[usize], tensors: &Tensors) -> Game {
    Game::new(shape.to_vec(), tensors.clone()).unwrap()
}

/// Every player's regret, computed from all joint actions.
pub fn regrets(shape: &[usize], tensors: &Tensors, profile: &[Vec<f64>]) -> Vec<f64> {
    let joint = |cell: usize| -> Vec<usize> {
        let mut rest = cell;
        let mut actions: Vec<usize> = shape
            .iter()
            .rev()
            .map(|a| {
                let action = rest % a;
                rest /= a;
                action
            })
            .collect();
        actions.reverse();
        actions
    };
    (0..shape.len())
        .map(|i| {
            let mut values = vec![0.0; shape[i]];
            for (cell, payoff) in tensors[i].iter().enumerate() {
                let actions = joint(cell);
                let others: f64 = (0..shape.len())
                    .filter(|j| *j != i)
                    .map(|j| profile[j][actions[j]])
                    .product();
                values[actions[i]] += others * payoff;
            }
            let now: f64 = values.iter().zip(&profile[i]).map(|(v, p)| v * p).sum();
            values.into_iter().fold(f64::MIN, f64::max) - now
        })
        .collect()
}

pub fn near(one: &[f64], other: &[f64], slack: f64) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() <= slack)
}
