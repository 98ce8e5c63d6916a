//! What processes report of the roots that they trust, and when each was last heard from.
//!
//! The reports are rows, whichever replica they were made to. How long ago one was made is measured by
//! each replica for itself, on its monotonic clock: wall clocks of other machines differ, and any can be
//! set. A replica notices a report to another one by the row's id, which is new with each report.

use super::{
    RETENTION, micros,
    store::{self, ReportRow},
};
use crate::{Auth, AuthError};
use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};
use tars_certs::{CertName, Identity, KeyId, RevocationSet, peer::Verified};
use tars_runtime::{clock::Monotonic, db::Write};
use uuid::Uuid;

impl ReportRow {
    pub(super) fn is_revoked(&self, list: &RevocationSet) -> bool {
        let name = |text: &str| {
            let (issuer, serial) = text.split_once(':')?;
            Some(CertName {
                issuer: issuer.parse().ok()?,
                serial: serial.parse().ok()?,
            })
        };
        let chain: Vec<CertName> = self.names.split(',').filter_map(name).collect();
        let begun = Duration::from_micros(u64::try_from(self.not_before_us).unwrap_or(0));
        let id = self.spiffe_id.parse();
        id.is_ok_and(|id| list.denies_chain(&chain, &id, begun))
    }
}

/// When each process was last heard from, by the monotonic clock. Kept in memory: what was heard
/// before Auth started says nothing about who is still there, so every process gets the whole time
/// again.
#[derive(Debug)]
pub(crate) struct LastSeen {
    since: Monotonic,
    processes: Mutex<HashMap<String, Processes>>,
    /// When the reports to other replicas were last looked at.
    observed: Mutex<Option<Monotonic>>,
}

/// The processes of one holder, by the instance ids that they choose.
type Processes = HashMap<Uuid, Heard>;

/// The last report that is known of a process, and when it became known.
#[derive(Debug, Clone, Copy)]
struct Heard {
    report: Option<Uuid>,
    at: Monotonic,
}

/// Processes of one holder that are remembered, the most recent ones. A holder can invent any
/// number, and evicts only its own.
const MAX_INSTANCES: usize = 256;
const MAX_HOLDERS: usize = 512;

impl LastSeen {
    pub(crate) fn new(now: Monotonic) -> Self {
        Self {
            since: now,
            processes: Mutex::default(),
            observed: Mutex::default(),
        }
    }

    fn record(&self, row: &ReportRow, now: Monotonic) {
        record(&mut self.processes.lock(), row, now);
    }

    /// Notices the reports that were made to other replicas, among all that there are, and forgets the
    /// processes that have none any more.
    pub(super) fn observe(&self, reports: &[ReportRow], now: Monotonic) {
        *self.observed.lock() = Some(now);
        let mut all = self.processes.lock();
        let mut known = std::mem::take(&mut *all);
        for row in reports {
            let of_holder = known.get_mut(&row.holder);
            let heard = of_holder.and_then(|own| own.remove(&row.instance));
            let at = heard.filter(|heard| heard.report == row.report);
            let at = at.map_or(now, |heard| heard.at);
            record(&mut all, row, at);
        }
    }

    fn is_due(&self, now: Monotonic, every: Duration) -> bool {
        let observed = *self.observed.lock();
        observed.is_none_or(|at| now.since(at) >= every)
    }

    fn forget(&self, holder: &str, instance: Uuid) {
        let mut all = self.processes.lock();
        if let Some(own) = all.get_mut(holder) {
            own.remove(&instance);
        }
    }

    pub(super) fn last(&self, holder: &str, instance: Uuid) -> Monotonic {
        let all = self.processes.lock();
        let heard = all.get(holder).and_then(|own| own.get(&instance));
        heard.map_or(self.since, |heard| heard.at)
    }
}

fn record(all: &mut HashMap<String, Processes>, row: &ReportRow, at: Monotonic) {
    if !all.contains_key(&row.holder) {
        let newest = |own: &Processes| own.values().map(|heard| heard.at).max();
        make_room(all, MAX_HOLDERS, newest);
    }
    let own = all.entry(row.holder.clone()).or_default();
    if !own.contains_key(&row.instance) {
        make_room(own, MAX_INSTANCES, |heard| heard.at);
    }
    let report = row.report;
    own.insert(row.instance, Heard { report, at });
}

/// Evicts the least recently heard entries until there is room for one more.
fn make_room<K: Clone + Eq + Hash, V, T: Ord>(
    map: &mut HashMap<K, V>,
    most: usize,
    heard: impl Fn(&V) -> T,
) {
    while map.len() >= most {
        let oldest = map.iter().min_by_key(|(_, v)| heard(v));
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
            return;
        };
        map.remove(&oldest);
    }
}

