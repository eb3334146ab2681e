//! A test as a story: a sentence of intent, then steps with their times.

use std::fmt::Display;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::limits::CLUSTERS_AT_ONCE;

static FREE: Mutex<usize> = Mutex::new(CLUSTERS_AT_ONCE);
static FREED: Condvar = Condvar::new();

/// A running scenario. While it lives it occupies one of the places for clusters.
#[derive(Debug)]
pub struct Scenario {
    begun: Instant,
}

impl Scenario {
    /// Waits for a place, and prints what the test wants to show.
    pub fn new(intent: &str) -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREED.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        eprintln!("scenario: {intent}");
        Self { begun: Instant::now() }
    }

    /// Prints a step.
    pub fn step(&self, what: impl Display) {
        eprintln!("{:8.3} {what}", self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREED.notify_one();
    }
}
