//! Calendar months, in UTC.

use std::{fmt, str::FromStr, time::Duration};
use time::{Date, OffsetDateTime};

/// A calendar month in UTC, as in `2026-11`. Later ones are larger, also as texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    /// From 1 to 12.
    month: u8,
}

/// The text is not a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a month as in 2026-11, from 1970 to 9998")]
pub struct BadMonth;

/// The years whose months all begin and end at a time that the library can hold.
const YEARS: std::ops::RangeInclusive<u16> = 1970..=9998;

impl Month {
    /// The month of a time since the Unix epoch.
    pub fn at(now: Duration) -> Self {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let date = OffsetDateTime::from_unix_timestamp(seconds).map(OffsetDateTime::date);
        let date = date.unwrap_or(Date::MAX);
        Self {
            year: u16::try_from(date.year())
                .unwrap_or(*YEARS.end())
                .min(*YEARS.end()),
            month: date.month().into(),
        }
    }

    /// The month after this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self.month {
            12 => Self {
                year: self.year + 1,
                month: 1,
            },
            month => Self {
                month: month + 1,
                ..self
            },
        }
    }

    /// How many months there are from this one to another, both included; zero when that is earlier.
    pub fn through(self, last: Self) -> u32 {
        let index = |m: Self| u32::from(m.year) * 12 + u32::from(m.month);
        (index(last) + 1).saturating_sub(index(self))
    }

    /// When it begins, since the Unix epoch.
    pub fn start(self) -> Duration {
        let month = time::Month::try_from(self.month).unwrap_or(time::Month::January);
        let date = Date::from_calendar_date(i32::from(self.year), month, 1).unwrap_or(Date::MAX);
        let seconds = date.midnight().assume_utc().unix_timestamp();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    /// When it ends, which is when the next one begins.
    pub fn end(self) -> Duration {
        self.next().start()
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Month {
    type Err = BadMonth;

    fn from_str(text: &str) -> Result<Self, BadMonth> {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let (year, month) = text.split_once('-').ok_or(BadMonth)?;
        if (year.len(), month.len()) != (4, 2) || !digits(year) || !digits(month) {
            return Err(BadMonth);
        }
        let year = year.parse().map_err(|_| BadMonth)?;
        let month = month.parse().map_err(|_| BadMonth)?;
        if !YEARS.contains(&year) || !(1..=12).contains(&month) {
            return Err(BadMonth);
        }
        Ok(Self { year, month })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    #[test]
    fn a_month_lasts_from_its_first_moment_to_that_of_the_next() {
        for (text, start, end) in [
            ("1970-01", 0, 2_678_400),
            ("2024-02", 1_706_745_600, 1_709_251_200),
            ("2026-02", 1_769_904_000, 1_772_323_200),
            ("2026-12", 1_796_083_200, 1_798_761_600),
        ] {
            let of = month(text);
            assert_eq!((of.start().as_secs(), of.end().as_secs()), (start, end));
            assert_eq!(Month::at(of.start()), of);
            assert_eq!(Month::at(of.end() - Duration::from_nanos(1)), of);
            assert_eq!(Month::at(of.end()), of.next());
        }
    }

    #[test]
    fn texts_that_are_no_month_are_refused() {
        for bad in [
            "",
            "2026",
            "2026-1",
            "2026-00",
            "2026-13",
            "26-11",
            "2026-11-01",
            "+026-11",
            "2026-+1",
            " 2026-11",
            "1969-12",
            "9999-01",
            "2026/11",
            "٢٠٢٦-11",
        ] {
            assert_eq!(bad.parse::<Month>(), Err(BadMonth), "{bad:?}");
        }
        assert_eq!(month("2026-11").to_string(), "2026-11");
    }

    #[test]
    fn months_are_ordered_and_counted_over_years() {
        let (november, january) = (month("2026-11"), month("2027-01"));
        assert!(november < january && november.to_string() < january.to_string());
        assert_eq!(november.next().next(), january);
        assert_eq!(november.through(january), 3);
        assert_eq!(november.through(november), 1);
        assert_eq!(january.through(november), 0);
    }

    #[test]
    fn a_clock_at_its_end_is_in_a_month_that_ends() {
        let last = Month::at(Duration::MAX);
        assert!(last.end() > last.start());
        assert_eq!(last.to_string().parse(), Ok(last));
    }
}