/// What this replica of Auth reports of itself to the others, which cannot see its identity.
#[derive(Debug)]
pub(crate) struct OwnReport {
    instance: Uuid,
    last: Mutex<Reported>,
}

#[derive(Debug)]
enum Reported {
    Nothing,
    /// This identity, at this time.
    Identity(Arc<Identity>, Monotonic),
    /// That the process stops.
    Leave,
}

impl Default for OwnReport {
    fn default() -> Self {
        Self {
            instance: Uuid::now_v7(),
            last: Mutex::new(Reported::Nothing),
        }
    }
}

impl OwnReport {
    /// Whether a report is of this process.
    pub(super) fn is_of(&self, report: &ReportRow) -> bool {
        report.instance == self.instance
    }

    fn is_due(&self, own: &Arc<Identity>, now: Monotonic, every: Duration) -> bool {
        match &*self.last.lock() {
            Reported::Nothing => true,
            Reported::Identity(of, at) => !Arc::ptr_eq(of, own) || now.since(*at) >= every,
            Reported::Leave => false,
        }
    }
}

fn names(chain: &[CertName]) -> String {
    let texts: Vec<String> = chain
        .iter()
        .map(|c| format!("{}:{}", c.issuer, c.serial))
        .collect();
    texts.join(",")
}

/// Whose reports a peer makes: those of its lineage, across renewals, or else of its certificate
/// alone.
async fn holder(tx: &mut Write, peer: &Verified) -> Result<String, AuthError> {
    let name = peer.name();
    let issued = store::find_issued(tx, &name.issuer.to_string(), name.serial.as_str()).await?;
    Ok(match issued {
        Some(row) => row.lineage.to_string(),
        None => names(std::slice::from_ref(name)),
    })
}

impl Auth {
    /// Records which roots a peer trusts.
    pub(crate) async fn report_trust(
        &self,
        peer: &Verified,
        instance: Uuid,
        roots: &[KeyId],
    ) -> Result<(), AuthError> {
        self.import_journal().await?;
        let texts: Vec<String> = roots.iter().map(KeyId::to_string).collect();
        let mut tx = self.store.begin("trust.report").await?;
        let row = ReportRow {
            spiffe_id: peer.certificate.id.to_string(),
            instance,
            holder: holder(&mut tx, peer).await?,
            roots: texts.join(","),
            anchor: peer.anchor.to_string(),
            not_after_us: micros(peer.certificate.not_after),
            names: names(&peer.chain),
            not_before_us: micros(peer.certificate.not_before),
            report: Some(Uuid::now_v7()),
        };
        store::drop_expired(&mut tx, self.horizon.ended_us(RETENTION)).await?;
        store::save_report(&mut tx, &row, MAX_INSTANCES).await?;
        tx.commit().await?;
        self.own.last_seen.record(&row, self.clock.monotonic());
        Ok(())
    }

    /// Removes the report of a process that shuts down. Reports made with another certificate of
    /// the same identity stay.
    pub(crate) async fn withdraw_trust(
        &self,
        peer: &Verified,
        instance: Uuid,
    ) -> Result<(), AuthError> {
        self.import_journal().await?;
        let id = peer.certificate.id.as_str();
        let mut tx = self.store.begin("trust.withdraw").await?;
        let holder = holder(&mut tx, peer).await?;
        store::drop_report(&mut tx, id, instance, &holder).await?;
        tx.commit().await?;
        self.own.last_seen.forget(&holder, instance);
        Ok(())
    }

    /// Notices the reports that were made to other replicas, a few times within the time after which
    /// a silent process has departed.
    pub(crate) async fn observe_reports(&self) -> Result<(), AuthError> {
        let (now, every) = (
            self.clock.monotonic(),
            self.certificates().departed_after() / 10,
        );
        if self.shared.is_none() || !self.own.last_seen.is_due(now, every) {
            return Ok(());
        }
        let reports = self.reports().await?;
        self.own.last_seen.observe(&reports, now);
        Ok(())
    }

    /// The reports of certificates that have not expired.
    pub(super) async fn reports(&self) -> Result<Vec<ReportRow>, AuthError> {
        self.store
            .reports(self.horizon.ended_us(Duration::ZERO))
            .await
    }

