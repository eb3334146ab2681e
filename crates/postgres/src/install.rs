//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::limits::{VERSION_MAX, VERSION_MIN};

/// One installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The directory of its programs, symbolic links resolved.
    pub bin_dir: PathBuf,
    /// Major version.
    pub major: u32,
    /// Full version, as in `15.18`.
    pub version: String,
}

/// The programs that Quorate runs.
const TOOLS: [&str; 5] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"];

impl Install {
    /// The named directory's PostgreSQL, else the newest supported one of this host.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::MissingTool`], [`Error::Unsupported`].
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        if let Some(dir) = explicit {
            return Self::inspect(dir);
        }
        let mut best: Option<Self> = None;
        let mut refused = None;
        for dir in candidates() {
            match Self::inspect(&dir) {
                Ok(found) if best.as_ref().is_none_or(|b| b.major < found.major) => {
                    best = Some(found);
                }
                Ok(_) => {}
                // A half-installed or too old one matters only when there is no other.
                Err(err) => refused = refused.or(Some(err)),
            }
        }
        let looked = "/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, PATH, pg_config".to_owned();
        best.ok_or_else(|| refused.unwrap_or(Error::NotInstalled { looked }))
    }

    /// The path of one program.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    fn inspect(dir: &Path) -> Result<Self, Error> {
        let missing = |tool| Error::MissingTool { bin_dir: dir.to_owned(), tool };
        // Debian and container images put links into PATH directories: follow them home.
        let postgres = dir.join("postgres").canonicalize().map_err(|_| missing("postgres"))?;
        let bin_dir = match postgres.parent() {
            Some(home) if home.join("initdb").exists() => home.to_owned(),
            _ => dir.to_owned(),
        };
        if let Some(tool) = TOOLS.into_iter().find(|tool| !bin_dir.join(tool).exists()) {
            return Err(Error::MissingTool { bin_dir, tool });
        }
        let out = Command::new(bin_dir.join("postgres"))
            .arg("--version")
            .output()
            .map_err(Error::io("run", &postgres))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let (major, version) = parse_version(&text).ok_or_else(|| Error::Unreadable {
            what: "the version of postgres",
            value: text.trim().to_owned(),
        })?;
        if !(VERSION_MIN..=VERSION_MAX).contains(&major) {
            return Err(Error::Unsupported { bin_dir, version });
        }
        Ok(Self { bin_dir, major, version })
    }
}

/// Directories that may hold the programs, best guess first; without repetition.
fn candidates() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let versions = |root: &str, prefix: &str| -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
        let named = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(prefix);
        entries.flatten().filter(named).map(|e| e.path().join("bin")).collect()
    };
    dirs.extend(versions("/usr/lib/postgresql", ""));
    dirs.extend(versions("/usr", "pgsql-"));
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    if let Ok(out) = Command::new("pg_config").arg("--bindir").output() {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    }
    dirs.retain(|dir| dir.join("postgres").exists());
    dirs.sort_unstable();
    dirs.dedup();
    dirs
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` → (15, "15.18"); betas read `18beta1`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some((15, "15.18".to_owned())));
        let beta = "postgres (PostgreSQL) 18beta1";
        assert_eq!(parse_version(beta), Some((18, "18beta1".to_owned())));
        assert_eq!(parse_version("mysqld 8"), None);
    }

    /// Programs made of shell scripts, to stand for versions that are not installed.
    fn fake(dir: &Path, version: &str, tools: &[&str]) {
        use std::os::unix::fs::PermissionsExt;
        for tool in tools {
            let path = dir.join(tool);
            std::fs::write(&path, format!("#!/bin/sh\necho '{tool} (PostgreSQL) {version}'\n"))
                .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn other_versions_and_missing_programs_are_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "14.2", &TOOLS[..3]);
        let err = Install::find(Some(dir.path())).unwrap_err();
        assert!(err.to_string().contains("pg_rewind"), "{err}");
        assert!(err.hint().contains("postgresql-15"));
        fake(dir.path(), "14.2", &TOOLS);
        let err = Install::find(Some(dir.path())).unwrap_err();
        assert!(err.to_string().contains("versions 15 to 18"), "{err}");
        assert!(Install::find(Some(Path::new("/nonexistent"))).is_err());
    }

    #[test]
    fn links_lead_to_the_real_directory() {
        let found = Install::find(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("postgres");
        std::os::unix::fs::symlink(found.tool("postgres"), link).unwrap();
        assert_eq!(Install::find(Some(dir.path())).unwrap(), found);
    }
}
