//! An identity from Auth, over gRPC: first for a join token at the bootstrap listener, then by the
//! current certificate, each time for a new key; and by the rejoin token when the machine slept
//! past the end of its certificate.
//!
//! The key, the certificate and the rejoin token are saved in one file, replaced atomically: a key
//! without its certificate is useless.

use super::retry;
use crate::app::{StartError, connect_failure::Attempt};
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tars_certs::{
    Bundle, Identity, IdentityError, KeyId, SpiffeId, TrustFeed,
    ca::csr,
    files::IdentityPem,
    identity::Parts,
    join::JoinToken,
    renew::{IdentitySource, SourceError},
    secret,
};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{
    Channel,
    bootstrap::{Bootstrap, BootstrapError},
};
use tars_proto::auth::v1::{
    IssueWithTokenRequest, IssuedIdentity, RenewCertificateRequest,
    bootstrap_service_client::BootstrapServiceClient,
    certificate_service_client::CertificateServiceClient,
};
use tars_runtime::clock::Clock;
use tokio::sync::watch;
use tonic::{Code, Status};
use zeroize::Zeroizing;

type Time = Arc<dyn rustls::time_provider::TimeProvider>;

const HOUR: Duration = Duration::from_secs(3600);

/// The contents of the identity file.
#[derive(Serialize, Deserialize)]
struct SavedIdentity {
    identity: IdentityPem,
    rejoin_token: Zeroizing<String>,
    /// Set once the identity is revoked: neither it nor its rejoin token is used again.
    #[serde(default)]
    revoked: bool,
}

/// How this process obtains its identity from Auth.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    /// The identity file.
    pub(crate) file: PathBuf,
    /// Auth's bootstrap listeners, as `host:port`, separated by commas.
    pub(crate) bootstrap: String,
    pub(crate) auth: SpiffeId,
    pub(crate) token_file: Option<PathBuf>,
    /// The SPIFFE id of this process. A token for another id is refused.
    pub(crate) own: SpiffeId,
    pub(crate) clock: Clock,
}

fn remote(e: impl std::fmt::Display) -> SourceError {
    SourceError::Refused(e.to_string())
}

impl Joining {
    fn time(&self) -> Time {
        Arc::new(self.clock.clone())
    }

    /// Returns the saved identity while it is valid; otherwise joins with a token.
    pub(crate) async fn start(&self) -> Result<Identity, StartError> {
        let saved = self.saved()?;
        let revoked = saved.as_ref().is_some_and(|k| k.revoked);
        let saved = saved.filter(|k| !k.revoked);
        if let Some(saved) = &saved {
            match saved.identity.load(&self.time()) {
                Ok(identity) => return Ok(identity),
                Err(e) => tracing::warn!(error = %e, "the saved identity can no longer be used"),
            }
        }
        let token = self.token(saved, revoked)?;
        let mut backoff = retry(HOUR);
        loop {
            match self.join(&token).await {
                Ok(identity) => return Ok(identity),
                // Services start in any order.
                Err(SourceError::Unreachable(why)) => {
                    let wait = backoff.next_delay();
                    tracing::warn!(why, ?wait, "cannot join yet");
                    tokio::time::sleep(wait).await;
                }
                Err(e) if revoked => {
                    return Err(StartError::Join(format!(
                        "{e}; the identity in {} is revoked, and only a new join token gives another",
                        self.file.display()
                    )));
                }
                Err(e) => return Err(StartError::Join(e.to_string())),
            }
        }
    }

    /// The token to join with: one that an operator provides takes precedence over the saved one.
    fn token(&self, saved: Option<SavedIdentity>, revoked: bool) -> Result<JoinToken, StartError> {
        match (&self.token_file, saved) {
            (Some(path), _) if path.exists() => {
                let text = secret::read(path).map_err(|e| StartError::file(path, e))?;
                Ok(JoinToken::new(&Zeroizing::new(text)))
            }
            (_, Some(saved)) => Ok(JoinToken::new(&saved.rejoin_token)),
            _ => Err(StartError::Join(format!(
                "{} identity in {} and no join token: make one with `tars certs join-token`, and name its file with --join-token-file",
                if revoked { "a revoked" } else { "no" },
                self.file.display()
            ))),
        }
    }

