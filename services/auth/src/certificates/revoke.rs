//! Cutting off: a certificate of any issuer, or everything that an identity holds.

use super::{
    micros, pushed,
    store::{self, RevocationRow},
};
use crate::{Auth, AuthError};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tars_certs::{CertName, KeyId, RevocationSet, Serial, SpiffeId};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::{
    audit::{self, Record, Severity},
    page,
};

const BATCH: i64 = 500;
/// A signed list is made anew when this old, or when the deny-list changed.
const LIST_AGE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Without an issuer it must be one that was issued here.
    Certificate {
        issuer: Option<KeyId>,
        serial: Serial,
    },
    /// Every certificate of the identity that begins before the cut; now, when `None`.
    Identity {
        id: SpiffeId,
        before: Option<Duration>,
    },
}

/// Signed lists, kept for a while: anybody may ask for them.
#[derive(Debug, Default)]
pub(crate) struct SignedLists(Mutex<Option<Signed>>);

#[derive(Debug)]
struct Signed {
    at: Duration,
    /// The deny-list that they were made from.
    of: Arc<RevocationSet>,
    lists: Vec<Vec<u8>>,
}

impl Auth {
    /// Returns all that the call cut off, once it is durable and pushed.
    pub(crate) async fn revoke(
        &self,
        by: &str,
        target: &Target,
        reason: &str,
    ) -> Result<Vec<RevocationRow>, AuthError> {
        let (now, now_us) = (self.clock.now(), self.clock.now_us());
        let entry = |issuer: String, serial: String, id: String, expires_us: i64| RevocationRow {
            issuer,
            serial,
            spiffe_id: id,
            not_before_s: 0,
            expires_us,
            reason: reason.to_owned(),
            revoked_us: now_us,
            revoked_by: by.to_owned(),
        };
        let mut tx = self.store.begin("certificates.revoke").await?;
        let mut rows = Vec::new();
        let living = match target {
            Target::Certificate { issuer, serial } => {
                let issuer = issuer.map(|i| i.to_string()).unwrap_or_default();
                let known = store::find_issued(&mut tx, &issuer, serial.as_str()).await?;
                let Some(known) = known else {
                    if issuer.is_empty() {
                        return Err(AuthError::NotFound("certificate", serial.to_string()));
                    }
                    // Of another issuer: it says nothing of when it ends, so the entry stays.
                    rows.push(entry(issuer, serial.to_string(), String::new(), i64::MAX));
                    return self.put(tx, rows, by, reason).await;
                };
                store::end_lineages(&mut tx, Some(known.lineage), "").await?;
                store::living(&mut tx, Some(known.lineage), "", now_us).await?
            }
            Target::Identity { id, before } => {
                if id.trust_domain() != self.certificates().trust_domain {
                    let text = "is not of this trust domain".to_owned();
                    return Err(AuthError::Field("spiffe_id", text));
                }
                let cut = before.unwrap_or(now).min(now);
                if let Some(authority) = &self.certificates().authority {
                    authority.begin_no_earlier(id, cut)?;
                }
                let name = id.as_str();
                rows.push(RevocationRow {
                    not_before_s: i64::try_from(cut.as_secs()).unwrap_or(i64::MAX),
                    ..entry(String::new(), String::new(), name.to_owned(), i64::MAX)
                });
                store::end_lineages(&mut tx, None, name).await?;
                let living = store::living(&mut tx, None, name, now_us).await?;
                living
                    .into_iter()
                    .filter(|c| c.issued_us < micros(cut))
                    .collect()
            }
        };
        rows.extend(
            living
                .into_iter()
                .map(|c| entry(c.issuer, c.serial, c.spiffe_id, c.not_after_us)),
        );
        self.put(tx, rows, by, reason).await
    }

    async fn put(
        &self,
        mut tx: tars_runtime::db::Write,
        rows: Vec<RevocationRow>,
        by: &str,
        reason: &str,
    ) -> Result<Vec<RevocationRow>, AuthError> {
        store::drop_expired(&mut tx, self.clock.now_us()).await?;
        let mut changed = Vec::new();
        for row in rows {
            if !store::insert_revocation(&mut tx, &row).await? {
                continue;
            }
            let record = Record::new(&self.clock, "auth", "certificate.revoked")
                .severity(Severity::Critical)
                .caller(by)
                .resource(if row.serial.is_empty() {
                    &row.spiffe_id
                } else {
                    &row.serial
                })
                .detail("issuer", &row.issuer)
                .detail("spiffe_id", &row.spiffe_id)
                .detail("reason", reason);
            audit::insert(&mut tx, &record).await?;
            changed.push(row);
        }
        tx.commit().await?;
        let (revoked_certificates, revoked_identities) = pushed(&changed);
        if !changed.is_empty() {
            self.publisher.publish(WatchCredentialsResponse {
                revoked_certificates,
                revoked_identities,
                ..Default::default()
            });
        }
        Ok(changed)
    }

    pub(crate) async fn list_revocations(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<RevocationRow>, String), AuthError> {
        let size = page::size(page_size);
        let before = match token {
            "" => i64::MAX,
            text => text
                .parse()
                .map_err(|_| AuthError::PageToken("page_token"))?,
        };
        let now_us = self.clock.now_us();
        let rows = self.store.revocations(now_us, before, size + 1).await?;
        let (rows, next) = page::cut(rows, size, |r| r.0.to_string());
        Ok((rows.into_iter().map(|r| r.1).collect(), next))
    }

    /// All that is in force.
    pub(crate) async fn all_revocations(&self) -> Result<Vec<RevocationRow>, AuthError> {
        let (mut all, mut before) = (Vec::new(), i64::MAX);
        loop {
            let now_us = self.clock.now_us();
            let rows = self.store.revocations(now_us, before, BATCH).await?;
            let Some(last) = rows.last() else {
                return Ok(all);
            };
            before = last.0;
            all.extend(rows.into_iter().map(|r| r.1));
        }
    }

    /// Our issuers' lists, signed; in force for at least twice a leaf's life.
    pub(crate) async fn signed_lists(&self) -> Result<Vec<Vec<u8>>, AuthError> {
        let certificates = self.certificates();
        let authority = certificates.authority()?;
        let now = self.clock.now();
        let list = certificates.feed.revocations.current();
        if let Some(kept) = self.signed_lists.0.lock().as_ref()
            && Arc::ptr_eq(&kept.of, &list)
            && kept.at + LIST_AGE > now
        {
            return Ok(kept.lists.clone());
        }
        let rows = self.all_revocations().await?;
        let names: Vec<(CertName, Duration)> = rows
            .iter()
            .filter_map(|r| {
                let name = CertName {
                    issuer: r.issuer.parse().ok()?,
                    serial: r.serial.parse().ok()?,
                };
                let since = Duration::from_micros(u64::try_from(r.revoked_us).ok()?);
                Some((name, since))
            })
            .collect();
        let leaf = Duration::from_secs(certificates.settings.leaf_life_seconds);
        let life = (leaf * 2).max(Duration::from_secs(3600));
        let lists: Vec<Vec<u8>> = authority
            .revocation_lists(&names, now, life)?
            .iter()
            .map(|l| l.to_vec())
            .collect();
        *self.signed_lists.0.lock() = Some(Signed {
            at: now,
            of: list,
            lists: lists.clone(),
        });
        Ok(lists)
    }
}
