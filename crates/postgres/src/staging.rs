//! A data directory in the making, beside the one that it will replace.
//!
//! ```text
//!   <data>.<kind>/quorate-in-progress    our marker: only a directory that has it is ever removed
//!   <data>.<kind>/data                   becomes <data> by one rename, when it is complete
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{private_dir, remove_tree, sync_dir, with_suffix};
use crate::limits::BEFORE_DIRS_MAX;
use crate::{Error, User};

const MARKER: &str = "quorate-in-progress";

/// One attempt. Dropping it leaves the directory; the next attempt starts over.
pub(crate) struct Staging {
    root: PathBuf,
    target: PathBuf,
    /// An earlier attempt was interrupted and removed.
    pub(crate) restarted: bool,
}

impl Staging {
    /// Starts an attempt, removing what an interrupted one left.
    pub(crate) fn begin(target: &Path, kind: &str, owner: Option<&User>) -> Result<Self, Error> {
        let root = with_suffix(target, &format!(".{kind}"));
        let restarted = root.exists();
        if restarted {
            let ours = root.join(MARKER).exists()
                || fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_none());
            if !ours {
                let reason = "is in the way and was not made by Quorate".to_owned();
                return Err(Error::Directory { path: root, reason });
            }
            // The marker goes last, so that an interrupted removal can go on.
            remove_tree(&root.join("data"))?;
            remove_tree(&root)?;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
        }
        private_dir(&root, owner)?;
        let marker = root.join(MARKER);
        fs::write(&marker, "").map_err(Error::io("write", &marker))?;
        let staging = Self { root, target: target.to_owned(), restarted };
        private_dir(&staging.path(), owner)?;
        Ok(staging)
    }

    /// Where the new directory is made.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Puts the new directory in place. An old one that is not empty moves to `<data>.before-<n>`,
    /// which is returned; removing it is the caller's decision.
    pub(crate) fn install(self) -> Result<Option<PathBuf>, Error> {
        let old = move_aside(&self.target)?;
        fs::rename(self.path(), &self.target).map_err(Error::io("rename into", &self.target))?;
        if let Some(parent) = self.target.parent() {
            sync_dir(parent)?;
        }
        remove_tree(&self.root)?;
        Ok(old)
    }
}

fn move_aside(target: &Path) -> Result<Option<PathBuf>, Error> {
    if is_empty(target)? {
        return Ok(None);
    }
    let name = |n| with_suffix(target, &format!(".before-{n}"));
    let Some(old) = (1..=BEFORE_DIRS_MAX).map(name).find(|dir| !dir.exists()) else {
        let reason = "has too many older copies beside it".to_owned();
        return Err(Error::Directory { path: target.to_owned(), reason });
    };
    fs::rename(target, &old).map_err(Error::io("move away", target))?;
    Ok(Some(old))
}

/// Whether a directory is absent or has nothing in it.
pub(crate) fn is_empty(dir: &Path) -> Result<bool, Error> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(err) => Err(Error::io("read", dir)(err)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_attempt_starts_over_and_a_foreign_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = Staging::begin(&data, "cloning", None).unwrap();
        assert!(!first.restarted);
        fs::write(first.path().join("half"), "x").unwrap();
        let second = Staging::begin(&data, "cloning", None).unwrap();
        assert!(second.restarted && is_empty(&second.path()).unwrap());
        fs::write(second.path().join("whole"), "x").unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("old"), "x").unwrap();
        let old = second.install().unwrap().unwrap();
        assert!(old.join("old").exists() && data.join("whole").exists());
        assert!(!dir.path().join("data.cloning").exists());

        let foreign = dir.path().join("data.cloning");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("precious"), "x").unwrap();
        assert!(Staging::begin(&data, "cloning", None).is_err());
        assert!(foreign.join("precious").exists());
    }
}
