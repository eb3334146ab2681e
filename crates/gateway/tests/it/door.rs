//! A front door before a real server, everything in one process.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use bytes::{BufMut, BytesMut};
use quorate_core::{Moment, Term};
use quorate_gateway::{
    Backends, BoxFuture, BoxStream, Ended, Error, Frontend, FrontendOptions, Gate, NoWriter,
    QuorumWait, Route, Sessions, SessionsOptions,
};
use quorate_wire::backend::Fields;
use quorate_wire::frame::{self, Message, put, put_cstr};
use quorate_wire::{FirstPacket, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::server::{DEADLINE, Server, value};

pub(crate) const TERM: Term = Term(5);
pub(crate) const FOREVER: Moment = Moment(u64::MAX);

/// All tests share one clock, which stands still: leases are before it or after it.
pub(crate) const NOW: Moment = Moment(1_000);

/// Answers of tests in place of the agent's.
pub(crate) struct Agent {
    socket: std::path::PathBuf,
    /// What a cancelled wait comes to; `None` until a test says so.
    pub(crate) waited: watch::Sender<Option<bool>>,
    pub(crate) waits: AtomicU64,
}

impl QuorumWait for Agent {
    fn sample_and_wait(&self) -> BoxFuture<'_, bool> {
        self.waits.fetch_add(1, Ordering::SeqCst);
        let mut waited = self.waited.subscribe();
        Box::pin(async move { waited.wait_for(Option::is_some).await.unwrap().unwrap() })
    }
}

impl Backends for Agent {
    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket.parent().unwrap()).user("quorate").dbname("postgres");
        Box::pin(async move {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            let sql = format!(
                "SELECT wait_event IS DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = {pid}"
            );
            value(&client, &sql).await.is_ok_and(|v| v == "t")
        })
    }
}

/// Leads to the one server, when a test says that it is the writer.
pub(crate) struct Way {
    sessions: Arc<Sessions>,
    pub(crate) writer: watch::Sender<bool>,
    pub(crate) ended: Mutex<VecDeque<JoinHandle<Result<Ended, Error>>>>,
}

impl Route for Way {
    fn writer(&self) -> BoxFuture<'_, Result<BoxStream, NoWriter>> {
        Box::pin(async {
            if !*self.writer.borrow() {
                return Err(NoWriter { because: "an election is under way".into() });
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let sessions = Arc::clone(&self.sessions);
            let serving = tokio::spawn(async move { sessions.serve(theirs).await });
            self.ended.lock().unwrap().push_back(serving);
            Ok(Box::new(ours) as BoxStream)
        })
    }
}

pub(crate) struct Door {
    pub(crate) server: Server,
    pub(crate) gate: Arc<Gate>,
    pub(crate) agent: Arc<Agent>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) way: Arc<Way>,
    pub(crate) frontend: Arc<Frontend>,
    pub(crate) address: SocketAddr,
    running: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Door {
    /// An open door; passwords are asked of everybody but quorate's own roles.
    pub(crate) async fn open(settings: &[&str], options: FrontendOptions) -> Result<Door> {
        let server = Server::primary(settings).await?;
        let sql = server.sql("postgres").await?;
        let roles = "SET synchronous_commit = local; CREATE ROLE app LOGIN PASSWORD 'secret'; \
            GRANT ALL ON SCHEMA public TO app; CREATE ROLE trusted LOGIN;";
        sql.batch_execute(roles).await?;
        let hba = "local all quorate,postgres,trusted trust\nlocal all all scram-sha-256\n";
        std::fs::write(server.dir.path().join("data/pg_hba.conf"), hba)?;
        sql.batch_execute("SELECT pg_reload_conf()").await?;
        crate::server::eventually("the new rules are read", async || {
            server.sql("app").await.is_err().then_some(())
        })
        .await;
        Door::before(server, options, false, 100).await
    }

    pub(crate) async fn before(
        server: Server,
        options: FrontendOptions,
        unasked: bool,
        sessions_max: usize,
    ) -> Result<Door> {
        let gate = Arc::new(Gate::new());
        gate.open(TERM);
        gate.renew(TERM, FOREVER);
        let agent = Arc::new(Agent {
            socket: server.socket(),
            waited: watch::Sender::new(None),
            waits: AtomicU64::new(0),
        });
        let sessions = Arc::new(Sessions::new(SessionsOptions {
            pg_socket: server.socket(),
            gate: Arc::clone(&gate),
            clock: || NOW,
            quorum: Arc::clone(&agent) as Arc<dyn QuorumWait>,
            backends: Arc::clone(&agent) as Arc<dyn Backends>,
            sessions_max,
            unasked,
        }));
        let way = Arc::new(Way {
            sessions: Arc::clone(&sessions),
            writer: watch::Sender::new(true),
            ended: Mutex::default(),
        });
        let frontend = Frontend::new(options, Arc::clone(&way) as Arc<dyn Route>);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let running = tokio::spawn(Arc::clone(&frontend).run(listener));
        Ok(Door { server, gate, agent, sessions, way, frontend, address, running })
    }

    pub(crate) fn config(&self, user: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).user(user).dbname("postgres");
        config.password("secret");
        config
    }

    pub(crate) async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config("app").connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// How the oldest session that nobody asked about ended.
    pub(crate) async fn ended(&self) -> Ended {
        let serving = self.way.ended.lock().unwrap().pop_front().unwrap();
        timeout(DEADLINE, serving).await.unwrap().unwrap().unwrap()
    }
}

