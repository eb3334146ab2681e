//! The driver against the installed PostgreSQL: real processes in temporary directories.

#![allow(clippy::unwrap_used)]

mod copies;
mod harness;
mod lifecycle;
mod processes;
mod validate;
