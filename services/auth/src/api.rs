//! Auth's gRPC handlers: thin translations between messages and the domain.

mod api_keys;
mod audit;
mod certificates;
mod credentials;
mod sessions;
mod signing_keys;
mod users;
mod watch;

#[cfg(test)]
pub(crate) use watch::start as watch_stream;

use crate::{Auth, Origin};
use std::sync::Arc;
use tars_interceptors::Call;
use tars_proto::auth::v1::*;
use tonic::{Request, Status, service::Routes};

#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<Auth>);

/// All of Auth's services. `max_message` is what the listener takes, which refuses larger ones with the
/// contract's status; a lower limit of tonic's own would answer before it.
pub fn routes(auth: Arc<Auth>, max_message: usize) -> Routes {
    let api = Api(auth);
    let mut routes = Routes::builder();
    routes
        .add_service(
            auth_service_server::AuthServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            user_service_server::UserServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            api_key_service_server::ApiKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            signing_key_service_server::SigningKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            audit_service_server::AuditServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            certificate_service_server::CertificateServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            credential_service_server::CredentialServiceServer::new(api)
                .max_decoding_message_size(max_message),
        );
    routes.routes()
}

/// All that the bootstrap listener serves.
pub fn bootstrap_routes(auth: Arc<Auth>, max_message: usize) -> Routes {
    let mut routes = Routes::builder();
    routes.add_service(
        bootstrap_service_server::BootstrapServiceServer::new(Api(auth))
            .max_decoding_message_size(max_message),
    );
    routes.routes()
}

fn origin<T>(request: &Request<T>) -> Result<Origin, Status> {
    let call = Call::of(request)?;
    Ok(Origin::new(call.peer.name(), call.client))
}
