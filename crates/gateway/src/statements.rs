//! Prepared statements, shared: one text with one list of parameter types is one statement, however
//! many clients prepared it, and has one name on every server.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::rc::{Rc, Weak};

use foldhash::HashMap;
use foldhash::quality::RandomState;
use quorate_wire::sql::{self, Script};

use crate::limits;

/// A statement as PostgreSQL prepares it.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Its name on servers.
    pub(crate) name: Box<[u8]>,
    /// Its text without the terminating zero.
    pub(crate) text: Box<[u8]>,
    /// The rest of a Parse message: number and types of parameters.
    pub(crate) types: Box<[u8]>,
    /// Marks the settings it is prepared under.
    of: u64,
    /// Its preparation made a server give notice.
    pub(crate) noisy: Cell<bool>,
    /// Some server has prepared it.
    pub(crate) proved: Cell<bool>,
    /// What its text says.
    pub(crate) script: Script,
}

impl Statement {
    /// Bytes of a Parse message's body without the statement's name.
    pub(crate) fn parse_len(&self) -> usize {
        self.text.len() + 1 + self.types.len()
    }
}

/// All statements of a thread.
#[derive(Default)]
pub(crate) struct Statements {
    by_hash: HashMap<u64, Weak<Statement>>,
    hasher: RandomState,
    made: u64,
    /// Entries after the last clearing of dead ones.
    alive: usize,
}

impl Statements {
    /// The statement of this text and these types.
    ///
    /// `of` marks the settings it is prepared under: what a text means depends on them.
    pub(crate) fn intern(
        &mut self,
        (text, types, of): (&[u8], &[u8], u64),
        options: &sql::Options<'_>,
    ) -> Rc<Statement> {
        let hash = self.hasher.hash_one((text, types, of, options.standard_strings));
        if let Some(found) = self.by_hash.get(&hash).and_then(Weak::upgrade)
            && *found.text == *text
            && *found.types == *types
            && found.of == of
        {
            return found;
        }
        self.made += 1;
        let statement = Rc::new(Statement {
            name: format!("quorate_{:x}", self.made).into_bytes().into(),
            text: text.into(),
            types: types.into(),
            of,
            proved: Cell::new(false),
            noisy: Cell::new(false),
            script: sql::classify(text, options),
        });
        // On a collision the newer one is shared.
        match self.by_hash.entry(hash) {
            Entry::Occupied(mut entry) => drop(entry.insert(Rc::downgrade(&statement))),
            Entry::Vacant(entry) => drop(entry.insert(Rc::downgrade(&statement))),
        }
        if self.by_hash.len() > 2 * self.alive.max(limits::STATEMENTS_SWEPT) {
            self.by_hash.retain(|_, s| s.strong_count() > 0);
            self.alive = self.by_hash.len();
        }
        statement
    }
}

/// The statements that a server has, the least recently used one first to go.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// By address of the statement.
    known: HashMap<*const Statement, Known>,
    clock: u64,
}

#[derive(Debug)]
struct Known {
    statement: Rc<Statement>,
    /// When it was used last.
    used: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The server has it.
    There,
    /// The server has it, and it failed as one does that is out of date.
    Doubted,
    /// The server may have it: what should have made or closed it was not carried out.
    Perhaps,
}

impl Prepared {
    /// Takes note of a use; whether the server has it.
    pub(crate) fn touch(&mut self, statement: &Rc<Statement>) -> bool {
        self.clock += 1;
        match self.known.get_mut(&Rc::as_ptr(statement)) {
            Some(known) => {
                known.used = self.clock;
                known.state != State::Perhaps
            }
            None => false,
        }
    }

    /// It may be out of date: its next Parse is to prepare it anew.
    pub(crate) fn doubt(&mut self, statement: &Rc<Statement>) {
        if let Some(known) = self.known.get_mut(&Rc::as_ptr(statement))
            && known.state == State::There
        {
            known.state = State::Doubted;
        }
    }

