//! Warnings ahead of the end of a key: 30, 7 and 1 days.

use jiff::{SignedDuration, Timestamp};

/// How far ahead the end of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Warning {
    /// Within 30 days.
    Month,
    /// Within 7 days.
    Week,
    /// Within 24 hours.
    Day,
}

impl Warning {
    /// All, the earliest first.
    pub const ALL: [Self; 3] = [Self::Month, Self::Week, Self::Day];

    /// How many days ahead.
    pub const fn days(self) -> u32 {
        match self {
            Self::Month => 30,
            Self::Week => 7,
            Self::Day => 1,
        }
    }

    /// The warning of a number of days, as the database keeps it.
    pub fn of_days(days: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|warning| warning.days() == days)
    }

    fn begins(self, end: Timestamp) -> Timestamp {
        let ahead = SignedDuration::from_hours(24 * i64::from(self.days()));
        end.checked_sub(ahead).unwrap_or(Timestamp::MIN)
    }
}

/// The warning that holds for a key that ends at `end`; `None` when that is far, or past.
pub fn warning(end: Timestamp, now: Timestamp) -> Option<Warning> {
    if end <= now {
        return None;
    }
    Warning::ALL.into_iter().rev().find(|warning| warning.begins(end) <= now)
}

/// When the next warning begins to hold for a key that ends at `end`; the end itself after the last.
pub fn next_warning(end: Timestamp, now: Timestamp) -> Timestamp {
    Warning::ALL.into_iter().map(|warning| warning.begins(end)).find(|at| *at > now).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_come_30_7_and_1_days_ahead() {
        let end: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        for (now, expected, next) in [
            ("2026-01-01T00:00:00Z", None, "2026-01-30T00:00:00Z"),
            ("2026-01-29T23:59:59Z", None, "2026-01-30T00:00:00Z"),
            ("2026-01-30T00:00:00Z", Some(Warning::Month), "2026-02-22T00:00:00Z"),
            ("2026-02-22T00:00:00Z", Some(Warning::Week), "2026-02-28T00:00:00Z"),
            ("2026-02-28T12:00:00Z", Some(Warning::Day), "2026-03-01T00:00:00Z"),
            ("2026-03-01T00:00:00Z", None, "2026-03-01T00:00:00Z"),
        ] {
            let now = now.parse().unwrap();
            assert_eq!(
                (warning(end, now), next_warning(end, now).to_string().as_str()),
                (expected, next),
                "{now}"
            );
        }
        assert_eq!(Warning::of_days(7), Some(Warning::Week));
        assert_eq!(Warning::of_days(8), None);
    }
}
