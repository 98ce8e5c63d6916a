//! Calls of any method of the contract by messages of plain bytes, so that tests of every method need no
//! client of any.

use bytes::Bytes;
use http::uri::PathAndQuery;
use std::time::Duration;
use tars_gateway::Raw;
use tars_interceptors::{client::OutgoingService, contract};
use tars_mesh::Channel;
use tars_proto::table::{Method, Principal};
use tonic::{Request, Status, client::Grpc};

/// A call of a method with a message and at most one header.
#[derive(Debug)]
pub struct RawCall<'a> {
    /// The method.
    pub method: &'a Method,
    /// The header that carries the credential, by name and value.
    pub header: Option<(&'static str, &'a str)>,
    /// The encoded request.
    pub message: Bytes,
    /// The deadline.
    pub timeout: Duration,
}

impl RawCall<'_> {
    /// Makes the call; a stream counts by its first item.
    ///
    /// # Errors
    ///
    /// The status that the service or the mesh answers.
    ///
    /// # Panics
    ///
    /// If the header's value is no header value.
    pub async fn send(self, channel: OutgoingService<Channel>) -> Result<(), Status> {
        let mut client = Grpc::new(channel);
        let ready = client.ready().await;
        ready.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut request = Request::new(self.message);
        request.set_timeout(self.timeout);
        if let Some((name, value)) = self.header {
            let value = value.parse().expect("a header value");
            request.metadata_mut().insert(name, value);
        }
        let path: PathAndQuery = self.method.path.parse().expect("a path of the contract");
        if self.method.server_streaming {
            let response = client.server_streaming(request, path, Raw).await?;
            return response.into_inner().message().await.map(drop);
        }
        client.unary(request, path, Raw).await.map(drop)
    }
}

/// A unary method by which clients read from a service under a permission; one that lists something
/// where there is one, since that takes an empty request.
///
/// # Panics
///
/// If the service has no such method.
pub fn read_method(service: &str) -> &'static Method {
    let contract = contract().expect("the contract is sound");
    let reads = |m: &&Method| {
        let needs_permission = matches!(m.rule.principal, Principal::Permission(_));
        let by_client = m.rule.peers.iter().any(|p| p == "client");
        let is_read = m.read_only && !m.server_streaming;
        m.workload() == Some(service) && is_read && needs_permission && by_client
    };
    let methods = contract.iter().filter(reads);
    methods
        .min_by_key(|m| !m.name.starts_with("List"))
        .unwrap_or_else(|| panic!("{service} has no method that clients read by"))
}
