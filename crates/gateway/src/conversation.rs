//! What a session was doing, so that its end can be told truthfully.
//!
//! Pure. It follows both directions by message tags: what the client sent before it was passed on,
//! what the server said after it was passed on. Where it cannot know it says so: every doubt ends
//! in [`Outcome::Unknown`], never in "safe to retry".

use quorate_wire::backend::{Report, Status};
use quorate_wire::frame::{Part, take_cstr};

use crate::limits;

/// What became of a client's work when its session was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The session had not begun.
    LoggingIn,
    /// Nothing was in progress.
    Idle,
    /// A transaction block was open and its end had not been asked for: it is rolled back.
    RolledBack,
    /// A statement or commit may or may not have taken effect.
    Unknown,
}

/// Something the server said that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// ReadyForQuery.
    Ready(Status),
    /// CopyInResponse.
    CopyIn,
}

/// The state of one session.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Status of the last ReadyForQuery; `None` while logging in.
    status: Option<Status>,
    /// Simple queries and function calls without their ReadyForQuery.
    queries: u64,
    /// Syncs without their ReadyForQuery.
    syncs: u64,
    /// Extended-protocol messages were sent that no Sync has followed.
    unsynced: bool,
    copying: bool,
    /// What is in progress may end a transaction block.
    ending: bool,
    enders: Enders,
    terminated: bool,
}

impl Conversation {
    /// How much of a client message must be seen, in bytes.
    pub fn see(tag: u8) -> usize {
        match tag {
            b'Q' | b'P' => limits::QUERY_SEEN,
            b'B' | b'E' => limits::NAMES_SEEN,
            _ => 0,
        }
    }

    /// The client sent this, and it is about to be passed on.
    pub fn client(&mut self, part: Part<'_>) {
        match part.tag {
            b'Q' => {
                self.queries += 1;
                self.ending |= !part.is_whole() || may_end_transaction(part.seen);
            }
            b'F' => self.queries += 1,
            b'S' => {
                self.syncs += 1;
                self.unsynced = false;
            }
            b'P' | b'B' | b'E' | b'D' | b'C' | b'H' => {
                self.unsynced = true;
                self.ending |= self.enders.extended(part);
            }
            b'X' => self.terminated = true,
            // Passwords and copy data.
            _ => {}
        }
    }

    /// The server said this, and it has reached the client.
    pub fn server(&mut self, said: Said) {
        match said {
            Said::Ready(status) => {
                self.status = Some(status);
                self.copying = false;
                // Which kind this answers matters only for COPY, and there the query comes first.
                match self.queries.checked_sub(1) {
                    Some(rest) => self.queries = rest,
                    None => self.syncs = self.syncs.saturating_sub(1),
                }
                if !self.pending() {
                    self.ending = false;
                }
            }
            Said::CopyIn => {
                // Syncs sent before are swallowed by the copy; clients send another after it.
                self.syncs = 0;
                self.copying = true;
            }
        }
    }

    /// Whether the client said goodbye.
    pub fn terminated(&self) -> bool {
        self.terminated
    }

    /// What becomes of the client's work if the session is cut now.
    pub fn outcome(&self) -> Outcome {
        match self.status {
            None => Outcome::LoggingIn,
            Some(Status::Idle) if !self.pending() => Outcome::Idle,
            Some(Status::Idle) => Outcome::Unknown,
            Some(Status::InTransaction | Status::Failed) if !self.ending => Outcome::RolledBack,
            Some(Status::InTransaction | Status::Failed) => Outcome::Unknown,
        }
    }

    /// The last words to a client whose session is cut; `because` is half a sentence.
    pub fn goodbye(&self, because: &str) -> Report {
        const RECONNECT: &str = "Reconnect: the new connection leads to the writer.";
        match self.outcome() {
            Outcome::LoggingIn | Outcome::Idle => Report::fatal("57P01", because).hint(RECONNECT),
            // Between statements nothing was asked that could be answered with a failure.
            Outcome::RolledBack if !self.pending() => Report::fatal("57P01", because)
                .detail("The open transaction was rolled back.")
                .hint("Reconnect and run the transaction again."),
            Outcome::RolledBack => {
                Report::fatal("40001", format!("{because} during a transaction"))
                    .detail("The transaction was rolled back: its commit had not been asked for.")
                    .hint("Reconnect and run the transaction again.")
            }
            Outcome::Unknown => Report::fatal("08007", format!("{because} during a statement"))
                .detail("The statement or transaction may or may not have been committed.")
                .hint("Reconnect and check whether it took effect before running it again."),
        }
    }

    fn pending(&self) -> bool {
        self.queries > 0 || self.syncs > 0 || self.unsynced || self.copying
    }
}

/// Which prepared statements and portals may end a transaction.
#[derive(Debug, Default)]
struct Enders {
    unnamed: bool,
    named: Vec<Vec<u8>>,
    any_named: bool,
    unnamed_portal: bool,
    any_portal: bool,
}

impl Enders {
    /// Takes note of an extended-protocol message; true when it may end a transaction.
    fn extended(&mut self, part: Part<'_>) -> bool {
        let mut body = part.seen;
        match part.tag {
            b'P' => {
                let name = take_cstr(&mut body, "").ok();
                let ends = !part.is_whole() || may_end_transaction(body);
                match name {
                    Some(b"") => self.unnamed = ends,
                    Some(name) if ends => self.remember(name),
                    Some(_) => {}
                    None => self.any_named = true,
                }
                false
            }
            b'B' => {
                let portal = take_cstr(&mut body, "").ok();
                let ends = match take_cstr(&mut body, "") {
                    Ok(b"") => self.unnamed,
                    Ok(name) => self.any_named || self.named.iter().any(|n| n == name),
                    Err(_) => true,
                };
                match portal {
                    Some(b"") => self.unnamed_portal = ends,
                    _ => self.any_portal |= ends,
                }
                false
            }
            b'E' => match take_cstr(&mut body, "") {
                Ok(b"") => self.unnamed_portal,
                _ => self.any_portal,
            },
            _ => false,
        }
    }

