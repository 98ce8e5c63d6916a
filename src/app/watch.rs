//! Keeps a service's view of credentials filled from Auth's watch stream. A stream that ends is
//! opened again with a whole view; meanwhile the view grows stale, which the authentication layer
//! looks at.

use std::time::Duration;
use tars_credentials::View;
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_proto::auth::v1::{
    WatchCredentialsRequest, credential_service_client::CredentialServiceClient,
};
use tars_runtime::clock::Clock;
use tonic::Status;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Auth sends something every second; this long without means that the stream is dead.
const SILENCE: Duration = Duration::from_secs(5);

pub(crate) async fn credentials(
    client: CredentialServiceClient<OutgoingService<Channel>>,
    view: View,
    clock: Clock,
    service: &'static str,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (heard, status) = follow(client.clone(), &view, &clock).await;
        if heard {
            pause = FIRST_PAUSE;
        }
        tracing::debug!(
            service,
            error = status.message(),
            "the credential stream ended"
        );
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn follow(
    mut client: CredentialServiceClient<OutgoingService<Channel>>,
    view: &View,
    clock: &Clock,
) -> (bool, Status) {
    let mut heard = false;
    let mut items = match client
        .watch_credentials(WatchCredentialsRequest { after_sequence: 0 })
        .await
    {
        Ok(response) => response.into_inner(),
        Err(status) => return (heard, status),
    };
    loop {
        match tokio::time::timeout(SILENCE, items.message()).await {
            Ok(Ok(Some(item))) => {
                heard = true;
                view.apply(&item, clock.now_s());
            }
            Ok(Ok(None)) => return (heard, Status::unavailable("the stream ended")),
            Ok(Err(status)) => return (heard, status),
            Err(_) => return (heard, Status::unavailable("the stream fell silent")),
        }
    }
}
