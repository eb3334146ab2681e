//! The gateway with a real PostgreSQL server behind it.
