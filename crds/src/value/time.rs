//! Times: spans, moments, times of day.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{InvalidValue, quoted, text_value};

/// A span of time with millisecond resolution, written like Go's durations (`500ms`, `30s`, `1h30m`) or as whole days
/// (`90d`). It is shown in its shortest form: `60s` becomes `1m`. At most [`TimeSpan::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(u64);

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl TimeSpan {
    /// The longest span: 100 years of 365 days.
    pub const MAX: Self = Self(36_500 * DAY);

    /// A span of whole seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds as u64 * SECOND)
    }

    /// A span of whole days.
    pub const fn from_days(days: u16) -> Self {
        Self(days as u64 * DAY)
    }

    /// The span as the standard library's type.
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The span in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl From<TimeSpan> for Duration {
    fn from(span: TimeSpan) -> Self {
        span.get()
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 > DAY && self.0.is_multiple_of(DAY) {
            return write!(f, "{}d", self.0 / DAY);
        }
        let mut rest = self.0;
        for (size, unit) in [(HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (1, "ms")] {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl FromStr for TimeSpan {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let total = millis(text).ok_or_else(|| {
            InvalidValue::new(
                format!("{} is not a duration", quoted(text)),
                "write numbers with the units h, m, s, ms (\"30s\", \"1h30m\") or whole days (\"90d\")",
            )
        })?;
        if total > Self::MAX.0 {
            let message = format!("{} is longer than {}", quoted(text), Self::MAX);
            return Err(InvalidValue::new(message, "write a shorter duration"));
        }
        Ok(Self(total))
    }
}

fn millis(text: &str) -> Option<u64> {
    if let Some(days) = text.strip_suffix('d') {
        return number(days, 5)?.checked_mul(DAY);
    }
    let (mut total, mut rest, mut parts) = (0_u64, text, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value = number(&rest[..digits], 9)?;
        rest = &rest[digits..];
        let (size, length) = match rest.as_bytes() {
            [b'm', b's', ..] => (1, 2),
            [b'h', ..] => (HOUR, 1),
            [b'm', ..] => (MINUTE, 1),
            [b's', ..] => (SECOND, 1),
            _ => return None,
        };
        rest = &rest[length..];
        total = total.checked_add(value.checked_mul(size)?)?;
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

fn number(digits: &str, longest: usize) -> Option<u64> {
    let ok = (1..=longest).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if ok { digits.parse().ok() } else { None }
}

text_value!(TimeSpan, "TimeSpan", {
    "type": "string",
    "maxLength": 32,
    "pattern": "^([0-9]{1,5}d|([0-9]{1,9}(h|m|s|ms)){1,4})$",
    "x-horizon-format": "duration",
});

/// A moment, written as RFC 3339 in UTC or with an offset (`2026-12-31T23:59:59Z`) and shown in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The moment as jiff's type.
    pub fn get(self) -> jiff::Timestamp {
        self.0
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(moment: jiff::Timestamp) -> Self {
        Self(moment)
    }
}

impl From<Timestamp> for jiff::Timestamp {
    fn from(moment: Timestamp) -> Self {
        moment.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // jiff reads more forms than RFC 3339 has; the API server reads only these.
        let shaped = text.len() <= 40
            && text.bytes().enumerate().all(|(i, b)| match i {
                4 | 7 => b == b'-',
                10 => b == b'T',
                13 | 16 => b == b':',
                0..19 => b.is_ascii_digit(),
                _ => matches!(b, b'0'..=b'9' | b'.' | b':' | b'+' | b'-' | b'Z'),
            });
        let moment = if shaped { text.parse::<jiff::Timestamp>().ok() } else { None };
        moment.map(Self).ok_or_else(|| {
            InvalidValue::new(
                format!("{} is not a time", quoted(text)),
                "write RFC 3339 with a zone, like \"2026-12-31T23:59:59Z\"",
            )
        })
    }
}

text_value!(Timestamp, "Timestamp", {
    "type": "string",
    "format": "date-time",
    "maxLength": 40,
    "x-horizon-format": "timestamp",
});

/// A minute of the day in UTC, `00:00` to `23:59`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// Minutes since midnight, 0 to 1439.
    pub fn minutes(self) -> u16 {
        self.0
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl FromStr for TimeOfDay {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(hours, minutes)| {
            let two = |digits: &str| if digits.len() == 2 { number(digits, 2) } else { None };
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            (hours < 24 && minutes < 60).then(|| u16::try_from(hours * 60 + minutes).ok()).flatten()
        });
        parsed.map(Self).ok_or_else(|| {
            InvalidValue::new(
                format!("{} is not a time of day", quoted(text)),
                "write hours and minutes in UTC, from \"00:00\" to \"23:59\"",
            )
        })
    }
}

text_value!(TimeOfDay, "TimeOfDay", {
    "type": "string",
    "maxLength": 5,
    "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$",
    "x-horizon-format": "timeOfDay",
});

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_shown() {
        for (text, shown, millis) in [
            ("30s", "30s", 30 * SECOND),
            ("90s", "1m30s", 90 * SECOND),
            ("24h", "24h", DAY),
            ("1d", "24h", DAY),
            ("48h", "2d", 2 * DAY),
            ("1h30m", "1h30m", 90 * MINUTE),
            ("1500ms", "1s500ms", 1500),
            ("0s", "0s", 0),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!((span.as_millis(), span.to_string().as_str()), (millis, shown), "{text}");
            assert_eq!(shown.parse(), Ok(span));
        }
        for text in [
            "",
            "30",
            "s",
            "1d2h",
            "-1s",
            "1.5h",
            "1 h",
            "1y",
            "99999999999h",
            "999999999h",
            "1h1h1h1h1h",
            "٣s",
        ] {
            assert!(text.parse::<TimeSpan>().is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_rfc_3339() {
        let moment: Timestamp = "2026-12-31T23:59:59+01:00".parse().unwrap();
        assert_eq!(moment.to_string(), "2026-12-31T22:59:59Z");
        for text in [
            "",
            "2026-12-31",
            "2026-12-31 23:59:59Z",
            "2026-12-31T23:59:59",
            "2026-13-01T00:00:00Z",
            "tomorrow",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_of_day() {
        assert_eq!("02:30".parse::<TimeOfDay>().unwrap().minutes(), 150);
        for text in ["24:00", "2:30", "02:60", "0230", "", "02:30:00"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
    }
}
