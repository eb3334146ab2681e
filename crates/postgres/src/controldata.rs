//! What a stopped (or running) server's control file says, through `pg_controldata`.

use std::collections::BTreeMap;
use std::str::FromStr;

use quorate_core::{Lsn, TimelineId};

use crate::{Error, ServerOptions, timelines, tool};

/// The parts of the control file that matter to Quorate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// Identifies the database system; equal on every copy.
    pub system_id: u64,
    /// `in production`, `shut down`, `in archive recovery`, `shut down in recovery`, …
    pub state: String,
    /// Where the latest checkpoint's redo starts.
    pub redo: Lsn,
    /// The timeline of the latest checkpoint.
    pub timeline: TimelineId,
    /// Recovery must reach this before the copy is consistent; 0/0 when there is no such bound.
    pub min_recovery_end: Lsn,
    /// The timeline of that bound; 0 when there is none.
    pub min_recovery_timeline: TimelineId,
    /// 0 when data checksums are off.
    pub checksum_version: u32,
    /// Whether hint-bit changes are logged.
    pub wal_log_hints: bool,
    /// Bytes of one WAL segment.
    pub segment_bytes: u64,
    /// What the writer whose log is replayed runs with: a standby may not run with less.
    pub least: BTreeMap<&'static str, u64>,
}

/// Parameters of which a standby needs at least as much as its writer.
const LEAST: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
];

impl ControlData {
    /// Whether the server was shut down cleanly, as writer or as standby.
    pub fn is_clean(&self) -> bool {
        self.state == "shut down" || self.state == "shut down in recovery"
    }
}

/// Reads the control file of a data directory.
///
/// # Errors
/// [`Error::Tool`] when there is no readable control file, [`Error::Unreadable`].
pub async fn read(options: &ServerOptions) -> Result<ControlData, Error> {
    let mut command = tool::command(options, "pg_controldata");
    command.arg("-D").arg(&options.data_dir);
    let mut text = String::new();
    let outcome = tool::run(command, None, |line| {
        text.push_str(line);
        text.push('\n');
    })
    .await?;
    outcome.success("pg_controldata")?;
    parse(&text)
}

/// Where the log of a stopped server ends, with its timeline: the end of the last whole record, or
/// of what there is of one that was cut short.
/// `None` when `pg_waldump` cannot tell.
///
/// # Errors
/// [`Error::Io`], [`Error::Unreadable`] when there is no log at all.
pub async fn log_end(
    options: &ServerOptions,
    control: &ControlData,
) -> Result<Option<(TimelineId, Lsn)>, Error> {
    let timeline = timelines::held(&options.data_dir, Lsn(u64::MAX), control.segment_bytes)?;
    let start = control.redo.max(control.min_recovery_end);
    let mut command = tool::command(options, "pg_waldump");
    command.arg("--quiet").arg("--path").arg(options.data_dir.join("pg_wal"));
    command.arg(format!("--timeline={timeline}")).arg(format!("--start={start}"));
    let outcome = tool::run(command, None, |_| {}).await?;
    Ok(end_in(&outcome.output, control.segment_bytes).map(|end| (timeline, end)))
}

/// It reads until it finds no whole record, and says at which byte: `… invalid record length at
/// 0/1528510: wanted 24, got 0`, or, where a record was cut short, `… invalid magic number 0000 in
/// WAL segment 000000010000000000000005, LSN 0/141C000, offset 114688`, or that the next segment's
/// file is missing.
fn end_in(said: &str, segment_bytes: u64) -> Option<Lsn> {
    let after = |mark: &str| {
        let (_, rest) = said.rsplit_once(mark)?;
        rest.split([',', ':', ';', ' ', '"']).next()
    };
    let start_of =
        |name: &str| Some(timelines::segment_number(name, segment_bytes)? * segment_bytes);
    let start = after(" segment ").and_then(start_of);
    if let (Some(start), Some(offset)) = (start, after(", offset ")) {
        return Some(Lsn(start + offset.parse::<u64>().ok()?));
    }
    if said.contains("could not find file") {
        return after("could not find file \"").and_then(start_of).map(Lsn);
    }
    let (_, why) = said.split_once("error in WAL record at ")?;
    why.split(" at ").skip(1).find_map(|rest| rest.split([',', ':', ';', ' ']).next()?.parse().ok())
}

fn parse(text: &str) -> Result<ControlData, Error> {
    Ok(ControlData {
        system_id: field(text, "Database system identifier")?,
        state: field(text, "Database cluster state")?,
        redo: field(text, "Latest checkpoint's REDO location")?,
        timeline: TimelineId(field(text, "Latest checkpoint's TimeLineID")?),
        min_recovery_end: field(text, "Minimum recovery ending location")?,
        min_recovery_timeline: TimelineId(field(text, "Min recovery ending loc's timeline")?),
        checksum_version: field(text, "Data page checksum version")?,
        wal_log_hints: field::<String>(text, "wal_log_hints setting")? == "on",
        segment_bytes: field(text, "Bytes per WAL segment")?,
        least: LEAST.into_iter().filter_map(|name| Some((name, setting(text, name)?))).collect(),
    })
}

/// `max_connections setting: 100`.
fn setting(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(" setting:"))?;
    line.trim().parse().ok()
}

fn field<T: FromStr>(text: &str, name: &'static str) -> Result<T, Error> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_default();
    value.parse().map_err(|_| Error::Unreadable { what: name, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_where_reading_it_fails() {
        for (said, end) in [
            (
                "pg_waldump: error: error in WAL record at 0/15284D8: invalid record length at \
                 0/1528510: wanted 24, got 0",
                Some(0x152_8510),
            ),
            (
                "pg_waldump: error: error in WAL record at 0/15284D8: invalid record length at \
                 0/1528510: expected at least 24, got 0; first record is after 0/1000230, at \
                 0/1000258, skipping over 40 bytes",
                Some(0x152_8510),
            ),
            (
                "pg_waldump: error: error in WAL record at 0/141BFA8: invalid magic number 0000 in \
                 WAL segment 000000020000000000000005, LSN 0/141C000, offset 114688",
                Some(0x141_C000),
            ),
            (
                "pg_waldump: error: error in WAL record at 0/141BFA8: unexpected pageaddr 0/41C000 in \
                 log segment 000000020000000000000005, offset 114688",
                Some(0x141_C000),
            ),
            (
                "pg_waldump: error: could not find file \"000000020000000000000006\": No such file",
                Some(0x180_0000),
            ),
            ("pg_waldump: fatal: out of memory", None),
        ] {
            assert_eq!(end_in(said, 4 << 20), end.map(Lsn), "{said}");
        }
    }

    #[test]
    fn the_fields_are_found_and_their_absence_is_named() {
        let text = "Database system identifier:           7370000000000000001
Database cluster state:               shut down in recovery
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       7
Minimum recovery ending location:     0/30000A0
Min recovery ending loc's timeline:   7
wal_log_hints setting:                on
max_connections setting:              300
Bytes per WAL segment:                16777216
Data page checksum version:           1
";
        let data = parse(text).unwrap();
        assert_eq!((data.timeline, data.redo), (TimelineId(7), Lsn(0x300_0028)));
        assert!(data.is_clean() && data.wal_log_hints);
        assert_eq!(data.least, BTreeMap::from([("max_connections", 300)]));
        let err = parse(&text.replace("Bytes per", "Bites per")).unwrap_err();
        assert!(err.to_string().contains("Bytes per WAL segment"), "{err}");
    }
}
