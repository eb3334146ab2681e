//! Answers that take a moment, asked for now and then only.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

/// The last answer, and when it was asked for.
#[derive(Debug)]
pub struct Memo<T>(Mutex<Option<(Instant, Option<T>)>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Mutex::const_new(None))
    }
}

impl<T: Clone> Memo<T> {
    /// The answer, which may be as old as `every`; `None`: there was none within `wait`.
    pub async fn get<F>(&self, every: Duration, wait: Duration, ask: F) -> Option<T>
    where
        F: Future<Output = Option<T>>,
    {
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < every
        {
            return answer.clone();
        }
        let answer = timeout(wait, ask).await.ok().flatten();
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_kept_for_a_while_and_a_slow_one_is_none() {
        let (long, none) = (Duration::from_secs(60), Duration::ZERO);
        let memo = Memo::default();
        assert_eq!(memo.get(long, long, async { Some(1) }).await, Some(1));
        assert_eq!(memo.get(long, long, async { Some(2) }).await, Some(1));
        assert_eq!(memo.get(none, long, async { Some(3) }).await, Some(3));
        assert_eq!(memo.get(none, none, std::future::pending()).await, None);
    }
}
