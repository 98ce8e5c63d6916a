//! How names of servers become addresses.

use futures_util::future::BoxFuture;
use std::{fmt, io, net::SocketAddr};
use tars_runtime::targets::Target;

/// Looks up the addresses of a host name.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Returns the addresses that `target` has now, in any order.
    fn resolve(&self, target: &Target) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver: `/etc/hosts`, DNS, and what else the machine is set up with.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, target: &Target) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let (host, port) = (target.host().to_owned(), target.port());
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, port)).await?;
            Ok(found.collect())
        })
    }
}
