//! What happened, a line for each thing, for people.

use crate::world::{At, SECOND};

/// Collects lines, or nothing when nobody will read them.
#[derive(Debug, Default)]
pub struct Trace(Option<Vec<String>>);

impl Trace {
    /// A trace that keeps its lines.
    pub fn kept() -> Self {
        Self(Some(Vec::new()))
    }

    pub(crate) fn on(&self) -> bool {
        self.0.is_some()
    }

    /// Something about one node.
    pub(crate) fn say(&mut self, now: At, node: usize, what: &str) {
        if let Some(lines) = &mut self.0 {
            lines.push(format!("{}  n{}  {what}", time(now), node + 1));
        }
    }

    /// Something about all.
    pub(crate) fn note(&mut self, now: At, what: &str) {
        if let Some(lines) = &mut self.0 {
            lines.push(format!("{}  --  {what}", time(now)));
        }
    }

    /// The lines so far.
    pub fn lines(self) -> Vec<String> {
        self.0.unwrap_or_default()
    }
}

fn time(now: At) -> String {
    format!("{:4}.{:06}", now / SECOND, now % SECOND / 1000)
}
