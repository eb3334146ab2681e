//! Who may come in from outside.

use quorate_wire::Startup;
use quorate_wire::backend::Report;

/// Beginning of the names of Quorate's own roles. The local server lets them in without a password,
/// because the socket's peer is Quorate: an application that came in under such a name would be
/// one of us.
const RESERVED: &[u8] = b"quorate";

/// Why a login from outside is refused; `None` when PostgreSQL may judge it.
pub(crate) fn refusal(startup: &Startup) -> Option<Report> {
    // PostgreSQL takes the last value; a packet that gives several is judged by the worst.
    if startup.all("user").any(is_reserved) {
        return Some(
            Report::fatal("28000", "role names that begin with quorate cannot log in here")
                .hint("Log in as a role of your own; those roles belong to the cluster itself."),
        );
    }
    if startup.all("replication").any(|value| !is_false(value)) {
        return Some(
            Report::fatal("0A000", "replication connections are not served on this port")
                .hint("Use ordinary connections here."),
        );
    }
    None
}

/// Stricter than PostgreSQL, which takes the name as it is and cuts it after 63 bytes: neither case,
/// quotes nor blanks make a name that looks like ours pass.
fn is_reserved(user: &[u8]) -> bool {
    let skipped = user.iter().take_while(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b'\''));
    let user = &user[skipped.count()..];
    user.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// The spellings of false that PostgreSQL takes for `replication`.
fn is_false(value: &[u8]) -> bool {
    let is_prefix_of = |word: &str, least: usize| {
        value.len() >= least
            && word.as_bytes().get(..value.len()).is_some_and(|w| w.eq_ignore_ascii_case(value))
    };
    value == b"0" || is_prefix_of("false", 1) || is_prefix_of("no", 1) || is_prefix_of("off", 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(parameters: &[(&str, &str)]) -> Option<&'static str> {
        refusal(&Startup::new(parameters)).map(|r| r.code)
    }

    #[test]
    fn our_own_roles_never_pass() {
        let long = format!("quorate{}", "x".repeat(100));
        for user in [
            "quorate",
            "quorate_probe",
            "QUORATE",
            "Quorate",
            "\"quorate\"",
            " quorate",
            "'quorate",
            &long,
        ] {
            assert_eq!(code(&[("user", user)]), Some("28000"), "{user}");
            assert_eq!(code(&[("user", user), ("user", "app")]), Some("28000"), "{user}");
            assert_eq!(code(&[("user", "app"), ("user", user)]), Some("28000"), "{user}");
        }
        for user in ["app", "postgres", "quorat", "my_quorate", ""] {
            assert_eq!(code(&[("user", user), ("database", "quorate")]), None, "{user}");
        }
    }

    #[test]
    fn replication_is_refused_however_it_is_spelt() {
        for value in ["true", "database", "on", "1", "yes", "DATABASE", "", "t", "o"] {
            assert_eq!(code(&[("user", "app"), ("replication", value)]), Some("0A000"), "{value}");
        }
        for value in ["false", "off", "no", "0", "F"] {
            assert_eq!(code(&[("user", "app"), ("replication", value)]), None, "{value}");
        }
    }
}
