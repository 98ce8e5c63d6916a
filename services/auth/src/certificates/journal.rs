//! Imports the certificates that the authority issued with keys made beside it: for the services of
//! its own process, for the operator's files, and by `tars certs issue` while no mesh ran. The
//! authority journals each one; here it enters the list with all others, so that it can be
//! inspected and revoked.
//!
//! The renewals of one identity by the authority's own process form one lineage, across restarts. A
//! revoked lineage is not continued; the next start begins another. Replicas are separate processes with
//! the same identities: each imports the journal of its own folder, into lineages of its own, so that
//! revoking the certificate of one does not take the others with it.

use super::{
    RETENTION, micros,
    revoke::Attribution,
    store::{self, IssuedRow, LineageRow, RevocationRow},
};
use crate::{Auth, AuthError, publish::Change};
use std::time::Duration;
use tars_certs::ca::{ManagedBy, journal::Entry};
use tars_runtime::audit::{self, Record};

impl Auth {
    /// Imports every journal entry, and removes the entries once that is durable.
    pub(crate) async fn import_journal(&self) -> Result<(), AuthError> {
        let Some(authority) = &self.certificates().authority else {
            return Ok(());
        };
        // An unreadable journal must not keep anything from being revoked.
        let entries = authority.journal().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the journal of the authority cannot be read");
            Vec::new()
        });
        if entries.is_empty() {
            return Ok(());
        }
        let attribution = Attribution {
            by: "authority",
            reason: "a renewal of a revoked certificate, under way when that was revoked",
            now: self.clock.now(),
        };
        let mut tx = self.change("certificates.take_up").await?;
        store::drop_issued(&mut tx, self.horizon.ended_us(RETENTION)).await?;
        let mut late = Vec::new();
        for entry in &entries {
            late.extend(self.import_entry(&mut tx, entry, &attribution).await?);
        }
        self.insert_revocations(tx, late, &attribution).await?;
        for entry in &entries {
            if let Err(e) = authority.acknowledge(&entry.serial) {
                tracing::warn!(error = %e, "an imported journal entry could not be removed");
            }
        }
        Ok(())
    }

    /// Imports one entry. Returns the revocation of its certificate, if the lineage is revoked.
    async fn import_entry(
        &self,
        tx: &mut Change,
        entry: &Entry,
        attribution: &Attribution<'_>,
    ) -> Result<Option<RevocationRow>, AuthError> {
        if store::find_issued(tx, &entry.issuer, &entry.serial)
            .await?
            .is_some()
        {
            return Ok(None);
        }
        let (lineage, renewed) = self.lineage_of(tx, entry).await?;
        let row = self.issued(entry, &lineage);
        store::save_lineage(tx, &lineage).await?;
        store::insert_issued(tx, &row).await?;
        let name = format!("{}:{}", row.issuer, row.serial);
        store::adopt_reports(tx, &row.spiffe_id, row.lineage, &name).await?;
        let event = match renewed {
            true => "certificate.renewed",
            false => "certificate.issued",
        };
        let record = Record::new(&self.clock, "auth", event)
            .caller(&row.source)
            .resource(&row.spiffe_id)
            .detail("serial", &row.serial)
            .detail("issuer", &row.issuer)
            .detail("lineage", lineage.id);
        audit::insert(tx, &record).await?;
        let late = || attribution.row(row.issuer, row.serial, row.spiffe_id, row.not_after_us);
        Ok(lineage.revoked.then(late))
    }

    /// The lineage that the certificate continues or starts, and whether it is a renewal.
    async fn lineage_of(
        &self,
        tx: &mut Change,
        entry: &Entry,
    ) -> Result<(LineageRow, bool), AuthError> {
        let before = match &entry.renews {
            Some(serial) => store::find_issued(tx, "", serial).await?,
            None => None,
        };
        let known = match (&before, entry.managed_by) {
            (Some(before), _) => store::find_lineage(tx, before.lineage).await?,
            (None, ManagedBy::Authority) => {
                store::managed_lineage(tx, &entry.spiffe_id, &self.replica)
                    .await?
                    .filter(|l| !l.revoked)
            }
            (None, ManagedBy::Files) => None,
        };
        let id = &entry.spiffe_id;
        let mut fresh = self.new_lineage(id, seconds(entry.issued));
        if entry.managed_by == ManagedBy::Authority {
            fresh.replica.clone_from(&self.replica);
        }
        let lineage = LineageRow {
            latest_serial: entry.serial.clone(),
            ..known.unwrap_or_else(|| fresh.clone())
        };
        // The holder of the authority may renew without limit.
        let ends_us = match entry.managed_by {
            ManagedBy::Authority => fresh.ends_us.max(lineage.ends_us),
            ManagedBy::Files => lineage.ends_us,
        };
        Ok((LineageRow { ends_us, ..lineage }, before.is_some()))
    }

    fn issued(&self, entry: &Entry, lineage: &LineageRow) -> IssuedRow {
        let issuer = entry.issuer.parse().ok();
        let authority = self.certificates().authority.as_ref();
        let above = issuer.and_then(|issuer| authority?.root_above(&issuer));
        IssuedRow {
            issuer: entry.issuer.clone(),
            serial: entry.serial.clone(),
            spiffe_id: entry.spiffe_id.clone(),
            lineage: lineage.id,
            issued_us: seconds(entry.issued),
            not_after_us: seconds(entry.not_after),
            generation: above.map_or(0, |g| i64::from(g.generation)),
            source: entry.managed_by.as_str().to_owned(),
        }
    }
}

fn seconds(since_epoch: u64) -> i64 {
    micros(Duration::from_secs(since_epoch))
}
