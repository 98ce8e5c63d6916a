//! Root rotation: each step is taken only once every peer is ready for it.
//!
//! A process reports which roots it trusts, and shows by its certificate which root it is below. A
//! revoked process is not waited for: it must trust nothing, and nothing trusts it. A process that
//! was silent for `certificates.departed_after_seconds` has departed: it is listed but not waited
//! for, unless it returns in time. If it returns later, it may need a join token. A process that
//! shuts down withdraws its report.

use super::{
    RETENTION, micros,
    store::{self, IssuedRow, ReportRow},
};
use crate::{Auth, AuthError};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::atomic::Ordering,
    time::Duration,
};
use tars_certs::{
    CertName, KeyId, RevocationSet, SpiffeId,
    ca::{
        ManagedBy, RootInfo,
        rotation::{RootState, RotationStep},
    },
    peer::Verified,
};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::{
    audit::{self, Record, Severity},
    clock::Monotonic,
    db::Write,
};
use uuid::Uuid;

/// The state of the rotation.
#[derive(Debug)]
pub(crate) struct RootsStatus {
    pub(crate) version: u64,
    pub(crate) roots: Vec<RootInfo>,
    pub(crate) next: RotationStep,
    /// Processes that must receive the last step, or renew, before the next one.
    pub(crate) waiting_for: Vec<String>,
    /// Processes that would be waited for, had they been heard from recently.
    pub(crate) departed: Vec<String>,
    /// Certificates that the next step invalidates and whose holders receive no push.
    pub(crate) cut_off: Vec<IssuedRow>,
}

fn in_state(roots: &[RootInfo], state: RootState) -> Option<&RootInfo> {
    roots.iter().find(|r| r.state == state)
}

fn next(roots: &[RootInfo]) -> RotationStep {
    let has = |state| in_state(roots, state).is_some();
    match () {
        () if has(RootState::Tainted) => RotationStep::Remove,
        () if has(RootState::Retired) => RotationStep::Taint,
        () if has(RootState::Prepared) => RotationStep::Activate,
        () => RotationStep::Prepare,
    }
}

/// What a step requires of a peer: that it trusts a root, or has left one.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Trust(KeyId),
    Leave(KeyId),
}

impl Needs {
    fn of(step: RotationStep, roots: &[RootInfo]) -> Self {
        let key = |state| in_state(roots, state).map(|r| r.key);
        match step {
            RotationStep::Prepare => None,
            RotationStep::Activate => key(RootState::Prepared).map(Self::Trust),
            RotationStep::Taint => key(RootState::Active).map(Self::Trust),
            RotationStep::Remove => key(RootState::Tainted).map(Self::Leave),
        }
        .unwrap_or(Self::Nothing)
    }

    fn met(self, trusted: impl IntoIterator<Item = KeyId>, anchor: KeyId) -> bool {
        match self {
            Self::Nothing => true,
            Self::Trust(root) => trusted.into_iter().any(|r| r == root),
            Self::Leave(root) => anchor != root,
        }
    }
}

impl ReportRow {
    fn meets(&self, needs: Needs) -> bool {
        let trusted = self.roots.split(',').filter_map(|k| k.parse().ok());
        let anchor: Option<KeyId> = self.anchor.parse().ok();
        anchor.is_some_and(|anchor| needs.met(trusted, anchor))
    }

    fn is_revoked(&self, list: &RevocationSet) -> bool {
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
}

/// The processes of one holder, by the instance ids that they choose.
type Processes = HashMap<Uuid, Monotonic>;

/// Processes of one holder that are remembered, the most recent ones. A holder can invent any
/// number, and evicts only its own.
const MAX_INSTANCES: usize = 256;
const MAX_HOLDERS: usize = 512;

impl LastSeen {
    pub(crate) fn new(now: Monotonic) -> Self {
        Self {
            since: now,
            processes: Mutex::default(),
        }
    }

