//! The rotation of roots: each step only when every peer is ready for it.
//!
//! A process tells which roots it trusts and, by the certificate it comes with, which it stands
//! under. A process that is gone counts until its last certificate has ended: it may come back.

use super::{
    micros,
    store::{self, ReportRow},
};
use crate::{Auth, AuthError};
use tars_certs::{
    KeyId,
    ca::{
        RootInfo,
        rotation::{RootState, Step},
    },
    peer::Verified,
};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::audit::{self, Record, Severity};
use uuid::Uuid;

/// Where the rotation stands.
#[derive(Debug)]
pub(crate) struct RootsStatus {
    pub(crate) version: u64,
    pub(crate) roots: Vec<RootInfo>,
    pub(crate) next: Step,
    /// Who must hear of the last step, or renew, before the next.
    pub(crate) waiting_for: Vec<String>,
    /// Who holds a certificate that the next step cuts off, and is not reached by a push.
    pub(crate) cut_off: Vec<String>,
}

fn in_state(roots: &[RootInfo], state: RootState) -> Option<&RootInfo> {
    roots.iter().find(|r| r.state == state)
}

fn next(roots: &[RootInfo]) -> Step {
    let has = |state| in_state(roots, state).is_some();
    match () {
        () if has(RootState::Tainted) => Step::Remove,
        () if has(RootState::Retired) => Step::Taint,
        () if has(RootState::Prepared) => Step::Activate,
        () => Step::Prepare,
    }
}

/// What a peer must have for a step: a root that it trusts, or one that it has left.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Trust(KeyId),
    Leave(KeyId),
}

impl Needs {
    fn of(step: Step, roots: &[RootInfo]) -> Self {
        let key = |state| in_state(roots, state).map(|r| r.key);
        match step {
            Step::Prepare => None,
            Step::Activate => key(RootState::Prepared).map(Self::Trust),
            Step::Taint => key(RootState::Active).map(Self::Trust),
            Step::Remove => key(RootState::Tainted).map(Self::Leave),
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

impl Auth {
    /// Takes down what a peer trusts.
    pub(crate) async fn report_trust(
        &self,
        peer: &Verified,
        instance: Uuid,
        roots: &[KeyId],
    ) -> Result<(), AuthError> {
        let texts: Vec<String> = roots.iter().map(KeyId::to_string).collect();
        let row = ReportRow {
            spiffe_id: peer.certificate.id.to_string(),
            instance,
            roots: texts.join(","),
            anchor: peer.anchor.to_string(),
            not_after_us: micros(peer.certificate.not_after),
        };
        let mut tx = self.store.begin("trust.report").await?;
        store::drop_expired(&mut tx, self.clock.now_us()).await?;
        store::save_report(&mut tx, &row).await?;
        Ok(tx.commit().await?)
    }

    pub(crate) async fn roots(&self) -> Result<RootsStatus, AuthError> {
        let authority = self.certificates().authority()?;
        let roots = authority.root_infos();
        let step = next(&roots);
        let reports = self.store.reports(self.clock.now_us()).await?;
        Ok(RootsStatus {
            version: authority.version(),
            waiting_for: self.waiting_for(step, &roots, &reports),
            cut_off: self.cut_off(step, &roots, &reports).await?,
            next: step,
            roots,
        })
    }

    fn waiting_for(&self, step: Step, roots: &[RootInfo], reports: &[ReportRow]) -> Vec<String> {
        let needs = Needs::of(step, roots);
        let late = reports.iter().filter(|r| !r.meets(needs));
        let mut names: Vec<String> = late
            .map(|r| format!("{} ({})", r.spiffe_id, r.instance))
            .collect();
        let own = self.certificates().own.current();
        if !needs.met(own.trust().root_keys(), own.verified().anchor) {
            names.push(own.id().to_string());
        }
        names
    }

    /// People and outside clients hear of no push: they are known by what was issued to them.
    async fn cut_off(
        &self,
        step: Step,
        roots: &[RootInfo],
        reports: &[ReportRow],
    ) -> Result<Vec<String>, AuthError> {
        let Some(tainted) = in_state(roots, RootState::Tainted) else {
            return Ok(Vec::new());
        };
        if step != Step::Remove {
            return Ok(Vec::new());
        }
        let now_us = self.clock.now_us();
        let newest = self.store.newest().await?.into_iter().filter(|c| {
            c.generation == i64::from(tainted.generation)
                && c.not_after_us > now_us
                && !reports.iter().any(|r| r.spiffe_id == c.spiffe_id)
        });
        Ok(newest
            .map(|c| format!("{} (serial {})", c.spiffe_id, c.serial))
            .collect())
    }

    /// Takes the next step, if it is this one and everybody is ready.
    pub(crate) async fn step_roots(
        &self,
        by: &str,
        step: Step,
        cut_off: bool,
    ) -> Result<(u64, RootInfo), AuthError> {
        let _one = self.rotating.lock().await;
        let authority = self.certificates().authority()?;
        let status = self.roots().await?;
        // A step out of order is refused by the state machine, whoever is ready.
        if status.next == step {
            if !status.waiting_for.is_empty() {
                return Err(AuthError::PeersNotReady(status.waiting_for));
            }
            if !cut_off && !status.cut_off.is_empty() {
                return Err(AuthError::WouldCutOff(status.cut_off));
            }
        }
        let root = authority.step(step, by, self.clock.now())?;
        self.record_steps().await?;
        Ok((authority.version(), root))
    }

    /// Writes the audit records of steps that have none yet, and announces what is trusted after them:
    /// a step is a file, and a crash can come between it and the database.
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
        for taken in steps {
            let record = Record::new(&self.clock, "auth", "root.stepped")
                .severity(Severity::Critical)
                .caller(&taken.by)
                .resource(format!("root-{}", taken.generation))
                .detail("step", taken.step)
                .detail("version", taken.version);
            audit::insert(&mut tx, &record).await?;
            let version = i64::try_from(taken.version).unwrap_or(i64::MAX);
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
