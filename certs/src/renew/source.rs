//! The sources that need no network: the authority in this process, and mounted files.

use super::{IdentitySource, SourceError};
use crate::{
    Authority, Identity, IdentityError,
    ca::Request,
    files::{Fingerprint, IdentityFiles},
};
use parking_lot::Mutex;
use rustls::time_provider::TimeProvider;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

const FILES_LOOK: Duration = Duration::from_millis(500);

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

    pub fn issue(&self) -> Result<Identity, IdentityError> {
        let now = self.time.current_time();
        let now = now.map_or(Duration::ZERO, |t| Duration::from_secs(t.as_secs()));
        let issued = self.authority.issue(&self.request, now)?;
        Identity::new(issued.into_parts(self.authority.roots()), &self.time)
    }
}

impl IdentitySource for AuthoritySource {
    fn name(&self) -> &'static str {
        "authority"
    }

    async fn fetch(&self, _: &Identity) -> Result<Identity, SourceError> {
        Ok(self.issue()?)
    }

    async fn changed(&self) {
        if self.roots.lock().await.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn issues(&self) -> bool {
        true
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

    async fn fetch(&self, _: &Identity) -> Result<Identity, SourceError> {
        // Before the content: what changes while we read is read again.
        *self.seen.lock() = self.files.fingerprint();
        Ok(self.files.load(&self.time)?.for_servers()?)
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
}
