//! Keeps a service's view of credentials filled from Auth's watch stream. A stream that ends, or in
//! which a change is missing, is opened again with a whole view; meanwhile the view grows stale, which
//! the authentication layer looks at.

use std::time::Duration;
use tars_certs::{IdentityHandle, TrustFeed};
use tars_credentials::{Follower, View};
use tars_interceptors::client::OutgoingService;
use tars_mesh::{Channel, channel::OWN_CERTIFICATE_REVOKED};
use tars_proto::auth::v1::{
    ReportTrustRequest, WatchCredentialsRequest, credential_service_client::CredentialServiceClient,
};
use tars_proto::fault;
use tars_runtime::{
    backoff::{Backoff, spread},
    clock::Clock,
    health::Condition,
    seeds::Seeds,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Auth sends something every second; this long without means that the stream is dead.
const SILENCE: Duration = Duration::from_secs(5);

fn backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system())
}

type Client = CredentialServiceClient<OutgoingService<Channel>>;

pub(crate) async fn credentials(
    client: Client,
    view: View,
    feed: TrustFeed,
    clock: Clock,
    identity: IdentityHandle,
    service: &'static str,
) {
    let mut backoff = backoff();
    loop {
        let serial = identity.current().leaf().serial.clone();
        let (heard, status) = follow(client.clone(), &view, &feed, &clock).await;
        if heard {
            backoff.reset();
        }
        tracing::debug!(
            service,
            error = status.message(),
            "the credential stream ended"
        );
        // Whoever is revoked is told nothing any more, but for this.
        if fault::reason(&status).as_deref() == Some(OWN_CERTIFICATE_REVOKED) {
            identity.report_revoked(&serial);
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn follow(
    mut client: Client,
    view: &View,
    feed: &TrustFeed,
    clock: &Clock,
) -> (bool, Status) {
    let mut heard = false;
    let mut follower = Follower::new(view.clone(), feed.clone());
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
                if let Err(gap) = follower.apply(&item, clock.now_s()) {
                    return (heard, Status::data_loss(gap.to_string()));
                }
            }
            Ok(Ok(None)) => return (heard, Status::unavailable("the stream ended")),
            Ok(Err(status)) => return (heard, status),
            Err(_) => return (heard, Status::unavailable("the stream fell silent")),
        }
    }
}

/// Tells Auth which roots are trusted here, after each change of the identity. The call comes with
/// the current certificate, which shows what root that stands under. Told again at least as often as
/// `every`, so that Auth knows that this process is still there. Returns once it is to leave, when Auth
/// was told so.
pub(crate) async fn report_trust(
    client: Client,
    identity: IdentityHandle,
    every: Duration,
    reported: Condition,
    leaving: CancellationToken,
) {
    let instance = uuid::Uuid::now_v7().to_string();
    let mut changes = identity.subscribe();
    let (mut backoff, seeds) = (backoff(), Seeds::system());
    loop {
        changes.borrow_and_update();
        let report = trusted(&instance, &identity);
        let wait = match client.clone().report_trust(report).await {
            Ok(_) => {
                reported.record_success();
                backoff.reset();
                spread(every, &seeds)
            }
            Err(status) => {
                reported.record_failure(status.message());
                backoff.next_delay()
            }
        };
        tokio::select! {
            biased;
            () = leaving.cancelled() => break,
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    let last = ReportTrustRequest {
        leaving: true,
        ..trusted(&instance, &identity)
    };
    if let Err(status) = client.clone().report_trust(last).await {
        tracing::debug!(
            error = status.message(),
            "Auth does not know that this process stops"
        );
    }
}

fn trusted(instance: &str, identity: &IdentityHandle) -> ReportTrustRequest {
    let identity = identity.current();
    let roots = identity.trust().root_keys();
    ReportTrustRequest {
        instance: instance.to_owned(),
        roots: roots.map(|k| k.as_bytes().to_vec()).collect(),
        leaving: false,
    }
}
