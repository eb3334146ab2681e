//! What came of the queries that a new writer must answer.

use super::{Applied, State, WallMillis};
use crate::authority::Phase;
use crate::validation::{Validated, ValidationSpec, event};

impl State {
    /// Takes the word of the present writer on a query as it is now.
    pub(super) fn validate(
        &mut self,
        at: WallMillis,
        name: &str,
        document: u64,
        ran: &Validated,
    ) -> Applied {
        let authority = &self.authority;
        let serves = authority.phase == Phase::Serving && authority.writer == Some(ran.node);
        if authority.term != ran.term || !serves {
            return Err(format!("not the word of the writer of term {}", authority.term));
        }
        let Some(now) = self.query(name, self.document_version()) else {
            return Err(format!("the document has no query {name}"));
        };
        if self.query(name, document) != Some(now) {
            return Err(format!("query {name} was changed while it ran: it is run again"));
        }
        self.validations.insert(name.to_owned(), ran.clone());
        let (kind, because) = event(name, ran);
        self.note(at, kind, because);
        Ok(())
    }

    fn query(&self, name: &str, version: u64) -> Option<&ValidationSpec> {
        let version = self.documents.iter().find(|v| v.version == version)?;
        version.document.validation.get(name)
    }

    /// Forgets what came of queries that are others now: a result says something of its own query only.
    pub(super) fn forget_validations(&mut self) {
        let version = self.document_version();
        let mut validations = std::mem::take(&mut self.validations);
        validations.retain(|name, _| {
            let now = self.query(name, version);
            now.is_some() && now == self.query(name, version - 1)
        });
        self.validations = validations;
    }
}