    fn record(&self, holder: &str, instance: Uuid, now: Monotonic) {
        let mut all = self.processes.lock();
        if !all.contains_key(holder) {
            make_room(&mut all, MAX_HOLDERS, |own| own.values().max().copied());
        }
        let own = all.entry(holder.to_owned()).or_default();
        if !own.contains_key(&instance) {
            make_room(own, MAX_INSTANCES, |at| *at);
        }
        own.insert(instance, now);
    }

    fn forget(&self, holder: &str, instance: Uuid) {
        let mut all = self.processes.lock();
        if let Some(own) = all.get_mut(holder) {
            own.remove(&instance);
        }
    }

    fn last(&self, holder: &str, instance: Uuid) -> Monotonic {
        let all = self.processes.lock();
        let heard = all.get(holder).and_then(|own| own.get(&instance));
        heard.copied().unwrap_or(self.since)
    }
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

/// Peers that are not ready for a step.
#[derive(Debug, Default)]
struct NotReady {
    waiting_for: Vec<String>,
    departed: Vec<String>,
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

pub(crate) fn named(row: &IssuedRow) -> String {
    format!("{} (serial {})", row.spiffe_id, row.serial)
}

/// The number of certificates that a message names before it counts the rest.
const NAMED: usize = 8;

/// The certificates that a step invalidates, each with the command that replaces it.
fn cut_off_text(rows: &[IssuedRow]) -> String {
    let each = rows.iter().take(NAMED).map(|row| {
        let issue = reissued_by(&row.spiffe_id);
        format!("{}: `{issue}`", named(row))
    });
    let mut list: Vec<String> = each.collect();
    if rows.len() > NAMED {
        list.push(format!("and {} more", rows.len() - NAMED));
    }
    list.join("; ")
}

/// The command that issues another certificate for an identity.
fn reissued_by(spiffe_id: &str) -> String {
    let id = spiffe_id.parse::<SpiffeId>();
    let path = id.as_ref().map_or(spiffe_id, SpiffeId::path);
    match path.strip_prefix("/client/") {
        Some(name) if !name.contains('/') => format!("tars certs client {name} --out DIR --force"),
        _ => format!("tars certs issue {path} --out DIR --force"),
    }
}

/// The newest certificate of each identity, if that is below the given root. A certificate issued
/// later below another root replaces all before it.
fn left_below(living: Vec<IssuedRow>, generation: i64) -> Vec<IssuedRow> {
    let mut newest: BTreeMap<String, IssuedRow> = BTreeMap::new();
    for row in living {
        let rank = |c: &IssuedRow| (c.issued_us, c.generation != generation);
        match newest.get(&row.spiffe_id) {
            Some(other) if rank(other) >= rank(&row) => {}
            _ => drop(newest.insert(row.spiffe_id.clone(), row)),
        }
    }
    let rows = newest.into_values();
    rows.filter(|c| c.generation == generation).collect()
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
        };
        store::drop_expired(&mut tx, self.horizon.ended_us(RETENTION)).await?;
        store::save_report(&mut tx, &row, MAX_INSTANCES).await?;
        tx.commit().await?;
        self.last_seen
            .record(&row.holder, instance, self.clock.monotonic());
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
        self.last_seen.forget(&holder, instance);
        Ok(())
    }

    pub(crate) async fn roots(&self) -> Result<RootsStatus, AuthError> {
        let authority = self.certificates().authority()?;
        self.import_journal().await?;
        let roots = authority.root_infos();
        let step = next(&roots);
        let reports = self
            .store
            .reports(self.horizon.ended_us(Duration::ZERO))
            .await?;
        let NotReady {
            mut waiting_for,
            departed,
        } = self.not_ready(step, &roots, &reports);
        let below = self.below_tainted(step, &roots, &reports).await?;
        // This process renews the operator's files itself, which takes moments.
        let (own, cut_off): (Vec<_>, Vec<_>) = below
            .into_iter()
            .partition(|c| c.source == ManagedBy::Authority.as_str());
        waiting_for.extend(own.iter().map(named));
        Ok(RootsStatus {
            version: authority.version(),
            cut_off,
            waiting_for,
            departed,
            next: step,
            roots,
        })
    }

