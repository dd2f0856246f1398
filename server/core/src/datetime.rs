//! Dates and times on the wire (XEP-0082), and the delay stamp that carries one (XEP-0203).
//!
//! What must hold: only UTC is ever written; what is read is exactly the lexical form of
//! XML Schema for the years 0 to 9999, and what is written can be read back unchanged.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime, Time};

/// Namespace of the delay stamp.
pub const NS_DELAY: &str = "urn:xmpp:delay";

/// 0000-01-01T00:00:00Z.
const MIN_MILLIS: i64 = -62_167_219_200_000;
/// 9999-12-31T23:59:59.999Z.
const MAX_MILLIS: i64 = 253_402_300_799_999;

/// A moment in time in UTC, to the millisecond, within the years 0 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// The text is not a date or time as XEP-0082 defines it, or lies outside the years 0 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a date and time of XEP-0082")]
pub struct DateTimeError;

impl Timestamp {
    /// The present moment by the system's clock.
    pub fn now() -> Self {
        Self::from_system_time(SystemTime::now())
    }

    /// A time of the system's clock; a clock outside the years 0 to 9999 gives the nearest moment.
    pub fn from_system_time(time: SystemTime) -> Self {
        let millis = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        };
        Self(millis.clamp(MIN_MILLIS, MAX_MILLIS))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z; `None` outside the years 0 to 9999.
    pub fn from_unix_millis(millis: i64) -> Option<Self> {
        (MIN_MILLIS..=MAX_MILLIS).contains(&millis).then_some(Self(millis))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn unix_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds from `earlier` to this moment; 0 when the clock was set back in between.
    pub fn seconds_since(self, earlier: Timestamp) -> u64 {
        u64::try_from((self.0 - earlier.0) / 1000).unwrap_or(0)
    }

    /// Reads the DateTime profile (XEP-0082 3.2). Digits beyond milliseconds are dropped.
    ///
    /// # Errors
    /// [`DateTimeError`] for any other form, a date that does not exist, a missing time zone,
    /// and years that are not between 0 and 9999 in UTC.
    pub fn parse(text: &str) -> Result<Self, DateTimeError> {
        let mut reader = Reader(text.as_bytes());
        let date = reader.date()?;
        reader.byte(b'T')?;
        let (time, next_day) = reader.time()?;
        let offset = reader.zone()?.ok_or(DateTimeError)?;
        reader.end()?;
        let mut millis = i64::try_from(date.with_time(time).assume_utc().unix_timestamp_nanos() / 1_000_000)
            .map_err(|_| DateTimeError)?;
        if next_day {
            millis += 86_400_000;
        }
        Self::from_unix_millis(millis - i64::from(offset) * 60_000).ok_or(DateTimeError)
    }
}

impl fmt::Display for Timestamp {
    /// The DateTime profile in UTC; the fraction is left out when it is zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        // The range of years that the type keeps to is within the library's.
        let Ok(moment) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else { return Err(fmt::Error) };
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            moment.year(),
            u8::from(moment.month()),
            moment.day(),
            moment.hour(),
            moment.minute(),
            moment.second()
        )?;
        match moment.millisecond() {
            0 => f.write_str("Z"),
            millis => write!(f, ".{millis:03}Z"),
        }
    }
}

/// Checks the Date profile (XEP-0082 3.1), with the time zone that XML Schema allows after it.
pub fn is_date(text: &str) -> bool {
    let mut reader = Reader(text.as_bytes());
    reader.date().is_ok() && reader.zone().is_ok() && reader.end().is_ok()
}

/// Checks the Time profile (XEP-0082 3.3); its time zone is optional.
pub fn is_time(text: &str) -> bool {
    let mut reader = Reader(text.as_bytes());
    reader.time().is_ok() && reader.zone().is_ok() && reader.end().is_ok()
}

/// The delay stamp (XEP-0203): `from` is the address that held the stanza back, `stamp` when
/// it was sent. Declares its namespace, so it can be appended to any stanza.
pub fn delay(from: &crate::jid::Jid, stamp: Timestamp) -> String {
    format!("<delay xmlns='{NS_DELAY}' from='{}' stamp='{stamp}'/>", from.escaped())
}

