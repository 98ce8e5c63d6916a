//! Hyperparameter search by pure computation: spaces, samplers, pruners. Parameters are matched by
//! name; a seed and the history decide what is suggested.

pub mod interval;
pub mod pruner;
pub mod quantile;
pub mod sampler;
pub mod space;
mod tpe;

pub use pruner::{Direction, Pruner};
pub use sampler::Sampler;
pub use space::{Assignment, Parameter, Range, Space, SpaceError, Value};

/// A trial as samplers see it: what was tried, and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub assignment: Assignment,
    /// Higher is better; `None` while it runs.
    pub score: Option<f64>,
}
