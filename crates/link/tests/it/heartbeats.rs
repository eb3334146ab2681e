//! Heartbeats over networks that are whole, cut without a word, and refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::{Moment, NodeId};
use quorate_link::{Arrival, Authority, Heartbeats, Identity, Kind, Links, Pulse, clock, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cable::{Cable, Mode};
use crate::support::{SOON, authority, node, peers};

const INTERVAL: Duration = Duration::from_millis(250);

/// What a node has heard from one other node.
#[derive(Clone, Default, Debug)]
struct Heard {
    beats: u64,
    answers: u64,
    refusals: u64,
    last_answer: String,
    round_trip: Duration,
    last_refusal: Option<Instant>,
}

/// Says its name and a number, and remembers everything.
struct Ear {
    name: NodeId,
    padding: usize,
    heard: watch::Sender<BTreeMap<NodeId, Heard>>,
}

impl Ear {
    fn note(&self, of: NodeId, change: impl FnOnce(&mut Heard)) {
        self.heard.send_modify(|all| change(all.entry(of).or_default()));
    }

    fn of(&self, peer: &str) -> Heard {
        self.heard.borrow().get(&node(peer)).cloned().unwrap_or_default()
    }

    async fn until(&self, peer: &str, condition: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let met = heard.wait_for(|all| all.get(&node(peer)).is_some_and(&condition));
        match tokio::time::timeout(SOON, met).await {
            Ok(met) => met.unwrap()[&node(peer)].clone(),
            Err(_) => panic!("{} has heard of {peer} only {:?}", self.name, self.of(peer)),
        }
    }
}

impl Pulse for Ear {
    fn beat(&self, to: NodeId) -> Vec<u8> {
        format!("{} to {to} {}", self.name, "x".repeat(self.padding)).into_bytes()
    }

    fn heard(&self, from: NodeId, beat: &[u8]) -> Vec<u8> {
        assert!(beat.starts_with(format!("{from} to {}", self.name).as_bytes()));
        self.note(from, |h| h.beats += 1);
        format!("{} heard {}", self.name, beat.len()).into_bytes()
    }

    fn answered(&self, by: NodeId, sent_at: Moment, answer: &[u8]) {
        self.note(by, |h| {
            h.answers += 1;
            h.last_answer = String::from_utf8(answer.to_vec()).unwrap();
            h.round_trip = clock::now().since(sent_at);
        });
    }

    fn refused(&self, by: NodeId) {
        self.note(by, |h| {
            h.refusals += 1;
            h.last_refusal = Some(Instant::now());
        });
    }
}

/// A node that beats and answers.
struct Heart {
    links: Links,
    address: SocketAddr,
    ear: Arc<Ear>,
    heartbeats: Heartbeats,
    server: JoinHandle<()>,
}

impl Heart {
    async fn start(authority: &Authority, name: &str) -> Self {
        Self::with(authority, name, INTERVAL, 0).await
    }

    async fn with(authority: &Authority, name: &str, interval: Duration, padding: usize) -> Self {
        let links = Links::new(&Identity::issued_by(authority, node(name)).unwrap()).unwrap();
        let heard = watch::Sender::default();
        let ear = Arc::new(Ear { name: node(name), padding, heard });
        let pulse: Arc<dyn Pulse> = Arc::clone(&ear) as _;
        let heartbeats = Heartbeats::start(links.clone(), interval, pulse);
        let listener = links.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let adopter = heartbeats.clone();
        let server = tokio::spawn(listener.serve(move |arrival| {
            if let Arrival::Node(incoming) = arrival
                && incoming.kind == Kind::Heartbeat
            {
                adopter.adopt(incoming).unwrap();
            }
        }));
        Self { links, address, ear, heartbeats, server }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.server.abort();
        self.heartbeats.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_hear_each_other() {
    let authority = authority();
    let (a, b) = (Heart::start(&authority, "a").await, Heart::start(&authority, "b").await);
    let everyone = peers([("a", a.address), ("b", b.address)]);
    a.links.set_peers(everyone.clone());
    b.links.set_peers(everyone);
    for (me, other, name) in [(&a, "b", "a"), (&b, "a", "b")] {
        let heard = me.ear.until(other, |h| h.answers >= 3 && h.beats >= 3).await;
        assert_eq!(heard.last_answer, format!("{other} heard {}", "a to b ".len()));
        assert!(heard.round_trip < SOON);
        assert_eq!(heard.refusals, 0);
        assert!(me.heartbeats.peers()[&node(other)].connected);
        assert!(!me.heartbeats.peers().contains_key(&node(name)), "nobody beats to itself");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_is_no_refusal_and_beats_resume_after_it() {
    let authority = authority();
    let (a, b) = (Heart::start(&authority, "a").await, Heart::start(&authority, "b").await);
    let cable = Cable::to(b.address).await;
    a.links.set_peers(peers([("b", cable.address)]));
    a.ear.until("b", |h| h.answers >= 2).await;

    cable.set(Mode::Silent);
    let cut = Instant::now();
    // The connection is given up, and so are attempts to open another one.
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let link = a.heartbeats.peers()[&node("b")].clone();
        if link.trouble.is_some_and(|t| t.contains("did not answer within 1000 ms")) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(cut.elapsed() > limits::BEAT_SILENCE);
    let before = a.ear.of("b");
    assert_eq!(before.refusals, 0);

    cable.set(Mode::Whole);
    let healed = Instant::now();
    a.ear.until("b", |h| h.answers >= before.answers + 3).await;
    assert!(healed.elapsed() < Duration::from_secs(5), "{:?}", healed.elapsed());
    assert_eq!(a.ear.of("b").refusals, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_outage_nobody_hears_anybody_and_nobody_is_refused() {
    let authority = authority();
    let (a, b) = (Heart::start(&authority, "a").await, Heart::start(&authority, "b").await);
    let everyone = peers([("a", a.address), ("b", b.address)]);
    a.links.set_peers(everyone.clone());
    b.links.set_peers(everyone);
    a.ear.until("b", |h| h.answers >= 2 && h.beats >= 2).await;
    a.links.outage().begin(&[Kind::Heartbeat], limits::OUTAGE_MAX);
    // One may be under way.
    tokio::time::sleep(INTERVAL).await;
    let before = (a.ear.of("b"), b.ear.of("a"));
    // Longer than the connections live without a beat, and attempts to open new ones take.
    tokio::time::sleep(limits::BEAT_SILENCE + limits::BEAT_CONNECT_TIMEOUT * 2).await;
    for (before, after) in [(&before.0, a.ear.of("b")), (&before.1, b.ear.of("a"))] {
        assert_eq!((after.beats, after.answers), (before.beats, before.answers));
        assert_eq!(after.refusals, 0);
    }
    a.links.outage().end();
    a.ear.until("b", |h| h.answers > before.0.answers && h.beats > before.0.beats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_process_is_reported_at_once_and_found_again() {
    let authority = authority();
    let (a, b) = (Heart::start(&authority, "a").await, Heart::start(&authority, "b").await);
    let cable = Cable::to(b.address).await;
    a.links.set_peers(peers([("b", cable.address)]));
    let mut slow = Vec::new();
    for dead in [Mode::Closed, Mode::HangsUp].into_iter().cycle().take(6) {
        let alive = a.ear.of("b");
        // Long enough connected that the next attempt is due at once.
        let alive = a.ear.until("b", |h| h.answers >= alive.answers + 3).await;
        cable.set(dead);
        let died = Instant::now();
        let refused = a.ear.until("b", |h| h.refusals > alive.refusals).await;
        let delay = refused.last_refusal.unwrap().duration_since(died);
        if delay > Duration::from_millis(500) {
            slow.push((dead, delay));
        }
        // It is asked again and again, and each refusal is told.
        a.ear.until("b", |h| h.refusals >= refused.refusals + 3).await;
        assert!(!a.heartbeats.peers()[&node("b")].connected);
        cable.set(Mode::Whole);
        a.ear.until("b", |h| h.answers > refused.answers).await;
        assert_eq!(a.heartbeats.peers()[&node("b")].trouble, None);
    }
    // A busy machine is in the way now and then.
    assert!(slow.len() < 3, "noticed late: {slow:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_beats_at_once() {
    let authority = authority();
    let hour = Duration::from_secs(3600);
    let a = Heart::with(&authority, "a", hour, 0).await;
    let b = Heart::with(&authority, "b", hour, 0).await;
    a.links.set_peers(peers([("b", b.address)]));
    a.ear.until("b", |h| h.answers == 1).await;
    let mut delays = Vec::new();
    for answers in 2..30 {
        let kicked = Instant::now();
        a.heartbeats.kick();
        a.ear.until("b", |h| h.answers == answers).await;
        delays.push(kicked.elapsed());
    }
    delays.sort();
    // Loaded machines may stall one kick; the usual one is far below this.
    let median = delays[delays.len() / 2];
    assert!(median < Duration::from_millis(20), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_set_of_peers_is_followed() {
    let authority = authority();
    let a = Heart::start(&authority, "a").await;
    let b = Heart::start(&authority, "b").await;
    let c = Heart::start(&authority, "c").await;
    a.links.set_peers(peers([("b", b.address)]));
    a.ear.until("b", |h| h.answers >= 1).await;
    a.links.set_peers(peers([("c", c.address)]));
    a.ear.until("c", |h| h.answers >= 1).await;
    assert_eq!(a.heartbeats.peers().keys().copied().collect::<Vec<_>>(), [node("c")]);
    let last = a.ear.of("b").answers;
    a.ear.until("c", |h| h.answers >= 5).await;
    assert!(a.ear.of("b").answers <= last + 1, "at most the answer under way");
    // A new address for a known node is used at once.
    let cable = Cable::to(b.address).await;
    cable.set(Mode::Closed);
    a.links.set_peers(peers([("b", cable.address), ("c", c.address)]));
    a.ear.until("b", |h| h.refusals >= 1).await;
    // A name instead of an address.
    let by_name = format!("localhost:{}", b.address.port());
    a.links.set_peers([(node("b"), by_name)].into());
    a.ear.until("b", |h| h.answers > last + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_after_the_stop_which_waits_for_nobody() {
    let authority = authority();
    let (a, b) = (Heart::start(&authority, "a").await, Heart::start(&authority, "b").await);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hole = silent.local_addr().unwrap();
    a.links.set_peers(peers([("b", b.address), ("c", hole)]));
    b.links.set_peers(peers([("a", a.address)]));
    a.ear.until("b", |h| h.answers >= 1 && h.beats >= 1).await;
    let stopping = Instant::now();
    a.heartbeats.stop();
    assert!(stopping.elapsed() < Duration::from_millis(500), "{:?}", stopping.elapsed());
    let at_stop = format!("{:?}", a.ear.heard.borrow());
    a.heartbeats.kick();
    // B goes on calling for a while and is not heard.
    b.ear.until("a", |h| h.answers >= 1).await;
    tokio::time::timeout(3 * INTERVAL, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(at_stop, format!("{:?}", a.ear.heard.borrow()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_node_is_trouble_in_words() {
    let (ours, theirs) = (authority(), authority());
    let (a, b) = (Heart::start(&ours, "a").await, Heart::start(&theirs, "b").await);
    a.links.set_peers(peers([("b", b.address)]));
    let deadline = tokio::time::Instant::now() + SOON;
    let trouble = loop {
        if let Some(trouble) = a.heartbeats.peers().get(&node("b")).and_then(|p| p.trouble.clone())
        {
            break trouble;
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(trouble.contains("belongs to another cluster"), "{trouble}");
    assert_eq!(a.ear.of("b").refusals, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_beats_pass() {
    let authority = authority();
    let padding = limits::BEAT_BYTES_MAX - "a to b ".len();
    let a = Heart::with(&authority, "a", Duration::from_millis(20), padding).await;
    let b = Heart::start(&authority, "b").await;
    a.links.set_peers(peers([("b", b.address)]));
    let heard = a.ear.until("b", |h| h.answers >= 20).await;
    assert_eq!(heard.last_answer, format!("b heard {}", limits::BEAT_BYTES_MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strange_caller_is_bounded() {
    let authority = authority();
    let b = Heart::start(&authority, "b").await;
    let links = Links::new(&Identity::issued_by(&authority, node("a")).unwrap()).unwrap();
    links.set_peers(peers([("b", b.address)]));
    let mut first = links.dial(node("b"), Kind::Heartbeat).await.unwrap();
    // In two pieces, as a network may deliver it.
    let beat = [&6u32.to_be_bytes()[..], &77u64.to_be_bytes(), b"a to b"].concat();
    first.write_all(&beat[..9]).await.unwrap();
    first.flush().await.unwrap();
    first.write_all(&beat[9..]).await.unwrap();
    let mut answer = [0; 4 + 8 + "b heard 6".len()];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer[4..12], &answer[12..]), (&77u64.to_be_bytes()[..], &b"b heard 6"[..]));

    // A second connection replaces the first, and one that breaks the rules is ended.
    let mut second = links.dial(node("b"), Kind::Heartbeat).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, first.read(&mut answer)).await.unwrap().unwrap(), 0);
    second.write_all(&(limits::BEAT_BYTES_MAX as u32 + 1).to_be_bytes()).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, second.read(&mut answer)).await.unwrap().unwrap(), 0);
    assert_eq!(b.ear.of("a").beats, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_peers_cost_next_to_nothing() {
    let authority = authority();
    let a = Heart::start(&authority, "cost").await;
    let names = ["p1", "p2", "p3", "p4", "p5", "p6"];
    let mut others = Vec::new();
    for name in names {
        let other = Heart::start(&authority, name).await;
        other.links.set_peers(peers([("cost", a.address)]));
        others.push(other);
    }
    let everyone = names.iter().zip(&others).map(|(n, o)| (node(n), o.address.to_string()));
    a.links.set_peers(everyone.collect());
    for name in names {
        a.ear.until(name, |h| h.answers >= 2 && h.beats >= 2).await;
    }
    let (used, began) = (cpu_of_heartbeats(&names), Instant::now());
    let so_far = names.map(|name| a.ear.of(name).answers);
    for (name, answers) in names.iter().zip(so_far) {
        a.ear.until(name, |h| h.answers >= answers + 8).await;
    }
    let used = cpu_of_heartbeats(&names) - used;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("heartbeats with six peers: {:.3} % of a core", share * 100.0);
    // Both ends of all connections ran here, and in a debug build.
    assert!(share < 0.05, "{share}");
}

/// Processor time of the threads that beat to, and answer, these peers.
fn cpu_of_heartbeats(peers: &[&str]) -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap) {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file));
        // A thread may end while it is looked at.
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        let name = name.trim();
        let far = name.strip_prefix("hb>").or(name.strip_prefix("hb<"));
        if far.is_some_and(|far| far == "cost" || peers.contains(&far)) {
            total += times.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    Duration::from_nanos(total)
}