/// What is left of the text.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self, expected: u8) -> Result<(), DateTimeError> {
        match self.0.split_first() {
            Some((&first, rest)) if first == expected => {
                self.0 = rest;
                Ok(())
            }
            _ => Err(DateTimeError),
        }
    }

    /// Exactly `count` ASCII digits (at most four).
    fn digits(&mut self, count: usize) -> Result<u16, DateTimeError> {
        let (digits, rest) = self.0.split_at_checked(count).ok_or(DateTimeError)?;
        let mut value = 0;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return Err(DateTimeError);
            }
            value = value * 10 + u16::from(digit - b'0');
        }
        self.0 = rest;
        Ok(value)
    }

    /// Two digits up to `max`.
    fn two(&mut self, max: u8) -> Result<u8, DateTimeError> {
        let value = self.digits(2)?;
        u8::try_from(value).ok().filter(|&value| value <= max).ok_or(DateTimeError)
    }

    fn date(&mut self) -> Result<Date, DateTimeError> {
        let year = self.digits(4)?;
        self.byte(b'-')?;
        let month = Month::try_from(self.two(12)?).map_err(|_| DateTimeError)?;
        self.byte(b'-')?;
        let day = self.two(31)?;
        Date::from_calendar_date(i32::from(year), month, day).map_err(|_| DateTimeError)
    }

    /// The time of day; true when it is 24:00:00, which XML Schema allows for the next midnight.
    fn time(&mut self) -> Result<(Time, bool), DateTimeError> {
        let hour = self.two(24)?;
        self.byte(b':')?;
        let minute = self.two(59)?;
        self.byte(b':')?;
        let second = self.two(59)?;
        let millis = self.fraction()?;
        if hour == 24 {
            return if minute == 0 && second == 0 && millis == 0 {
                Ok((Time::MIDNIGHT, true))
            } else {
                Err(DateTimeError)
            };
        }
        Time::from_hms_milli(hour, minute, second, millis)
            .map(|time| (time, false))
            .map_err(|_| DateTimeError)
    }

    /// `.` and any number of digits, or nothing.
    fn fraction(&mut self) -> Result<u16, DateTimeError> {
        if self.byte(b'.').is_err() {
            return Ok(0);
        }
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(DateTimeError);
        }
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        let digit = |index: usize| digits.get(index).map_or(0, |digit| u16::from(digit - b'0'));
        Ok(digit(0) * 100 + digit(1) * 10 + digit(2))
    }

    /// `Z` or an offset in minutes of at most 14 hours; `None` when there is no time zone.
    fn zone(&mut self) -> Result<Option<i16>, DateTimeError> {
        let sign = match self.0.first() {
            None => return Ok(None),
            Some(b'Z') => {
                self.0 = &self.0[1..];
                return Ok(Some(0));
            }
            Some(b'+') => 1,
            Some(b'-') => -1,
            Some(_) => return Err(DateTimeError),
        };
        self.0 = &self.0[1..];
        let hours = i16::from(self.two(14)?);
        self.byte(b':')?;
        let minutes = hours * 60 + i16::from(self.two(59)?);
        if minutes > 14 * 60 { Err(DateTimeError) } else { Ok(Some(sign * minutes)) }
    }

    fn end(&self) -> Result<(), DateTimeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DateTimeError) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(text: &str) -> Option<i64> {
        Timestamp::parse(text).ok().map(Timestamp::unix_millis)
    }

    #[test]
    fn moments_are_read_as_xep_0082_3_2_says() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-07-21T02:56:15Z", -14_159_025_000),
            ("1969-07-20T21:56:15-05:00", -14_159_025_000),
            ("2002-09-10T23:08:25Z", 1_031_699_305_000),
            ("2002-09-10T23:08:25.1Z", 1_031_699_305_100),
            ("2002-09-10T23:08:25.0129999999999999999999Z", 1_031_699_305_012),
            ("2000-02-29T00:00:00+14:00", 951_732_000_000),
            ("1999-12-31T24:00:00Z", 946_684_800_000),
            ("0000-01-01T00:00:00Z", MIN_MILLIS),
            ("9999-12-31T23:59:59.999Z", MAX_MILLIS),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn m1_malformed_and_edge_moments_are_refused() {
        for text in [
            "",
            "2002-09-10",
            "2002-09-10T23:08:25",
            "2002-09-10 23:08:25Z",
            "2002-09-10T23:08Z",
            "2002-09-10t23:08:25z",
            "20020910T23:08:25",
            "2002-9-10T23:08:25Z",
            "2002-13-01T00:00:00Z",
            "2002-00-01T00:00:00Z",
            "2001-02-29T00:00:00Z",
            "2002-04-31T00:00:00Z",
            "2002-09-10T24:00:01Z",
            "2002-09-10T25:00:00Z",
            "2002-09-10T23:60:00Z",
            "2002-09-10T23:59:60Z",
            "2002-09-10T23:08:25.Z",
            "2002-09-10T23:08:25+1:00",
            "2002-09-10T23:08:25+14:01",
            "2002-09-10T23:08:25+15:00",
            "2002-09-10T23:08:25Zx",
            " 2002-09-10T23:08:25Z",
            "-002-09-10T23:08:25Z",
            "10000-01-01T00:00:00Z",
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T24:00:00Z",
            "２００２-09-10T23:08:25Z",
        ] {
            assert_eq!(Timestamp::parse(text), Err(DateTimeError), "{text}");
        }
    }

    #[test]
    fn moments_are_written_in_utc() {
        let written = |millis| Timestamp::from_unix_millis(millis).map(|t| t.to_string());
        assert_eq!(written(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(written(-1).as_deref(), Some("1969-12-31T23:59:59.999Z"));
        assert_eq!(written(1_031_699_305_012).as_deref(), Some("2002-09-10T23:08:25.012Z"));
        assert_eq!(written(MIN_MILLIS).as_deref(), Some("0000-01-01T00:00:00Z"));
        assert_eq!(written(MAX_MILLIS).as_deref(), Some("9999-12-31T23:59:59.999Z"));
        assert_eq!(written(MIN_MILLIS - 1), None);
        assert_eq!(written(MAX_MILLIS + 1), None);
    }

    #[test]
    fn a_clock_that_is_far_off_or_set_back_gives_the_nearest_value() {
        let far = UNIX_EPOCH + std::time::Duration::from_secs(1 << 40);
        assert_eq!(Timestamp::from_system_time(far).unix_millis(), MAX_MILLIS);
        let before = UNIX_EPOCH - std::time::Duration::from_millis(1500);
        assert_eq!(Timestamp::from_system_time(before).unix_millis(), -1500);
        assert_eq!(Timestamp(1_999).seconds_since(Timestamp(0)), 1);
        assert_eq!(Timestamp(0).seconds_since(Timestamp(5_000)), 0);
    }

    #[test]
    fn dates_and_times_of_day_are_checked() {
        for good in ["1776-07-04", "1776-07-04Z", "2000-02-29+01:00"] {
            assert!(is_date(good), "{good}");
        }
        for bad in ["1776-7-4", "1900-02-29", "1776-07-04T00:00:00Z", ""] {
            assert!(!is_date(bad), "{bad}");
        }
        for good in ["16:00:00", "16:00:00.5", "16:00:00Z", "23:59:59.123456+05:30", "24:00:00"] {
            assert!(is_time(good), "{good}");
        }
        for bad in ["16:00", "4:00:00", "16:00:61", "24:00:00.5", "16:00:00 Z", ""] {
            assert!(!is_time(bad), "{bad}");
        }
    }

    #[test]
    fn delay_stamps_name_who_delayed_and_when() {
        let from = crate::jid::Jid::parse("capulet.example/o'brien").unwrap();
        let stamp = Timestamp::parse("2002-09-10T23:08:25Z").unwrap();
        assert_eq!(
            delay(&from, stamp),
            "<delay xmlns='urn:xmpp:delay' from='capulet.example/o&apos;brien' stamp='2002-09-10T23:08:25Z'/>"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in MIN_MILLIS..=MAX_MILLIS) {
            let stamp = Timestamp(millis);
            prop_assert_eq!(Timestamp::parse(&stamp.to_string()), Ok(stamp));
        }

        #[test]
        fn no_text_panics(text in "[0-9TZ:.+ -]{0,40}|\\PC*") {
            let _ = (Timestamp::parse(&text), is_date(&text), is_time(&text));
        }
    }
}
