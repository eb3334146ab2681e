//! Timelines as the files of `pg_wal` tell them: histories, reservations, and what WAL is held.
//!
//! **Reserving.** PostgreSQL gives a promoted server the first timeline above its own that has no
//! `.history` file. So that it takes exactly the granted one (rule R9), the numbers in between get
//! a file with one comment line. Such a file makes no child of any timeline: a standby that sees it
//! as the newest says so in its log and stays where it is. A *starting* server takes the newest of
//! an unbroken row of files above its control file's timeline for its target; when that is a
//! reservation it finds no log of that timeline and waits for some for ever, before it is
//! consistent. Reserved files above the highest real one are therefore removed before every start
//! ([`drop_dangling`]); those below must stay, for without them the row breaks and the server would
//! not find its own timeline after a crash.
//!
//! **Holding.** Which timeline a standby's last byte belongs to is not told by SQL once its
//! walreceiver is gone. It is the highest timeline T such that `pg_wal` holds a segment file of T
//!  - not beyond the position: future segments are pre-made or recycled, without content;
//!  - whose first page carries the address that its name says: a recycled or empty file does not;
//!
//! and, for T > 1, whose own history file is there, is not a reservation, and forks at or before
//! the position; the segment in which it forks counts when something is written behind the fork. A
//! history file alone proves nothing: a diverged server fetches it too. Neither does T's first segment
//! up to the fork: that is the same bytes as its parent's, and may be there before any of T is.
//!
//! **Beginning.** A standby gets T's first segment from its first byte on, though it has all of it up
//! to the fork in the parent's file. A server that starts reads the file of the newest timeline that
//! there is for a segment, and no other: one that ended while that file had only begun to arrive would
//! not find what it had, and had acknowledged. [`begin`] makes the file a copy of the parent's before
//! any of it arrives, as PostgreSQL does where it promotes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use quorate_core::limits::WAL_PAGE_BYTES;
use quorate_core::{Lsn, TimelineId};

use crate::files::{make, remove, replace, sync_dir};
use crate::limits::{HISTORY_BYTES_MAX, TIMELINES_RESERVED_MAX};
use crate::{Error, ServerOptions, User};

/// What makes a history file a reservation. PostgreSQL skips comment lines.
const RESERVED: &str = "# reserved by Quorate: no server has used this timeline\n";

/// The end of the WAL that a server holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The timeline that the last byte belongs to.
    pub tli: TimelineId,
    /// The end of the log, as a byte position.
    pub lsn: Lsn,
    /// Each ancestor with the position up to which it is shared, oldest first.
    pub forks: Vec<(TimelineId, Lsn)>,
}

fn wal_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("pg_wal")
}

fn history_path(data_dir: &Path, tli: TimelineId) -> PathBuf {
    wal_dir(data_dir).join(format!("{:08X}.history", tli.0))
}

/// A history file's lines; `None` when there is no such file or it is a reservation.
fn read_real(path: &Path) -> Result<Option<String>, Error> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file
            .take(HISTORY_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(Error::io("read", path))?,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(Error::io("read", path)(err)),
    };
    Ok((!text.starts_with(RESERVED.trim_end())).then_some(text))
}

