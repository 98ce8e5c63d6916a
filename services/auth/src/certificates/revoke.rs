//! Revocation of single certificates of any issuer, and of everything that an identity holds.

use super::{
    RETENTION, micros, pushed,
    store::{self, IssuedRow, RevocationRow},
    tokens,
};
use crate::{Auth, AuthError, publish::Change};
use std::{io, sync::Arc, time::Duration};
use tars_certs::{Authority, CertName, KeyId, RevocationSet, Serial, SpiffeId, ca::Contents};
use tars_credentials::{Caller, grant};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::{
    audit::{self, Record, Severity},
    db::Swap,
    page,
};
use tokio::sync::Mutex;

/// Signed lists are renewed after this time, or when the deny-list has changed.
const LIST_AGE: Duration = Duration::from_secs(60);

/// What to revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Without an issuer, a certificate that was issued here.
    Certificate {
        issuer: Option<KeyId>,
        serial: Serial,
    },
    /// Every certificate of the identity that begins before this moment; now, when `None`.
    Identity {
        id: SpiffeId,
        before: Option<Duration>,
    },
}

/// The signed lists, cached because anybody may request them. Each replica signs lists of its own, under
/// numbers from the database.
#[derive(Debug, Default)]
pub(crate) struct SignedLists(Mutex<Option<Signed>>);

#[derive(Debug)]
struct Signed {
    at: Duration,
    /// The deny-list that they were created from.
    of: Arc<RevocationSet>,
    lists: Vec<Vec<u8>>,
}

/// Who revokes, why and when: shared by the entries of one transaction.
pub(super) struct Attribution<'a> {
    pub(super) by: &'a str,
    pub(super) reason: &'a str,
    pub(super) now: Duration,
}

impl Attribution<'_> {
    pub(super) fn row(
        &self,
        issuer: String,
        serial: String,
        id: String,
        expires_us: i64,
    ) -> RevocationRow {
        RevocationRow {
            issuer,
            serial,
            spiffe_id: id,
            not_before_s: 0,
            expires_us,
            reason: self.reason.to_owned(),
            revoked_us: micros(self.now),
            revoked_by: self.by.to_owned(),
        }
    }

    fn rows(&self, living: Vec<IssuedRow>) -> impl Iterator<Item = RevocationRow> + '_ {
        living
            .into_iter()
            .map(|c| self.row(c.issuer, c.serial, c.spiffe_id, c.not_after_us))
    }
}

impl Auth {
    /// Revokes a certificate with its lineage, or an identity. Returns the new entries of the
    /// deny-list, once they are durable and announced.
    pub(crate) async fn revoke(
        &self,
        caller: &Caller,
        target: &Target,
        reason: &str,
    ) -> Result<Vec<RevocationRow>, AuthError> {
        let attribution = Attribution {
            by: &caller.label,
            reason,
            now: self.clock.now(),
        };
        self.import_journal().await?;
        match target {
            Target::Certificate { issuer, serial } => {
                let mut tx = self.change("certificates.revoke").await?;
                let certificate = (*issuer, serial);
                let rows = self
                    .certificate_rows(&mut tx, caller, &attribution, certificate)
                    .await?;
                self.insert_revocations(tx, rows, &attribution).await
            }
            Target::Identity { id, before } => {
                self.check_identity(caller, id)?;
                // A time in the future would include certificates that do not exist yet.
                let before = before.filter(|b| *b < attribution.now);
                self.revoke_identity(&attribution, (id, before)).await
            }
        }
    }

    /// Where replicas share the authority, its floor is raised in the transaction of the revocation.
    async fn revoke_identity(
        &self,
        attribution: &Attribution<'_>,
        (id, before): (&SpiffeId, Option<Duration>),
    ) -> Result<Vec<RevocationRow>, AuthError> {
        let floors = vec![(id.clone(), before.unwrap_or(attribution.now))];
        let past_us = self.horizon.ended_us(Duration::ZERO);
        let Some(shared) = &self.shared else {
            self.raise_floors(floors).await?;
            let mut tx = self.change("certificates.revoke").await?;
            let rows = identity_rows(&mut tx, attribution, (id, before), past_us).await?;
            return self.insert_revocations(tx, rows, attribution).await;
        };
        let mut tx = self.change("certificates.revoke").await?;
        let raise = |_: &Authority, contents: &mut Contents| Ok(contents.raise_not_before(&floors));
        let stored = shared.change_in(&mut tx, raise).await?;
        let rows = identity_rows(&mut tx, attribution, (id, before), past_us).await?;
        let rows = self.insert_revocations(tx, rows, attribution).await?;
        // The revocation is durable, and whoever signs for a client reads the floor from the database.
        if let Err(e) = shared.committed(stored).await {
            tracing::warn!(error = %e, "the working copy of the authority is behind");
        }
        Ok(rows)
    }

