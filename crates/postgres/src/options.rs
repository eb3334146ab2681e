//! Where one server lives and as whom it runs.

use std::path::{Path, PathBuf};

use crate::install::Install;
use crate::limits::SOCKET_PATH_MAX;
use crate::{Error, PORT};

/// Everything that tells one local server from another.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The programs.
    pub install: Install,
    /// PostgreSQL's data directory. Not a mount point: clones are renamed over it.
    pub data_dir: PathBuf,
    /// Directory of the private socket. Made with mode 0700, owned by the run-as user.
    pub run_dir: PathBuf,
    /// Directory of the relay socket that the walreceiver connects to. Other code listens there.
    pub relay_dir: PathBuf,
    /// File that PostgreSQL's own log is appended to.
    pub log_file: PathBuf,
    /// The user that PostgreSQL runs as; `None` means this process's own.
    pub run_as: Option<User>,
}

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Name.
    pub name: String,
}

/// The user that runs PostgreSQL when Quorate is started as root and no other is configured.
const DEFAULT_USER: &str = "postgres";

impl User {
    /// The user that PostgreSQL must run as, `None` when it is this process's own.
    ///
    /// # Errors
    /// [`Error::RunAs`] when we are root and there is no such user or it is root too, or when we
    /// are not root and another user is configured.
    pub fn for_server(configured: Option<&str>) -> Result<Option<Self>, Error> {
        let own = rustix::process::geteuid();
        if !own.is_root() {
            let me = Self::current()?;
            return match configured {
                Some(name) if name != me.name => Err(Error::RunAs {
                    name: name.to_owned(),
                    reason: format!("Quorate runs as {}, only root can change users", me.name),
                }),
                _ => Ok(None),
            };
        }
        let name = configured.unwrap_or(DEFAULT_USER);
        let bad = |reason: &str| Error::RunAs { name: name.to_owned(), reason: reason.to_owned() };
        let user = Self::by_field(0, name).ok_or_else(|| bad("there is no such user"))?;
        if user.uid == 0 {
            return Err(bad("it is root"));
        }
        Ok(Some(user))
    }

    /// The user of this process.
    ///
    /// # Errors
    /// [`Error::RunAs`] when its user id has no name: peer authentication needs one.
    pub fn current() -> Result<Self, Error> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        Self::by_field(2, &uid).ok_or_else(|| Error::RunAs {
            name: uid,
            reason: "this user id has no entry in the user database".to_owned(),
        })
    }

    /// Looks in the file first and asks `getent` for users from a directory service.
    fn by_field(field: usize, value: &str) -> Option<Self> {
        let parse = |text: &str| {
            text.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                (fields.get(field) == Some(&value)).then_some(())?;
                Some(Self {
                    uid: fields.get(2)?.parse().ok()?,
                    gid: fields.get(3)?.parse().ok()?,
                    name: (*fields.first()?).to_owned(),
                })
            })
        };
        let file = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        parse(&file).or_else(|| {
            let out = std::process::Command::new("getent").args(["passwd", value]).output().ok()?;
            parse(&String::from_utf8_lossy(&out.stdout))
        })
    }
}

impl ServerOptions {
    /// The private socket.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.run_dir)
    }

    /// The relay socket.
    pub fn relay_socket(&self) -> PathBuf {
        socket_in(&self.relay_dir)
    }

    /// The connection string that never changes: re-pointing a standby is the relay's work.
    pub fn primary_conninfo(&self) -> String {
        crate::conf::conninfo(&self.relay_dir, "quorate")
    }

    /// Checks what can be checked without touching anything.
    ///
    /// # Errors
    /// [`Error::SocketPath`], [`Error::Directory`] for relative paths, [`Error::RunAs`].
    pub fn check(&self) -> Result<(), Error> {
        for dir in [&self.data_dir, &self.run_dir, &self.relay_dir, &self.log_file] {
            if !dir.is_absolute() || dir.to_str().is_none_or(|p| p.contains(['\n', '\r'])) {
                let reason = "must be an absolute path of plain text".to_owned();
                return Err(Error::Directory { path: dir.clone(), reason });
            }
        }
        for socket in [self.socket(), self.relay_socket()] {
            if socket.as_os_str().len() > SOCKET_PATH_MAX {
                return Err(Error::SocketPath { path: socket });
            }
        }
        if self.run_as.is_none() && rustix::process::geteuid().is_root() {
            let reason = "PostgreSQL refuses to run as root".to_owned();
            return Err(Error::RunAs { name: "root".to_owned(), reason });
        }
        Ok(())
    }
}

/// The socket that PostgreSQL makes, or looks for, in a directory.
pub(crate) fn socket_in(dir: &Path) -> PathBuf {
    dir.join(format!(".s.PGSQL.{PORT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_socket_paths_are_refused_with_advice() {
        let deep = PathBuf::from("/tmp").join("d".repeat(100));
        let options = ServerOptions {
            install: Install { bin_dir: "/x".into(), major: 15, version: "15.1".into() },
            data_dir: "/tmp/d".into(),
            run_dir: deep,
            relay_dir: "/tmp/r".into(),
            log_file: "/tmp/l".into(),
            run_as: Some(User { uid: 1, gid: 1, name: "x".into() }),
        };
        let err = options.check().unwrap_err();
        assert!(err.to_string().contains("107"), "{err}");
        assert!(err.hint().contains("shorter"));
    }

    #[test]
    fn root_must_have_somebody_else_to_run_as() {
        if rustix::process::geteuid().is_root() {
            assert!(User::for_server(Some("root")).is_err());
            assert!(User::for_server(Some("nobody-of-this-name")).is_err());
            assert_eq!(User::for_server(None).unwrap().unwrap().name, "postgres");
        } else {
            assert_eq!(User::for_server(None).unwrap(), None);
        }
    }
}
