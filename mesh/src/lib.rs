//! Connections: the serve loop on one side, client channels on the other.
//!
//! Both are ours, on hyper: tonic's own server cannot swap its TLS configuration, end a connection
//! at the peer's expiry, or shut down with a deadline; its channel cannot move to a new connection
//! when the own certificate was renewed.

pub mod bootstrap;
pub mod channel;
pub mod connections;
mod framed;
pub mod health;
pub mod metrics;
mod replay;
pub mod serve;

pub use channel::{Channel, ChannelBody, ChannelOptions, MAX_RESPONSE, Server};
pub use connections::ConnectionTable;
pub use health::Health;
pub use metrics::MeshMetrics;
pub use serve::{Admission, Handler, Reply, ServeOptions, serve};
