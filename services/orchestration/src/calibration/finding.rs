//! What a fit found, and whether it can be trusted.

use super::{
    approvals::{Approvals, Decided},
    parameters::{Parameter, are_of, parameters},
    prior::prior,
    windows::{Callers, Measured, Windows},
};
use serde::{Deserialize, Serialize};
use tars_runtime::metrics::calls::TenantCalls;
use tars_worlds::{
    MeshEnv,
    mesh::{
        BadCalibration, Calibration, Changes,
        fit::{self, BadWindow, Errors, Reason, Verdict, Window, calibrate, predict},
    },
};

/// How many calls the windows must have that are fitted to.
pub(crate) const MIN_FITTED: u64 = fit::MIN_CALLS as u64;
/// How many calls a window must have for its quantiles to say something: one in the last percentile.
pub(crate) const MIN_TESTED: u64 = 100;

/// Why a calibration cannot be trusted.
#[derive(Debug, thiserror::Error)]
enum Uncalibrated {
    #[error(
        "too few calls: {fitted} to fit to and {tested} in the window after them; {MIN_FITTED} and {MIN_TESTED} are needed"
    )]
    TooFewCalls { fitted: u64, tested: u64 },
    #[error(transparent)]
    Errors(#[from] Reason),
    #[error(transparent)]
    Window(#[from] BadWindow),
    #[error(transparent)]
    Parameters(#[from] BadCalibration),
}

/// What a fit found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// Why it cannot be trusted; `None` if it can.
    pub(crate) uncalibrated: Option<String>,
    /// The windows that were fitted to.
    pub(crate) from_us: i64,
    pub(crate) to_us: i64,
    pub(crate) windows: u32,
    /// Their calls that completed, that failed, and that a limit turned away.
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) rejected: u64,
    /// The window after them.
    pub(crate) tested_to_us: i64,
    pub(crate) tested_calls: u64,
    /// `None` where there were too few calls.
    pub(crate) errors: Option<Errors>,
    /// Empty where there were too few calls.
    pub(crate) parameters: Vec<Parameter>,
    /// What was found of approvals; absent in findings from before they were looked at.
    #[serde(default)]
    pub(crate) approvals: Option<Approvals>,
}

impl Finding {
    /// Whether what an agent acts on was measured.
    pub(crate) fn measures(&self, agent: &str) -> bool {
        are_of(agent, &self.parameters)
    }

    /// Why what an agent acts on was not measured.
    pub(crate) fn why_not(&self) -> String {
        let found = self.approvals.as_ref();
        let why = found.and_then(|approvals| approvals.uncalibrated.clone());
        why.unwrap_or_else(|| "only the calls of the mesh are".to_owned())
    }

    /// Fits to all windows but the newest, and tests by that one. `None` before there are two. Approvals are fitted to
    /// the proposals that have ended, the oldest first.
    pub(super) fn of(windows: &Windows, decided: &[Decided], places: u32) -> Option<Self> {
        let (to_fit, tested) = windows.split(MIN_TESTED)?;
        let mut finding = Self::without_fit(&to_fit, tested);
        let assumed = Calibration::shipped().changes;
        let (approvals, changes) = Approvals::of(decided, &assumed);
        finding.approvals = Some(approvals);
        if let Err(reason) = finding.fit(&to_fit, tested, changes, places) {
            finding.uncalibrated = Some(reason.to_string());
        }
        Some(finding)
    }

    fn without_fit(to_fit: &[&Measured], tested: &Measured) -> Self {
        let totals = to_fit.iter().map(|m| m.calls.total());
        let sum = |of: fn(&TenantCalls) -> u64| totals.clone().map(|total| of(&total)).sum();
        let began = to_fit.first().map(|m| m.began_us());
        Self {
            uncalibrated: None,
            from_us: began.unwrap_or(tested.began_us()),
            to_us: tested.began_us(),
            windows: u32::try_from(to_fit.len()).unwrap_or(u32::MAX),
            calls: sum(|total| total.completed),
            failed: sum(|total| total.failed),
            rejected: sum(|total| total.rejected),
            tested_to_us: tested.ended_us,
            tested_calls: tested.completed(),
            errors: None,
            parameters: Vec::new(),
            approvals: None,
        }
    }

    fn fit(
        &mut self,
        to_fit: &[&Measured],
        tested: &Measured,
        changes: Option<Changes>,
        places: u32,
    ) -> Result<(), Uncalibrated> {
        let (calls, tested_calls) = (self.calls, self.tested_calls);
        if calls < MIN_FITTED || tested_calls < MIN_TESTED {
            return Err(Uncalibrated::TooFewCalls {
                fitted: calls,
                tested: tested_calls,
            });
        }
        let callers = Callers::of(to_fit);
        let all = to_fit.iter().chain([&tested]);
        let windows: Vec<Window> = all.map(|m| callers.window(m, places)).collect();
        let prior = prior(&callers.names(), &windows[0], places);
        let (after, before) = windows.split_last().expect("the tested one is there");
        let (mut mesh, _) = calibrate(&prior, before)?;
        // Windows of calls have no proposals: that there were none in them is no measurement.
        let are_measured = changes.is_some();
        mesh.changes = changes.unwrap_or_else(|| prior.changes.clone());
        self.parameters = parameters(&mesh, before, are_measured);
        MeshEnv::new(mesh.clone())?;
        let errors = Errors::of(&predict(&mesh, after), after);
        // One that is not a number is in the verdict.
        self.errors = errors
            .all()
            .into_iter()
            .all(f64::is_finite)
            .then_some(errors);
        let (_, verdict) = calibrate(&prior, &windows)?;
        match verdict {
            Verdict::Calibrated { .. } => Ok(()),
            Verdict::Uncalibrated { reason } => Err(reason.into()),
        }
    }
}
