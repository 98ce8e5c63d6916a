//! Reinforcement learning by pure computation: networks, algorithms, environments. No I/O, no
//! async; a seed decides everything.
//!
//! The networks are our own on `ndarray`: at this size (two hidden layers of 64) a framework costs
//! several times the arithmetic, and a thread pool that fights the server's.

pub mod dqn;
pub mod env;
pub mod hyper;
pub mod nn;
pub mod replay;
pub mod train;
pub mod weights;

pub use env::{Environment, make_environment};
pub use hyper::{Spec, spec_of};
pub use train::{Evaluation, Outcome, Progress, Run, RunError};
