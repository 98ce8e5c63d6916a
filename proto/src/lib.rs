//! The contract: messages, clients and servers generated from the protos, the validation that field options
//! declare, and the method table that method options declare.
//!
//! Everything that depends on which methods exist and who may call them reads this table, so that access rules,
//! REST routes, documentation and negative tests cannot diverge.

#![deny(missing_docs)]

pub mod attempt;
pub mod binary;
pub mod bounds;
pub mod codec;
pub mod fault;
pub mod params;
pub mod reason;
pub mod route;
pub mod table;
pub mod time;
pub mod timeout;
pub mod unavailable;
pub mod validate;

/// The code generated from the protos, with one module per package.
#[allow(
    dead_code,
    missing_docs,
    rustdoc::bare_urls,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    unreachable_pub
)]
mod packages {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::{grpc, tars::*};
pub use prost::Message;
pub use prost_types::{Duration, Struct, Timestamp, Value};

/// Maximum size in bytes of a message that a service answers with, and that a client takes.
pub const MAX_RESPONSE: usize = 16 << 20;

/// The descriptors of everything above, custom options included.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