    /// Whether what the server has may be out of date.
    pub(crate) fn is_doubted(&self, statement: &Rc<Statement>) -> bool {
        let known = self.known.get(&Rc::as_ptr(statement));
        known.is_some_and(|known| known.state == State::Doubted)
    }

    /// Whether its name has to be closed before it is prepared.
    pub(crate) fn may_be_there(&self, statement: &Rc<Statement>) -> bool {
        self.known.contains_key(&Rc::as_ptr(statement))
    }

    /// The server is told to prepare it.
    pub(crate) fn insert(&mut self, statement: &Rc<Statement>) {
        self.set(statement, State::There);
    }

    /// The server has it or has it not.
    pub(crate) fn perhaps(&mut self, statement: &Rc<Statement>) {
        self.set(statement, State::Perhaps);
    }

    fn set(&mut self, statement: &Rc<Statement>, state: State) {
        self.clock += 1;
        let known = Known { statement: Rc::clone(statement), used: self.clock, state };
        self.known.insert(Rc::as_ptr(statement), known);
    }

    /// What the server has it may be about to forget.
    pub(crate) fn doubt_all(&mut self) {
        self.known.values_mut().for_each(|known| known.state = State::Perhaps);
    }

    /// The server does not have it.
    pub(crate) fn remove(&mut self, statement: &Rc<Statement>) {
        self.known.remove(&Rc::as_ptr(statement));
    }

    /// The server has none any more.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }

    /// Takes out what is beyond `max`: a quarter of them at once, so that the search for the oldest
    /// is paid rarely.
    pub(crate) fn evict(&mut self, max: usize) -> Vec<Rc<Statement>> {
        if self.known.len() <= max {
            return Vec::new();
        }
        let mut ages: Vec<u64> = self.known.values().map(|known| known.used).collect();
        let keep = max - max / 4;
        let out = ages.len() - keep;
        let (_, &mut limit, _) = ages.select_nth_unstable(out - 1);
        let old = self.known.extract_if(|_, known| known.used <= limit);
        old.map(|(_, known)| known.statement).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> sql::Options<'static> {
        sql::Options { standard_strings: true, functions: &sql::NoFunctions, whole: true }
    }

    #[test]
    fn equal_texts_with_equal_types_are_one_statement() {
        let mut statements = Statements::default();
        let a = statements.intern((b"SELECT 1", &[0, 0], 0), &options());
        let b = statements.intern((b"SELECT 1", &[0, 0], 0), &options());
        let c = statements.intern((b"SELECT 1", &[0, 1, 0, 0, 0, 23], 0), &options());
        assert!(Rc::ptr_eq(&a, &b) && !Rc::ptr_eq(&a, &c));
        assert_ne!(a.name, c.name);
        let name = a.name.clone();
        drop((a, b));
        let again = statements.intern((b"SELECT 1", &[0, 0], 0), &options());
        assert_ne!(again.name, name, "a name is never used for two texts");
    }

    #[test]
    fn the_least_recently_used_go() {
        let mut statements = Statements::default();
        let mut prepared = Prepared::default();
        let all: Vec<_> = (0..9)
            .map(|i| statements.intern((format!("SELECT {i}").as_bytes(), &[0, 0], 0), &options()))
            .collect();
        for s in &all[..8] {
            prepared.insert(s);
        }
        assert!(prepared.evict(8).is_empty());
        assert!(prepared.touch(&all[0]));
        prepared.insert(&all[8]);
        let mut gone: Vec<_> = prepared.evict(8).iter().map(|s| s.text.clone()).collect();
        gone.sort();
        let texts: Vec<&[u8]> = gone.iter().map(|t| &t[..]).collect();
        assert_eq!(texts, [&b"SELECT 1"[..], b"SELECT 2", b"SELECT 3"]);
        assert_eq!(prepared.len(), 6);
        assert!(!prepared.touch(&all[1]) && prepared.touch(&all[8]));
    }
}
