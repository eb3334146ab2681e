//! Questions to the gateway of another node, over a stream to its [`crate::Sessions`].

use tokio::io::AsyncWriteExt;

use crate::stream::Stream;
use crate::world::{Fate, Role, Transaction};
use crate::{Error, limits, opening};

/// What that node's PostgreSQL knows of a role; `None` when there is no such role.
///
/// # Errors
/// When the stream ends without an answer.
pub async fn role(mut stream: impl Stream, name: &str) -> Result<Option<Role>, Error> {
    ask(&mut stream, &opening::role(name)).await?;
    within(opening::read_role(&mut stream)).await
}

/// What became of a transaction, as that node's PostgreSQL knows; `None` when it is still running,
/// or that node is not the writer any more.
///
/// # Errors
/// When the stream ends without an answer.
pub async fn fate(
    mut stream: impl Stream,
    transaction: Transaction,
) -> Result<Option<Fate>, Error> {
    ask(&mut stream, &opening::fate(transaction)).await?;
    within(opening::read_fate(&mut stream)).await
}

pub(crate) async fn ask(stream: &mut impl Stream, frame: &[u8]) -> Result<(), Error> {
    const DOING: &str = "asking another gateway";
    stream.write_all(frame).await.map_err(Error::io(DOING))?;
    stream.flush().await.map_err(Error::io(DOING))
}

async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let doing = "waiting for an answer of another gateway";
    match tokio::time::timeout(limits::OPEN_WAIT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::TimedOut { doing }),
    }
}