/// A client that speaks the protocol by hand.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    buf: BytesMut,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr, parameters: &[(&str, &str)]) -> Result<Raw> {
        let mut stream = TcpStream::connect(address).await?;
        let packet = FirstPacket::Startup(Startup::new(parameters)).encode();
        stream.write_all(&packet).await?;
        Ok(Raw { stream, buf: BytesMut::new() })
    }

    /// A session of a role that is let in by trust; ready for a query.
    pub(crate) async fn session(door: &Door) -> Result<Raw> {
        let mut raw =
            Raw::connect(door.address, &[("user", "postgres"), ("database", "postgres")]).await?;
        raw.until(b'Z').await?;
        Ok(raw)
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        put(&mut out, b'Q', |out| put_cstr(out, sql.as_bytes()));
        Ok(self.stream.write_all(&out).await?)
    }

    pub(crate) async fn send(&mut self, messages: &[(u8, &[u8])]) -> Result<()> {
        let mut out = BytesMut::new();
        for (tag, body) in messages {
            put(&mut out, *tag, |out| out.put_slice(body));
        }
        Ok(self.stream.write_all(&out).await?)
    }

    /// The next message; `None` when the connection is closed.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>> {
        loop {
            if let Some(message) = frame::take(&mut self.buf, 1 << 24)? {
                return Ok(Some(message));
            }
            if timeout(DEADLINE, self.stream.read_buf(&mut self.buf)).await?? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads up to and with the first message of this kind; returns all tags.
    pub(crate) async fn until(&mut self, tag: u8) -> Result<String> {
        let mut tags = String::new();
        loop {
            let Some(message) = self.next().await? else { anyhow::bail!("closed after {tags}") };
            tags.push(char::from(message.tag));
            if message.tag == tag {
                return Ok(tags);
            }
        }
    }

    /// SQLSTATE of the last word, which must be all that is left.
    pub(crate) async fn last_word(&mut self) -> Result<String> {
        let message = self.next().await?.expect("a last word");
        assert_eq!(message.tag, b'E');
        let code = Fields::parse(&message.body)?.code().to_owned();
        assert_eq!(self.next().await?, None, "nothing follows the last word");
        Ok(code)
    }

    /// Whether nothing arrives for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(std::time::Duration::from_millis(200), self.next()).await.is_err()
    }
}

impl Raw {
    /// The number of bytes that arrived; `None` when the connection is closed.
    pub(crate) async fn next_bytes(&mut self) -> Result<Option<usize>> {
        self.buf.clear();
        let n = timeout(DEADLINE, self.stream.read_buf(&mut self.buf)).await?.unwrap_or(0);
        Ok((n > 0).then_some(n))
    }
}
