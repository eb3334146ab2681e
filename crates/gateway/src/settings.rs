//! Settings that a client made in its session, so that they follow it from server to server.
//!
//! A set of settings is immutable and shared: most clients of an application have the same, and a
//! server that has them already is known by a pointer.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{BufMut, BytesMut};

/// A name, or a value, in the client's encoding.
type Text = Box<[u8]>;

/// Settings by lower-case name, with their values as `current_setting` gives them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<Text, Text>, u64);

/// A setting whose value depends on the others being made under the login role.
const ROLE: &[u8] = b"role";

impl Settings {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(|value| &value[..])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// The same settings with some of them changed; `None` is a setting that is back at its default.
    pub(crate) fn with<'a>(
        self: &Rc<Self>,
        changes: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Rc<Self> {
        let mut next: Option<BTreeMap<Text, Text>> = None;
        for (name, value) in changes {
            if next.as_ref().unwrap_or(&self.0).get(name).map(|v| &v[..]) == value {
                continue;
            }
            let next = next.get_or_insert_with(|| self.0.clone());
            match value {
                Some(value) => drop(next.insert(name.into(), value.into())),
                None => drop(next.remove(name)),
            }
        }
        next.map_or_else(|| Rc::clone(self), |next| Rc::new(Self::of(next)))
    }

    fn of(settings: BTreeMap<Text, Text>) -> Self {
        // What an application calls itself changes nothing else.
        let of = settings.iter().filter(|(name, _)| name[..] != *b"application_name");
        let bytes = of.flat_map(|(n, v)| n.iter().chain(&[0]).chain(&v[..]).chain(&[0]));
        let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        let mark = bytes.fold(0, step);
        Self(settings, mark)
    }

    /// Tells settings apart that may give a text another meaning.
    pub(crate) fn mark(&self) -> u64 {
        self.1
    }

    /// The statement that turns a session with settings `have` into one with settings `want`, as
    /// text of a simple query; `None` when nothing is to be done.
    pub(crate) fn change(have: &Rc<Self>, want: &Rc<Self>) -> Option<BytesMut> {
        if Rc::ptr_eq(have, want) || have == want {
            return None;
        }
        let mut sql = BytesMut::new();
        // Other settings may be such that only the login role may make them.
        if have.get(ROLE).is_some() {
            sql.put_slice(b"RESET ROLE;");
        }
        for (name, _) in have.iter().filter(|(n, _)| *n != ROLE && want.get(n).is_none()) {
            sql.put_slice(b"RESET ");
            put_name(&mut sql, name);
            sql.put_u8(b';');
        }
        let role = want.get(ROLE).map(|value| (ROLE, value));
        let others = want.iter().filter(|(n, v)| *n != ROLE && have.get(n) != Some(*v));
        for (name, value) in others.chain(role) {
            sql.put_slice(b"SELECT pg_catalog.set_config(");
            put_literal(&mut sql, name);
            sql.put_u8(b',');
            put_literal(&mut sql, value);
            sql.put_slice(b",false);");
        }
        Some(sql)
    }
}

/// A name as SQL, its parts quoted: `app.user` becomes `"app"."user"`.
fn put_name(sql: &mut BytesMut, name: &[u8]) {
    for (i, part) in name.split(|b| *b == b'.').enumerate() {
        if i > 0 {
            sql.put_u8(b'.');
        }
        put_identifier(sql, part);
    }
}

/// An identifier in double quotes.
pub(crate) fn put_identifier(sql: &mut BytesMut, name: &[u8]) {
    sql.put_u8(b'"');
    for &b in name {
        if b == b'"' {
            sql.put_u8(b'"');
        }
        sql.put_u8(b);
    }
    sql.put_u8(b'"');
}

/// A string constant that means the same whatever `standard_conforming_strings` says.
pub(crate) fn put_literal(sql: &mut BytesMut, text: &[u8]) {
    let escaped = text.contains(&b'\\');
    sql.put_slice(if escaped { b" E'" } else { b"'" });
    for &b in text {
        match b {
            b'\'' => sql.put_slice(b"''"),
            b'\\' => sql.put_slice(b"\\\\"),
            _ => sql.put_u8(b),
        }
    }
    sql.put_u8(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Rc<Settings> {
        let own = |s: &str| Box::from(s.as_bytes());
        Rc::new(Settings::of(pairs.iter().map(|(n, v)| (own(n), own(v))).collect()))
    }

    fn change(have: &Rc<Settings>, want: &Rc<Settings>) -> Option<String> {
        Settings::change(have, want).map(|sql| String::from_utf8(sql.to_vec()).unwrap())
    }

    #[test]
    fn a_change_is_what_differs() {
        let none = settings(&[]);
        let a = settings(&[("app.user", "o'neill"), ("work_mem", "4MB")]);
        assert_eq!(change(&none, &none), None);
        assert_eq!(change(&a, &settings(&[("app.user", "o'neill"), ("work_mem", "4MB")])), None);
        assert_eq!(
            change(&none, &a).unwrap(),
            "SELECT pg_catalog.set_config('app.user','o''neill',false);\
             SELECT pg_catalog.set_config('work_mem','4MB',false);"
        );
        let b = settings(&[("work_mem", "8MB")]);
        assert_eq!(
            change(&a, &b).unwrap(),
            "RESET \"app\".\"user\";SELECT pg_catalog.set_config('work_mem','8MB',false);"
        );
    }

    #[test]
    fn a_role_is_left_first_and_taken_last() {
        let a = settings(&[("role", "clerk"), ("zero", "1")]);
        let b = settings(&[("role", "boss"), ("zero", "2")]);
        assert_eq!(
            change(&a, &b).unwrap(),
            "RESET ROLE;SELECT pg_catalog.set_config('zero','2',false);\
             SELECT pg_catalog.set_config('role','boss',false);"
        );
        // The role is made again although it is the same: it was left.
        let c = settings(&[("role", "clerk")]);
        assert!(change(&a, &c).unwrap().ends_with("set_config('role','clerk',false);"));
    }

    #[test]
    fn equal_settings_stay_shared() {
        let a = settings(&[("x", "1")]);
        assert!(Rc::ptr_eq(&a, &a.with([(&b"x"[..], Some(&b"1"[..])), (b"y", None)])));
        let b = a.with([(&b"x"[..], None)]);
        assert_eq!(*b, Settings::default());
    }

    #[test]
    fn backslashes_are_escaped() {
        let mut sql = BytesMut::new();
        put_literal(&mut sql, b"a\\'b");
        assert_eq!(&sql[..], b" E'a\\\\''b'");
    }
}
