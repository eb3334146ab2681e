//! Who may act through the web port: whoever shows the node's admin token, with each request or once
//! in a form. Looking needs nothing.
//!
//! A browser sends its cookie with whatever any page makes it send: so a request that has no more
//! than the cookie must come from a page of ours.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use quorate_core::NodeId;
use sha2::{Digest, Sha256};

use super::limits::{LOGIN_LASTS, LOGINS_MAX, WRONG_ADDRESSES_MAX, WRONG_MAX, WRONG_WITHIN};
use super::view::Viewer;
use super::web::{self, Caller};
use crate::api::Problem;
use crate::cli::cluster::random_hex;

/// What a login is remembered by: nobody who reads our memory gets in with it.
type Mark = [u8; 32];

/// Guards one node's web port.
pub struct Guard {
    token: Mark,
    me: NodeId,
    logins: Mutex<BTreeMap<Mark, Instant>>,
    wrong: Mutex<BTreeMap<IpAddr, Wrong>>,
}

/// Wrong tokens of an address.
#[derive(Debug, Clone, Copy)]
struct Wrong {
    since: Instant,
    times: u32,
}

/// What a request may do, by what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Showed the token, or is logged in and comes from a page of ours.
    Act,
    /// Showed nothing, or a login that is over.
    Look,
    /// Showed a wrong token.
    Wrong,
    /// Showed too many of them.
    TooMany,
    /// Is logged in, but is sent by a page of somebody else.
    Foreign,
}

/// Why a login did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLogin {
    /// The token is another one.
    Wrong,
    /// Too many wrong ones came from there.
    TooMany,
}

impl Guard {
    /// Guards the port of this node with this token.
    pub fn new(me: NodeId, token: &str) -> Arc<Self> {
        let token = mark(token);
        Arc::new(Self { token, me, logins: Mutex::default(), wrong: Mutex::default() })
    }

    /// The node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// What a request may do.
    pub fn pass(&self, headers: &HeaderMap, from: Option<IpAddr>, now: Instant) -> Pass {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if let Some(bearer) = bearer.and_then(|v| v.strip_prefix("Bearer ")) {
            return match self.is_token(bearer, from, now) {
                Ok(()) => Pass::Act,
                Err(NoLogin::Wrong) => Pass::Wrong,
                Err(NoLogin::TooMany) => Pass::TooMany,
            };
        }
        match self.login_of(headers) {
            Some(login) if self.is_logged_in(&login, now) => {
                if is_ours(headers) {
                    Pass::Act
                } else {
                    Pass::Foreign
                }
            }
            Some(_) | None => Pass::Look,
        }
    }

    /// Whether somebody who only looks could act: for what the page offers.
    pub fn viewer(&self, headers: &HeaderMap, now: Instant) -> Viewer {
        let logged_in = self.login_of(headers).is_some_and(|l| self.is_logged_in(&l, now));
        if logged_in { Viewer::Operator } else { Viewer::Reader }
    }

    /// Logs in; returns the cookie.
    ///
    /// # Errors
    /// Why not.
    pub fn log_in(
        &self,
        token: &str,
        from: Option<IpAddr>,
        secret: bool,
        now: Instant,
    ) -> Result<String, NoLogin> {
        self.is_token(token.trim(), from, now)?;
        let Ok(login) = random_hex(16) else { return Err(NoLogin::TooMany) };
        let mut logins = lock(&self.logins);
        logins.retain(|_, until| *until > now);
        if logins.len() >= LOGINS_MAX {
            let oldest = logins.iter().min_by_key(|(_, until)| **until).map(|(m, _)| *m);
            oldest.and_then(|oldest| logins.remove(&oldest));
        }
        logins.insert(mark(&login), now + LOGIN_LASTS);
        Ok(self.cookie(&login, LOGIN_LASTS.as_secs(), secret))
    }

    /// Logs out; returns the cookie that says so.
    pub fn log_out(&self, headers: &HeaderMap, secret: bool) -> String {
        if let Some(login) = self.login_of(headers) {
            lock(&self.logins).remove(&mark(&login));
        }
        self.cookie("", 0, secret)
    }

    /// Cookies know hosts and no ports: the name tells nodes of one host apart.
    fn cookie(&self, login: &str, seconds: u64, secret: bool) -> String {
        let secure = if secret { "; Secure" } else { "" };
        format!(
            "quorate-{}={login}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}",
            self.me
        )
    }

    fn login_of(&self, headers: &HeaderMap) -> Option<String> {
        let name = format!("quorate-{}=", self.me);
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        cookies
            .flat_map(|c| c.split(';'))
            .find_map(|c| c.trim().strip_prefix(&name).map(str::to_owned))
    }

    fn is_logged_in(&self, login: &str, now: Instant) -> bool {
        lock(&self.logins).get(&mark(login)).is_some_and(|until| *until > now)
    }

    /// Compares with the token, and counts wrong ones by address.
    fn is_token(&self, given: &str, from: Option<IpAddr>, now: Instant) -> Result<(), NoLogin> {
        let mut wrong = lock(&self.wrong);
        wrong.retain(|_, w| now.duration_since(w.since) < WRONG_WITHIN);
        if from.is_some_and(|from| wrong.get(&from).is_some_and(|w| w.times >= WRONG_MAX)) {
            return Err(NoLogin::TooMany);
        }
        // Hashes are compared: the time tells nothing of the token.
        if mark(given) == self.token {
            return Ok(());
        }
        if let Some(from) = from {
            if wrong.len() >= WRONG_ADDRESSES_MAX && !wrong.contains_key(&from) {
                let oldest = wrong.iter().min_by_key(|(_, w)| w.since).map(|(a, _)| *a);
                oldest.and_then(|oldest| wrong.remove(&oldest));
            }
            wrong.entry(from).or_insert(Wrong { since: now, times: 0 }).times += 1;
        }
        Err(NoLogin::Wrong)
    }
}

