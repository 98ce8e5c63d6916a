//! Keeps a service's view of credentials current from Auth's watch stream. A stream that ends, or
//! that skips a change, is opened again and begins with a whole view. Meanwhile the view grows stale,
//! which the authentication layer checks.

use std::time::Duration;
use tars_certs::{IdentityHandle, TrustFeed};
use tars_credentials::{Follower, View};
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_proto::auth::v1::{
    ReportTrustRequest, WatchCredentialsRequest, credential_service_client::CredentialServiceClient,
};
use tars_proto::{fault, reason};
use tars_runtime::{
    backoff::{Backoff, spread},
    clock::Clock,
    health::Condition,
    seeds::Seeds,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Auth sends an item at least every second. A stream that is silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(5);

fn backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system())
}

type Client = CredentialServiceClient<OutgoingService<Channel>>;

/// Follows the watch stream until it is dropped.
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
        let (received, status) = follow(client.clone(), &view, &feed, &clock).await;
        if received {
            backoff.reset();
        }
        match status.code() {
            Code::Unavailable | Code::Unauthenticated => {
                tracing::debug!(service, %status, "the credential stream ended");
            }
            _ => tracing::warn!(service, %status, "the credential stream failed; retrying"),
        }
        // The only thing that a revoked peer still learns.
        if fault::reason(&status).as_deref() == Some(reason::OWN_CERTIFICATE_REVOKED) {
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
    let mut received = false;
    let mut follower = Follower::new(view.clone(), feed.clone());
    let mut items = match client
        .watch_credentials(WatchCredentialsRequest { after_sequence: 0 })
        .await
    {
        Ok(response) => response.into_inner(),
        Err(status) => return (received, status),
    };
    loop {
        match tokio::time::timeout(SILENCE, items.message()).await {
            Ok(Ok(Some(item))) => {
                received = true;
                if let Err(gap) = follower.apply(&item, clock.now_s()) {
                    return (received, Status::data_loss(gap.to_string()));
                }
            }
            Ok(Ok(None)) => return (received, Status::unavailable("the stream ended")),
            Ok(Err(status)) => return (received, status),
            Err(_) => {
                return (
                    received,
                    Status::unavailable("the stream was silent for too long"),
                );
            }
        }
    }
}

/// Reports to Auth which roots this service trusts, after each change of its identity and at least
/// once in each `every`, so that Auth knows that this process is still there. The call presents the
/// current certificate, which shows the root that it chains to. Returns after the last report, which
/// says that the process stops.
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
