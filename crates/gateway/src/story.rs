//! A transaction on a replica that may have to go on elsewhere: what it was made of.

use quorate_wire::sql::{Access, Discard, Script, Verb};

use crate::limits;

/// How a transaction block on a replica can be made again elsewhere.
#[derive(Debug, Default)]
pub(crate) enum Story {
    /// Nothing has happened.
    #[default]
    Untold,
    /// These statements are to be made again; whether something was read besides.
    Told { again: Vec<Box<[u8]>>, read: bool },
    /// It cannot be made again.
    Lost,
}

impl Story {
    /// A text is sent.
    pub(crate) fn add(&mut self, script: &Script, sql: &[u8]) {
        let verb = script.first;
        let story = std::mem::take(self);
        *self = match story {
            Story::Untold if matches!(verb, Verb::Begin(_)) && script.statements == 1 => {
                Story::Told { again: vec![sql.into()], read: false }
            }
            Story::Told { again, .. } if is_read(script) => Story::Told { again, read: true },
            Story::Told { mut again, read }
                if script.statements == 1
                    && is_repeatable(verb)
                    && again.len() < limits::STORY_MAX =>
            {
                again.push(sql.into());
                Story::Told { again, read }
            }
            _ => Story::Lost,
        };
    }
}

/// Whether a statement leaves nothing behind, be it done or not.
fn is_read(script: &Script) -> bool {
    if script.statements != 1 {
        return script.access == Access::Read
            && script.leaves.is_none()
            && !script.begins
            && !script.ends;
    }
    let reads = matches!(
        script.first,
        Verb::Select | Verb::Values | Verb::Table | Verb::With | Verb::Explain { .. }
    );
    let harmless = matches!(
        script.first,
        Verb::Show(_) | Verb::Empty | Verb::Deallocate(_) | Verb::Discard(Discard::Plans)
    );
    reads && script.access == Access::Read || harmless
}

/// Whether a statement of a transaction does the same again.
fn is_repeatable(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Begin(_)
            | Verb::Savepoint
            | Verb::RollbackTo
            | Verb::Release
            | Verb::Set(_)
            | Verb::Reset(_)
            | Verb::SetTransaction(_)
            | Verb::SetConstraints
    )
}
