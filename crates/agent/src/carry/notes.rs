//! The file in which a node notes the slots that it carries. Beside the data, as it speaks of them.
//!
//! Damaged, of another cluster or not there, it says nothing: slots that it does not speak of are made
//! anew, or told as lost.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use quorate_core::slots::CarryNote;
use serde::{Deserialize, Serialize};

use crate::durable;

/// By name.
pub(super) type Notes = BTreeMap<String, CarryNote>;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    cluster: String,
    slots: Notes,
}

/// What is noted.
pub(super) fn read(path: &Path, cluster: &str) -> Notes {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Notes::new(),
        Err(e) => {
            tracing::warn!(error = %e, "what is noted of carried slots cannot be read");
            return Notes::new();
        }
    };
    match serde_json::from_slice::<Content>(&bytes) {
        Ok(content) if content.cluster == cluster => content.slots,
        Ok(_) => Notes::new(),
        Err(e) => {
            tracing::warn!(error = %e, "what is noted of carried slots is damaged");
            Notes::new()
        }
    }
}

/// Notes it: on disk when this returns.
pub(super) fn write(path: &Path, cluster: &str, slots: &Notes) -> io::Result<()> {
    let content = Content { cluster: cluster.to_owned(), slots: slots.clone() };
    durable::replace(path, &serde_json::to_vec(&content)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::Term;
    use quorate_core::slots::Origin;

    #[test]
    fn what_was_noted_is_read_by_the_same_cluster_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.carried");
        assert_eq!(read(&path, "a"), Notes::new());
        let origin =
            Origin { plugin: "pgoutput".to_owned(), database: "shop".to_owned(), two_phase: true };
        let note = CarryNote { term: Term(3), origin, ready: true };
        let notes = Notes::from([("cdc".to_owned(), note)]);
        write(&path, "a", &notes).unwrap();
        assert_eq!(read(&path, "a"), notes);
        assert_eq!(read(&path, "b"), Notes::new());
        fs::write(&path, b"{").unwrap();
        assert_eq!(read(&path, "a"), Notes::new());
    }
}
