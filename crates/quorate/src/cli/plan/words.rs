//! How rates, times, sizes and places are written on the command line.

use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::plan::{Domain, Loss, Reads};

/// Longest time that means anything here.
const TIME_MAX: Duration = Duration::from_secs(86_400);
/// Largest rate or size: beyond it there is nothing to plan.
const NUMBER_MAX: f64 = 1e12;

type Parsed<T> = Result<T, String>;

/// `12000`, `12k`, `1.5M`: a second.
pub fn rate(text: &str) -> Parsed<u64> {
    let units = [("k", 1e3), ("M", 1e6), ("", 1.0)];
    scaled(text, &units).ok_or_else(|| "use a number a second: 800, 12k or 1.5M".to_owned())
}

/// `2kB`, `1MB`, `4096`: powers of 1024, as PostgreSQL has them.
pub fn size(text: &str) -> Parsed<u64> {
    let (kb, mb, gb) = (1024.0, 1024.0 * 1024.0, 1024.0 * 1024.0 * 1024.0);
    let units = [("kB", kb), ("KB", kb), ("MB", mb), ("GB", gb), ("B", 1.0), ("", 1.0)];
    scaled(text, &units).ok_or_else(|| "use a size: 4096, 2kB, 1MB or 1GB".to_owned())
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let (unit, factor) = units.iter().find(|(unit, _)| text.ends_with(unit))?;
    let value = number(text.strip_suffix(unit)?)? * factor;
    (value <= NUMBER_MAX).then_some(value.round() as u64)
}

/// A plain decimal number, not below zero.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse::<f64>().ok().filter(|_| plain)
}

/// `0.4ms`, `5s`, `2m`; a bare number is seconds.
pub fn time(text: &str) -> Parsed<Duration> {
    let units = [
        ("µs", 1e-6),
        ("us", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
        ("", 1.0),
    ];
    let time = units.iter().find(|(unit, _)| text.ends_with(unit)).and_then(|(unit, factor)| {
        Duration::try_from_secs_f64(number(text.strip_suffix(unit)?)? * factor).ok()
    });
    time.filter(|t| *t <= TIME_MAX)
        .ok_or_else(|| "use a time of up to a day: 0.4ms, 85ms, 5s or 2m".to_owned())
}

/// `none`, a time, or a size.
pub fn loss(text: &str) -> Parsed<Loss> {
    if matches!(text, "none" | "0") {
        return Ok(Loss::Nothing);
    }
    if text.ends_with('B') {
        return size(text).map(|b| if b == 0 { Loss::Nothing } else { Loss::Bytes(b) });
    }
    time(text)
        .map(|t| if t.is_zero() { Loss::Nothing } else { Loss::Time(t) })
        .map_err(|_| "use none, the writes of a time (5s) or a size of log (1MB)".to_owned())
}

/// What reads must see.
pub fn kind(text: &str) -> Parsed<Reads> {
    match text {
        "strong" => Ok(Reads::Strong),
        "fresh" => Ok(Reads::Fresh),
        "reporting" => Ok(Reads::Reporting),
        _ => text
            .strip_prefix("stale:")
            .ok_or_else(|| "use strong, fresh, stale:5s or reporting".to_owned())
            .and_then(time)
            .map(Reads::Stale),
    }
}

/// What is lost at once.
pub fn domain(text: &str) -> Parsed<Domain> {
    match text {
        "host" => Ok(Domain::Host),
        "zone" => Ok(Domain::Zone),
        "region" => Ok(Domain::Region),
        _ => Err("use host, zone or region".to_owned()),
    }
}

/// The name of a place, written as names of nodes are.
pub fn place(text: &str) -> Parsed<String> {
    NodeId::new(text).map(|name| name.to_string()).map_err(|_| {
        "use 1 to 31 lower-case letters, digits, '-' or '_', beginning with a letter".to_owned()
    })
}

/// A region's name, or how many regions there are.
pub fn region(text: &str) -> Parsed<String> {
    match text.parse::<u8>() {
        Ok(1..=8) => Ok(text.to_owned()),
        Ok(_) => Err("use names (eu,us), or how many regions: 1 to 8".to_owned()),
        Err(_) => place(text),
    }
}

/// The regions: a single number stands for so many that have no names.
pub fn regions(given: &[String]) -> Vec<String> {
    match given {
        [one] => match one.parse::<u8>() {
            Ok(count) => (1..=count).map(|i| format!("r{i}")).collect(),
            Err(_) => given.to_vec(),
        },
        _ => given.to_vec(),
    }
}

/// `eu:us=85ms`.
pub fn round_trip(text: &str) -> Parsed<(String, String, Duration)> {
    let parts = text.split_once('=').and_then(|(pair, t)| Some((pair.split_once(':')?, t)));
    let ((a, b), trip) =
        parts.ok_or_else(|| "use two regions and a time: eu:us=85ms".to_owned())?;
    Ok((place(a)?, place(b)?, time(trip)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(rate("800"), Ok(800));
        assert_eq!(rate("1.5M"), Ok(1_500_000));
        assert_eq!(size("2kB"), Ok(2048));
        assert_eq!(time("0.4ms"), Ok(Duration::from_micros(400)));
        assert_eq!(time("5"), Ok(Duration::from_secs(5)));
        for bad in ["", "-1", "1e9", "NaN", "inf", "12kk", "5 parsecs", "9999999h", "."] {
            assert!(rate(bad).is_err() || size(bad).is_err(), "{bad}");
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn losses_places_and_round_trips() {
        assert_eq!(loss("none"), Ok(Loss::Nothing));
        assert_eq!(loss("0s"), Ok(Loss::Nothing));
        assert_eq!(loss("5s"), Ok(Loss::Time(Duration::from_secs(5))));
        assert_eq!(loss("1MB"), Ok(Loss::Bytes(1 << 20)));
        assert_eq!(kind("stale:2s"), Ok(Reads::Stale(Duration::from_secs(2))));
        assert!(kind("stale").unwrap_err().contains("stale:5s"));
        assert_eq!(regions(&["3".to_owned()]), ["r1", "r2", "r3"]);
        let trip = round_trip("eu:us=85ms").unwrap();
        assert_eq!(trip, ("eu".to_owned(), "us".to_owned(), Duration::from_millis(85)));
        assert!(round_trip("eu-us=85ms").is_err());
    }
}
