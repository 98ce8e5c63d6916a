//! Calls to the services in encoded form: the transcoder encodes and decodes the messages itself.

use crate::Raw;
use bytes::Bytes;
use http::uri::PathAndQuery;
use std::collections::HashMap;
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::Channel;
use tars_proto::MAX_RESPONSE;
use tonic::{Code, Request, Response, Status, Streaming, client::Grpc};

/// The channels to each workload: one for calls and one for streams.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    channels: HashMap<String, (Channel, Channel)>,
}

impl Backends {
    /// Adds the workload that `channel` leads to, with a further channel for its streams.
    pub fn add(&mut self, workload: &str, channel: Channel) {
        let streams = channel.separate();
        self.channels
            .insert(workload.to_owned(), (channel, streams));
    }

    fn client(
        &self,
        workload: &str,
        streams: bool,
    ) -> Result<Grpc<OutgoingService<Channel>>, Status> {
        let (calls, separate) = self
            .channels
            .get(workload)
            .ok_or_else(|| Status::new(Code::Unimplemented, "no service behind this method"))?;
        let channel = if streams { separate } else { calls };
        Ok(Grpc::new(outgoing(channel.clone(), Credentials::Own))
            .max_decoding_message_size(MAX_RESPONSE))
    }

    pub(crate) async fn unary(
        &self,
        workload: &str,
        path: PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let mut client = self.client(workload, false)?;
        client.ready().await?;
        client.unary(request, path, Raw).await
    }

    pub(crate) async fn stream(
        &self,
        workload: &str,
        path: PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let mut client = self.client(workload, true)?;
        client.ready().await?;
        client.server_streaming(request, path, Raw).await
    }
}
