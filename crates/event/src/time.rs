//! Times as users write them and as we show them.

use std::ops::RangeInclusive;

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};

/// From the beginning of the year 1 to the end of the year 9999, in microseconds since the epoch: what RFC 3339 can say and
/// SQL has, so that others who read our tables understand it.
const SHOWN: RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// Reads a time in the years 1 to 9999: RFC 3339, a date, a date and time without zone (taken as UTC), or epoch seconds or
/// milliseconds. Answers microseconds since the epoch; `None` when it is none of these.
pub fn parse_micros(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.parse::<i64>() {
        Ok(number) => epoch_micros(number),
        Err(_) => parse_calendar(text).filter(|micros| SHOWN.contains(micros)),
    }
}

fn parse_calendar(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Some(time.and_utc().timestamp_micros());
        }
    }
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros())
}

/// Epoch seconds, milliseconds or microseconds, told apart by size: below 10^11 it is seconds (until the
/// year 5138), below 10^14 milliseconds. `None` outside the years 1 to 9999.
pub fn epoch_micros(number: i64) -> Option<i64> {
    let scale = match number.unsigned_abs() {
        0..100_000_000_000 => 1_000_000,
        100_000_000_000..100_000_000_000_000 => 1_000,
        _ => 1,
    };
    number.checked_mul(scale).filter(|micros| SHOWN.contains(micros))
}

/// A time as RFC 3339 in UTC with microseconds and `Z`.
pub fn show_micros(micros: i64) -> String {
    match Utc.timestamp_micros(micros).single() {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Micros, true),
        None => format!("{micros}us"),
    }
}

/// A date as ISO 8601.
pub fn show_date(days: i32) -> String {
    let epoch = NaiveDate::default();
    match epoch.checked_add_signed(TimeDelta::days(i64::from(days))) {
        Some(date) => date.format("%Y-%m-%d").to_string(),
        None => format!("{days}d"),
    }
}

/// The UTC day of a time as (year, month, day), zero-padded as the lake's folders write it.
pub fn day_parts(micros: i64) -> (String, String, String) {
    let time = Utc.timestamp_micros(micros).single().unwrap_or_default();
    (time.format("%Y").to_string(), time.format("%m").to_string(), time.format("%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_documented_form() {
        let noon = 1_767_268_800_000_000;
        for text in [
            "2026-01-01T12:00:00Z",
            "2026-01-01T13:00:00.000+01:00",
            "2026-01-01 12:00:00",
            "1767268800",
            "1767268800000",
        ] {
            assert_eq!(parse_micros(text), Some(noon), "{text}");
        }
        assert_eq!(parse_micros("2026-01-01"), Some(noon - 43_200_000_000));
        for bad in ["", "yesterday", "2026-13-01", "92233720368547758070"] {
            assert_eq!(parse_micros(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_read_can_be_shown_and_read_again() {
        for text in [
            "0001-01-01",
            "9999-12-31T23:59:59.999999Z",
            "-62135596800",
            "253402300799",
            "2016-12-31T23:59:60Z",
        ] {
            let micros = parse_micros(text).unwrap();
            assert_eq!(parse_micros(&show_micros(micros)), Some(micros), "{text}");
        }
        // Years that RFC 3339 can't say or SQL does not have.
        for other in [
            "0000-12-31",
            "-0143-06-07",
            "+10000-01-01",
            "-62135596801",
            "-66666666666666",
            "253402300800000000",
        ] {
            assert_eq!(parse_micros(other), None, "{other}");
        }
    }

    #[test]
    fn shows_microseconds() {
        assert_eq!(show_micros(1_767_268_800_000_001), "2026-01-01T12:00:00.000001Z");
    }

    #[test]
    fn shows_dates_of_all_days() {
        let days = [
            (0, "1970-01-01"),
            (-719_162, "0001-01-01"),
            (2_932_896, "9999-12-31"),
            (2_932_897, "+10000-01-01"),
        ];
        for (day, shown) in days {
            assert_eq!(show_date(day), shown);
        }
        assert_eq!(show_date(i32::MAX), "2147483647d");
    }
}
