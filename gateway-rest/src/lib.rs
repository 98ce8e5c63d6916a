//! The REST gateway: a dynamic transcoder from HTTP and JSON to gRPC, driven by the embedded descriptors. A
//! method with a `google.api.http` route is reachable here without any code of its own.
//!
//! The gateway does not authenticate callers: it passes their credential on, and the service that it calls
//! checks it. Its own identity only proves that it is the gateway.

#![deny(missing_docs)]

mod backend;
mod challenge;
mod client;
mod documents;
mod error;
pub mod forwarded;
mod json;
mod listen;
mod openapi;
mod raw;
mod server;
mod stream;
mod transcode;
mod unsent;

pub use backend::Backends;
pub use documents::{Documents, Flood};
pub use listen::Listening;
pub use raw::Raw;
pub use server::Gateway;
