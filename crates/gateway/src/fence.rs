//! The fence before what the server on this host says (R12). What a server behind another node says
//! passes the fence there.

use std::sync::Arc;

use quorate_core::Term;

use crate::gate::{Clock, Gate, Verdict};
use crate::world::{Alive, Local};

/// The fence before one connection to the server, from the moment at which that was opened.
#[derive(Clone)]
pub(crate) struct Fence {
    pub(crate) gate: Arc<Gate>,
    pub(crate) term: Term,
    clock: Clock,
    /// For a writer.
    alive: Option<Alive>,
}

impl Fence {
    /// Before the server as the writer, or as a standby; `None` while it serves nobody as that.
    pub(crate) fn before(local: &Local, replica: bool) -> Option<Self> {
        let gate = Arc::clone(if replica { &local.reads } else { &local.gate });
        let term = gate.term()?;
        // A standby has no commits of its own that wait.
        let alive = local.alive.clone().filter(|_| !replica);
        #[cfg(feature = "sabotage")]
        let alive = alive.filter(|_| !crate::sabotage::is("lifeline"));
        Some(Self { gate, term, clock: local.clock, alive })
    }

    /// Whether what PostgreSQL just produced may leave.
    pub(crate) fn check(&self) -> Verdict {
        match self.gate.check(self.term, (self.clock)()) {
            Verdict::Pass if !self.lives() => Verdict::Cut,
            verdict => verdict,
        }
    }

    /// The same, once the gate does not hold it any more.
    pub(crate) async fn passed(&self) -> bool {
        self.gate.passed(self.term, self.clock).await && self.lives()
    }

    /// When a postmaster has died, commits that wait for copies become visible to backends that still
    /// live: nothing of theirs may leave.
    fn lives(&self) -> bool {
        self.alive.as_ref().is_none_or(|alive| alive())
    }
}