fn mark(secret: &str) -> Mark {
    Sha256::digest(secret.as_bytes()).into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a browser says that a page of ours sent it. Browsers tell by `Sec-Fetch-Site` where a
/// connection cannot be listened to, and older ones by `Origin`; who says neither is none of ours.
pub fn is_ours(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => site == "same-origin",
        (None, Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, origin)| origin == host)
        }
        (None, _, _) => false,
    }
}

/// Lets a request through that may do what it asks.
pub async fn check(guard: Arc<Guard>, mut request: Request, next: Next) -> Response {
    let now = Instant::now();
    let from = web::caller(request.extensions()).map(|Caller { from, .. }| from.ip());
    let headers = request.headers();
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    // Who logs in has nothing to show yet; only a page of ours may make a browser do so.
    let door = path == LOGIN || path == LOGOUT;
    if looks || (door && is_ours(headers)) {
        let viewer = guard.viewer(headers, now);
        request.extensions_mut().insert(viewer);
        return next.run(request).await;
    }
    let pass = if door { Pass::Foreign } else { guard.pass(headers, from, now) };
    let by_page = path.starts_with("/page/");
    match pass {
        Pass::Act => {
            request.extensions_mut().insert(Viewer::Operator);
            next.run(request).await
        }
        Pass::Look if by_page => Redirect::to(LOGIN).into_response(),
        Pass::Look | Pass::Wrong => Problem::unauthorized(
            "actions through the web port need the node's admin token: it is in the file \
             admin.token of its directory (--admin-token)",
        )
        .into_response(),
        Pass::TooMany => {
            Problem::too_many("too many wrong tokens from there: wait a minute").into_response()
        }
        Pass::Foreign => {
            Problem::forbidden("this was sent by a page that is none of this node's: log in again")
                .into_response()
        }
    }
}

/// Where one logs in and out.
pub const LOGIN: &str = "/page/login";
/// See [`LOGIN`].
pub const LOGOUT: &str = "/page/logout";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderValue;

    use super::*;
    use crate::fixture::node;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &str)| {
            (header::HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn address() -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, 9]))
    }

    #[test]
    fn the_token_by_header() {
        let guard = Guard::new(node("n1"), "secret");
        let pass = |value: &str| {
            guard.pass(&headers(&[("authorization", value)]), address(), Instant::now())
        };
        assert_eq!(pass("Bearer secret"), Pass::Act);
        assert_eq!(pass("Bearer secreT"), Pass::Wrong);
        assert_eq!(pass("Basic secret"), Pass::Look);
        assert_eq!(guard.pass(&HeaderMap::new(), address(), Instant::now()), Pass::Look);
    }

    #[test]
    fn a_login_by_cookie_is_for_our_own_pages_and_ends() {
        let guard = Guard::new(node("n1"), "secret");
        let now = Instant::now();
        assert_eq!(guard.log_in("wrong", address(), false, now), Err(NoLogin::Wrong));
        let cookie = guard.log_in(" secret\n", address(), true, now).unwrap();
        assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure"));
        assert!(!cookie.contains("secret"));
        let cookie = format!("other=1; {}", cookie.split(';').next().unwrap());
        let pass = |more: &[(&'static str, &str)], at| {
            let all: Vec<_> = [("cookie", cookie.as_str())].iter().chain(more).copied().collect();
            guard.pass(&headers(&all), address(), at)
        };
        assert_eq!(pass(&[("sec-fetch-site", "same-origin")], now), Pass::Act);
        assert_eq!(pass(&[("sec-fetch-site", "cross-site")], now), Pass::Foreign);
        assert_eq!(pass(&[("sec-fetch-site", "same-site")], now), Pass::Foreign);
        let (host, evil) = (("host", "db:6434"), ("origin", "http://evil"));
        assert_eq!(pass(&[("origin", "https://db:6434"), host], now), Pass::Act);
        assert_eq!(pass(&[evil, host], now), Pass::Foreign);
        assert_eq!(pass(&[("origin", "null"), host], now), Pass::Foreign);
        assert_eq!(pass(&[], now), Pass::Foreign);
        let later = now + LOGIN_LASTS + Duration::from_secs(1);
        assert_eq!(pass(&[("sec-fetch-site", "same-origin")], later), Pass::Look);
        guard.log_out(&headers(&[("cookie", &cookie)]), true);
        assert_eq!(pass(&[("sec-fetch-site", "same-origin")], now), Pass::Look);
    }

    #[test]
    fn guessing_ends_soon_and_for_a_while() {
        let guard = Guard::new(node("n1"), "secret");
        let now = Instant::now();
        for _ in 0..WRONG_MAX {
            assert_eq!(guard.log_in("guess", address(), false, now), Err(NoLogin::Wrong));
        }
        assert_eq!(guard.log_in("secret", address(), false, now), Err(NoLogin::TooMany));
        let other = Some(IpAddr::from([10, 0, 0, 8]));
        assert!(guard.log_in("secret", other, false, now).is_ok());
        assert!(guard.log_in("secret", address(), false, now + WRONG_WITHIN).is_ok());
    }

    #[test]
    fn logins_are_bounded() {
        let guard = Guard::new(node("n1"), "secret");
        let now = Instant::now();
        for second in 0..LOGINS_MAX as u64 + 10 {
            let at = now + Duration::from_secs(second);
            guard.log_in("secret", address(), false, at).unwrap();
        }
        assert_eq!(lock(&guard.logins).len(), LOGINS_MAX);
    }
}
