//! stub
use std::ops::Range;
pub struct Options<'a> { pub standard_strings: bool, pub functions: &'a dyn Functions, pub whole: bool }
pub trait Functions { fn knowledge(&self, name: &[u8]) -> Knowledge; }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge { Unknown, Stable, Volatile, Suspect }
pub struct NoFunctions;
impl Functions for NoFunctions { fn knowledge(&self, _n: &[u8]) -> Knowledge { Knowledge::Unknown } }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access { Read, Write }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaves(u16);
impl Leaves {
    pub const SETTING: Leaves = Leaves(1);
    pub const UNKNOWN_SETTING: Leaves = Leaves(2);
    pub const TEMP: Leaves = Leaves(4);
    pub const ADVISORY: Leaves = Leaves(8);
    pub const LISTEN: Leaves = Leaves(16);
    pub const HOLD: Leaves = Leaves(32);
    pub const PREPARED: Leaves = Leaves(64);
    pub const LOAD: Leaves = Leaves(128);
    pub const UNKNOWN: Leaves = Leaves(256);
    pub const CLEARS_ALL: Leaves = Leaves(512);
    pub fn has(self, o: Leaves) -> bool { self.0 & o.0 != 0 }
    pub fn is_empty(self) -> bool { self.0 == 0 }
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(Range<u32>);
impl Name { pub fn fold(&self, sql: &[u8]) -> Vec<u8> { sql[self.0.start as usize..self.0.end as usize].to_ascii_lowercase() } }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set { pub name: Name }
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb { Other, Begin(()), Commit { chain: bool }, Rollback { chain: bool }, Set(Set), Reset(Option<Name>), SetSessionCharacteristics(()), Discard(()), Deallocate(Option<Name>), Copy(()) }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script { pub statements: u32, pub first: Verb, pub access: Access, pub ends: bool, pub begins: bool, pub leaves: Leaves, pub returns_rows: bool, pub fingerprint: u64, pub directive: Option<Range<u32>> }
pub fn classify(sql: &[u8], _options: &Options<'_>) -> Script {
    let lower = sql.to_ascii_lowercase();
    let starts = |w: &str| lower.starts_with(w.as_bytes());
    let first = if starts("begin") { Verb::Begin(()) } else if starts("commit") || starts("end") { Verb::Commit { chain: false } } else if starts("rollback") { Verb::Rollback { chain: false } } else { Verb::Other };
    Script { statements: 1, begins: matches!(first, Verb::Begin(_)), ends: matches!(first, Verb::Commit { .. } | Verb::Rollback { .. }), first, access: if starts("select") { Access::Read } else { Access::Write }, leaves: Leaves(0), returns_rows: true, fingerprint: 0, directive: None }
}