    /// The processes that are not ready for a step.
    fn not_ready(&self, step: RotationStep, roots: &[RootInfo], reports: &[ReportRow]) -> NotReady {
        let certificates = self.certificates();
        let needs = Needs::of(step, roots);
        let revoked = certificates.feed.revocations.current();
        let now = self.clock.monotonic();
        let mut not_ready = NotReady::default();
        for report in reports {
            if report.meets(needs) || report.is_revoked(&revoked) {
                continue;
            }
            let quiet = now.since(self.last_seen.last(&report.holder, report.instance));
            let name = format!("{} ({})", report.spiffe_id, report.instance);
            if quiet > certificates.departed_after() {
                let seconds = quiet.as_secs();
                not_ready
                    .departed
                    .push(format!("{name}, last heard {seconds} s ago"));
            } else {
                not_ready.waiting_for.push(name);
            }
        }
        let own = certificates.own.current();
        if !needs.met(own.trust().root_keys(), own.verified().anchor) {
            not_ready.waiting_for.push(own.id().to_string());
        }
        not_ready
    }

    /// People and outside clients receive no push; they are known from the certificates issued to
    /// them.
    async fn below_tainted(
        &self,
        step: RotationStep,
        roots: &[RootInfo],
        reports: &[ReportRow],
    ) -> Result<Vec<IssuedRow>, AuthError> {
        let Some(tainted) = in_state(roots, RootState::Tainted) else {
            return Ok(Vec::new());
        };
        if step != RotationStep::Remove {
            return Ok(Vec::new());
        }
        let certificates = self.certificates();
        let past_us = self.horizon.ended_us(Duration::ZERO);
        // Workloads managed here or by themselves are known from their reports.
        let is_workload = |c: &IssuedRow| {
            let class = c.spiffe_id.parse().ok();
            let class = class.and_then(|id| certificates.class(&id).ok());
            class.is_some_and(tars_certs::PeerClass::is_workload)
        };
        let managed_here =
            |c: &IssuedRow| c.source == ManagedBy::Authority.as_str() && is_workload(c);
        let own = certificates.own.current().id().to_string();
        let mut living = self.store.newest().await?;
        living.retain(|c| c.not_after_us > past_us);
        let mut left = left_below(living, i64::from(tainted.generation));
        left.retain(|c| {
            !managed_here(c)
                && c.spiffe_id != own
                && !reports.iter().any(|r| r.spiffe_id == c.spiffe_id)
        });
        Ok(left)
    }

    /// Takes a step of the rotation, if it is the next one and every peer is ready.
    pub(crate) async fn step_roots(
        &self,
        by: &str,
        step: RotationStep,
        cut_off: bool,
    ) -> Result<(u64, RootInfo), AuthError> {
        let _one = self.rotating.lock().await;
        let authority = self.certificates().authority()?;
        let status = self.roots().await?;
        // The state machine rejects a step out of order, whoever is ready.
        if status.next == step {
            if !status.waiting_for.is_empty() {
                return Err(AuthError::PeersNotReady(status.waiting_for));
            }
            if !cut_off && !status.cut_off.is_empty() {
                return Err(AuthError::WouldCutOff(cut_off_text(&status.cut_off)));
            }
        }
        let root = authority.step(step, by, self.clock.now())?;
        // The step is durable, and repeating the request would be out of order: what is left is
        // done later.
        self.step_unrecorded.store(true, Ordering::Release);
        if let Err(e) = self.record_late_steps().await {
            tracing::warn!(error = %e, "a rotation step was taken; its audit record follows");
        }
        Ok((authority.version(), root))
    }