    /// Marks the saved identity as revoked, so that a restart does not present it again.
    fn mark_revoked(&self) -> Result<(), SourceError> {
        let saved = self.saved().map_err(remote)?;
        saved.map_or(Ok(()), |saved| {
            self.write(&SavedIdentity {
                revoked: true,
                ..saved
            })
        })
    }

    fn saved(&self) -> Result<Option<SavedIdentity>, StartError> {
        if !self.file.exists() {
            return Ok(None);
        }
        let bad = |e| StartError::file(&self.file, e);
        let text = Zeroizing::new(secret::read(&self.file).map_err(bad)?);
        let saved = serde_json::from_str(&text).map_err(|e| bad(std::io::Error::other(e)))?;
        Ok(Some(saved))
    }

    async fn join(&self, token: &JoinToken) -> Result<Identity, SourceError> {
        let claims = token.unverified_claims().map_err(remote)?;
        if claims.spiffe_id != self.own {
            return Err(remote(format!(
                "the join token is for {}, and this is {}",
                claims.spiffe_id, self.own
            )));
        }
        let connection =
            Bootstrap::connect(&self.bootstrap, claims.root, self.auth.clone(), &self.clock)
                .await
                .map_err(|e| match e {
                    BootstrapError::Away(why) => SourceError::Unreachable(self.explained(why)),
                    BootstrapError::NotMeant { .. } => remote(self.explained(e.to_string())),
                })?;
        let (key, csr) = new_key()?;
        let request = IssueWithTokenRequest {
            token: token.as_str().to_owned(),
            csr,
        };
        let answer = BootstrapServiceClient::new(connection)
            .issue_with_token(request)
            .await
            .map_err(|s| self.failed(&s))?;
        self.take(&key, answer.into_inner().identity)
    }

    /// Adds to a connection error what an operator can do about it.
    fn explained(&self, error: String) -> String {
        let attempt = Attempt {
            target: self.bootstrap.clone(),
            expected: self.auth.to_string(),
            identity: self.file.clone(),
            own: self.own.path().to_owned(),
        };
        attempt.explain(&error).map_or(error, |e| e.to_string())
    }

    fn failed(&self, status: &Status) -> SourceError {
        let text = format!("{}: {}", self.bootstrap, status.message());
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => SourceError::Unreachable(text),
            _ => SourceError::Refused(text),
        }
    }

    /// Verifies what Auth issued and saves it.
    fn take(&self, key: &KeyPair, issued: Option<IssuedIdentity>) -> Result<Identity, SourceError> {
        let issued = issued.ok_or_else(|| remote("the answer has no identity"))?;
        let ders = |list: &[Vec<u8>]| {
            list.iter()
                .map(|d| CertificateDer::from(d.clone()))
                .collect()
        };
        let bundle = issued.bundle.unwrap_or_default();
        let parts = Parts {
            chain: ders(&issued.chain),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            roots: ders(&bundle.roots),
            crls: Vec::new(),
        };
        let identity = Identity::new(parts, &self.time())?;
        if *identity.id() != self.own {
            return Err(remote(format!("Auth issued for {}", identity.id())));
        }
        self.save(&identity, &issued.rejoin_token)?;
        Ok(identity)
    }

    fn save(&self, identity: &Identity, rejoin_token: &str) -> Result<(), SourceError> {
        self.write(&SavedIdentity {
            identity: IdentityPem::of(identity),
            rejoin_token: Zeroizing::new(rejoin_token.to_owned()),
            revoked: false,
        })
    }

    fn write(&self, saved: &SavedIdentity) -> Result<(), SourceError> {
        let text = Zeroizing::new(serde_json::to_string(saved).map_err(remote)?);
        let failed = |e: std::io::Error| remote(format!("{}: {e}", self.file.display()));
        secret::create_dir(self.file.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        secret::write(&self.file, text.as_bytes()).map_err(failed)
    }
}

fn new_key() -> Result<(KeyPair, Vec<u8>), SourceError> {
    let key = KeyPair::generate().map_err(remote)?;
    let csr = csr::create(&key).map_err(remote)?;
    Ok((key, csr))
}

