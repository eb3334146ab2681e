//! All replication slots of a server, whoever made them, and how one of them is ended.

use quorate_core::Lsn;
use quorate_core::slots::{Kept, Kind, Slot};

use super::connection::Lane;
use super::{Admin, literal};
use crate::Error;
use crate::limits::CONSUMER_END_MILLISECONDS;

/// A server's slots, and where its log ended when they were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// On a writer what is on its disk, on a standby what it has replayed.
    pub end: Lsn,
    /// By name.
    pub slots: Vec<Slot>,
}

/// What became of the wish to end a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It is gone.
    Dropped,
    /// There is none of that name.
    NotThere,
}

/// Columns that a query for this major version has; the rest is said in their place.
fn query(major: u32) -> String {
    let (invalid, carried) = match major {
        17.. => ("s.invalidation_reason", "s.failover, s.synced"),
        16 => ("CASE WHEN s.conflicting THEN 'conflict with recovery' END", "false, false"),
        _ => ("NULL", "false, false"),
    };
    // The log's end is in every row, and there is one without a slot, too.
    format!(
        "SELECT e.at, s.slot_name, s.slot_type, s.plugin, s.database, s.active_pid, s.restart_lsn, \
         s.confirmed_flush_lsn, s.wal_status, s.temporary, {invalid}, {carried}, s.two_phase \
         FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_flush_lsn() END AS at OFFSET 0) AS e \
         LEFT JOIN pg_replication_slots AS s ON true ORDER BY s.slot_name"
    )
}

/// One row of it.
fn parse(row: &[Option<&str>]) -> Result<(Option<Lsn>, Option<Slot>), Error> {
    let text = |i: usize| row.get(i).copied().flatten();
    let unreadable = |what, value: &str| Error::Unreadable { what, value: value.to_owned() };
    let lsn = |i: usize| {
        let what = "a slot's position";
        text(i).map(|t| t.parse::<Lsn>().map_err(|_| unreadable(what, t))).transpose()
    };
    let end = lsn(0)?;
    let Some(name) = text(1) else { return Ok((end, None)) };
    let is_true = |i: usize| text(i) == Some("t");
    let kind = match text(2) {
        Some("physical") => Kind::Physical,
        Some("logical") => Kind::Logical,
        other => return Err(unreadable("the kind of a slot", other.unwrap_or("null"))),
    };
    let pid = text(5).map(|t| t.parse().map_err(|_| unreadable("a pid", t))).transpose()?;
    let kept = match text(8) {
        None => Kept::Nothing,
        Some("reserved" | "extended") => Kept::Held,
        Some("unreserved") => Kept::Unreserved,
        Some("lost") => Kept::Lost,
        Some(other) => return Err(unreadable("whether a slot's log is there", other)),
    };
    let slot = Slot {
        name: name.to_owned(),
        kind,
        plugin: text(3).map(str::to_owned),
        database: text(4).map(str::to_owned),
        active_pid: pid,
        restart: lsn(6)?,
        confirmed: lsn(7)?,
        kept,
        invalid: text(10).map(str::to_owned),
        temporary: is_true(9),
        failover: is_true(11),
        synced: is_true(12),
        two_phase: is_true(13),
    };
    Ok((end, Some(slot)))
}

impl Admin {
    /// Every slot of the server.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`].
    pub async fn all_slots(&self) -> Result<Slots, Error> {
        let sql = query(self.options.install.major);
        let rows = self.questions.ask("look at its slots", &sql).await?.rows;
        let mut found = Slots { end: Lsn::default(), slots: Vec::new() };
        for row in &rows {
            let columns: Vec<Option<&str>> = (0..row.len()).map(|i| row.get(i)).collect();
            let (end, slot) = parse(&columns)?;
            found.end = found.end.max(end.unwrap_or_default());
            found.slots.extend(slot);
        }
        Ok(found)
    }

    /// Ends the connection of whoever reads a slot, and drops it. Whoever decides that has seen to it
    /// that nobody comes back for it.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (when its reader is quicker all the same).
    pub async fn end_slot(&self, name: &str) -> Result<Ended, Error> {
        let name = literal(name);
        // Readers may be superusers, whose backends only a superuser ends. None that waits for a
        // standby is ended: that would report a commit that is not safe.
        let superuser = Lane::superuser(&self.options);
        let reader = format!(
            "SELECT pg_terminate_backend(s.active_pid, {CONSUMER_END_MILLISECONDS}) \
             FROM pg_replication_slots AS s WHERE s.slot_name = {name} \
             AND s.active_pid IS NOT NULL AND NOT EXISTS (SELECT FROM pg_stat_activity AS a \
             WHERE a.pid = s.active_pid AND a.wait_event = 'SyncRep')"
        );
        superuser.ask("end the reader of a slot", &reader).await?;
        let sql = format!(
            "SELECT pg_drop_replication_slot(s.slot_name) FROM pg_replication_slots AS s \
             WHERE s.slot_name = {name}"
        );
        let rows = self.slow.ask("drop a slot", &sql).await?.rows;
        Ok(if rows.is_empty() { Ended::NotThere } else { Ended::Dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_version_are_read() {
        let row = [
            Some("0/217EDE8"),
            Some("cdc"),
            Some("logical"),
            Some("test_decoding"),
            Some("shop"),
            Some("42"),
            Some("0/D20D88"),
            Some("0/D20DC0"),
            Some("extended"),
            Some("f"),
            None,
            Some("t"),
            Some("f"),
            Some("t"),
        ];
        let (end, slot) = parse(&row).unwrap();
        let slot = slot.unwrap();
        assert_eq!(end, Some(Lsn(0x217_EDE8)));
        assert_eq!((slot.kind, slot.kept, slot.active_pid), (Kind::Logical, Kept::Held, Some(42)));
        assert_eq!(slot.reached(), Some(Lsn(0xD2_0DC0)));
        assert!(
            slot.two_phase
                && slot.failover
                && !slot.synced
                && !slot.temporary
                && slot.invalid.is_none()
        );
        let mut lost = row;
        (lost[2], lost[5], lost[6], lost[7]) = (Some("physical"), None, None, None);
        (lost[8], lost[10]) = (Some("lost"), Some("wal_removed"));
        let slot = parse(&lost).unwrap().1.unwrap();
        assert_eq!((slot.kind, slot.kept), (Kind::Physical, Kept::Lost));
        assert_eq!((slot.reached(), slot.invalid.as_deref()), (None, Some("wal_removed")));
        let none = [Some("0/1"), None, None, None, None, None, None, None, None, None, None];
        assert_eq!(parse(&none).unwrap(), (Some(Lsn(1)), None), "a server without slots");
        assert_eq!(parse(&[None; 14]).unwrap(), (None, None), "that has replayed nothing yet");
        let mut odd = row;
        odd[8] = Some("misplaced");
        assert!(parse(&odd).is_err());
    }

    #[test]
    fn older_versions_are_not_asked_for_what_they_lack() {
        assert!(!query(15).contains("conflicting") && !query(15).contains("synced"));
        assert!(query(16).contains("conflicting") && !query(16).contains("synced"));
        assert!(query(17).contains("invalidation_reason") && query(18).contains("s.synced"));
    }
}