/// The ancestors of a timeline of this server, as its files say.
///
/// # Errors
/// [`Error::Unreadable`] when the history is missing, reserved or not a history.
pub fn history(options: &ServerOptions, tli: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, Error> {
    forks(&options.data_dir, tli)
}

/// The ancestors of a timeline with the end of each, oldest first; empty for timeline 1.
///
/// # Errors
/// [`Error::Unreadable`] when the history is missing, reserved or not a history.
pub(crate) fn forks(data_dir: &Path, tli: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, Error> {
    if tli.0 <= 1 {
        return Ok(Vec::new());
    }
    let path = history_path(data_dir, tli);
    let text = read_real(&path)?.ok_or_else(|| Error::Unreadable {
        what: "a timeline's history",
        value: path.display().to_string(),
    })?;
    parse_history(&text)
}

/// A parent may be listed to end after its child does, when the child was promoted away from
/// before it wrote anything: what is shared is the least of all ends from there on.
fn parse_history(text: &str) -> Result<Vec<(TimelineId, Lsn)>, Error> {
    let mut forks = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let tli = words.next().and_then(|w| w.parse().ok()).map(TimelineId);
        let lsn = words.next().and_then(|w| w.parse().ok());
        let (Some(tli), Some(lsn)) = (tli, lsn) else {
            let value = line.to_owned();
            return Err(Error::Unreadable { what: "a timeline's history", value });
        };
        forks.push((tli, lsn));
    }
    let mut least = Lsn(u64::MAX);
    for (_, lsn) in forks.iter_mut().rev() {
        least = least.min(*lsn);
        *lsn = least;
    }
    Ok(forks)
}

/// Reserves every timeline from 2 below `target` that has no history file yet. Can be done ahead
/// of a switchover. Durable when it returns; returns how many files it wrote.
///
/// # Errors
/// [`Error::Promote`] when `target` is too high, [`Error::Io`].
pub fn reserve(options: &ServerOptions, target: TimelineId) -> Result<usize, Error> {
    if target.0 > TIMELINES_RESERVED_MAX {
        let reason = format!("more than {TIMELINES_RESERVED_MAX} timelines");
        return Err(Error::Promote { target: target.0, reason });
    }
    let mut written = 0;
    for tli in (2..target.0).map(TimelineId) {
        let path = history_path(&options.data_dir, tli);
        if !path.exists() {
            replace(&path, RESERVED.as_bytes(), options.run_as.as_ref())?;
            written += 1;
        }
    }
    if written > 0 {
        sync_dir(&wal_dir(&options.data_dir))?;
    }
    Ok(written)
}

/// Makes the file of the segment at `from` of a timeline that forked in it, where there is none, from
/// that of the newest ancestor that there is: the same bytes up to where the ancestor ended, zeros
/// behind. Durable when it returns; returns which ancestor's it was, if it made one.
///
/// # Errors
/// [`Error::Io`], [`Error::Unreadable`] for a history that is none.
pub fn begin(
    options: &ServerOptions,
    timeline: TimelineId,
    from: Lsn,
    segment_bytes: u64,
) -> Result<Option<TimelineId>, Error> {
    begin_in(&options.data_dir, options.run_as.as_ref(), timeline, from, segment_bytes)
}

fn begin_in(
    data_dir: &Path,
    owner: Option<&User>,
    timeline: TimelineId,
    from: Lsn,
    segment_bytes: u64,
) -> Result<Option<TimelineId>, Error> {
    let dir = wal_dir(data_dir);
    let number = from.0 / segment_bytes;
    let path = |tli: TimelineId| dir.join(segment_name(tli, number, segment_bytes));
    let made = path(timeline);
    if made.exists() {
        return Ok(None);
    }
    let Some(text) = read_real(&history_path(data_dir, timeline))? else {
        return Ok(None);
    };
    let begins = number * segment_bytes;
    for (ancestor, end) in parse_history(&text)?.into_iter().rev() {
        // What ended before this segment has none of it, and neither have those before.
        let Some(shared) = end.0.checked_sub(begins).filter(|n| *n > 0) else { break };
        let old = path(ancestor);
        if !has_content(&old, begins) {
            continue;
        }
        let mut old = File::open(&old).map_err(Error::io("read", &old))?.take(shared);
        make(&made, owner, |file| {
            std::io::copy(&mut old, file)?;
            file.set_len(segment_bytes)
        })?;
        sync_dir(&dir)?;
        return Ok(Some(ancestor));
    }
    Ok(None)
}

/// Whether a timeline has a history file of any kind.
pub(crate) fn is_taken(data_dir: &Path, tli: TimelineId) -> bool {
    history_path(data_dir, tli).exists()
}

/// Removes reservations above the highest real history, which keep a server from starting.
/// Returns how many.
pub(crate) fn drop_dangling(data_dir: &Path) -> Result<usize, Error> {
    let dir = wal_dir(data_dir);
    let mut reserved = Vec::new();
    let mut highest = 1;
    for name in file_names(&dir)? {
        let Some(tli) = parse_history_name(&name) else { continue };
        if read_real(&dir.join(&name))?.is_some() {
            highest = highest.max(tli);
        } else {
            reserved.push(tli);
        }
    }
    reserved.retain(|tli| *tli > highest);
    for tli in &reserved {
        remove(&history_path(data_dir, TimelineId(*tli)))?;
    }
    if !reserved.is_empty() {
        sync_dir(&dir)?;
    }
    Ok(reserved.len())
}

/// The timeline that the byte before `lsn` belongs to; see the module's text for why.
///
/// # Errors
/// [`Error::Io`], [`Error::Unreadable`] when no segment at all fits.
pub(crate) fn held(data_dir: &Path, lsn: Lsn, segment_bytes: u64) -> Result<TimelineId, Error> {
    let dir = wal_dir(data_dir);
    let last = lsn.0 / segment_bytes;
    let mut segments: Vec<(u32, u64, String)> = file_names(&dir)?
        .into_iter()
        .filter_map(|name| {
            let (tli, number) = parse_segment_name(&name, segment_bytes)?;
            (number <= last).then_some((tli, number, name))
        })
        .collect();
    segments.sort_unstable_by(|a, b| b.cmp(a));
    let mut proven = None;
    for (tli, number, name) in segments {
        let path = dir.join(name);
        // Sorted by timeline, newest segment first: one good segment settles a timeline.
        if proven.is_some() || !has_content(&path, number * segment_bytes) {
            continue;
        }
        let forked = match read_real(&history_path(data_dir, TimelineId(tli)))? {
            Some(text) => parse_history(&text)?.last().map(|(_, at)| *at),
            None => (tli == 1).then_some(Lsn(0)),
        };
        let behind = |at: Lsn| at.0 / segment_bytes < number || goes_on(&path, at, segment_bytes);
        if forked.is_some_and(|at| at <= lsn && (tli == 1 || behind(at))) {
            proven = Some(TimelineId(tli));
        }
    }
    proven.ok_or_else(|| Error::Unreadable {
        what: "the timeline of the WAL that is held",
        value: format!("no segment at or before {lsn}"),
    })
}

/// Whether a segment begins with a page of its own address.
fn has_content(path: &Path, address: u64) -> bool {
    File::open(path).is_ok_and(|file| has_page(&file, 0, address))
}

/// Whether a page is that of this address (`XLogPageHeaderData.xlp_pageaddr`).
fn has_page(file: &File, offset: u64, address: u64) -> bool {
    let mut header = [0; 16];
    let read = file.read_exact_at(&mut header, offset);
    // Native byte order: these files never leave the kind of machine that wrote them.
    let magic = u16::from_ne_bytes([header[0], header[1]]);
    let at = u64::from_ne_bytes(std::array::from_fn(|i| header[8 + i]));
    read.is_ok() && magic != 0 && at == address
}

/// Whether a record begins at a position of a segment, or the page on which one does: records begin
/// with their length, which is never zero.
fn goes_on(path: &Path, at: Lsn, segment_bytes: u64) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let (offset, inside) = (at.0 % segment_bytes, at.0 % WAL_PAGE_BYTES);
    let mut length = [0; 4];
    has_page(&file, offset - inside, at.0 - inside)
        && file.read_exact_at(&mut length, offset).is_ok()
        && length != [0; 4]
}

