//! What is fuzzed, and what must hold: `cargo xtask fuzz`. See the README.

pub mod frames;
pub mod login;
pub mod memory;
pub mod seeds;
pub mod sql;

/// Takes a byte off the front of the input: what is left says how something is done, not what.
fn knob(data: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    first
}