    fn check_identity(&self, caller: &Caller, id: &SpiffeId) -> Result<(), AuthError> {
        grant::revoke_identity(caller, self.certificates().class(id).ok())?;
        if id.trust_domain() != self.certificates().trust_domain {
            let text = "is not of this trust domain".to_owned();
            return Err(AuthError::Field("spiffe_id", text));
        }
        Ok(())
    }

    /// Makes the authority start leaves of revoked identities no earlier than their revocation.
    ///
    /// The floor is a file of an authority that is not shared, and the revocation a row of the
    /// database. The file comes first and outside of the transaction, so that no other writer waits for its sync. When the
    /// process stops in between, or the transaction fails, a floor without a revocation is left
    /// behind. It revokes nothing: the identity is still renewed, its next certificate is not
    /// backdated as far, and the revocation, which was not acknowledged, can be repeated. The
    /// reverse, which would let a certificate begin before the revocation of its identity, cannot
    /// happen.
    async fn raise_floors(&self, floors: Vec<(SpiffeId, Duration)>) -> Result<(), AuthError> {
        if let Some(shared) = &self.shared {
            let raise =
                |_: &Authority, contents: &mut Contents| Ok(contents.raise_not_before(&floors));
            return shared.change(raise).await;
        }
        let Some(authority) = self.certificates().authority.clone() else {
            return Ok(());
        };
        let write = move || authority.raise_not_before(&floors);
        let written = tokio::task::spawn_blocking(write).await;
        Ok(written.map_err(io::Error::other)??)
    }

    /// Raises the floors of all identities on the deny-list, for an authority whose directory was
    /// restored from an older copy.
    pub(crate) async fn restore_floors(&self) -> Result<(), AuthError> {
        let rows = {
            let mut db = self.store.read("revocations.identities");
            store::in_force(&mut db, self.horizon.ended_us(RETENTION)).await?
        };
        let identities = rows.iter().filter(|row| row.serial.is_empty());
        let floor = |row: &RevocationRow| {
            let seconds = u64::try_from(row.not_before_s).ok()?;
            Some((row.spiffe_id.parse().ok()?, Duration::from_secs(seconds)))
        };
        self.raise_floors(identities.filter_map(floor).collect())
            .await
    }

    /// The entries that revoke a certificate and the rest of its lineage.
    async fn certificate_rows(
        &self,
        tx: &mut Change,
        caller: &Caller,
        attribution: &Attribution<'_>,
        (issuer, serial): (Option<KeyId>, &Serial),
    ) -> Result<Vec<RevocationRow>, AuthError> {
        let issuer = issuer.map(|i| i.to_string()).unwrap_or_default();
        let known = store::find_issued(tx, &issuer, serial.as_str()).await?;
        let id = known.as_ref().and_then(|k| k.spiffe_id.parse().ok());
        let class = id.and_then(|id| self.certificates().class(&id).ok());
        grant::revoke_identity(caller, class)?;
        let Some(known) = known else {
            if issuer.is_empty() {
                return Err(AuthError::NotFound("certificate", serial.to_string()));
            }
            // The expiry of another issuer's certificate is unknown, so the entry is kept for good.
            let row = attribution.row(issuer, serial.to_string(), String::new(), i64::MAX);
            return Ok(vec![row]);
        };
        store::end_lineage(tx, known.lineage).await?;
        let past_us = self.horizon.ended_us(Duration::ZERO);
        let living = store::unexpired(tx, Some(known.lineage), "", past_us).await?;
        Ok(attribution.rows(living).collect())
    }

