//! Working copies of an authority whose contents are kept elsewhere, by whoever its replicas share.
//!
//! A copy signs leaves and lists like any authority, but takes no step, raises no floor and renews no
//! intermediate by itself: those change the [`Contents`], which are stored first and adopted then.

use super::{Authority, CaError, Inner, Lifetimes, contents::Contents, rotation::RotationStep};
use crate::KeyId;
use std::{path::Path, time::Duration};

impl Authority {
    /// Opens a directory as the working copy of `contents`, which have the given version, and makes its
    /// files agree with them.
    ///
    /// # Errors
    ///
    /// [`CaError::Foreign`] when the directory holds another authority, which is left alone.
    pub fn open_copy(
        dir: &Path,
        (trust_domain, lives): (&str, Lifetimes),
        (version, contents): (u64, &Contents),
        now: Duration,
    ) -> Result<Self, CaError> {
        contents.restore(dir)?;
        let copy = Self::over(dir, contents, Some(version), (trust_domain, lives), now)?;
        copy.journal.prune(now)?;
        copy.save_bundle()?;
        Ok(copy)
    }

    /// The version of the contents that this working copy holds; `None` for an authority that is not
    /// a copy.
    pub fn copy_version(&self) -> Option<u64> {
        self.inner.read().copy_of
    }

    /// Replaces the contents of a working copy, also by those of an earlier version: a database can fall back
    /// to a standby or a backup. The caller sees to it that what was read first does not come last.
    ///
    /// # Errors
    ///
    /// [`CaError::Foreign`] for contents of another authority; when a file cannot be written, or the contents
    /// are not usable. The copy stays as it was then.
    pub fn adopt(&self, version: u64, contents: &Contents, now: Duration) -> Result<(), CaError> {
        let _one = self.adopting.lock();
        if self.copy_version().is_none() {
            return Ok(());
        }
        contents.restore(&self.dir)?;
        let next = Inner::of(&self.dir, contents, Some(version), now)?;
        let steps = next.ledger.version;
        let before = std::mem::replace(&mut *self.inner.write(), next);
        self.save_bundle()?;
        let keys_before: Vec<KeyId> = before.roots.iter().map(|root| root.key).collect();
        let other_roots = !self
            .root_infos()
            .iter()
            .map(|root| root.key)
            .eq(keys_before);
        self.changed.send_if_modified(|at| {
            let stepped = *at != steps || other_roots;
            *at = steps;
            stepped
        });
        Ok(())
    }

    /// Whether the intermediate that signs is due for renewal, and the contents have the root key.
    pub fn is_renewal_due(&self, now: Duration) -> bool {
        let inner = self.inner.read();
        let active = inner.active();
        active.has_key && active.is_renewal_due(now)
    }

    /// Adds an intermediate to contents in which it is due; `false` when it is not, or when the root
    /// key is offline.
    ///
    /// # Errors
    ///
    /// When the contents are not usable.
    pub fn renew_in(&self, contents: &mut Contents, now: Duration) -> Result<bool, CaError> {
        contents.renew_if_due(&self.trust_domain, self.lives, now)
    }

    /// Takes a rotation step in contents, on behalf of `by`.
    ///
    /// # Errors
    ///
    /// [`CaError::Order`] when another step is due.
    pub fn step_in(
        &self,
        contents: &mut Contents,
        (step, by): (RotationStep, &str),
        now: Duration,
    ) -> Result<(), CaError> {
        contents.step((step, by), &self.trust_domain, self.lives, now)
    }
}
