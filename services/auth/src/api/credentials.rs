//! The handlers through which processes of the mesh follow Auth: the watch stream, and reports of the
//! roots that they trust.

use super::{Api, certificates, watch};
use futures_util::Stream;
use std::pin::Pin;
use tars_interceptors::Call;
use tars_proto::auth::v1::*;
use tonic::{Request, Response, Status};
use uuid::Uuid;

type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchCredentialsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl credential_service_server::CredentialService for Api {
    type WatchCredentialsStream = WatchStream;

    async fn watch_credentials(
        &self,
        request: Request<WatchCredentialsRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let after = request.into_inner().after_sequence;
        let watch = watch::start(&self.0, after).await?;
        Ok(Response::new(Box::pin(watch)))
    }

    async fn report_trust(
        &self,
        request: Request<ReportTrustRequest>,
    ) -> Result<Response<ReportTrustResponse>, Status> {
        let call = Call::of(&request)?;
        let ReportTrustRequest {
            instance,
            roots,
            leaving,
        } = request.into_inner();
        let instance = Uuid::try_parse(&instance)
            .map_err(|e| tars_proto::fault::invalid_field("instance", &e.to_string()))?;
        let roots = certificates::key_ids(&roots)?;
        let peer = certificates::verified(&call)?;
        match leaving {
            true => self.0.withdraw_trust(peer, instance).await?,
            false => self.0.report_trust(peer, instance, &roots).await?,
        }
        Ok(Response::new(ReportTrustResponse {}))
    }
}
