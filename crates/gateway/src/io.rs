//! One end of a conversation: a socket of any kind, and bytes on their way.

use std::cell::Cell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::limits;
use crate::stream::BoxStream;

/// A socket. An enum and not a trait object: most of the work of this crate happens through it.
pub(crate) enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<Rewound>>),
    Unix(UnixStream),
    /// A stream through another node, or a pipe of a test.
    Far(BoxStream),
}

/// Runs the same call on whichever socket it is.
macro_rules! each {
    ($io:expr, $socket:ident => $call:expr) => {
        match $io {
            Io::Tcp($socket) => $call,
            Io::Tls($socket) => $call,
            Io::Unix($socket) => $call,
            Io::Far($socket) => $call,
        }
    };
}

impl Io {
    /// Reads what is there into `into`: the number of bytes, 0 at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(into);
        ready!(each!(self, s => Pin::new(s).poll_read(cx, &mut buf)))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Writes what fits.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, bytes))
    }

    /// Sees that what was written leaves.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(_) | Io::Unix(_) => Poll::Ready(Ok(())),
            Io::Tls(s) => Pin::new(s).poll_flush(cx),
            Io::Far(s) => Pin::new(s).poll_flush(cx),
        }
    }

    /// Whether what is written may stay here until it is flushed.
    fn keeps_back(&self) -> bool {
        matches!(self, Io::Tls(_) | Io::Far(_))
    }

    /// Says that no more will be written.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }

    /// Whether the other side said anything, or left, that nobody has read. Costs no system call for
    /// a socket of this host.
    pub(crate) fn is_disturbed(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self {
            Io::Tcp(s) => s.poll_read_ready(&mut cx).is_ready(),
            Io::Unix(s) => s.poll_read_ready(&mut cx).is_ready(),
            Io::Tls(_) | Io::Far(_) => false,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Io::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Io::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Io::poll_shutdown(self.get_mut(), cx)
    }
}

/// A socket of which some bytes were read too early: they are read again first.
pub(crate) struct Rewound {
    early: BytesMut,
    tcp: TcpStream,
}

impl Rewound {
    pub(crate) fn new(early: BytesMut, tcp: TcpStream) -> Self {
        Self { early, tcp }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let n = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..n]);
            self.early.advance(n);
            if self.early.is_empty() {
                self.early = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// A socket with the bytes that could not be handled or sent yet. Holds little memory while idle.
pub(crate) struct End {
    pub(crate) io: Io,
    /// Read and not yet understood: the beginning of a message or of a group of messages.
    pub(crate) stash: BytesMut,
    /// To be written.
    pub(crate) out: BytesMut,
    /// Something was written since the last flush, and may not have left.
    dirty: bool,
}

impl End {
    pub(crate) fn new(io: Io) -> Self {
        Self { io, stash: BytesMut::new(), out: BytesMut::new(), dirty: false }
    }

    /// Sends `bytes` after what is already waiting; what does not fit waits.
    pub(crate) fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if self.out.is_empty() {
            self.dirty |= self.io.keeps_back();
            while !bytes.is_empty() {
                match self.io.poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what waits. Ready when nothing waits any more.
    #[inline]
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() && !self.dirty {
            return Poll::Ready(Ok(()));
        }
        self.poll_drain_out(cx)
    }

    fn poll_drain_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.dirty |= self.io.keeps_back();
        while !self.out.is_empty() {
            let n = ready!(self.io.poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            consume(&mut self.out, n);
        }
        if self.out.capacity() > limits::KEPT_BYTES {
            self.out = BytesMut::new();
        }
        if self.dirty {
            ready!(self.io.poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends everything.
    pub(crate) async fn drain(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_drain(cx)).await
    }

    /// Reads more behind what is stashed; the number of bytes, 0 at the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = Scratch::take();
        let n = ready!(self.io.poll_read(cx, &mut scratch))?;
        self.stash.extend_from_slice(&scratch[..n]);
        Poll::Ready(Ok(n))
    }

    /// Reads more behind what is stashed.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Gives memory back that an empty stash holds, if it is worth it.
    pub(crate) fn slim(&mut self) {
        if self.stash.is_empty() && self.stash.capacity() > limits::KEPT_STASH {
            self.stash = BytesMut::new();
        }
    }
}

/// Takes bytes off the front. A buffer that is empty then begins at its beginning again, so that it
/// need not grow the next time.
#[inline]
pub(crate) fn consume(buffer: &mut BytesMut, n: usize) {
    if n >= buffer.len() {
        buffer.clear();
    } else {
        buffer.advance(n);
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A buffer to read into, one for a whole thread: what is read is handled before the next read, so
/// that connections need none of their own.
pub(crate) struct Scratch(Option<Box<[u8]>>);

impl Scratch {
    /// Takes the thread's buffer until dropped.
    pub(crate) fn take() -> Self {
        let taken = SCRATCH.with(Cell::take);
        Self(Some(taken.unwrap_or_else(|| vec![0; limits::SCRATCH].into_boxed_slice())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.with(|cell| cell.set(self.0.take()));
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}
