//! Where sessions lead to, and the way there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

/// Where a session leads to.
#[derive(Debug, Clone)]
pub enum Address {
    /// A gateway.
    Tcp(SocketAddr),
    /// The directory of a server's private socket.
    Socket(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

impl From<&Path> for Address {
    fn from(dir: &Path) -> Self {
        Address::Socket(dir.to_owned())
    }
}

/// Bytes in both directions.
pub(super) trait Duplex: Read + Write + Send {
    /// How long a read waits for bytes.
    fn limit(&self, limit: Duration) -> std::io::Result<()>;
}

impl Duplex for TcpStream {
    fn limit(&self, limit: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Duplex for UnixStream {
    fn limit(&self, limit: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// Connects.
pub(super) fn connect(address: &Address) -> Result<Box<dyn Duplex>> {
    Ok(match address {
        Address::Socket(dir) => Box::new(UnixStream::connect(dir.join(".s.PGSQL.5432"))?),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}
