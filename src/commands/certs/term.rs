//! Lifetimes: as requested, and as issued.

use std::time::Duration;
use tars_runtime::count::counted;

const DAY_S: u64 = 86_400;
/// What issuing takes, and the rounding of times to seconds.
const SLACK_S: u64 = 120;
/// Less than this part of what was asked for is not worth a warning.
const SMALL_PART: u64 = 20;

/// What was asked for, in days; the usual when nothing was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked(pub(super) Option<u64>);

impl Asked {
    pub(super) fn or(self, usual: u64) -> Duration {
        Duration::from_secs(self.0.unwrap_or(usual).saturating_mul(DAY_S))
    }

    /// What to warn of, when a certificate ends before it was asked to.
    pub(super) fn cut(self, now: Duration, not_after: Duration) -> Option<String> {
        let days = self.0?;
        let life = not_after.saturating_sub(now).as_secs();
        let wanted = days.saturating_mul(DAY_S);
        let short = life + SLACK_S.max(wanted / SMALL_PART) < wanted;
        short.then(|| {
            format!(
                "warning: {} {} asked for, and it ends in {}: no certificate outlives the intermediate that signs it, or the life of its class (certificates.leaf_life_seconds, operator_life_days)",
                counted(days, "day"),
                if days == 1 { "was" } else { "were" },
                ends_in(now, not_after)
            )
        })
    }
}

pub(super) fn ends_in(now: Duration, not_after: Duration) -> String {
    let seconds = |t: Duration| i64::try_from(t.as_secs()).unwrap_or(i64::MAX);
    left(seconds(not_after), seconds(now))
}

/// The time left, for a table; both arguments are in seconds.
pub(super) fn left(not_after: i64, now: i64) -> String {
    match not_after - now {
        s if s <= 0 => "-".to_owned(),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_shown_in_a_fitting_unit() {
        for (seconds, told) in [
            (-1, "-"),
            (0, "-"),
            (6, "6 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(left(1000 + seconds, 1000), told);
        }
    }

    #[test]
    fn a_shorter_lifetime_than_requested_is_reported() {
        let now = Duration::from_secs(1_800_000_000);
        let after = |days: u64| now + Duration::from_secs(days * DAY_S - 1);
        let said = Asked(Some(9999)).cut(now, after(30)).unwrap();
        assert!(
            said.contains("9999 days") && said.contains("ends in 29 d"),
            "{said}"
        );
        assert_eq!(Asked(Some(30)).cut(now, after(30)), None);
        // By what an intermediate of as many days has lived already.
        assert_eq!(Asked(Some(30)).cut(now, after(29)), None);
        assert!(Asked(Some(30)).cut(now, after(28)).is_some());
        let said = Asked(Some(1)).cut(now, now + Duration::from_secs(6));
        let said = said.unwrap();
        assert!(said.contains("1 day was"), "{said}");
        assert!(said.contains("ends in 6 s"), "{said}");
        assert_eq!(
            Asked(None).cut(now, after(1)),
            None,
            "nothing was asked for"
        );
        assert!(Asked(Some(2)).cut(now, now).is_some(), "it is over");
        assert_eq!(Asked(None).or(30), Duration::from_secs(30 * DAY_S));
        assert_eq!(Asked(Some(u64::MAX)).or(30), Duration::from_secs(u64::MAX));
    }
}
