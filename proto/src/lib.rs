//! The contract: messages, clients and servers generated from the protos, the validation that
//! field options declare, and the method table that method options declare.
//!
//! Everything that depends on "which methods exist and who may call them" reads the table here,
//! so that access rules, REST routes, documentation and negative tests cannot drift apart.

pub mod bounds;
pub mod codec;
pub mod fault;
pub mod params;
pub mod route;
pub mod table;
pub mod time;
pub mod validate;

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod auth {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tars.auth.v1.rs"));
    }
}

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod orchestration {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tars.orchestration.v1.rs"));
    }
}

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod automl {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tars.automl.v1.rs"));
    }
}

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod hypersync {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tars.hypersync.v1.rs"));
    }
}

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
        }
    }
}

pub use prost::Message;
pub use prost_types::{Duration, Struct, Timestamp, Value};

/// The descriptors of everything above, custom options included.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
