//! Root rotation: each step is taken only once every peer is ready for it.
//!
//! A process reports which roots it trusts, and shows by its certificate which root it is below. A
//! revoked process is not waited for: it must trust nothing, and nothing trusts it. A process that
//! was silent for `certificates.departed_after_seconds` has departed: it is listed but not waited
//! for, unless it returns in time. If it returns later, it may need a join token. A process that
//! shuts down withdraws its report.

use super::store::{self, IssuedRow, ReportRow};
use crate::{Auth, AuthError};
use std::{collections::BTreeMap, time::Duration};
use tars_certs::{
    KeyId, SpiffeId,
    ca::{
        ManagedBy, RootInfo,
        rotation::{RootState, RotationStep},
    },
};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::audit::{self, Record, Severity};

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
}

/// Peers that are not ready for a step.
#[derive(Debug, Default)]
struct NotReady {
    waiting_for: Vec<String>,
    departed: Vec<String>,
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
    pub(crate) async fn roots(&self) -> Result<RootsStatus, AuthError> {
        let authority = self.certificates().authority()?;
        self.import_journal().await?;
        let reports = self.reports().await?;
        if let Some(shared) = &self.shared {
            shared.catch_up().await?;
            self.own.last_seen.observe(&reports, self.clock.monotonic());
        }
        let (version, roots) = authority.versioned_roots();
        let step = next(&roots);
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
            version,
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
        // This process is asked directly, below.
        for report in reports.iter().filter(|r| !self.own.report.is_of(r)) {
            if report.meets(needs) || report.is_revoked(&revoked) {
                continue;
            }
            let quiet = now.since(self.own.last_seen.last(&report.holder, report.instance));
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
        let _one = self.own.rotating.lock().await;
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
        let root = match &self.shared {
            None => authority.step(step, by, self.clock.now())?,
            Some(shared) => {
                shared.step(step, by, status.version).await?;
                let taken = authority.steps_after(status.version).into_iter().next();
                let mut roots = authority.root_infos().into_iter().chain(status.roots);
                // A removed root is only among those of before.
                let root =
                    roots.find(|r| taken.as_ref().is_some_and(|s| s.generation == r.generation));
                root.ok_or(AuthError::Conflict)?
            }
        };
        // The step is durable, and repeating the request would be out of order: what is left is
        // done later.
        if let Err(e) = self.record_late_steps().await {
            tracing::warn!(error = %e, "a rotation step was taken; its audit record follows");
        }
        Ok((authority.version(), root))
    }

    /// Records steps that were taken but could not be recorded, by this replica or another.
    pub(crate) async fn record_late_steps(&self) -> Result<(), AuthError> {
        let Some(authority) = &self.certificates().authority else {
            return Ok(());
        };
        let last = authority.steps_after(0).pop();
        if *self.own.recorded_step.lock() != last {
            self.record_steps().await?;
            *self.own.recorded_step.lock() = last;
        }
        Ok(())
    }

    /// Writes the audit records of steps that have none, and announces the roots as they are after
    /// them. A step is a file, or a transaction before this one, and a crash can come in between.
    async fn record_steps(&self) -> Result<(), AuthError> {
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
    use uuid::Uuid;

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
}
