//! How a client comes in: TLS, its first packet, who it is, what it is told before it may ask.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use quorate_wire::backend::{AUTHENTICATION, KEY_DATA, Report};
use quorate_wire::frame::{put, put_cstr};
use quorate_wire::startup::{VERSION_3_0, VERSION_3_2};
use quorate_wire::{CancelKey, FirstPacket, Startup, startup};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::account::Account;
use crate::client::{Client, Handle, State};
use crate::frontend::{Place, Shared};
use crate::io::{End, Io};
use crate::login::Known;
use crate::metrics::count;
use crate::settings::Settings;
use crate::tls::Tls;
use crate::worker::Worker;
use crate::{Error, auth, cancel, limits, login, replication, tls};

/// A connection whose first packet is read.
pub(crate) struct Hello {
    pub(crate) end: End,
    pub(crate) first: FirstPacket,
    /// The certificate it was shown.
    pub(crate) tls: Option<Tls>,
    /// The common name of its own certificate, verified.
    pub(crate) client_cn: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) address: SocketAddr,
    /// It came in by the port that only reads: where writes are taken.
    pub(crate) writes_at: Option<Arc<str>>,
}

/// Somebody who may come in.
pub(crate) enum Visitor {
    Client(Box<Client>),
    Console(Box<(End, Rc<Handle>)>),
    /// With its first packet to the server, and its own key.
    Replication(Box<(End, Rc<Handle>, BytesMut, CancelKey)>),
}

/// Lets a client in, or tells it why not. `None`: there is nothing more to do with the connection.
/// The place is held for as long as the client is there.
pub(crate) async fn enter(
    worker: &Rc<Worker>,
    shared: &Arc<Shared>,
    io: Io,
    (address, writes_at): (SocketAddr, Option<Arc<str>>),
) -> Result<Option<(Visitor, Place)>, Error> {
    if let Io::Tcp(tcp) = &io {
        tcp.set_nodelay(true).map_err(Error::io("setting up a client's socket"))?;
    }
    let doing = "waiting for a client to log in";
    let greeting = timeout(limits::STARTUP_WAIT, greet(shared, io, address));
    let Some(mut hello) = greeting.await.map_err(|_| Error::TimedOut { doing })?? else {
        return Ok(None);
    };
    hello.writes_at = writes_at;
    let startup = match std::mem::replace(&mut hello.first, FirstPacket::Ssl) {
        FirstPacket::Startup(startup) => startup,
        FirstPacket::Cancel(key) => {
            cancel::request(worker, shared, key).await;
            close(&mut hello.end).await;
            return Ok(None);
        }
        FirstPacket::Ssl | FirstPacket::GssEnc => return Ok(None),
    };
    match admit(worker, shared, &mut hello, &startup).await {
        Ok((Admitted::Client(account, known), place)) => {
            let who = (account, known, &startup);
            let visitor = welcome(worker, shared, hello, who, &place).await?;
            Ok(Some((visitor, place)))
        }
        Ok((Admitted::Replication(account, packet), place)) => {
            let name = startup.get("application_name").unwrap_or_default();
            let whose = (account, name, startup.version);
            let (handle, key) = handle(worker, shared, &hello, whose, &place);
            let visitor = Visitor::Replication(Box::new((hello.end, handle, packet, key)));
            Ok(Some((visitor, place)))
        }
        Err(Refused::Report(report)) => {
            let user = startup.get("user").map(String::from_utf8_lossy).unwrap_or_default();
            tracing::info!(
                %address, %user, code = report.code,
                "refused a login: {}{}", report.message,
                report.log.as_deref().map(|why| format!(": {why}")).unwrap_or_default()
            );
            say(&mut hello.end, &report).await;
            Ok(None)
        }
        Err(Refused::Broken(error)) => Err(error),
    }
}

/// Why somebody may not come in.
pub(crate) enum Refused {
    /// It is told.
    Report(Box<Report>),
    /// Its connection failed.
    Broken(Error),
}

impl From<Report> for Refused {
    fn from(report: Report) -> Self {
        Refused::Report(Box::new(report))
    }
}

impl From<Box<Report>> for Refused {
    fn from(report: Box<Report>) -> Self {
        Refused::Report(report)
    }
}

/// Says a last word, as far as the other side listens, and closes.
pub(crate) async fn say(end: &mut End, report: &Report) {
    end.out.put_slice(&report.encode());
    let said = async {
        end.drain().await?;
        std::future::poll_fn(|cx| end.io.poll_shutdown(cx)).await?;
        // With unread bytes of the client's, the kernel would reset the connection and the client
        // might never see what was said.
        while end.fill().await? > 0 {
            end.stash.clear();
        }
        std::io::Result::Ok(())
    };
    if !matches!(timeout(limits::GOODBYE_WAIT, said).await, Ok(Ok(()))) {
        tracing::debug!(code = report.code, "a client left before the last word");
    }
}

