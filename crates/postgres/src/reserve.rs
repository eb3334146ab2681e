//! The room on the disk of the log, and the file that is kept there for the day on which there is
//! none.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use quorate_core::slots::Disk;
use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::files::{remove, sync_dir};
use crate::{Error, ServerOptions};

/// The room on the disk of the server's log. Waits for the disk.
///
/// # Errors
/// [`Error::Io`], also when there is no data directory yet.
pub fn room(options: &ServerOptions) -> Result<Disk, Error> {
    room_at(&wal(options))
}

/// The room on the disk of a directory.
pub(crate) fn room_at(path: &Path) -> Result<Disk, Error> {
    let found = statvfs(path).map_err(|e| Error::io("look at the disk of", path)(e.into()))?;
    // What root alone may write is no room for PostgreSQL.
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    Ok(Disk { free, total: found.f_blocks.saturating_mul(found.f_frsize) })
}

/// Bytes of the reserve; 0 when there is none.
pub fn reserved(options: &ServerOptions) -> u64 {
    fs::symlink_metadata(path(options)).map_or(0, |m| m.len())
}

/// Makes the reserve: its blocks are taken from the disk.
///
/// # Errors
/// [`Error::Io`], when there is no room for it as well; what was made of it is removed.
pub fn reserve(options: &ServerOptions, bytes: u64) -> Result<(), Error> {
    let path = path(options);
    remove(&path)?;
    make(&path, bytes).inspect_err(|_| drop(remove(&path))).map_err(Error::io("make", &path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Gives the reserve back. Returns whether there was one.
///
/// # Errors
/// [`Error::Io`].
pub fn release_reserve(options: &ServerOptions) -> Result<bool, Error> {
    remove(&path(options))
}

fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    let mut new = fs::OpenOptions::new();
    let mut file =
        new.write(true).create_new(true).mode(0o600).custom_flags(nofollow).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => {}
        // Some file systems cannot promise blocks: what is written there takes some.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let block = vec![0; 64 * 1024];
            let mut left = bytes;
            while left > 0 {
                let n = left.min(block.len() as u64);
                file.write_all(&block[..n as usize])?;
                left -= n;
            }
        }
        Err(error) => return Err(error.into()),
    }
    file.sync_all()
}

fn wal(options: &ServerOptions) -> PathBuf {
    options.data_dir.join("pg_wal")
}

/// Beside the data directory, where no copy of it picks the file up; in the log's directory, when that
/// is on another disk.
fn path(options: &ServerOptions) -> PathBuf {
    let beside = options.data_dir.with_extension("reserve");
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    match (beside.parent().and_then(device), device(&wal(options))) {
        (Some(there), Some(log)) if there != log => wal(options).join("quorate.reserve"),
        _ => beside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Install;

    #[test]
    fn the_reserve_takes_room_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let options = ServerOptions {
            install: Install { bin_dir: "/x".into(), major: 15, version: "15.1".into() },
            data_dir: data.clone(),
            run_dir: dir.path().join("run"),
            relay_dir: dir.path().join("relay"),
            log_file: dir.path().join("log"),
            run_as: None,
        };
        assert!(room(&options).is_err(), "nothing is there yet");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        let disk = room(&options).unwrap();
        assert!(disk.free <= disk.total && disk.total > 0);
        assert_eq!(reserved(&options), 0);
        reserve(&options, 1 << 20).unwrap();
        assert_eq!(reserved(&options), 1 << 20);
        let taken = fs::metadata(dir.path().join("data.reserve")).unwrap();
        assert!(taken.blocks() * 512 >= 1 << 20, "{} blocks", taken.blocks());
        reserve(&options, 1 << 16).unwrap();
        assert_eq!(reserved(&options), 1 << 16, "of the size that was asked for last");
        assert!(release_reserve(&options).unwrap() && !release_reserve(&options).unwrap());
    }
}
