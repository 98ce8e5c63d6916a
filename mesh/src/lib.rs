//! Connections: the serve loop on one side, client channels on the other.
//!
//! Both are built directly on hyper. tonic's server cannot swap its TLS configuration, close a connection
//! before a certificate of it expires, or drain with a deadline; its channel cannot move to a new connection
//! when this process's certificate is renewed.

#![deny(missing_docs)]

pub mod bootstrap;
pub mod channel;
pub mod connections;
mod framed;
pub mod health;
pub mod metrics;
mod prefixed;
mod replay;
pub mod serve;

pub use channel::{Channel, ChannelBody, ChannelMetrics, ChannelOptions, Server};
pub use connections::ConnectionTable;
pub use health::Health;
pub use metrics::MeshMetrics;
pub use serve::{Admission, Handler, Reply, ServeOptions, serve};
