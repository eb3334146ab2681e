//! Who a client is: by PostgreSQL's own verifiers, and what the access rules ask for.

use std::rc::Rc;
use std::sync::Arc;

use quorate_core::access::{Asking, TlsFacts, Verdict};
use quorate_wire::auth::{self, Refusal};
use quorate_wire::backend::Report;
use quorate_wire::frame;
use quorate_wire::scram::{Exchange, NONCE};
use quorate_wire::verifier::{ITERATIONS, Verifier};

use crate::entry::{Hello, Refused};
use crate::frontend::Shared;
use crate::worker::Worker;
use crate::world::Role;
use crate::{Error, limits};

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        refusal.report.log(refusal.because).into()
    }
}

/// Finds out that a client is who it says it is, as the rules for it want it.
pub(crate) async fn authenticate(
    worker: &Rc<Worker>,
    shared: &Arc<Shared>,
    hello: &mut Hello,
    user: &str,
    (database, physical): (&str, bool),
) -> Result<(), Refused> {
    let asking = Asking {
        database,
        physical,
        role: user,
        address: hello.address.ip(),
        tls: hello.encrypted.then_some(TlsFacts { client_cn: hello.client_cn.as_deref() }),
    };
    let decision = worker.rules().decide(&asking);
    match decision.verdict {
        Verdict::Password => {}
        Verdict::Certificate | Verdict::Trust => return exists(worker, user).await,
        Verdict::Reject(no) => {
            let report = Report::fatal(no.code, no.message).hint(no.hint);
            return Err(report.log(decision.because).into());
        }
    }
    let role = worker.role(user).await.map_err(unknown)?;
    match verifier(shared, user, role.as_ref()) {
        Verifier::Scram(keys) => {
            let binding = hello.tls.as_ref().and_then(|tls| tls.binding.clone());
            let exchange = Exchange::new(user, keys, binding);
            hello.end.out.extend_from_slice(&exchange.mechanisms());
            let first = answer(hello).await?;
            let mut nonce = [0; NONCE];
            shared.random(&mut nonce);
            let (challenged, message) = exchange.first(&first, &nonce)?;
            hello.end.out.extend_from_slice(&message);
            let last = answer(hello).await?;
            let message = challenged.last(&last)?;
            hello.end.out.extend_from_slice(&message);
        }
        Verifier::Md5(hash) => {
            let mut salt = [0; 4];
            shared.random(&mut salt);
            hello.end.out.extend_from_slice(&auth::md5_challenge(salt));
            let body = answer(hello).await?;
            auth::md5_check(user, &hash, salt, &body)?;
        }
    }
    may_log_in(user, role.as_ref())
}

fn unknown(because: String) -> Refused {
    Report::fatal("57P03", "nobody can be let in now: the roles cannot be looked up")
        .detail(because)
        .hint("Try again in a moment.")
        .into()
}

/// For clients that need no password.
async fn exists(worker: &Rc<Worker>, user: &str) -> Result<(), Refused> {
    let role = worker.role(user).await.map_err(unknown)?;
    if role.is_none() {
        return Err(Report::fatal("28000", format!("role \"{user}\" does not exist")).into());
    }
    may_log_in(user, role.as_ref())
}

fn may_log_in(user: &str, role: Option<&Role>) -> Result<(), Refused> {
    match role {
        Some(role) if role.may_log_in => Ok(()),
        _ => {
            let message = format!("role \"{user}\" is not permitted to log in");
            Err(Report::fatal("28000", message).into())
        }
    }
}

/// What the answer is checked against. Where there is nothing, something that no answer fits: who is
/// not to come in is not told why.
fn verifier(shared: &Shared, user: &str, role: Option<&Role>) -> Verifier {
    let stored = role.filter(|role| !role.expired).and_then(|role| role.password.as_deref());
    stored
        .and_then(|stored| Verifier::parse(stored).ok())
        .unwrap_or_else(|| Verifier::decoy(user, &shared.decoy, ITERATIONS))
}

/// The body of the client's next message, which must be an answer.
async fn answer(hello: &mut Hello) -> Result<bytes::Bytes, Refused> {
    const DOING: &str = "waiting for a client's password";
    let broken = |error| Refused::Broken(Error::io(DOING)(error));
    hello.end.drain().await.map_err(broken)?;
    loop {
        let taken = frame::take(&mut hello.end.stash, limits::PASSWORD_MAX);
        match taken.map_err(|e| Refused::Broken(Error::wire(DOING)(e)))? {
            Some(message) if message.tag == auth::ANSWER => return Ok(message.body),
            Some(message) => {
                let what = format!("expected a password, got message type {}", message.tag);
                return Err(Report::fatal("08P01", what).into());
            }
            None if hello.end.fill().await.map_err(broken)? == 0 => {
                // As psql does when it has to ask for the password first.
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            None => {}
        }
    }
}
