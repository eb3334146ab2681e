//! Handing a data directory back: an ordinary server that Quorate owns nothing of.

use std::fs;

use crate::files::{remove, replace, sync_dir};
use crate::reserve::release_reserve;
use crate::{Error, ServerOptions};

/// What stands in the owned access files afterwards: the server's own user enters by its socket,
/// everybody else by password.
const ACCESS: &str = "local all postgres peer map=quorate_owner\n\
                      local all all scram-sha-256\n\
                      host all all 127.0.0.1/32 scram-sha-256\n\
                      host all all ::1/128 scram-sha-256\n";

/// Takes everything of Quorate out of a stopped server's directory but its role and schema: the
/// next start is that of an ordinary server, and no standby.
///
/// # Errors
/// [`Error::Io`].
pub fn release(options: &ServerOptions) -> Result<(), Error> {
    let dir = &options.data_dir;
    let owner = options.run_as.as_ref();
    let main = dir.join("postgresql.conf");
    let text = fs::read_to_string(&main).map_err(Error::io("read", &main))?;
    let kept: Vec<&str> = text.lines().filter(|l| l.trim() != "include 'quorate.conf'").collect();
    replace(&main, (kept.join("\n") + "\n").as_bytes(), owner)?;
    remove(&dir.join("quorate.conf"))?;
    remove(&dir.join("standby.signal"))?;
    release_reserve(options)?;
    let user = match owner {
        Some(user) => user.name.clone(),
        None => crate::User::current()?.name,
    };
    replace(&dir.join("pg_hba.conf"), ACCESS.as_bytes(), owner)?;
    let ident = format!("quorate_owner {user} postgres\n");
    replace(&dir.join("pg_ident.conf"), ident.as_bytes(), owner)?;
    sync_dir(dir)
}
