//! The sources that need no network: the authority in this process, and mounted files.

use super::{IdentitySource, SourceError};
use crate::{
    Authority, Identity, IdentityError,
    ca::{Issued, Request},
    files::{Fingerprint, IdentityFiles},
};
use parking_lot::Mutex;
use rustls::time_provider::TimeProvider;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often the files are checked for changes.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Issues from the built-in authority in this process.
#[derive(Debug)]
pub struct AuthoritySource {
    authority: Arc<Authority>,
    request: Request,
    time: Arc<dyn TimeProvider>,
    roots: tokio::sync::Mutex<watch::Receiver<u64>>,
}

impl AuthoritySource {
    /// A source of certificates as described by `request`.
    pub fn new(authority: Arc<Authority>, request: Request, time: Arc<dyn TimeProvider>) -> Self {
        let roots = tokio::sync::Mutex::new(authority.subscribe());
        Self {
            authority,
            request,
            time,
            roots,
        }
    }

    /// Issues the first identity. Starting a process is an operator's action, so a revocation of
    /// its predecessors does not stop it.
    pub fn issue(&self) -> Result<Identity, IdentityError> {
        self.identity(self.authority.issue(&self.request, self.now())?)
    }

    fn now(&self) -> Duration {
        let now = self.time.current_time();
        now.map_or(Duration::ZERO, |t| Duration::from_secs(t.as_secs()))
    }

    fn identity(&self, issued: Issued) -> Result<Identity, IdentityError> {
        Identity::new(issued.into_parts(self.authority.roots()), &self.time)
    }
}

impl IdentitySource for AuthoritySource {
    fn name(&self) -> &'static str {
        "authority"
    }

    async fn fetch(&self, current: &Identity) -> Result<Identity, SourceError> {
        let verified = current.verified();
        let issued = self.authority.renew(verified, &self.request, self.now());
        Ok(self.identity(issued.map_err(IdentityError::from)?)?)
    }

    async fn changed(&self) {
        if self.roots.lock().await.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn issues(&self) -> bool {
        true
    }

    fn remedy(&self) -> &'static str {
        "find out why it was revoked, then restart the process, which issues another certificate"
    }
}

/// Mounted files that are renewed from outside.
#[derive(Debug)]
pub struct FileSource {
    files: IdentityFiles,
    time: Arc<dyn TimeProvider>,
    seen: Mutex<Fingerprint>,
}

impl FileSource {
    /// A source that follows `files`, starting from their current state.
    pub fn new(files: IdentityFiles, time: Arc<dyn TimeProvider>) -> Self {
        Self {
            seen: Mutex::new(files.fingerprint()),
            files,
            time,
        }
    }
}

impl IdentitySource for FileSource {
    fn name(&self) -> &'static str {
        "files"
    }

    async fn fetch(&self, current: &Identity) -> Result<Identity, SourceError> {
        // Taken before reading, so that a change during the read is noticed.
        *self.seen.lock() = self.files.fingerprint();
        let loaded = self.files.load_after(Some(current.trust()), &self.time);
        Ok(loaded?.require_server_auth()?)
    }

    async fn changed(&self) {
        while *self.seen.lock() == self.files.fingerprint() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn issues(&self) -> bool {
        false
    }

    fn remedy(&self) -> &'static str {
        "find out why it was revoked, then replace the certificate and key files"
    }
}
