//! JSON messages on a stream: a length in four bytes (big-endian), then that many bytes of JSON.
//!
//! Not cancel-safe: a future dropped half-way leaves the stream between two messages' bytes.

use std::io::ErrorKind;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Error, limits};

/// Reads one message of at most `max` bytes. `Error::Ended` when there is none any more.
pub async fn read_json<T, S>(stream: &mut S, max: usize) -> Result<T, Error>
where
    T: DeserializeOwned,
    S: AsyncRead + Unpin,
{
    let mut length = [0; 4];
    let first = stream.read(&mut length).await.or_else(|e| match e.kind() {
        // A killed process says no goodbye; between messages that is an end like any other.
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Ok(0),
        _ => Err(Error::Stream(e)),
    })?;
    if first == 0 {
        return Err(Error::Ended);
    }
    stream.read_exact(&mut length[first..]).await.map_err(Error::Stream)?;
    let bytes = u64::from(u32::from_be_bytes(length));
    if bytes > max as u64 {
        return Err(Error::TooLong { bytes, max });
    }
    let mut body = Vec::with_capacity(bytes.min(limits::FRAME_CHUNK_BYTES) as usize);
    stream.take(bytes).read_to_end(&mut body).await.map_err(Error::Stream)?;
    if (body.len() as u64) < bytes {
        return Err(Error::Stream(ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&body).map_err(Error::BadMessage)
}

/// Writes one message of at most `max` bytes and flushes it.
pub async fn write_json<T, S>(stream: &mut S, message: &T, max: usize) -> Result<(), Error>
where
    T: Serialize + ?Sized,
    S: AsyncWrite + Unpin,
{
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(Error::BadMessage)?;
    let bytes = frame.len() as u64 - 4;
    let length = u32::try_from(bytes).ok().filter(|&n| n as usize <= max);
    let length = length.ok_or(Error::TooLong { bytes, max })?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await.map_err(Error::Stream)?;
    stream.flush().await.map_err(Error::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_read_back_until_the_end() {
        let (mut a, mut b) = tokio::io::duplex(8);
        let writer = tokio::spawn(async move {
            write_json(&mut a, &["x".repeat(100)], 200).await.unwrap();
            write_json(&mut a, &7, 1).await.unwrap();
            let err = write_json(&mut a, "long", 5).await.unwrap_err();
            assert!(matches!(err, Error::TooLong { bytes: 6, max: 5 }), "{err}");
        });
        let first: Vec<String> = read_json(&mut b, 200).await.unwrap();
        assert_eq!(first[0].len(), 100);
        assert_eq!(read_json::<u8, _>(&mut b, 200).await.unwrap(), 7);
        let end = read_json::<u8, _>(&mut b, 200).await.unwrap_err();
        assert!(matches!(end, Error::Ended), "{end}");
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn too_long_cut_and_senseless_messages_are_told_apart() {
        let read = |bytes: &'static [u8]| async move {
            read_json::<u8, _>(&mut &bytes[..], 10).await.unwrap_err()
        };
        assert!(matches!(read(b"\xff\xff\xff\xff").await, Error::TooLong { .. }));
        assert!(matches!(read(b"\0\0\0\x051").await, Error::Stream(_)));
        assert!(matches!(read(b"\0\0").await, Error::Stream(_)));
        assert!(matches!(read(b"\0\0\0\x02ab").await, Error::BadMessage(_)));
    }
}