    /// Records steps that were taken but could not be recorded.
    pub(crate) async fn record_late_steps(&self) -> Result<(), AuthError> {
        // Cleared first, so that a step taken in the meantime sets it again.
        if self.step_unrecorded.swap(false, Ordering::AcqRel)
            && let Err(e) = self.record_steps().await
        {
            self.step_unrecorded.store(true, Ordering::Release);
            return Err(e);
        }
        Ok(())
    }

    /// Writes the audit records of steps that have none, and announces the roots as they are after
    /// them. A step is a file, and a crash can come between it and the database.
    pub(crate) async fn record_steps(&self) -> Result<(), AuthError> {
        let Some(authority) = &self.certificates().authority else {
            return Ok(());
        };
        let mut tx = self.change("roots.record").await?;
        let recorded = store::recorded_step(&mut tx).await?;
        let steps = authority.steps_after(u64::try_from(recorded).unwrap_or(0));
        if steps.is_empty() {
            return Ok(());
        }
        for step in steps {
            let record = Record::new(&self.clock, "auth", "root.stepped")
                .severity(Severity::Critical)
                .caller(&step.by)
                .resource(format!("root-{}", step.generation))
                .detail("step", step.step)
                .detail("version", step.version);
            audit::insert(&mut tx, &record).await?;
            let version = i64::try_from(step.version).unwrap_or(i64::MAX);
            store::record_step(&mut tx, version).await?;
        }
        let item = WatchCredentialsResponse {
            bundle: self.certificates().bundle(),
            ..Default::default()
        };
        tx.announce(&item).await?;
        tx.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_secs(seconds))
    }

    fn issued(spiffe_id: &str, serial: &str, issued_us: i64, generation: i64) -> IssuedRow {
        IssuedRow {
            issuer: "ca".to_owned(),
            serial: serial.to_owned(),
            spiffe_id: spiffe_id.to_owned(),
            lineage: Uuid::now_v7(),
            issued_us,
            not_after_us: i64::MAX,
            generation,
            source: "administrator".to_owned(),
        }
    }

    #[test]
    fn an_identity_is_listed_once_and_not_after_it_was_reissued() {
        let left = left_below(
            vec![
                issued("twice", "a", 1, 1),
                issued("twice", "b", 2, 1),
                issued("replaced", "c", 3, 2),
                issued("replaced", "d", 1, 1),
                issued("replaced", "e", 2, 1),
                issued("went-back", "f", 1, 2),
                issued("went-back", "g", 2, 1),
                issued("at-once", "h", 5, 1),
                issued("at-once", "i", 5, 2),
                issued("new", "j", 5, 2),
            ],
            1,
        );
        let left: Vec<&str> = left.iter().map(|c| c.serial.as_str()).collect();
        assert_eq!(left, ["b", "g"]);
        assert!(left_below(Vec::new(), 1).is_empty());
    }

    #[test]
    fn a_holder_is_recorded_for_itself_and_evicts_only_its_own() {
        let last_seen = LastSeen::new(at(0));
        let (mine, gone) = (Uuid::now_v7(), Uuid::now_v7());
        last_seen.record("a", mine, at(1));
        last_seen.record("b", gone, at(2));
        last_seen.record("b", mine, at(3));
        assert_eq!(
            last_seen.last("a", mine),
            at(1),
            "not what another holder reported"
        );
        for n in 0..1000 {
            last_seen.record("b", Uuid::now_v7(), at(4 + n));
            last_seen.record("b", mine, at(4 + n));
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
        last_seen.record("quiet", one, at(1));
        for n in 0..1000 {
            last_seen.record(&n.to_string(), one, at(2 + n));
            last_seen.record("awake", one, at(2 + n));
        }
        assert_eq!(last_seen.processes.lock().len(), MAX_HOLDERS);
        assert_eq!(last_seen.last("quiet", one), at(0));
        assert_eq!(last_seen.last("awake", one), at(1001));
    }
}
