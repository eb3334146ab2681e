//! Writing files so that a crash leaves the old or the new content, never half of it.
//!
//! We may be root, in directories that belong to the server's user: no link in the last component
//! of a path is ever followed here, and only what we have just made changes its owner.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{Error, User};

/// Replaces a file when its content differs: temporary file, fsync, rename. Returns whether it
/// wrote. The directory entry is made durable by [`sync_dir`], once for many files.
pub(crate) fn replace(path: &Path, content: &[u8], owner: Option<&User>) -> Result<bool, Error> {
    if read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    make(path, owner, |file| file.write_all(content))?;
    Ok(true)
}

/// Makes a file, or puts another in its place, with what `fill` writes.
pub(crate) fn make(
    path: &Path,
    owner: Option<&User>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Error> {
    let tmp = with_suffix(path, ".quorate-tmp");
    remove(&tmp)?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        if let Some(user) = owner {
            std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&tmp, path)
    };
    write().map_err(Error::io("write", path))
}

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// A file or directory name with something appended.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The content of a file that is not a link.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    let mut content = Vec::new();
    OpenOptions::new().read(true).custom_flags(nofollow).open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a file to write to; a new one is given to `owner`. `flags` are those of `open(2)`.
pub(crate) fn open_or_make(
    path: &Path,
    options: &mut OpenOptions,
    flags: OFlags,
    owner: Option<&User>,
) -> io::Result<File> {
    options.custom_flags((flags | OFlags::NOFOLLOW).bits().cast_signed());
    match options.open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let file = options.create_new(true).mode(0o600).open(path)?;
            if let Some(user) = owner {
                std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
            }
            Ok(file)
        }
        result => result,
    }
}

/// Makes a directory for the server's user alone (mode 0700), or takes one that exists.
pub(crate) fn private_dir(dir: &Path, owner: Option<&User>) -> Result<(), Error> {
    let make = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
        opened.set_permissions(fs::Permissions::from_mode(0o700))?;
        match owner {
            Some(user) => std::os::unix::fs::fchown(&opened, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    };
    make().map_err(Error::io("make", dir))
}

/// Removes a file; one that is not there is fine. Returns whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(Error::io("remove", path)(err)),
    }
}

/// Removes a directory with all in it; one that is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(err)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, link) = (dir.path().join("precious"), dir.path().join("link"));
        fs::write(&precious, "secret").unwrap();
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("file.quorate-tmp")).unwrap();
        assert!(read(&link).is_err());
        assert!(replace(&dir.path().join("file"), b"new", None).unwrap());
        let mut append = OpenOptions::new();
        assert!(open_or_make(&link, append.append(true), OFlags::empty(), None).is_err());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "secret");
        let (home, away) = (dir.path().join("home"), dir.path().join("away"));
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::symlink(&home, &away).unwrap();
        assert!(private_dir(&away, None).is_err());
    }
}
