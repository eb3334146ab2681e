//! One local PostgreSQL server: process, settings, probes, clone, rewind.
//!
//! The server listens on a private unix socket only and always starts as a standby; it becomes a
//! writer by promotion. This crate performs; it decides nothing and knows no other node.
//!
//! ```text
//!   Server (own thread) ──spawns──▶ postgres ──▶ <run_dir>/.s.PGSQL.5432 ◀── Admin (SQL)
//!                                      └─walreceiver─▶ <relay_dir>/.s.PGSQL.5432 (made elsewhere)
//! ```

pub mod limits;

mod error;
mod install;
mod lifeline;
mod options;
mod past;

mod bootstrap;
mod clone;
mod conf;
mod process;
mod release;
mod reserve;
mod sql;

mod controldata;
mod disk;
mod timelines;

mod deathsig;
mod files;
mod procfs;
mod staging;
mod tool;

pub use bootstrap::{BootstrapOptions, Directory, bootstrap, examine};
pub use clone::{Cloned, Rewound, clone_from, rewind_from};
pub use conf::{
    Settings, SynchronousCommit, WalLevel, Written, check as check_setting, judge as judge_setting,
    write as write_settings,
};
pub use controldata::{ControlData, log_end, read as read_control_data};
pub use deathsig::become_subreaper;
pub use disk::{DiskHealth, DiskProbe};
pub use error::{Error, Retry};
pub use install::Install;
pub use lifeline::Lifeline;
pub use options::{ServerOptions, User};
pub use past::{Past, Stage, Target, roll_forward};
pub use process::{Mode, Server, Status, kill_leftovers};
pub use release::release;
pub use reserve::{release_reserve, reserve, reserved, room};
pub use sql::{
    Admin, Cancelled, DRILL, Decoder, Ended as SlotEnded, KeptLog, Login, Marker, Probe, Promoted,
    Setting, Slot, Slots, StandbyPosition, WalReceiver,
};
pub use timelines::{
    Position, begin as begin_timeline, history, reserve as reserve_timelines, segment_number,
};

/// The role that Quorate itself logs in as.
pub const ROLE: &str = "quorate";

/// The superuser that databases are made with. Used for nothing but what a person asked for.
pub const SUPERUSER: &str = "postgres";

/// The port in the name of every unix socket; no TCP port is ever opened.
pub const PORT: u16 = 5432;
