//! What is replicated: the one thing this crate needs to know of the state.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that changes only by commands, the same way on every node.
///
/// [`quorate_core::State`] is the one in production; tests replicate smaller ones.
pub trait Machine: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// A change.
    type Command: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the change did.
    type Answer: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Applies one change. Must be deterministic and quick: it runs between two messages.
    fn apply(&mut self, command: &Self::Command) -> Self::Answer;
}

impl Machine for quorate_core::State {
    type Command = quorate_core::Command;
    type Answer = quorate_core::Answer;

    fn apply(&mut self, command: &Self::Command) -> Self::Answer {
        quorate_core::State::apply(self, command)
    }
}
