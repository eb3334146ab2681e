//! Every size that bytes from outside may claim.

/// Longest message body; PostgreSQL allocates no more than this for one message either.
pub const MESSAGE_MAX: usize = 0x3FFF_FFFF;

/// Longest startup packet, its length word included; PostgreSQL's own limit.
pub const STARTUP_MAX: usize = 10_000;

/// Longest secret of a cancel request; protocol 3.2 allows up to 256 bytes, 3.0 has 4.
pub const CANCEL_KEY_MAX: usize = 256;

/// Longest notice worth looking into; the ones we look for are a few hundred bytes.
pub const NOTICE_MAX: usize = 8 * 1024;

/// Longest body of a password or SASL message; PostgreSQL's own limit for SASL. Nobody is
/// authenticated yet: nothing longer is worth the memory.
pub const AUTHENTICATION_MAX: usize = 1024;

/// Most rounds of a stored SCRAM password that are taken. They cost the client, not us; more than
/// PostgreSQL can store is not a stored password.
pub const SCRAM_ITERATIONS_MAX: u32 = i32::MAX as u32;

/// Deepest nesting of parentheses in a statement that is looked into. Beyond it a statement needs
/// the writer; generated queries stay far below.
pub const SQL_DEPTH_MAX: u32 = 120;

/// Longest name of a function or setting; PostgreSQL cuts identifiers there.
pub const SQL_NAME_MAX: usize = 63;

/// Shapes of statements that are remembered for an account; a power of two.
pub const SHAPES: usize = 32;

/// Longest text that is remembered as a shape.
pub const SHAPE_TEXT_MAX: usize = 1024;