    /// Reports to the other replicas which roots this one trusts, after each change of its identity and
    /// often enough not to count as departed.
    pub(crate) async fn report_own_trust(&self) -> Result<(), AuthError> {
        if self.shared.is_none() {
            return Ok(());
        }
        let (own, now) = (self.certificates().own.current(), self.clock.monotonic());
        let every = self.certificates().departed_after() / 3;
        if !self.own.report.is_due(&own, now, every) {
            return Ok(());
        }
        let roots: Vec<KeyId> = own.trust().root_keys().collect();
        self.report_trust(own.verified(), self.own.report.instance, &roots)
            .await?;
        let mut last = self.own.report.last.lock();
        if !matches!(*last, Reported::Leave) {
            *last = Reported::Identity(own, now);
        }
        Ok(())
    }

    /// Tells the other replicas that this one stops, so that no rotation waits for it. When that fails,
    /// it counts as departed after a while.
    pub async fn take_leave(&self) {
        let before = std::mem::replace(&mut *self.own.report.last.lock(), Reported::Leave);
        if matches!(before, Reported::Nothing) {
            return;
        }
        let own = self.certificates().own.current();
        let instance = self.own.report.instance;
        if let Err(e) = self.withdraw_trust(own.verified(), instance).await {
            tracing::debug!(error = %e, "the other replicas do not know that this one stops");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_secs(seconds))
    }

    /// A report of a process with an id of its own.
    fn report(holder: &str, instance: Uuid) -> ReportRow {
        ReportRow {
            spiffe_id: "spiffe://tars.local/automl".to_owned(),
            instance,
            holder: holder.to_owned(),
            roots: String::new(),
            anchor: String::new(),
            not_after_us: i64::MAX,
            names: String::new(),
            not_before_us: 0,
            report: Some(Uuid::now_v7()),
        }
    }

    #[test]
    fn a_holder_is_recorded_for_itself_and_evicts_only_its_own() {
        let last_seen = LastSeen::new(at(0));
        let record = |holder: &str, instance, at| last_seen.record(&report(holder, instance), at);
        let (mine, gone) = (Uuid::now_v7(), Uuid::now_v7());
        record("a", mine, at(1));
        record("b", gone, at(2));
        record("b", mine, at(3));
        assert_eq!(
            last_seen.last("a", mine),
            at(1),
            "not what another holder reported"
        );
        for n in 0..1000 {
            record("b", Uuid::now_v7(), at(4 + n));
            record("b", mine, at(4 + n));
        }
        assert_eq!(last_seen.last("a", mine), at(1));
        assert_eq!(last_seen.last("b", mine), at(1003), "recorded repeatedly");
        assert_eq!(
            last_seen.last("b", gone),
            at(0),
            "evicted, as if never recorded"
        );
        assert_eq!(last_seen.processes.lock()["b"].len(), MAX_INSTANCES);
    }

    #[test]
    fn holders_are_bounded_and_the_least_recent_is_evicted() {
        let last_seen = LastSeen::new(at(0));
        let one = Uuid::now_v7();
        last_seen.record(&report("quiet", one), at(1));
        for n in 0..1000 {
            last_seen.record(&report(&n.to_string(), one), at(2 + n));
            last_seen.record(&report("awake", one), at(2 + n));
        }
        assert_eq!(last_seen.processes.lock().len(), MAX_HOLDERS);
        assert_eq!(last_seen.last("quiet", one), at(0));
        assert_eq!(last_seen.last("awake", one), at(1001));
    }

    #[test]
    fn a_report_to_another_replica_counts_from_when_it_is_noticed() {
        let last_seen = LastSeen::new(at(0));
        let (here, there) = (Uuid::now_v7(), Uuid::now_v7());
        let own = report("a", here);
        last_seen.record(&own, at(5));
        let first = report("a", there);
        last_seen.observe(&[own.clone(), first.clone()], at(10));
        last_seen.observe(&[own.clone(), first], at(20));
        assert_eq!(last_seen.last("a", here), at(5), "as it was reported");
        assert_eq!(last_seen.last("a", there), at(10), "nothing new since");
        last_seen.observe(&[own, report("a", there)], at(30));
        assert_eq!(last_seen.last("a", there), at(30));
        last_seen.observe(&[], at(40));
        assert!(last_seen.processes.lock().is_empty(), "withdrawn");
    }

    #[test]
    fn reports_are_observed_once_in_an_interval() {
        let last_seen = LastSeen::new(at(0));
        let every = Duration::from_secs(9);
        assert!(last_seen.is_due(at(0), every));
        last_seen.observe(&[], at(0));
        assert!(!last_seen.is_due(at(8), every));
        assert!(last_seen.is_due(at(9), every));
    }
}