/// Closes as PostgreSQL does: over TLS with a farewell, without which libpq takes the end of its
/// cancel request for a failure.
async fn close(end: &mut End) {
    let closing = std::future::poll_fn(|cx| end.io.poll_shutdown(cx));
    if !matches!(timeout(limits::GOODBYE_WAIT, closing).await, Ok(Ok(()))) {
        tracing::debug!("a client left before its connection was closed");
    }
}

/// Reads first packets until one says what the client wants.
async fn greet(shared: &Shared, io: Io, address: SocketAddr) -> Result<Option<Hello>, Error> {
    const DOING: &str = "greeting a client";
    let mut end = End::new(io);
    let mut shown: Option<Tls> = None;
    let mut client_cn = None;
    loop {
        let encrypted = shown.is_some();
        // A TLS client that does not ask first begins with a handshake record.
        if !encrypted && end.stash.first() == Some(&0x16) {
            let Some(tls) = shared.tls.now() else { return Ok(None) };
            (end, client_cn) = handshake(end, &tls, true).await?;
            shown = Some(tls);
            continue;
        }
        let Some((first, used)) = startup::parse(&end.stash).map_err(Error::wire(DOING))? else {
            if end.fill().await.map_err(Error::io(DOING))? == 0 {
                return Ok(None);
            }
            continue;
        };
        match first {
            FirstPacket::Ssl if !encrypted && shared.tls.now().is_some() => {
                // Bytes that came before the handshake may be from anybody.
                if end.stash.len() > used {
                    return Ok(None);
                }
                let Some(tls) = shared.tls.now() else { return Ok(None) };
                end.stash.clear();
                end.out.put_u8(b'S');
                end.drain().await.map_err(Error::io(DOING))?;
                (end, client_cn) = handshake(end, &tls, false).await?;
                shown = Some(tls);
            }
            FirstPacket::Ssl | FirstPacket::GssEnc => {
                end.stash.advance(used);
                end.out.put_u8(b'N');
                end.drain().await.map_err(Error::io(DOING))?;
            }
            FirstPacket::Startup(_) if !encrypted && shared.tls_required() => {
                let report = Report::fatal("28000", "this server wants an encrypted connection")
                    .hint("Connect with sslmode=require or stricter.");
                say(&mut end, &report).await;
                return Ok(None);
            }
            first => {
                end.stash.advance(used);
                return Ok(Some(Hello {
                    end,
                    first,
                    tls: shown,
                    client_cn,
                    encrypted,
                    address,
                    writes_at: None,
                }));
            }
        }
    }
}

