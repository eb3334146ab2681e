//! Logical slots on a standby, and what their making needs on the writer.

use quorate_core::Lsn;
use quorate_core::slots::Origin;
use tokio::time::timeout;

use super::connection::Lane;
use super::{Admin, literal, need};
use crate::Error;
use crate::limits::{DECODER_ANSWERS, SLOT_ADVANCE_MAX, SLOT_MAKE_MAX};

/// A connection to one database of a server, for its logical slots: they are made and moved there only.
#[derive(Debug)]
pub struct Decoder {
    lane: Lane,
}

impl Decoder {
    /// Makes a slot, and says where it begins: it decodes whole whatever commits after that. On a
    /// standby this waits until the writer has logged which transactions run
    /// ([`Admin::log_running`]), and until those have ended that ran when it began.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`], [`Error::Timeout`].
    pub async fn make(&self, name: &str, origin: &Origin) -> Result<Lsn, Error> {
        let sql = format!(
            "SET statement_timeout = {}; \
             SELECT lsn FROM pg_create_logical_replication_slot({}, {}, false, {})",
            SLOT_MAKE_MAX.as_millis(),
            literal(name),
            literal(&origin.plugin),
            origin.two_phase
        );
        let asked = self.lane.row("make a logical slot", &sql);
        let row = timeout(SLOT_MAKE_MAX + DECODER_ANSWERS, asked).await;
        let row = row
            .map_err(|_| Error::Timeout { what: "making a logical slot", after: SLOT_MAKE_MAX })?;
        need(&row?, 0, "where a slot begins")
    }

    /// Moves a slot on: what commits before `to` is handed out by it no more.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`], [`Error::Timeout`].
    pub async fn advance(&self, name: &str, to: Lsn) -> Result<Lsn, Error> {
        let sql = format!(
            "SET statement_timeout = {}; \
             SELECT end_lsn FROM pg_replication_slot_advance({}, '{to}')",
            SLOT_ADVANCE_MAX.as_millis(),
            literal(name)
        );
        let asked = self.lane.row("move a logical slot", &sql);
        let row = timeout(SLOT_ADVANCE_MAX + DECODER_ANSWERS, asked).await;
        let row = row.map_err(|_| Error::Timeout {
            what: "moving a logical slot",
            after: SLOT_ADVANCE_MAX,
        })?;
        need(&row?, 0, "where a slot is")
    }
}

impl Admin {
    /// For the logical slots of one database.
    pub fn decoder(&self, database: &str) -> Decoder {
        Decoder { lane: Lane::of_database(&self.options, database) }
    }

    /// Logs which transactions run, so that standbys can begin to decode. On the writer, from version 16
    /// on.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn log_running(&self) -> Result<(), Error> {
        let sql = "SELECT pg_log_standby_snapshot()";
        Lane::superuser(&self.options).ask("log what runs", sql).await.map(drop)
    }
}
