//! Who may come in: rules of the cluster document, with the clarity of `pg_hba.conf`.
//!
//! The first rule that matches decides. With no rule at all everybody comes in with a password;
//! with rules that do not match nobody does. What is written ([`AccessRule`]) is checked and made
//! into what decides ([`AccessRules`]); the latter cannot be had from rules that are wrong.

use std::fmt;

// Addresses without the sockets of `std::net`.
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::document::Invalid;
use crate::gateway::{Gateway, Tls};
use crate::limits;

mod pattern;

pub use pattern::{Address, is_everything, name_matches};
pub(crate) use pattern::{check_patterns, everything, patterns_match};

/// One rule, as written. Changes live, for connections made from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Names of databases; a `*` at the end stands for any ending. Default: all.
    #[serde(default = "everything", skip_serializing_if = "is_everything")]
    pub database: Vec<String>,
    /// Names of roles; a `*` at the end stands for any ending. Default: all.
    #[serde(default = "everything", skip_serializing_if = "is_everything")]
    pub role: Vec<String>,
    /// Where clients come from: networks (`10.0.0.0/8`, `fd00::/8`), single addresses, `local` for
    /// loopback addresses and Unix sockets, `*` for everywhere. Default: everywhere.
    #[serde(default = "everything", skip_serializing_if = "is_everything")]
    pub address: Vec<String>,
    /// What the connection must be to match. Default: anything.
    #[serde(default)]
    pub tls: TlsNeed,
    /// What happens to a connection that matches.
    pub action: Action,
    /// Why the rule is there. Given in the log, never to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// What a connection must be for a rule to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsNeed {
    /// Encrypted or not.
    #[default]
    Any,
    /// Encrypted.
    Required,
    /// Encrypted, with a verified client certificate whose common name is the role's name.
    Certificate,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// In with the role's password.
    Password,
    /// In with a verified client certificate whose common name is the role's name, without a
    /// password; out without such a certificate.
    Certificate,
    /// In as any role, on the client's word. Only for `local` and loopback addresses, or together
    /// with `tls = "certificate"`.
    Trust,
    /// Out.
    Reject,
}

/// Somebody at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking<'a> {
    /// Database asked for; PostgreSQL takes the role's name when the client names none.
    pub database: &'a str,
    /// Whether a physical replication connection is asked for: to all databases, and to none. Only
    /// rules match it that name the database `replication` in full.
    pub physical: bool,
    /// Role asked for.
    pub role: &'a str,
    /// Where the client is; a loopback address for a Unix socket.
    pub address: IpAddr,
    /// What is known of the encryption; `None` without it.
    pub tls: Option<TlsFacts<'a>>,
}

/// An encrypted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TlsFacts<'a> {
    /// Common name of the client's certificate, when it has one that was **verified**.
    pub client_cn: Option<&'a str>,
}

/// What to do with somebody at the door, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// The rule that decided, counted from zero; `None` when no rule matched or none is needed.
    pub rule: Option<usize>,
    /// One sentence for the log.
    pub because: String,
}

/// What to do with somebody at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ask for the role's password.
    Password,
    /// Let in: the certificate has proved the role.
    Certificate,
    /// Let in on the client's word.
    Trust,
    /// Send away, with these words.
    Reject(Rejection),
}

/// What a client that is sent away is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// SQLSTATE.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What a person should do.
    pub hint: &'static str,
}

/// The rules in force, checked and ready to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRules {
    rules: Vec<(AccessRule, Vec<Address>)>,
    tls: Tls,
}

/// What rules call the database of physical replication, as in `pg_hba.conf`.
const REPLICATION: &str = "replication";

const HINT_NO_RULE: &str =
    "Add a [[gateway.access]] rule to the cluster document that matches it (quorate config edit).";
const HINT_REJECTED: &str = "The [[gateway.access]] rules of the cluster document \
    decide; the gateway's log names the rule.";
const HINT_CERTIFICATE: &str =
    "Connect over TLS with a client certificate whose common name is the role's name.";
const HINT_NAME: &str = "Give the name in full as PostgreSQL knows it.";
const HINT_TLS: &str = "Connect with sslmode=require or stricter.";

impl AccessRules {
    /// Checks the rules of a document; all problems at once. Whoever gets problems lets nobody in.
    pub fn new(gateway: &Gateway) -> Result<Self, Vec<Invalid>> {
        let problems = validate(&gateway.access, gateway.tls);
        if !problems.is_empty() {
            return Err(problems);
        }
        let compile = |rule: &AccessRule| {
            let addresses = rule.address.iter().filter_map(|text| Address::parse(text).ok());
            (rule.clone(), addresses.collect())
        };
        Ok(Self { rules: gateway.access.iter().map(compile).collect(), tls: gateway.tls })
    }

    /// Decides on somebody at the door.
    pub fn decide(&self, asking: &Asking<'_>) -> Decision {
        if self.tls == Tls::Required && asking.tls.is_none() {
            let message = format!("this gateway takes encrypted connections only: {asking}");
            let because = format!("gateway.tls = \"required\" keeps out {asking}");
            return Decision::reject(None, message, HINT_TLS, because);
        }
        // PostgreSQL cuts longer names: a rule would be passed under a name it does not know.
        if asking.role.len().max(asking.database.len()) > limits::PG_NAME_MAX {
            let message = "a role or database name has more than 63 bytes".to_owned();
            let because = format!("no role or database has a name so long: {asking}");
            return Decision::reject(None, message, HINT_NAME, because);
        }
        if self.rules.is_empty() {
            let because = format!("gateway.access has no rules: {asking} needs a password");
            return Decision { verdict: Verdict::Password, rule: None, because };
        }
        match self.rules.iter().position(|rule| matches(rule, asking)) {
            Some(at) => apply(at, &self.rules[at].0, asking),
            None => self.no_rule(asking),
        }
    }

