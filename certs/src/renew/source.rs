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

pub(super) const FILES_LOOK: Duration = Duration::from_millis(500);

/// The built-in authority, in this process.
#[derive(Debug)]
pub struct AuthoritySource {
    authority: Arc<Authority>,
    request: Request,
    time: Arc<dyn TimeProvider>,
    roots: tokio::sync::Mutex<watch::Receiver<u64>>,
}

impl AuthoritySource {
    pub fn new(authority: Arc<Authority>, request: Request, time: Arc<dyn TimeProvider>) -> Self {
        let roots = tokio::sync::Mutex::new(authority.subscribe());
        Self {
            authority,
            request,
            time,
            roots,
        }
    }

    /// The first identity. Starting a process is an operator's act: it begins anew, whatever was
    /// revoked before.
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
        "find out why, then start the process anew: it begins with another certificate"
    }
}

/// Mounted files that somebody else keeps.
#[derive(Debug)]
pub struct FileSource {
    files: IdentityFiles,
    time: Arc<dyn TimeProvider>,
    seen: Mutex<Fingerprint>,
}

impl FileSource {
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
        // Before the content: what changes while we read is read again.
        *self.seen.lock() = self.files.fingerprint();
        let loaded = self.files.load_after(Some(current.trust()), &self.time);
        Ok(loaded?.require_server_auth()?)
    }

    /// Looks at the paths instead of subscribing to them: a symlink swap, a network mount and a
    /// bind mount all show here, and each has kinds of watches that miss it.
    async fn changed(&self) {
        while *self.seen.lock() == self.files.fingerprint() {
            tokio::time::sleep(FILES_LOOK).await;
        }
    }

    fn issues(&self) -> bool {
        false
    }

    fn remedy(&self) -> &'static str {
        "find out why, then put another certificate and key in the place of the files"
    }
}
