//! An identity from Auth, over gRPC: first for a join token at the bootstrap listener, then by the
//! current certificate, each time for a new key; and by the rejoin token when the machine slept
//! past the end of its certificate.
//!
//! What is kept is one file, written whole: a key without its certificate is worth nothing.

use crate::app::{StartError, trouble::Way};
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
    renew::{IdentitySource, SourceError, pause},
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

/// The file that is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    identity: IdentityPem,
    rejoin_token: Zeroizing<String>,
    /// Neither the identity nor the token is of use any more.
    #[serde(default)]
    revoked: bool,
}

/// Where and how to join.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    /// The file of the kept identity.
    pub(crate) file: PathBuf,
    /// Auth's bootstrap listener, as `host:port`.
    pub(crate) bootstrap: String,
    pub(crate) auth: SpiffeId,
    pub(crate) token_file: Option<PathBuf>,
    /// Who this process is; a token for somebody else is a mistake.
    pub(crate) own: SpiffeId,
    pub(crate) clock: Clock,
}

fn remote(e: impl std::fmt::Display) -> SourceError {
    SourceError::Remote(e.to_string())
}

impl Joining {
    fn time(&self) -> Time {
        Arc::new(self.clock.clone())
    }

    /// The kept identity, if it still lives; else a new one for a token.
    pub(crate) async fn start(&self) -> Result<Identity, StartError> {
        let kept = self.kept()?;
        let revoked = kept.as_ref().is_some_and(|k| k.revoked);
        let kept = kept.filter(|k| !k.revoked);
        if let Some(kept) = &kept {
            match kept.identity.load(&self.time()) {
                Ok(identity) => return Ok(identity),
                Err(e) => tracing::warn!(error = %e, "the kept identity is of no use any more"),
            }
        }
        let token = self.token(kept, revoked)?;
        let mut tries = 0;
        loop {
            match self.join(&token).await {
                Ok(identity) => return Ok(identity),
                // Services start in any order.
                Err(SourceError::Away(why)) => {
                    tries += 1;
                    let wait = pause(tries, HOUR, rand::random::<f64>() * 2.0 - 1.0);
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

    /// What to show: a token that an operator put there goes before the one that was kept.
    fn token(&self, kept: Option<Kept>, revoked: bool) -> Result<JoinToken, StartError> {
        match (&self.token_file, kept) {
            (Some(path), _) if path.exists() => {
                let text = secret::read(path).map_err(|e| StartError::file(path, e))?;
                Ok(JoinToken::new(&Zeroizing::new(text)))
            }
            (_, Some(kept)) => Ok(JoinToken::new(&kept.rejoin_token)),
            _ => Err(StartError::Join(format!(
                "{} identity in {} and no join token: make one with `tars certs join-token`, and name its file with --join-token-file",
                if revoked { "a revoked" } else { "no" },
                self.file.display()
            ))),
        }
    }

    /// What was kept of a revoked identity is shown to nobody again.
    fn forget(&self) -> Result<(), SourceError> {
        let kept = self.kept().map_err(remote)?;
        kept.map_or(Ok(()), |kept| {
            self.write(&Kept {
                revoked: true,
                ..kept
            })
        })
    }

    fn kept(&self) -> Result<Option<Kept>, StartError> {
        if !self.file.exists() {
            return Ok(None);
        }
        let bad = |e| StartError::file(&self.file, e);
        let text = Zeroizing::new(secret::read(&self.file).map_err(bad)?);
        let kept = serde_json::from_str(&text).map_err(|e| bad(std::io::Error::other(e)))?;
        Ok(Some(kept))
    }

    async fn join(&self, token: &JoinToken) -> Result<Identity, SourceError> {
        let claims = token.read().map_err(remote)?;
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
                    BootstrapError::Away(why) => SourceError::Away(self.explained(why)),
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

    /// A failure of the connection, with what to do about it.
    fn explained(&self, error: String) -> String {
        let way = Way {
            target: self.bootstrap.clone(),
            expected: self.auth.to_string(),
            identity: self.file.clone(),
            own: self.own.path().to_owned(),
        };
        way.explain(&error).map_or(error, |e| e.to_string())
    }

    fn failed(&self, status: &Status) -> SourceError {
        let text = format!("{}: {}", self.bootstrap, status.message());
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => SourceError::Away(text),
            _ => SourceError::Remote(text),
        }
    }

    /// Checks what Auth sent, and keeps it.
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
        self.keep(&identity, &issued.rejoin_token)?;
        Ok(identity)
    }

    fn keep(&self, identity: &Identity, rejoin_token: &str) -> Result<(), SourceError> {
        self.write(&Kept {
            identity: IdentityPem::of(identity),
            rejoin_token: Zeroizing::new(rejoin_token.to_owned()),
            revoked: false,
        })
    }

    fn write(&self, kept: &Kept) -> Result<(), SourceError> {
        let text = Zeroizing::new(serde_json::to_string(kept).map_err(remote)?);
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
    /// What a bundle is compared with.
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
            let kept = self.joining.kept().map_err(remote)?;
            let kept = kept.ok_or_else(|| {
                remote("the certificate has expired, and no rejoin token is kept")
            })?;
            return self.joining.join(&JoinToken::new(&kept.rejoin_token)).await;
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
                let kept = self.joining.kept().map_err(remote)?;
                let token = kept.map(|k| k.rejoin_token).unwrap_or_default();
                self.joining.keep(&identity, &token)?;
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
        if let Err(e) = self.joining.forget() {
            tracing::error!(error = %e, "the kept identity could not be marked as revoked");
        }
    }
}
