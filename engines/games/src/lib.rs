//! Equilibria of games, by pure computation. Every answer carries its certificate: what each player
//! could still gain by deviating alone.

pub mod bimatrix;
mod linear;
mod support;
mod zero_sum;

pub use bimatrix::{Bimatrix, GameError, Method, Solution};
