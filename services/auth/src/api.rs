//! Auth's gRPC handlers, which translate between messages and the domain.

mod api_keys;
mod audit;
mod certificates;
mod credentials;
mod sessions;
mod signing_keys;
mod usage;
mod users;
mod watch;

#[cfg(test)]
pub(crate) use watch::start as watch_stream;

use crate::{Auth, Origin};
use std::sync::Arc;
use tars_interceptors::{Call, usage::Usage};
use tars_proto::{MAX_RESPONSE, auth::v1::*};
use tonic::{Request, Status, service::Routes};
use usage::UsageApi;

/// Implements every service of Auth.
#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<Auth>);

/// All services of Auth for the mesh listener. `max_message` is the limit of that listener, in
/// bytes, which rejects larger messages with the contract's status; a lower limit here would answer
/// first.
pub fn routes(auth: Arc<Auth>, counting: Usage, max_message: usize) -> Routes {
    let usage = UsageApi {
        auth: Arc::clone(&auth),
        counting,
    };
    let api = Api(auth);
    let mut routes = Routes::builder();
    routes
        .add_service(
            auth_service_server::AuthServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            user_service_server::UserServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            api_key_service_server::ApiKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            signing_key_service_server::SigningKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            audit_service_server::AuditServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            usage_service_server::UsageServiceServer::new(usage)
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            certificate_service_server::CertificateServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            credential_service_server::CredentialServiceServer::new(api)
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        );
    routes.routes()
}

/// The service of the bootstrap listener, which is the only one that it serves.
pub fn bootstrap_routes(auth: Arc<Auth>, max_message: usize) -> Routes {
    let mut routes = Routes::builder();
    routes.add_service(
        bootstrap_service_server::BootstrapServiceServer::new(Api(auth))
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(MAX_RESPONSE),
    );
    routes.routes()
}

fn origin<T>(request: &Request<T>) -> Result<Origin, Status> {
    let call = Call::of(request)?;
    Ok(Origin::new(call.peer.name(), call.client))
}