    fn no_rule(&self, asking: &Asking<'_>) -> Decision {
        let message = format!("no gateway.access rule for {asking}");
        let because = match self.near_miss(asking) {
            Some((at, need)) => {
                format!(
                    "no rule of gateway.access matches {asking}; gateway.access[{at}] would {need}"
                )
            }
            None => format!("no rule of gateway.access matches {asking}"),
        };
        Decision::reject(None, message, HINT_NO_RULE, because)
    }

    /// The first rule that only the encryption keeps from matching, and what it misses. For the log
    /// only: a stranger is not told what would let it in.
    fn near_miss(&self, asking: &Asking<'_>) -> Option<(usize, &'static str)> {
        let cert = Asking { tls: Some(TlsFacts { client_cn: Some(asking.role) }), ..*asking };
        let at = self.rules.iter().position(|rule| matches(rule, &cert))?;
        let need = match self.rules[at].0.tls {
            TlsNeed::Any | TlsNeed::Required => "over TLS",
            TlsNeed::Certificate => "with a certificate of that role",
        };
        Some((at, need))
    }
}

impl Asking<'_> {
    /// Whether a verified certificate names the role.
    fn has_certificate(&self) -> bool {
        self.tls.and_then(|tls| tls.client_cn).is_some_and(|cn| cn == self.role)
    }
}

/// In the words of PostgreSQL, for its log readers' habits; names cannot break out of their line.
impl fmt::Display for Asking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, database) = (self.role.escape_debug(), self.database.escape_debug());
        let address = self.address.to_canonical();
        let tls = if self.tls.is_some() { "SSL encryption" } else { "no encryption" };
        if self.physical {
            write!(f, "replication connection from ")?;
        }
        write!(f, "host \"{address}\", user \"{role}\", database \"{database}\", {tls}")
    }
}

impl Decision {
    fn reject(rule: Option<usize>, message: String, hint: &'static str, because: String) -> Self {
        let rejection = Rejection { code: "28000", message, hint };
        Self { verdict: Verdict::Reject(rejection), rule, because }
    }
}

fn matches((rule, addresses): &(AccessRule, Vec<Address>), asking: &Asking<'_>) -> bool {
    let tls = match rule.tls {
        TlsNeed::Any => true,
        TlsNeed::Required => asking.tls.is_some(),
        TlsNeed::Certificate => asking.has_certificate(),
    };
    let database = match asking.physical {
        true => rule.database.iter().any(|name| name == REPLICATION),
        false => patterns_match(&rule.database, asking.database),
    };
    tls && database
        && patterns_match(&rule.role, asking.role)
        && addresses.iter().any(|address| address.contains(asking.address))
}

/// What the rule at this place does to somebody it matches.
fn apply(at: usize, rule: &AccessRule, asking: &Asking<'_>) -> Decision {
    let why = rule.because.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
    let sentence = |what: &str| format!("gateway.access[{at}] {what} {asking}{why}");
    let (verdict, because) = match rule.action {
        Action::Password => (Verdict::Password, sentence("asks for a password of")),
        Action::Trust => (Verdict::Trust, sentence("trusts")),
        Action::Certificate if asking.has_certificate() => {
            (Verdict::Certificate, sentence("takes the certificate of"))
        }
        Action::Certificate => {
            let message = format!("certificate authentication failed for user \"{}\"", asking.role);
            let because = sentence("finds no verified certificate of that role with");
            return Decision::reject(Some(at), message, HINT_CERTIFICATE, because);
        }
        Action::Reject => {
            let message = format!("gateway.access rejects connection for {asking}");
            return Decision::reject(Some(at), message, HINT_REJECTED, sentence("rejects"));
        }
    };
    Decision { verdict, rule: Some(at), because }
}

/// All that is wrong with the rules.
pub(crate) fn validate(rules: &[AccessRule], tls: Tls) -> Vec<Invalid> {
    let mut problems = Vec::new();
    if rules.len() > limits::ACCESS_RULES_MAX {
        let max = limits::ACCESS_RULES_MAX;
        let problem = format!("{} rules are more than the {max} that are taken", rules.len());
        problems.push(Invalid { field: "gateway.access".to_owned(), problem });
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = format!("gateway.access[{at}]");
        check_patterns(&format!("{path}.database"), &rule.database, &mut problems);
        check_patterns(&format!("{path}.role"), &rule.role, &mut problems);
        let mut bad = |field: &str, problem: String| {
            problems.push(Invalid { field: format!("{path}.{field}"), problem });
        };
        let addresses: Vec<_> = rule.address.iter().map(|text| Address::parse(text)).collect();
        if addresses.is_empty() {
            bad("address", "is empty: name networks, or leave it out for everywhere".to_owned());
        }
        for problem in addresses.iter().filter_map(|address| address.as_ref().err()) {
            bad("address", problem.clone());
        }
        let needs_tls = rule.tls != TlsNeed::Any || rule.action == Action::Certificate;
        if needs_tls && tls == Tls::Off {
            bad("tls", "needs TLS, and gateway.tls is \"off\": nobody can match".to_owned());
        }
        let far = addresses.iter().flatten().any(|address| !address.is_loopback());
        if rule.action == Action::Trust && rule.tls != TlsNeed::Certificate && far {
            bad("action", TRUST_FROM_AFAR.to_owned());
        }
    }
    problems
}

/// Refused rather than warned of: the document has no place for warnings, and there is a better
/// rule for every honest use.
const TRUST_FROM_AFAR: &str = "\"trust\" lets anybody in as any role it matches: use it with \
    address = [\"local\"] or tls = \"certificate\", or use \"password\" or \"certificate\"";

#[cfg(test)]
mod tests;
