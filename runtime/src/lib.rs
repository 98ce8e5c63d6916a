//! What a process needs before it can serve anything: configuration, clocks, telemetry, storage, blobs,
//! event logs, and the admin and observe ports.

#![deny(missing_docs)]

pub mod audit;
pub mod backoff;
pub mod blobs;
pub mod bus;
pub mod changes;
pub mod clock;
pub mod config;
pub mod count;
pub mod db;
pub mod descriptors;
pub mod events;
pub mod health;
pub mod lease;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod network;
pub mod page;
mod password;
pub mod ports;
pub mod rate;
mod roots;
pub mod scoped;
pub mod scripts;
pub mod seeds;
pub mod shares;
pub mod stream;
pub mod targets;
pub mod tasks;
pub mod trace;
pub mod usage;
