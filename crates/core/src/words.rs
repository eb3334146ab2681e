//! Times, sizes and work as people read them.

use std::time::Duration;

use crate::node::Job;

/// A duration for people: `250 ms`, `1.2 s`, `15 min`, `6 h`.
pub fn seconds(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
        1000..120_000 => format!("{:.1} s", time.as_secs_f64()),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// Bytes for people: `48.0 MB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

impl Job {
    /// What is going on, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Bootstrap => "the first database is made",
            Self::Start => "its server starts",
            Self::Stop => "its server stops",
            Self::Freeze => "the log's end is read",
            Self::Promote => "its server is promoted",
            Self::Clone => "the database is copied",
            Self::Rewind => "the diverged tail is rewound",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        let words = [250, 1000, 1234, 90_000, 900_000, 21_600_000];
        let words = words.map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(words, ["250 ms", "1 s", "1.2 s", "90 s", "15 min", "6 h"]);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!([512, 5 << 20].map(bytes), ["512 B", "5.0 MB"]);
    }
}
