//! What AutoML and HyperSync share of the services that they call: an evaluation, what a failed call
//! means for whoever repeats it, and which seeds belong to a search and which to a measurement.
//!
//! Services see their peers as traits over messages. The clients that speak to the mesh implement
//! them in a file of their own, so that a state machine is tested without a socket.

mod error;
mod grpc;
pub mod seeds;
mod trainer;

pub use error::{Failure, PeerError};
pub use grpc::{Agents, Training, orchestration};
pub use trainer::{Evaluation, Run, Trainer, Update};
