//! Hyperparameter search as pure computation: spaces, samplers, pruners. Parameters are matched by
//! name, and a suggestion is determined by the seed and the history.

#![deny(missing_docs)]

pub mod interval;
pub mod pruner;
pub mod quantile;
pub mod sampler;
pub mod space;
mod tpe;

pub use pruner::{Direction, Pruner};
pub use sampler::Sampler;
pub use space::{Assignment, Parameter, Range, Space, SpaceError, Value};

/// A trial as samplers see it: what was tried, and how well it did.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The parameters of the trial. Names that the space does not have are ignored.
    pub assignment: Assignment,
    /// Higher is better; `None` while the trial is running.
    pub score: Option<f64>,
}