    fn remember(&mut self, name: &[u8]) {
        if self.named.iter().any(|n| n == name) {
            return;
        }
        if self.named.len() == limits::ENDERS_MAX {
            self.any_named = true;
        } else {
            self.named.push(name.to_vec());
        }
    }
}

/// Whether a query might end a transaction block: true when any word of it is one that does. Words
/// in strings and comments count, too; the error is on the safe side.
fn may_end_transaction(sql: &[u8]) -> bool {
    const ENDERS: [&[u8]; 5] = [b"commit", b"end", b"rollback", b"abort", b"prepare"];
    sql.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80))
        .any(|word| ENDERS.iter().any(|ender| word.eq_ignore_ascii_case(ender)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(c: &mut Conversation, tag: u8, body: &[u8]) {
        let seen = &body[..body.len().min(Conversation::see(tag))];
        c.client(Part { tag, len: body.len(), seen });
    }

    fn ready(c: &mut Conversation, status: Status) {
        c.server(Said::Ready(status));
    }

    fn in_transaction() -> Conversation {
        let mut c = Conversation::default();
        ready(&mut c, Status::Idle);
        client(&mut c, b'Q', b"BEGIN\0");
        assert_eq!(c.outcome(), Outcome::Unknown);
        ready(&mut c, Status::InTransaction);
        c
    }

    fn code(c: &Conversation) -> &'static str {
        c.goodbye("the writer moved").code
    }

    #[test]
    fn an_idle_client_is_told_to_reconnect() {
        let mut c = Conversation::default();
        assert_eq!((c.outcome(), code(&c)), (Outcome::LoggingIn, "57P01"));
        ready(&mut c, Status::Idle);
        assert_eq!((c.outcome(), code(&c)), (Outcome::Idle, "57P01"));
        let c = in_transaction();
        assert_eq!((c.outcome(), code(&c)), (Outcome::RolledBack, "57P01"));
    }

    #[test]
    fn a_statement_in_a_block_is_safe_to_retry_and_a_commit_is_not() {
        let mut c = in_transaction();
        client(&mut c, b'Q', b"INSERT INTO committed_things VALUES ('pending')\0");
        assert_eq!((c.outcome(), code(&c)), (Outcome::RolledBack, "40001"));
        ready(&mut c, Status::InTransaction);
        for ender in [
            "COMMIT",
            "/**/end;",
            "insert into t values (1);Commit",
            "rollback; insert into t",
            "PREPARE TRANSACTION 'x'",
        ] {
            let mut c = in_transaction();
            client(&mut c, b'Q', format!("{ender}\0").as_bytes());
            assert_eq!((c.outcome(), code(&c)), (Outcome::Unknown, "08007"), "{ender}");
            ready(&mut c, Status::Idle);
            assert_eq!(c.outcome(), Outcome::Idle);
        }
        let mut c = in_transaction();
        client(&mut c, b'Q', &[b' '; limits::QUERY_SEEN + 1]);
        assert_eq!(c.outcome(), Outcome::Unknown, "the end of the query was not seen");
    }

    #[test]
    fn prepared_commits_are_known_by_name() {
        let mut c = in_transaction();
        client(&mut c, b'P', b"c1\0COMMIT\0\0\0");
        client(&mut c, b'P', b"s1\0SELECT 1\0\0\0");
        client(&mut c, b'S', b"");
        ready(&mut c, Status::InTransaction);
        client(&mut c, b'B', b"\0s1\0\0\0\0\0\0\0");
        client(&mut c, b'E', b"\0\0\0\0\0");
        assert_eq!(c.outcome(), Outcome::RolledBack);
        client(&mut c, b'S', b"");
        assert_eq!(code(&c), "40001");
        ready(&mut c, Status::InTransaction);
        client(&mut c, b'B', b"\0c1\0\0\0\0\0\0\0");
        client(&mut c, b'E', b"\0\0\0\0\0");
        assert_eq!(c.outcome(), Outcome::Unknown);
    }

    #[test]
    fn pipelined_answers_are_counted() {
        let mut c = Conversation::default();
        ready(&mut c, Status::Idle);
        for _ in 0..3 {
            client(&mut c, b'P', b"\0SELECT 1\0\0\0");
            client(&mut c, b'S', b"");
        }
        ready(&mut c, Status::Idle);
        ready(&mut c, Status::Idle);
        assert_eq!(c.outcome(), Outcome::Unknown);
        ready(&mut c, Status::Idle);
        assert_eq!(c.outcome(), Outcome::Idle);
    }

    #[test]
    fn a_copy_swallows_the_sync_before_it() {
        let mut c = Conversation::default();
        ready(&mut c, Status::Idle);
        client(&mut c, b'B', b"\0\0\0\0\0\0\0\0");
        client(&mut c, b'E', b"\0\0\0\0\0");
        client(&mut c, b'S', b"");
        c.server(Said::CopyIn);
        assert_eq!(c.outcome(), Outcome::Unknown);
        client(&mut c, b'd', b"1\n");
        client(&mut c, b'c', b"");
        client(&mut c, b'S', b"");
        assert_eq!(c.outcome(), Outcome::Unknown);
        ready(&mut c, Status::Idle);
        assert_eq!(c.outcome(), Outcome::Idle);
    }
}
