//! Byte streams whose kind does not matter: sockets, TLS, tunnels, pipes in memory.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A two-way byte stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// A future of any kind, so that traits with async methods can be objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
