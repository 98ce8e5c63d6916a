//! How a refusal for a quota reads.

use super::{OverQuota, QuotaRefusal};
use std::{fmt, time::Duration};
use tars_proto::{fault, unavailable::Unavailable};
use tars_runtime::usage::Dimension;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::Status;

/// The longest time that a refusal asks to wait: quotas may be raised before the month ends.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// How long a call waits that came before anything was known.
const SOON: Duration = Duration::from_secs(1);

/// An amount in the unit of its quota, exactly.
struct Units(Dimension, u64);

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(dimension, amount) = self;
        let unit = dimension.unit();
        match (amount / unit, amount % unit) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, rest) => {
                let rest = format!("{rest:06}");
                write!(f, "{whole}.{}", rest.trim_end_matches('0'))
            }
        }
    }
}

impl OverQuota {
    /// How much is left.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    fn units(&self, amount: u64) -> String {
        Units(self.dimension, amount).to_string()
    }

    fn resets_at(&self) -> String {
        let seconds = i64::try_from(self.month.end().as_secs()).unwrap_or(i64::MAX);
        let at = OffsetDateTime::from_unix_timestamp(seconds).ok();
        at.and_then(|at| at.format(&Rfc3339).ok())
            .unwrap_or_default()
    }

    /// The status of a call that is refused.
    pub fn status(&self) -> Status {
        let wait = self.month.end().saturating_sub(self.at);
        let wait = wait.clamp(Duration::from_secs(1), LONGEST_WAIT);
        let facts = [
            ("limit", self.units(self.limit)),
            ("used", self.units(self.used)),
            ("left", self.units(self.left())),
            ("resets_at", self.resets_at()),
        ];
        fault::quota_exceeded(self.dimension.as_str(), &self.to_string(), &facts, wait)
    }
}

impl QuotaRefusal {
    /// The status of a call that is refused.
    pub fn status(&self) -> Status {
        match self {
            Self::Over(over) => over.status(),
            Self::Unknown => fault::unavailable(Unavailable::UsageUnknown, &self.to_string(), SOON),
        }
    }
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.dimension {
            Dimension::Calls => "calls",
            Dimension::TrainingSteps => "training steps",
            Dimension::SolverSeconds => "solver seconds",
        };
        let (limit, left) = (self.units(self.limit), self.units(self.left()));
        let resets_at = self.resets_at();
        if self.left() == 0 {
            return write!(
                f,
                "all {limit} {what} of this month are used or promised; the next month begins at {resets_at}"
            );
        }
        let asked = self.units(self.asked);
        write!(
            f,
            "this may take {asked} {what}, and {left} of {limit} are left in this month; the next one begins at {resets_at}"
        )
    }
}

impl std::error::Error for OverQuota {}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::reason;
    use tonic_types::StatusExt;

    fn over(dimension: Dimension, limit: u64, used: u64, asked: u64) -> OverQuota {
        OverQuota {
            dimension,
            limit,
            used,
            asked,
            month: "2026-11".parse().unwrap(),
            at: Duration::ZERO,
        }
    }

    #[test]
    fn a_refusal_says_what_is_used_up_and_when_it_resets() {
        let mut over = over(Dimension::Calls, 5, 5, 1);
        over.at = over.month.end() - Duration::from_secs(90);
        let status = over.status();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, reason::QUOTA_EXCEEDED);
        let fact = |name: &str| info.metadata[name].as_str();
        assert_eq!((fact("dimension"), fact("limit")), ("calls", "5"));
        assert_eq!((fact("used"), fact("left")), ("5", "0"));
        assert_eq!(fact("resets_at"), "2026-12-01T00:00:00Z");
        let retry = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_secs(90)));
        let quota = status.get_details_quota_failure().unwrap().violations;
        assert_eq!(quota[0].subject, "calls");
    }

    #[test]
    fn nobody_is_asked_to_wait_for_weeks() {
        let mut over = over(Dimension::Calls, 5, 5, 1);
        for (at, wait) in [
            (over.month.start(), LONGEST_WAIT),
            (over.month.end(), Duration::from_secs(1)),
        ] {
            over.at = at;
            assert_eq!(fault::retry_after(&over.status()), Some(wait));
        }
    }

    #[test]
    fn amounts_are_shown_exactly_in_the_units_of_the_quota() {
        let solver = over(Dimension::SolverSeconds, 60_000_000, 59_250_001, 5_000_000);
        assert_eq!(solver.units(solver.used), "59.250001");
        assert_eq!(
            solver.to_string(),
            "this may take 5 solver seconds, and 0.749999 of 60 are left in this month; \
             the next one begins at 2026-12-01T00:00:00Z"
        );
        let steps = over(Dimension::TrainingSteps, 1000, 1200, 1);
        assert_eq!(steps.left(), 0, "a quota may have been lowered");
    }
}
