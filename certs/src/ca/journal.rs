//! What was issued with a key made here, one file a certificate, until Auth has taken it into its own
//! list: the authority issues before Auth runs, and while no Auth runs at all.
//!
//! Files, and not one that grows: whoever issues and whoever takes up may be two processes.

use super::{CaError, file, unusable};
use crate::{CertName, secret};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Entries are kept for this long after their certificate's end: the clock may be ahead for a while.
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// Who keeps a certificate fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagedBy {
    /// The process that has the authority: its own services, and the operator's files.
    Authority,
    /// Whoever has the files.
    Files,
}

impl ManagedBy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Files => "files",
        }
    }
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub spiffe_id: String,
    pub issuer: String,
    pub serial: String,
    /// Seconds since the Unix epoch, as the next.
    pub issued: u64,
    pub not_after: u64,
    #[serde(rename = "keeper")]
    pub managed_by: ManagedBy,
    /// The serial of the certificate that it goes on from.
    pub renews: Option<String>,
}

#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    /// Told of once: somebody looks many times a second.
    unusable: Mutex<HashSet<PathBuf>>,
}

impl Journal {
    pub(super) fn new(ca: &Path) -> Self {
        Self {
            dir: ca.join("issued"),
            unusable: Mutex::default(),
        }
    }

    fn path(&self, serial: &str) -> PathBuf {
        self.dir.join(format!("{serial}.json"))
    }

    pub(super) fn write(&self, entry: &Entry) -> Result<(), CaError> {
        let path = self.path(&entry.serial);
        secret::create_dir(&self.dir).map_err(|e| file(&self.dir, e))?;
        let text = serde_json::to_string(entry).map_err(|e| unusable(&path, &e.to_string()))?;
        secret::write(&path, text.as_bytes()).map_err(|e| file(&path, e))
    }

    /// Oldest first. What is no entry is left where it is, and holds up none of the others.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, CaError> {
        let listed = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| file(&self.dir, e))?,
        };
        let mut entries = Vec::new();
        for listed in listed {
            let path = listed.map_err(|e| file(&self.dir, e))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                entries.extend(self.read(path));
            }
        }
        entries.sort_by(|a: &Entry, b| (a.issued, &a.serial).cmp(&(b.issued, &b.serial)));
        Ok(entries)
    }

    fn read(&self, path: PathBuf) -> Option<Entry> {
        read(&path).unwrap_or_else(|e| {
            if self.unusable.lock().insert(path) {
                tracing::error!(error = %e, "an issued certificate cannot be listed");
            }
            None
        })
    }

    pub(super) fn acknowledge(&self, serial: &str) -> Result<(), CaError> {
        let path = self.path(serial);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file(&path, e)),
            _ => Ok(()),
        }
    }

    /// Forgets what expired long ago: an authority that no Auth runs on must not grow for ever.
    pub(super) fn prune(&self, now: Duration) -> Result<(), CaError> {
        for entry in self.entries()? {
            if entry.not_after.saturating_add(KEPT.as_secs()) <= now.as_secs() {
                self.acknowledge(&entry.serial)?;
            }
        }
        Ok(())
    }
}

/// `None` for one that was taken up meanwhile. The file is found again by the serial: it must be
/// the entry's own.
fn read(path: &Path) -> Result<Option<Entry>, CaError> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| file(path, e))?,
    };
    let entry: Entry = serde_json::from_str(&text).map_err(|e| unusable(path, &e.to_string()))?;
    if path
        .file_stem()
        .is_none_or(|name| name != entry.serial.as_str())
    {
        return Err(unusable(path, "is not named after its serial"));
    }
    Ok(Some(entry))
}

impl Entry {
    pub(super) fn new(
        name: &CertName,
        request: &super::Request,
        (now, not_after): (Duration, Duration),
        renews: Option<&CertName>,
    ) -> Self {
        Self {
            spiffe_id: request.id.as_str().to_owned(),
            issuer: name.issuer.to_string(),
            serial: name.serial.to_string(),
            issued: now.as_secs(),
            not_after: not_after.as_secs(),
            managed_by: request.managed_by,
            renews: renews.map(|n| n.serial.to_string()),
        }
    }
}
