//! The journal of certificates issued with keys made here: one file per certificate until Auth has
//! imported it into its own list. The authority issues certificates before Auth runs, and without
//! it.
//!
//! One file each, rather than a log, because the process that issues and the one that imports may
//! be different ones.

use super::{CaError, ManagedBy, Request, file, unusable};
use crate::{CertName, secret};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long an entry outlives its certificate, in case the clock is ahead for a while.
const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// The record of one issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The identity.
    pub spiffe_id: String,
    /// The hash of the key that signed it, in hexadecimal.
    pub issuer: String,
    /// The serial, in hexadecimal.
    pub serial: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub issued: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Who renews it.
    #[serde(rename = "keeper")]
    pub managed_by: ManagedBy,
    /// The serial of the certificate that it succeeds.
    pub renews: Option<String>,
}

#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    /// Files already reported as unusable; the journal is read several times a second.
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

    /// Oldest first. A file that is not an entry is left alone, and does not hold up the others.
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
                tracing::error!(error = %e, "a journal entry of an issued certificate is not usable");
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

    /// Removes entries that expired long ago: the journal of an authority that no Auth imports from
    /// must not grow without bound.
    pub(super) fn prune(&self, now: Duration) -> Result<(), CaError> {
        for entry in self.entries()? {
            if entry.not_after.saturating_add(RETENTION.as_secs()) <= now.as_secs() {
                self.acknowledge(&entry.serial)?;
            }
        }
        Ok(())
    }
}

/// `None` for an entry that was removed in the meantime. Entries are removed by serial, so the file
/// must be named after its own.
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
        request: &Request,
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
