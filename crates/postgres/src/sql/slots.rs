//! Physical replication slots, and the catalogue of parameters.

use quorate_core::Lsn;

use super::{Admin, field, is_true, literal, need};
use crate::Error;

/// A physical replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// The process that streams from it.
    pub active_pid: Option<i32>,
    /// WAL from here on is kept; `None` when it keeps nothing.
    pub restart_lsn: Option<Lsn>,
    /// Its WAL has been removed: a standby on it must be cloned anew.
    pub lost: bool,
}

/// A parameter as PostgreSQL describes it, to check a configuration against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// `bool`, `enum`, `integer`, `real` or `string`.
    pub kind: String,
    /// Least value of a number.
    pub min: Option<String>,
    /// Greatest value of a number.
    pub max: Option<String>,
    /// Values of an enum.
    pub choices: Vec<String>,
    /// When it takes effect: `postmaster`, `sighup`, `user`, …
    pub context: String,
    /// Unit of a bare number.
    pub unit: Option<String>,
}

impl Admin {
    /// Makes a physical slot that keeps WAL from now on, unless it exists. Returns whether it is
    /// new.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn ensure_slot(&self, name: &str) -> Result<bool, Error> {
        let sql = format!(
            "SELECT pg_create_physical_replication_slot(n, true) FROM (VALUES ({})) AS v(n) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = n)",
            literal(name)
        );
        Ok(!self.slow.ask("make a slot", &sql).await?.rows.is_empty())
    }

    /// Removes a physical slot that nobody uses. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] when it is in use.
    pub async fn drop_slot(&self, name: &str) -> Result<bool, Error> {
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {} AND slot_type = 'physical'",
            literal(name)
        );
        Ok(!self.slow.ask("drop a slot", &sql).await?.rows.is_empty())
    }

    /// All physical slots but temporary ones, by name.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`].
    pub async fn slots(&self) -> Result<Vec<Slot>, Error> {
        let sql = "SELECT slot_name, active_pid, restart_lsn, wal_status = 'lost' \
             FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1";
        let rows = self.questions.ask("list its slots", sql).await?.rows;
        let slot = |row| {
            Ok(Slot {
                name: need(row, 0, "a slot's name")?,
                active_pid: field(row, 1, "a pid")?,
                restart_lsn: field(row, 2, "a slot's position")?,
                lost: is_true(row, 3),
            })
        };
        rows.iter().map(slot).collect()
    }

    /// Roles and databases for which `synchronous_commit` is set below `on`, as `role app: off`.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`].
    pub async fn lowered_commits(&self) -> Result<Vec<String>, Error> {
        let sql = "SELECT concat_ws(' in ', CASE WHEN s.setrole <> 0 THEN 'role ' || r.rolname END,              CASE WHEN s.setdatabase <> 0 THEN 'database ' || d.datname END) || ': ' || \
             split_part(c, '=', 2) \
             FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c \
             LEFT JOIN pg_roles r ON r.oid = s.setrole \
             LEFT JOIN pg_database d ON d.oid = s.setdatabase \
             WHERE split_part(c, '=', 1) = 'synchronous_commit' \
             AND split_part(c, '=', 2) NOT IN ('on', 'remote_apply') ORDER BY 1";
        let rows = self.questions.ask("look for lowered commits", sql).await?.rows;
        rows.iter().map(|row| need(row, 0, "a role")).collect()
    }

    /// Every parameter of this server.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`].
    pub async fn settings_catalog(&self) -> Result<Vec<Setting>, Error> {
        let sql = "SELECT name, vartype, min_val, max_val, array_to_string(enumvals, ','), \
             context, unit FROM pg_settings ORDER BY name";
        let rows = self.questions.ask("list its parameters", sql).await?.rows;
        let text = |row: &tokio_postgres::SimpleQueryRow, i| row.get(i).map(str::to_owned);
        let setting = |row| {
            let choices = text(row, 4).unwrap_or_default();
            Ok(Setting {
                name: need(row, 0, "a parameter's name")?,
                kind: need(row, 1, "a parameter's kind")?,
                min: text(row, 2),
                max: text(row, 3),
                choices: choices.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
                context: need(row, 5, "a parameter's context")?,
                unit: text(row, 6),
            })
        };
        rows.iter().map(setting).collect()
    }
}
