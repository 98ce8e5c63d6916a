//! The authority that the replicas of Auth share.
//!
//! It is a row of the database. A change is made to the row, in an exclusive transaction and by a
//! compare-and-set of the row's version, and this process's working copy adopts only what is committed.
//! So two replicas never have different authorities, and a commit in doubt is settled by reading the row.
//! A replica adopts a change of another one at its hint, or within the interval at which the bus polls;
//! before it announces roots; and before it signs for a client, in the transaction that records the
//! certificate: no replica signs with a floor that another one has raised.
//!
//! The row falls back with its database, to a standby or a backup that lacks the last changes, and its
//! versions are then taken again by others. A copy falls back with it: what counts is whether the row is the
//! one that was adopted, and the version decides only between changes of which one followed the other.

use super::Certificates;
use crate::{
    AuthError,
    store::{self, Edition},
    vault::{AUTHORITY, Vault},
};
use std::{io, sync::Arc};
use tars_certs::{
    Authority, CaError,
    ca::{Contents, rotation::RotationStep},
};
use tars_runtime::{
    bus::{Bus, Topic},
    clock::Clock,
    db::{DbError, Fetch, Transaction},
    health::Condition,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// The versions of the row, on the bus.
pub(super) const TOPIC: Topic = "auth.authority";

#[derive(Debug)]
pub(crate) struct SharedAuthority {
    copy: Arc<Authority>,
    /// What the copy is of; `None` until the row was read. Locked while a row is read and adopted, so that
    /// what was read first is not adopted last.
    held: Arc<Mutex<Option<Edition>>>,
    vault: Vault,
    bus: Bus,
    clock: Clock,
    /// Whether this replica has the authority as it is in the database.
    adopting: Condition,
}

/// Contents that a transaction has stored, to be adopted once it is committed.
#[derive(Debug)]
#[must_use = "contents that are not adopted are read from the database later"]
pub(crate) struct Stored {
    edition: Edition,
    contents: Contents,
}

impl SharedAuthority {
    /// The authority that this process has a working copy of, if it has one.
    pub(crate) fn of(
        certificates: &Certificates,
        vault: Vault,
        bus: Bus,
        clock: Clock,
    ) -> Option<Arc<Self>> {
        let copy = certificates.authority.clone()?;
        copy.copy_version()?;
        Some(Arc::new(Self {
            copy,
            held: Arc::default(),
            vault,
            bus,
            adopting: Condition::new(clock.clone()),
            clock,
        }))
    }

    pub(crate) fn adopting(&self) -> &Condition {
        &self.adopting
    }

    fn version(&self) -> u64 {
        self.copy.copy_version().unwrap_or_default()
    }

    /// Adopts what other replicas have changed, until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut table = self.bus.follow(TOPIC);
        loop {
            match self.catch_up().await {
                Ok(()) => {
                    self.adopting.record_success();
                    table.wait(self.version()).await;
                }
                Err(e) => {
                    self.adopting.record_failure(&e);
                    table.wait_after_failure(self.version()).await;
                }
            }
        }
    }

    /// Adopts the authority that `db` has, unless it is the one of the working copy. `db` may see an earlier
    /// state than the copy has; what is committed now counts then.
    pub(crate) async fn refresh(&self, db: &mut impl Fetch) -> Result<(), AuthError> {
        let edition = store::sealed_edition(db, AUTHORITY).await?;
        let Some(held) = self.held.lock().await.clone() else {
            return self.catch_up().await;
        };
        match edition {
            Some(edition) if edition == held => Ok(()),
            Some(edition) if edition.version > held.version => {
                let stored = self.read(db).await?;
                self.adopt_later(stored).await
            }
            _ => self.catch_up().await,
        }
    }

    /// Adopts the authority in the database, unless it is the one of the working copy.
    pub(crate) async fn catch_up(&self) -> Result<(), AuthError> {
        let held = Arc::clone(&self.held).lock_owned().await;
        let mut db = self.vault.store().read("authority.edition");
        if held.is_some() && store::sealed_edition(&mut db, AUTHORITY).await? == *held {
            return Ok(());
        }
        let stored = self.read(&mut db).await?;
        self.adopt(held, stored).await
    }

    async fn read(&self, db: &mut impl Fetch) -> Result<Stored, AuthError> {
        let stored = self.vault.contents(db).await?;
        let missing = || DbError::Failed("the authority is not in the database".to_owned());
        let (edition, contents) = stored.ok_or_else(missing)?;
        Ok(Stored { edition, contents })
    }

    /// Changes the authority, and returns once that is durable and adopted. `change` returns whether it
    /// has changed anything.
    pub(crate) async fn change(
        &self,
        change: impl FnOnce(&Authority, &mut Contents) -> Result<bool, AuthError> + Send,
    ) -> Result<(), AuthError> {
        let mut tx = self.vault.store().begin("authority.change").await?;
        let stored = self.change_in(&mut tx, change).await?;
        tx.commit().await?;
        self.committed(stored).await
    }

    /// Changes the authority in an exclusive transaction, which the caller commits. Then
    /// [`committed`](Self::committed) has to be called.
    pub(crate) async fn change_in(
        &self,
        tx: &mut Transaction,
        change: impl FnOnce(&Authority, &mut Contents) -> Result<bool, AuthError> + Send,
    ) -> Result<Stored, AuthError> {
        // What is committed is later than the copy from here on, also where the database fell back.
        self.refresh(tx).await?;
        let mut stored = self.read(tx).await?;
        if change(&self.copy, &mut stored.contents)? {
            let (version, contents) = (stored.edition.version, &stored.contents);
            stored.edition = self.vault.replace(tx, version, contents).await?;
        }
        Ok(stored)
    }

    /// Adopts what was committed, and has the other replicas do the same.
    pub(crate) async fn committed(&self, stored: Stored) -> Result<(), AuthError> {
        self.bus.publish(TOPIC, stored.edition.version);
        self.adopt_later(stored).await
    }

    /// Adopts what was stored later than the working copy, unless it has something yet later.
    async fn adopt_later(&self, stored: Stored) -> Result<(), AuthError> {
        let held = Arc::clone(&self.held).lock_owned().await;
        match &*held {
            Some(edition) if edition.version >= stored.edition.version => Ok(()),
            _ => self.adopt(held, stored).await,
        }
    }

    /// Adopting writes files. It goes on, under the lock, when the caller goes away.
    async fn adopt(
        &self,
        mut held: OwnedMutexGuard<Option<Edition>>,
        stored: Stored,
    ) -> Result<(), AuthError> {
        let (copy, now) = (Arc::clone(&self.copy), self.clock.now());
        let adopt = move || {
            copy.adopt(stored.edition.version, &stored.contents, now)?;
            *held = Some(stored.edition);
            Ok::<_, CaError>(())
        };
        let adopted = tokio::task::spawn_blocking(adopt).await;
        Ok(adopted.map_err(io::Error::other)??)
    }

    /// Takes a rotation step, if the roots are still at `version`, for which the step was found to be
    /// due and its peers to be ready.
    pub(crate) async fn step(
        &self,
        step: RotationStep,
        by: &str,
        version: u64,
    ) -> Result<(), AuthError> {
        let now = self.clock.now();
        self.change(|copy, contents| {
            if contents.version() != version {
                return Err(AuthError::Conflict);
            }
            copy.step_in(contents, (step, by), now)?;
            Ok(true)
        })
        .await
    }

    /// Renews the intermediate when that is due: whichever replica is first.
    pub(crate) async fn renew_if_due(&self) -> Result<(), AuthError> {
        let now = self.clock.now();
        if !self.copy.is_renewal_due(now) {
            return Ok(());
        }
        let renew = |copy: &Authority, contents: &mut Contents| {
            copy.renew_in(contents, now)
                .map_err(|e: CaError| AuthError::from(e))
        };
        self.change(renew).await
    }
}