fn file_names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

fn hex(text: &str) -> Option<u32> {
    let good = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    good.then(|| u32::from_str_radix(text, 16).ok())?
}

fn parse_history_name(name: &str) -> Option<u32> {
    hex(name.strip_suffix(".history")?)
}

/// `0000000700000001000000A3` → timeline 7 and the segment's number from the log's beginning.
fn parse_segment_name(name: &str, segment_bytes: u64) -> Option<(u32, u64)> {
    if name.len() != 24 || !name.is_ascii() {
        return None;
    }
    let (high, low) = (u64::from(hex(&name[8..16])?), u64::from(hex(&name[16..24])?));
    Some((hex(&name[..8])?, high * ((1 << 32) / segment_bytes) + low))
}

fn segment_name(tli: TimelineId, number: u64, segment_bytes: u64) -> String {
    let row = (1 << 32) / segment_bytes;
    format!("{:08X}{:08X}{:08X}", tli.0, number / row, number % row)
}

/// A segment file's number from the log's beginning.
pub fn segment_number(name: &str, segment_bytes: u64) -> Option<u64> {
    parse_segment_name(name, segment_bytes).map(|(_, number)| number)
}

/// The timeline in the first eight digits of a WAL file's name, as `pg_walfile_name` returns it.
pub(crate) fn of_file_name(name: &str) -> Option<TimelineId> {
    hex(name.get(..8)?).map(TimelineId)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEG: u64 = 16 << 20;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("pg_wal")).unwrap();
            Self(dir)
        }
        fn data(&self) -> &Path {
            self.0.path()
        }
        fn history(&self, tli: u32, text: &str) -> &Self {
            fs::write(history_path(self.data(), TimelineId(tli)), text).unwrap();
            self
        }
        /// A segment file whose first page says `address`.
        fn segment(&self, tli: u32, number: u64, address: u64) -> &Self {
            let mut header = vec![0x10, 0xD1];
            header.resize(8, 0);
            header.extend(address.to_ne_bytes());
            let name = format!("{tli:08X}{:08X}{:08X}", number >> 8, number & 0xFF);
            fs::write(wal_dir(self.data()).join(name), header).unwrap();
            self
        }
        /// A record in it, on a page of its own address.
        fn record(&self, tli: u32, at: u64) -> &Self {
            let path = wal_dir(self.data()).join(segment_name(TimelineId(tli), at / SEG, SEG));
            let file = File::options().write(true).open(path).unwrap();
            let page = at / WAL_PAGE_BYTES * WAL_PAGE_BYTES;
            file.write_all_at(&[0x10, 0xD1, 0, 0, 0, 0, 0, 0], page % SEG).unwrap();
            file.write_all_at(&page.to_ne_bytes(), page % SEG + 8).unwrap();
            if at > page {
                file.write_all_at(&26_u32.to_ne_bytes(), at % SEG).unwrap();
            }
            self
        }
        fn held(&self, lsn: u64) -> Option<u32> {
            held(self.data(), Lsn(lsn), SEG).ok().map(|t| t.0)
        }
    }

    #[test]
    fn a_history_alone_and_files_without_content_do_not_count() {
        let dir = Dir::new();
        dir.segment(1, 3, 3 * SEG);
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        // A diverged server fetched the history, and has a pre-made segment of its future.
        dir.history(7, "1\t0/3000100\tno recovery target specified\n");
        dir.segment(7, 4, 4 * SEG);
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        // A recycled file: the name is new, the content old.
        dir.segment(7, 3, SEG);
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        // Begun, and nothing of it has come.
        dir.segment(7, 3, 3 * SEG);
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        dir.record(7, 3 * SEG + 0x100);
        assert_eq!(dir.held(3 * SEG + 500), Some(7));
        // Before the fork of 7 the bytes are 1's.
        assert_eq!(dir.held(3 * SEG + 50), Some(1));
    }

    #[test]
    fn what_stands_where_a_fork_is_must_be_of_that_place() {
        let dir = Dir::new();
        let fork = 3 * SEG + 5 * WAL_PAGE_BYTES;
        dir.segment(1, 3, 3 * SEG).segment(2, 3, 3 * SEG).history(2, "1\t0/300A000\tx\n");
        assert_eq!(fork, 0x300_A000);
        assert_eq!(dir.held(fork + 500), Some(1));
        // The fork is a page's beginning.
        dir.record(2, fork);
        assert_eq!(dir.held(fork + 500), Some(2));
        // A recycled file of which only the first pages were overwritten.
        dir.history(2, "1\t0/300A100\tx\n").record(2, fork + 0x100);
        assert_eq!(dir.held(fork + 500), Some(2));
        let path = wal_dir(dir.data()).join(segment_name(TimelineId(2), 3, SEG));
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&SEG.to_ne_bytes(), fork % SEG + 8).unwrap();
        assert_eq!(dir.held(fork + 500), Some(1));
        // Later segments are its own.
        dir.segment(2, 4, 4 * SEG);
        assert_eq!(dir.held(4 * SEG + 500), Some(2));
    }

    #[test]
    fn a_segment_without_its_history_is_a_promotion_that_did_not_happen() {
        let dir = Dir::new();
        dir.segment(1, 3, 3 * SEG).segment(7, 3, 3 * SEG).history(7, RESERVED);
        dir.record(7, 3 * SEG + 0x100);
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        fs::remove_file(history_path(dir.data(), TimelineId(7))).unwrap();
        assert_eq!(dir.held(3 * SEG + 500), Some(1));
        assert_eq!(Dir::new().held(1), None);
    }

    #[test]
    fn only_reservations_above_the_highest_real_history_are_dropped() {
        let dir = Dir::new();
        for tli in [2, 3, 5, 6] {
            dir.history(tli, RESERVED);
        }
        dir.history(4, "1\t0/3000100\tx\n");
        assert_eq!(drop_dangling(dir.data()).unwrap(), 2);
        let left: Vec<bool> = (2..=6).map(|t| is_taken(dir.data(), TimelineId(t))).collect();
        assert_eq!(left, [true, true, true, false, false]);
    }

    #[test]
    fn a_timeline_begins_as_its_parent_up_to_the_fork() {
        let dir = Dir::new();
        let begin = |tli: u32, at: u64| {
            begin_in(dir.data(), None, TimelineId(tli), Lsn(at), SEG).unwrap().map(|t| t.0)
        };
        let file =
            |tli: u32| fs::read(wal_dir(dir.data()).join(segment_name(TimelineId(tli), 3, SEG)));
        assert_eq!(begin(2, 3 * SEG), None, "no history");
        dir.history(2, "1\t0/300000C\tx\n").history(3, "1\t0/300000C\tx\n2\t0/300000E\tx\n");
        assert_eq!(begin(2, 3 * SEG), None, "nothing to copy from");
        // Recycled: its bytes are of another place.
        dir.segment(1, 3, SEG);
        assert_eq!(begin(2, 3 * SEG), None);
        dir.segment(1, 3, 3 * SEG);
        assert_eq!(begin(2, 4 * SEG), None, "forked before");
        // 2 was never here: its child begins as 1, up to where 1 ended.
        assert_eq!(begin(3, 3 * SEG + 5), Some(1));
        let (one, three) = (file(1).unwrap(), file(3).unwrap());
        assert_eq!((&three[..12], &three[12..16]), (&one[..12], &[0; 4][..]));
        assert_eq!(three.len() as u64, SEG);
        assert_eq!(begin(2, 3 * SEG), Some(1));
        fs::write(wal_dir(dir.data()).join(segment_name(TimelineId(2), 3, SEG)), "own").unwrap();
        assert_eq!(begin(2, 3 * SEG), None, "what is there stays");
        assert_eq!(file(2).unwrap(), b"own");
    }

    #[test]
    fn forks_are_where_sharing_ends() {
        let text = "1\t0/5000000\tno recovery target specified\n\n7\t0/4000000\tx\n# note\n";
        let forks = parse_history(text).unwrap();
        assert_eq!(forks, [(TimelineId(1), Lsn(0x400_0000)), (TimelineId(7), Lsn(0x400_0000))]);
        assert!(parse_history("one two\n").is_err());
    }

    #[test]
    fn names_are_read_exactly() {
        let full = "0000000700000001000000A3";
        assert_eq!(parse_segment_name(full, SEG), Some((7, 0x1A3)));
        assert_eq!(parse_segment_name("0000000700000001000000A3.partial", SEG), None);
        assert_eq!(parse_segment_name("0000000700000001000000a3", SEG), None);
        assert_eq!(of_file_name(full), Some(TimelineId(7)));
        assert_eq!(parse_history_name("0000000A.history"), Some(10));
    }
}
