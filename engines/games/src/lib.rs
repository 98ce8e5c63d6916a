//! Equilibria of finite games, as pure computation. Every result carries a certificate that is
//! computed from the payoffs alone: what each player could still gain by deviating unilaterally.

#![deny(missing_docs)]

mod alpha_rank;
pub mod bargaining;
mod correlated;
mod equilibria;
mod game;
mod kernel;
mod learning;
mod lemke_howson;
mod linear;
mod logit;
mod lottery;
mod newton;
pub mod pareto;
mod polymatrix;
mod pure;
mod random;
mod search;
mod solve;
mod supports;
mod tableau;
#[cfg(test)]
mod testing;
mod vertices;
mod zero_sum;

pub use alpha_rank::{MAX_STATES, RankError, Selection};
pub use correlated::{Concept, Correlated, MAX_ENTRIES, Objective, ProgramTooLarge};
pub use equilibria::{Equilibria, Preference};
pub use game::{
    Game, GameError, MAX_ACTIONS, MAX_PAYOFF, MAX_PAYOFFS, MAX_PLAYERS, ProfileError, joint_actions,
};
pub use learning::Process;
pub use search::{Control, Method, NeverStop, Point, Solution};
pub use solve::{Algorithm, Options, UnsuitableAlgorithm};
pub use vertices::MAX_ALL;
