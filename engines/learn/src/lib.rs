//! Reinforcement learning as pure computation: networks, algorithms, environments. There is no I/O
//! and no async code, and a seed determines every result.
//!
//! The networks are written directly on `ndarray`. At this size (two hidden layers of 64 units) the
//! overhead of a framework is several times the arithmetic, and its thread pool would compete with
//! the server's.

#![deny(missing_docs)]

pub mod algorithm;
mod checksum;
pub mod comparison;
pub mod distribution;
pub mod hyper;
pub mod learner;
pub mod net;
mod on_policy;
pub mod policy;
pub mod presets;
pub mod size;
#[cfg(test)]
mod testing;
pub mod training;

pub use algorithm::{ALGORITHMS, Algorithm, NoLearner};
pub use hyper::Spec;
pub use learner::{Learner, Step, Stopped, Update};
pub use policy::{Decision, Mismatch, Policy};
pub use size::{Extent, Part, Size};