    /// Adds entries to the deny-list with their audit records, announces them, and commits. Returns
    /// the entries that were not on the list before.
    pub(super) async fn insert_revocations(
        &self,
        mut tx: Change,
        rows: Vec<RevocationRow>,
        attribution: &Attribution<'_>,
    ) -> Result<Vec<RevocationRow>, AuthError> {
        store::drop_expired(&mut tx, self.horizon.ended_us(RETENTION)).await?;
        let mut changed = Vec::new();
        for row in rows {
            if store::insert_revocation(&mut tx, &row).await? == Swap::Lost {
                continue;
            }
            let record = Record::new(&self.clock, "auth", "certificate.revoked")
                .severity(Severity::Critical)
                .caller(attribution.by)
                .resource(if row.serial.is_empty() {
                    &row.spiffe_id
                } else {
                    &row.serial
                })
                .detail("issuer", &row.issuer)
                .detail("spiffe_id", &row.spiffe_id)
                .detail("reason", attribution.reason);
            audit::insert(&mut tx, &record).await?;
            changed.push(row);
        }
        if !changed.is_empty() {
            let (revoked_certificates, revoked_identities) = pushed(&changed);
            let item = WatchCredentialsResponse {
                revoked_certificates,
                revoked_identities,
                ..Default::default()
            };
            tx.announce(&item).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Lists revocations, newest first, with the token of the next page.
    pub(crate) async fn list_revocations(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<RevocationRow>, String), AuthError> {
        let size = page::size(page_size);
        let before = page::start(token, i64::MAX)?;
        let past_us = self.horizon.ended_us(Duration::ZERO);
        let rows = self.store.revocations(past_us, before, size).await?;
        let (rows, next) = rows.cut(|r| r.position.to_string());
        Ok((rows.into_iter().map(|r| r.revocation).collect(), next))
    }

    /// The signed revocation lists of this authority's issuers. They are valid for at least twice a
    /// leaf's lifetime.
    pub(crate) async fn signed_lists(&self) -> Result<Vec<Vec<u8>>, AuthError> {
        let certificates = self.certificates();
        certificates.authority()?;
        let now = self.clock.now();
        let list = certificates.feed.revocations.current();
        // Whoever comes meanwhile waits for the new lists, rather than signing others.
        let mut cache = self.own.signed_lists.0.lock().await;
        if let Some(cached) = cache.as_ref()
            && Arc::ptr_eq(&cached.of, &list)
            && cached.at + LIST_AGE > now
        {
            return Ok(cached.lists.clone());
        }
        // A larger number means a later state of the deny-list, whichever replica signs.
        let mut tx = self.store.begin("revocations.sign").await?;
        let authority = self.current_authority(&mut tx).await?;
        let number = store::next_list_number(&mut tx, now.as_secs()).await?;
        let rows = store::in_force(&mut *tx, self.horizon.ended_us(RETENTION)).await?;
        tx.commit().await?;
        let leaf = Duration::from_secs(certificates.settings.leaf_life_seconds);
        let life = (leaf * 2).max(Duration::from_secs(3600));
        let lists = authority.revocation_lists(&revoked_names(&rows), number, now, life)?;
        let lists: Vec<Vec<u8>> = lists.iter().map(|l| l.to_vec()).collect();
        *cache = Some(Signed {
            at: now,
            of: list,
            lists: lists.clone(),
        });
        Ok(lists)
    }
}

/// The certificates among revocations, with the time of their revocation.
fn revoked_names(rows: &[RevocationRow]) -> Vec<(CertName, Duration)> {
    let named = |row: &RevocationRow| {
        let name = CertName {
            issuer: row.issuer.parse().ok()?,
            serial: row.serial.parse().ok()?,
        };
        let since = Duration::from_micros(u64::try_from(row.revoked_us).ok()?);
        Some((name, since))
    };
    rows.iter().filter_map(named).collect()
}

/// The entries that revoke an identity: one for the identity, and one for each of its living
/// certificates that begin before the given moment. Ends their lineages, and the join tokens that
/// were created before then. `None` stands for everything that exists.
async fn identity_rows(
    tx: &mut Change,
    attribution: &Attribution<'_>,
    (id, before): (&SpiffeId, Option<Duration>),
    past_us: i64,
) -> Result<Vec<RevocationRow>, AuthError> {
    let name = id.as_str();
    let at = before.unwrap_or(attribution.now);
    // The start of a certificate is in whole seconds: for everything, no start is compared.
    let before_us = before.map_or(i64::MAX, micros);
    let not_before_s = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    if before.is_some() && store::revoked_before(tx, name).await? >= Some(not_before_s) {
        return Ok(Vec::new());
    }
    let identity = RevocationRow {
        not_before_s,
        ..attribution.row(String::new(), String::new(), name.to_owned(), i64::MAX)
    };
    store::end_lineages(tx, name, before_us).await?;
    tokens::revoke(tx, name, before_us).await?;
    let mut living = store::unexpired(tx, None, name, past_us).await?;
    living.retain(|c| c.begins_before(before_us));
    Ok(std::iter::once(identity)
        .chain(attribution.rows(living))
        .collect())
}
