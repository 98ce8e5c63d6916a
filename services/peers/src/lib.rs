//! The parts of their peers that AutoML and HyperSync share: evaluations by a trainer, the
//! classification of failed calls for retries, and the split of seeds between searches and
//! measurements.
//!
//! Services see their peers as traits over messages. The gRPC clients implement these traits in a
//! module of their own, so that a state machine can be tested without a socket.

#![deny(missing_docs)]

mod error;
mod grpc;
pub mod seeds;
mod trainer;

pub use error::{Failure, PeerError};
pub use grpc::{Agents, Training, orchestration};
pub use trainer::{Evaluation, Run, Trainer, Update};