/// Renews through Auth, and follows the roots that Auth pushes.
pub(crate) struct JoinSource {
    joining: Joining,
    renewal: CertificateServiceClient<OutgoingService<Channel>>,
    bundles: tokio::sync::Mutex<watch::Receiver<Option<Arc<Bundle>>>>,
    /// The roots and anchor in use, compared with each pushed bundle.
    current: Mutex<Under>,
}

/// The roots that an identity trusts, and the one that it stands under.
struct Under {
    roots: Vec<CertificateDer<'static>>,
    anchor: KeyId,
}

impl Under {
    fn of(identity: &Identity) -> Self {
        Self {
            roots: identity.trust().roots().to_vec(),
            anchor: identity.verified().anchor,
        }
    }

    fn is_moved_by(&self, bundle: &Bundle) -> bool {
        self.roots != bundle.roots || bundle.tainted.contains(&self.anchor)
    }
}

impl JoinSource {
    pub(crate) fn new(
        joining: Joining,
        first: &Identity,
        to_auth: Channel,
        feed: &TrustFeed,
    ) -> Self {
        Self {
            joining,
            current: Mutex::new(Under::of(first)),
            renewal: CertificateServiceClient::new(outgoing(to_auth, Credentials::Own)),
            bundles: tokio::sync::Mutex::new(feed.bundles()),
        }
    }

    async fn renew(&self, current: &Identity) -> Result<Identity, SourceError> {
        if current.leaf().not_after <= self.joining.clock.now() {
            let saved = self.joining.saved().map_err(remote)?;
            let saved = saved.ok_or_else(|| {
                remote("the certificate has expired, and no rejoin token is saved")
            })?;
            return self
                .joining
                .join(&JoinToken::new(&saved.rejoin_token))
                .await;
        }
        let (key, csr) = new_key()?;
        let answer = self
            .renewal
            .clone()
            .renew_certificate(RenewCertificateRequest { csr })
            .await
            .map_err(|s| remote(s.message()))?;
        self.joining.take(&key, answer.into_inner().identity)
    }

    /// The same certificate under other roots, when that is all that changed.
    fn only_roots(
        &self,
        current: &Identity,
        bundle: &Bundle,
    ) -> Option<Result<Identity, IdentityError>> {
        let tainted = bundle.tainted.contains(&current.verified().anchor);
        let other = current.trust().roots() != bundle.roots.as_slice();
        let over = current.leaf().not_after <= self.joining.clock.now();
        (other && !over && !tainted)
            .then(|| current.with_roots(bundle.roots.clone(), &self.joining.time()))
    }
}

impl IdentitySource for JoinSource {
    fn name(&self) -> &'static str {
        "auth"
    }

    async fn fetch(&self, current: &Identity) -> Result<Identity, SourceError> {
        let bundle = self.bundles.lock().await.borrow().clone();
        let roots = bundle.as_ref().and_then(|b| self.only_roots(current, b));
        let identity = match roots {
            Some(identity) => {
                let identity = identity?;
                let saved = self.joining.saved().map_err(remote)?;
                let token = saved.map(|k| k.rejoin_token).unwrap_or_default();
                self.joining.save(&identity, &token)?;
                identity
            }
            None => self.renew(current).await?,
        };
        *self.current.lock() = Under::of(&identity);
        Ok(identity)
    }

    async fn changed(&self) {
        let mut bundles = self.bundles.lock().await;
        loop {
            if bundles.changed().await.is_err() {
                return std::future::pending().await;
            }
            let news = bundles.borrow_and_update().clone();
            if news.is_some_and(|b| self.current.lock().is_moved_by(&b)) {
                return;
            }
        }
    }

    fn issues(&self) -> bool {
        true
    }
    fn remedy(&self) -> &'static str {
        "find out why, then make a join token with `tars certs join-token` and start the process with it"
    }

    fn on_revoked(&self) {
        if let Err(e) = self.joining.mark_revoked() {
            tracing::error!(error = %e, "the saved identity could not be marked as revoked");
        }
    }
}