/// Encrypts a connection. `direct`: the client began without asking, and must name the protocol.
async fn handshake(end: End, tls: &Tls, direct: bool) -> Result<(End, Option<String>), Error> {
    const DOING: &str = "encrypting a client's connection";
    let Io::Tcp(tcp) = end.io else {
        return Err(Error::io(DOING)(std::io::ErrorKind::InvalidInput.into()));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let stream = crate::io::Rewound::new(end.stash, tcp);
    let stream = acceptor.accept(stream).await.map_err(Error::io(DOING))?;
    let named = stream.get_ref().1.alpn_protocol() == Some(b"postgresql");
    if direct && !named {
        return Err(Error::io(DOING)(std::io::ErrorKind::InvalidData.into()));
    }
    let certificates = stream.get_ref().1.peer_certificates();
    let client_cn = certificates.and_then(|chain| tls::common_name(chain.first()?));
    Ok((End::new(Io::Tls(Box::new(stream))), client_cn))
}

/// As what somebody may come in.
enum Admitted {
    Client(Rc<Account>, Rc<Known>),
    Replication(Rc<Account>, BytesMut),
}

/// Finds out who it is and whether it may come in.
async fn admit(
    worker: &Rc<Worker>,
    shared: &Arc<Shared>,
    hello: &mut Hello,
    startup: &Startup,
) -> Result<(Admitted, Place), Refused> {
    if let Some(report) = login::refusal(startup) {
        return Err(report.into());
    }
    let kind = replication::asked(startup)?;
    let utf8 = |name: &str| startup.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
    let Some(user) = utf8("user").filter(|u| !u.is_empty()) else {
        return Err(
            Report::fatal("28000", "no PostgreSQL user name specified in startup packet").into()
        );
    };
    let physical = kind == Some(replication::Kind::Physical);
    let database = match physical {
        true => replication::DATABASE.to_owned(),
        false => utf8("database").filter(|d| !d.is_empty()).unwrap_or_else(|| user.clone()),
    };
    let full = || {
        Report::fatal("53300", "too many clients on this node")
            .hint("Raise gateway.clients_max, or connect to another node.")
    };
    // Who would find no place need not say who it is; who may not come in takes none.
    if shared.is_full(worker) {
        return Err(full().into());
    }
    negotiate(hello, startup);
    let deadline = timeout(
        limits::STARTUP_WAIT,
        auth::authenticate(worker, shared, hello, &user, (&database, physical)),
    );
    match deadline.await {
        Ok(done) => done?,
        Err(_) => {
            let report = Report::fatal("08006", "the login took too long");
            return Err(report.into());
        }
    }
    let place = shared.place(worker).ok_or_else(full)?;
    if database == crate::console::DATABASE {
        let role = worker.role(&user).await.unwrap_or_default();
        if !role.is_some_and(|role| role.superuser) {
            let message = "only superusers may use the gateway's console";
            return Err(Report::fatal("42501", message)
                .hint("The database quorate is the console; connect to a database of your own.")
                .into());
        }
    }
    let account = worker.account(&database, &user);
    if let Some(kind) = kind {
        let packet = replication::packet(&account, kind, &login::wishes(startup)?)?;
        replication::allowed(&account, hello.writes_at.is_some())?;
        count(&account.counters.logins);
        return Ok((Admitted::Replication(account, packet), place));
    }
    let known = login::known(worker, &account, startup, hello.writes_at.is_some()).await?;
    count(&account.counters.logins);
    Ok((Admitted::Client(account, known), place))
}

/// Answers a client that wants a newer protocol or options of it that are not known here.
fn negotiate(hello: &mut Hello, startup: &Startup) {
    let unknown: Vec<&[u8]> = startup
        .parameters
        .iter()
        .map(|(name, _)| &name[..])
        .filter(|name| name.starts_with(b"_pq_."))
        .collect();
    if startup.version <= VERSION_3_2 && unknown.is_empty() {
        return;
    }
    put(&mut hello.end.out, b'v', |out| {
        out.put_u32(startup.version.min(VERSION_3_2));
        out.put_u32(unknown.len() as u32);
        for name in &unknown {
            put_cstr(out, name);
        }
    });
}

/// Tells a client all that a server would tell it.
async fn welcome(
    worker: &Rc<Worker>,
    shared: &Arc<Shared>,
    mut hello: Hello,
    (account, known, startup): (Rc<Account>, Rc<Known>, &Startup),
    place: &Place,
) -> Result<Visitor, Error> {
    let name = known.settings.get(b"application_name").unwrap_or_default();
    let whose = (Rc::clone(&account), name, startup.version);
    let (handle, key) = handle(worker, shared, &hello, whose, place);
    let out = &mut hello.end.out;
    out.reserve(limits::WELCOME);
    put(out, AUTHENTICATION, |out| out.put_u32(0));
    for (name, value) in &known.reported {
        put(out, b'S', |out| {
            put_cstr(out, name);
            put_cstr(out, value);
        });
    }
    put(out, KEY_DATA, |out| {
        out.put_i32(key.pid);
        out.put_slice(&key.secret);
    });
    put(out, b'Z', |out| out.put_u8(b'I'));
    hello.end.drain().await.map_err(Error::io("welcoming a client"))?;
    hello.end.out = BytesMut::new();
    if &*account.database == crate::console::DATABASE {
        return Ok(Visitor::Console(Box::new((hello.end, handle))));
    }
    let settings: Rc<Settings> = Rc::clone(&known.settings);
    let mut client = Client::new(hello.end, account, handle, settings);
    client.writes_at = hello.writes_at;
    Ok(Visitor::Client(Box::new(client)))
}

/// What is seen of a client that came in, and its key, which is good from here on.
fn handle(
    worker: &Rc<Worker>,
    shared: &Shared,
    hello: &Hello,
    (account, name, version): (Rc<Account>, &[u8], u32),
    place: &Place,
) -> (Rc<Handle>, CancelKey) {
    let mut secret = [0; 32];
    shared.random(&mut secret);
    let handle = Rc::new(Handle {
        id: place.id,
        secret,
        account,
        address: hello.address,
        application: RefCell::new(name.into()),
        encrypted: hello.encrypted,
        since: worker.now(),
        state: Cell::new(State::Idle),
        pin: Cell::new(None),
        linked: RefCell::new(None),
        killed: Cell::new(false),
        raise: Cell::new(false),
        waker: Cell::new(None),
    });
    worker.clients.borrow_mut().insert(handle.id, Rc::clone(&handle));
    let key = CancelKey {
        pid: handle.id as i32,
        secret: bytes::Bytes::copy_from_slice(cancel::secret(&handle.secret, version)),
    };
    (handle, key)
}

/// Protocol versions that a cancel key's length depends on.
pub(crate) fn short_key(version: u32) -> bool {
    version <= VERSION_3_0
}
