//! Server connections of one database and role to one server: taken for a transaction, put back,
//! waited for in order of arrival.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use quorate_core::NodeId;

use crate::account::Spec;
use crate::latency::Histogram;
use crate::limits;
use crate::server::{Part, Server};
use crate::settings::Settings;

/// Connections that nobody uses. Boxes are handed about, not what is in them.
#[allow(clippy::vec_box)]
type Idle = Vec<Box<Server>>;

/// Connections to one server.
#[derive(Default)]
pub(crate) struct Pool {
    /// The one put back last is at the end.
    idle: RefCell<Idle>,
    /// Connections that exist or are being opened.
    open: Cell<usize>,
    /// How many may exist.
    pub(crate) size: Cell<usize>,
    /// How many more may, for who has waited so long.
    reserve: Cell<usize>,
    reserve_after_ms: Cell<u64>,
    /// Connections that were opened before are not taken back.
    since: Cell<u64>,
    /// Connections are being opened for whoever comes next.
    pub(crate) filling: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    pub(crate) node: NodeId,
    /// How long clients waited.
    pub(crate) queue: Histogram,
    /// Connections of an earlier part of the same node are not given out any more.
    part: Cell<Option<Part>>,
}

/// A place among the connections of a pool; whoever gives it up lets the next one in.
pub(crate) struct Place(Rc<Pool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.next(None);
    }
}

struct Waiter {
    given: Cell<Option<Given>>,
    waker: Cell<Option<Waker>>,
    /// Milliseconds of the worker's clock at which it came.
    since: u64,
    /// Milliseconds of the worker's clock at which it gives up.
    until: u64,
    gone: Cell<bool>,
}

enum Given {
    Server(Box<Server>),
    /// A place of the reserve.
    Place(Place),
    /// There may be a place now: look again.
    Look,
    Expired,
}

/// What a pool has for a client.
pub(crate) enum Had {
    /// A connection that is ready.
    Server(Box<Server>),
    /// A place for a new connection.
    Place(Place),
    /// Nothing in time.
    Expired,
    /// Too many wait already.
    Crowded,
}

impl Pool {
    pub(crate) fn new(node: NodeId, size: usize) -> Rc<Self> {
        Rc::new(Self { node, size: Cell::new(size), ..Self::default() })
    }

    /// Takes a connection or a place for one. Whoever waits longest goes first.
    pub(crate) async fn take(
        self: &Rc<Self>,
        part: Part,
        settings: &Rc<Settings>,
        waiting_max: usize,
        (now, wait_ms): (impl Fn() -> u64, u64),
    ) -> Had {
        let mut first = false;
        let mut came = None;
        loop {
            if let Some(had) = self.now(part, settings, first) {
                self.note(came);
                return had;
            }
            if self.waiting.borrow().len() >= waiting_max {
                return Had::Crowded;
            }
            // Who has to look again has not come again.
            let (since, _) = *came.get_or_insert_with(|| (now(), Instant::now()));
            let waiter = Rc::new(Waiter {
                given: Cell::default(),
                waker: Cell::default(),
                since,
                until: since.saturating_add(wait_ms),
                gone: Cell::new(false),
            });
            self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
            let had = match Waiting(&waiter, self).await {
                Given::Server(server) if server.part == part => Had::Server(server),
                Given::Place(place) => Had::Place(place),
                Given::Server(_) | Given::Look => {
                    first = true;
                    continue;
                }
                Given::Expired => Had::Expired,
            };
            self.note(came);
            return had;
        }
    }

    /// Notes how long somebody waited who came then; most do not wait.
    fn note(&self, came: Option<(u64, Instant)>) {
        let micros = came.map_or(0, |(_, at)| at.elapsed().as_micros());
        self.queue.note(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// What can be had without waiting; `first` has waited already.
    fn now(self: &Rc<Self>, part: Part, settings: &Rc<Settings>, first: bool) -> Option<Had> {
        if self.part.replace(Some(part)) != Some(part) {
            self.retire(|s| s.part == part);
        }
        if !first && !self.waiting.borrow().is_empty() {
            return None;
        }
        while let Some(server) = self.pick(settings) {
            if server.is_clean() && server.part == part && !server.end.io.is_disturbed() {
                return Some(Had::Server(server));
            }
            // Whatever it had to say, it is simplest to open another.
        }
        if self.open.get() < self.size.get() {
            self.open.set(self.open.get() + 1);
            return Some(Had::Place(Place(Rc::clone(self))));
        }
        None
    }

    /// An idle connection, rather one that has these settings.
    fn pick(&self, settings: &Rc<Settings>) -> Option<Box<Server>> {
        let mut idle = self.idle.borrow_mut();
        let from = idle.len().saturating_sub(limits::SETTINGS_LOOK);
        let same = idle[from..].iter().rposition(|s| Rc::ptr_eq(&s.applied, settings));
        match same {
            Some(at) => Some(idle.remove(from + at)),
            None => idle.pop(),
        }
    }

    /// Takes a connection back that is clean; others are dropped.
    pub(crate) fn put(&self, mut server: Box<Server>) {
        server.pooled = true;
        if !server.is_clean() || self.part.get() != Some(server.part) {
            return;
        }
        if server.opened < self.since.get() {
            return;
        }
        // More than are wanted: the size was lowered, or it is of the reserve, which is there as
        // long as somebody waits.
        let open = self.open.get();
        let waits = self.waiting.borrow().iter().any(|w| !w.gone.get());
        let wanted = self.size.get() + if waits { self.reserve.get() } else { 0 };
        if open > wanted {
            return;
        }
        self.next(Some(server));
    }

    /// How many connections there may be.
    pub(crate) fn resize(&self, spec: &Spec) {
        self.size.set(spec.size);
        self.reserve.set(spec.reserve);
        self.reserve_after_ms.set(spec.reserve_after_ms);
    }

    /// Connections that were opened so far are used up and closed.
    pub(crate) fn renew(&self, now: u64) {
        self.since.set(now.saturating_add(1));
        self.retire(|_| false);
    }

    /// Gives places of the reserve to those who have waited so long.
    pub(crate) fn relieve(self: &Rc<Self>, now: u64) {
        while self.open.get() < self.size.get() + self.reserve.get() {
            let mut waiting = self.waiting.borrow_mut();
            while waiting.front().is_some_and(|w| w.gone.get()) {
                waiting.pop_front();
            }
            let due = |w: &Rc<Waiter>| now >= w.since.saturating_add(self.reserve_after_ms.get());
            if !waiting.front().is_some_and(due) {
                return;
            }
            let waiter = waiting.pop_front();
            drop(waiting);
            self.open.set(self.open.get() + 1);
            if let Some(waiter) = waiter {
                waiter.give(Given::Place(Place(Rc::clone(self))));
            }
        }
    }

    /// A place for a connection that nobody waits for yet, as long as fewer than `min_idle` idle.
    pub(crate) fn spare_place(self: &Rc<Self>, part: Part, min_idle: usize) -> Option<Place> {
        if self.part.replace(Some(part)) != Some(part) {
            self.retire(|s| s.part == part);
        }
        let wanted = self.idle.borrow().len() < min_idle && self.open.get() < self.size.get();
        wanted.then(|| {
            self.open.set(self.open.get() + 1);
            Place(Rc::clone(self))
        })
    }

    /// Hands a connection, or word of a place, to whoever waits longest.
    fn next(&self, mut server: Option<Box<Server>>) {
        loop {
            let Some(waiter) = self.waiting.borrow_mut().pop_front() else { break };
            if waiter.gone.get() {
                continue;
            }
            waiter.give(match server.take() {
                Some(server) => Given::Server(server),
                None => Given::Look,
            });
            return;
        }
        if let Some(server) = server {
            self.idle.borrow_mut().push(server);
        }
    }

    /// Ends idle connections that are not to be kept.
    pub(crate) fn retire(&self, keep: impl Fn(&Server) -> bool) {
        let all = std::mem::take(&mut *self.idle.borrow_mut());
        let (kept, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| keep(s));
        self.idle.borrow_mut().extend(kept);
        // Dropped when nothing is borrowed: each lets the next one in.
        drop(gone);
    }

    /// Ends connections that were not used for long, or are old; of the former, `min_idle` stay.
    pub(crate) fn retire_idle(&self, now: u64, spec: &Spec) {
        let spare = Cell::new(self.idle.borrow().len().saturating_sub(spec.min_idle));
        self.retire(|s| {
            let unused = now >= s.used + spec.idle_ms && spare.get() > 0;
            let over = unused || now >= s.opened + spec.lifetime_ms;
            spare.set(spare.get().saturating_sub(usize::from(over)));
            !over
        });
    }

    /// Lets those go who have waited until now; the number.
    pub(crate) fn expire(&self, now: u64) -> usize {
        let due = |w: &Rc<Waiter>| w.until <= now || w.gone.get();
        if !self.waiting.borrow().iter().any(due) {
            return 0;
        }
        let all = std::mem::take(&mut *self.waiting.borrow_mut());
        let (late, left): (Vec<_>, Vec<_>) = all.into_iter().partition(due);
        *self.waiting.borrow_mut() = left.into();
        let late = late.iter().filter(|w| !w.gone.get());
        late.map(|waiter| waiter.give(Given::Expired)).count()
    }

    /// Everybody looks again: the server is not what it was.
    pub(crate) fn shake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.iter().for_each(|w| w.give(Given::Look));
    }

    /// Connections: idle, all, and clients that wait.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let waiting = self.waiting.borrow().iter().filter(|w| !w.gone.get()).count();
        (self.idle.borrow().len(), self.open.get(), waiting)
    }

    /// Looks at every idle connection.
    pub(crate) fn each_idle(&self, mut look: impl FnMut(&Server)) {
        self.idle.borrow().iter().for_each(|s| look(s));
    }
}

impl Waiter {
    fn give(&self, given: Given) {
        self.given.set(Some(given));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Waits for a turn; what was given to somebody who left goes to the next.
struct Waiting<'a>(&'a Rc<Waiter>, &'a Rc<Pool>);

impl Future for Waiting<'_> {
    type Output = Given;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match self.0.given.take() {
            Some(given) => Poll::Ready(given),
            None => {
                self.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.gone.set(true);
        match self.0.given.take() {
            Some(Given::Server(server)) => self.1.put(server),
            Some(Given::Place(place)) => drop(place),
            Some(Given::Look) => self.1.next(None),
            Some(Given::Expired) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use quorate_core::Term;
    use quorate_wire::CancelKey;
    use std::pin::Pin;
    use std::task::Context;

    use crate::client::Linked;
    use crate::exchange::Exchange;
    use crate::io::{End, Io};
    use crate::server::Reported;
    use crate::statements::Prepared;

    const PART: Part = Part::Writer(Term(1));

    fn server(place: Place) -> Box<Server> {
        let (io, _) = tokio::io::duplex(1);
        let key = CancelKey { pid: 0, secret: Bytes::new() };
        let reins = Rc::default();
        let node = NodeId::default();
        let linked = Linked { reins: Rc::clone(&reins), key: key.clone(), node, here: false };
        Box::new(Server {
            end: End::new(Io::Far(Box::new(io))),
            exchange: Exchange::default(),
            node,
            part: PART,
            here: false,
            fence: None,
            reins,
            key,
            linked: Rc::new(linked),
            prepared: Prepared::default(),
            unnamed: None,
            applied: Rc::default(),
            reported: Reported::new(),
            asks_xid: false,
            opened: 0,
            used: 0,
            pooled: false,
            forced: false,
            incarnation: 0,
            place: Some(place),
        })
    }

    type Taking = Pin<Box<dyn Future<Output = Had>>>;

    /// A pool and those who use it, in order of arrival.
    struct Crowd {
        pool: Rc<Pool>,
        waiting: Vec<(usize, Taking)>,
        holding: Idle,
        arrived: usize,
        /// Who was served, in order.
        served: Vec<usize>,
    }

    impl Crowd {
        fn new(size: usize) -> Self {
            let pool = Pool::new(NodeId::default(), size);
            let (waiting, holding) = (Vec::new(), Vec::new());
            Self { pool, waiting, holding, arrived: 0, served: Vec::new() }
        }

        fn arrive(&mut self) {
            let pool = Rc::clone(&self.pool);
            let taking =
                async move { pool.take(PART, &Rc::default(), usize::MAX, (|| 0, u64::MAX)).await };
            self.waiting.push((self.arrived, Box::pin(taking)));
            self.arrived += 1;
        }

        /// Lets everybody look once.
        fn look(&mut self) {
            let mut cx = Context::from_waker(Waker::noop());
            for (who, mut taking) in std::mem::take(&mut self.waiting) {
                match taking.as_mut().poll(&mut cx) {
                    Poll::Pending => self.waiting.push((who, taking)),
                    Poll::Ready(Had::Server(server)) => {
                        self.served.push(who);
                        self.holding.push(server);
                    }
                    Poll::Ready(Had::Place(place)) => {
                        self.served.push(who);
                        self.holding.push(server(place));
                    }
                    Poll::Ready(Had::Expired | Had::Crowded) => panic!("there is no limit"),
                }
            }
        }
    }

    /// What happens: somebody comes, goes, gives a connection back, loses it, or everybody looks.
    #[derive(Debug, Clone, Copy)]
    enum Happens {
        Arrives,
        Leaves(usize),
        GivesBack(usize),
        Loses(usize),
        Shaken,
        Looks,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            4 => Just(Happens::Arrives),
            2 => any::<usize>().prop_map(Happens::Leaves),
            3 => any::<usize>().prop_map(Happens::GivesBack),
            1 => any::<usize>().prop_map(Happens::Loses),
            1 => Just(Happens::Shaken),
            3 => Just(Happens::Looks),
        ]
    }

    fn perform(crowd: &mut Crowd, happens: Happens) {
        match happens {
            Happens::Arrives => crowd.arrive(),
            Happens::Leaves(n) if !crowd.waiting.is_empty() => {
                drop(crowd.waiting.remove(n % crowd.waiting.len()));
            }
            Happens::GivesBack(n) if !crowd.holding.is_empty() => {
                let server = crowd.holding.remove(n % crowd.holding.len());
                crowd.pool.put(server);
            }
            Happens::Loses(n) if !crowd.holding.is_empty() => {
                drop(crowd.holding.remove(n % crowd.holding.len()));
            }
            Happens::Shaken => crowd.pool.shake(),
            Happens::Looks => crowd.look(),
            Happens::Leaves(_) | Happens::GivesBack(_) | Happens::Loses(_) => {}
        }
    }

    proptest! {
        #[test]
        fn no_place_is_lost(size in 1..4usize, all in proptest::collection::vec(happens(), 0..60)) {
            let mut crowd = Crowd::new(size);
            for happens in all {
                perform(&mut crowd, happens);
                let (idle, open, _) = crowd.pool.counts();
                prop_assert!(open <= size && idle + crowd.holding.len() <= open);
            }
            for _ in 0..crowd.waiting.len() + 2 {
                crowd.look();
            }
            // Nobody waits while there is something to be had.
            if !crowd.waiting.is_empty() {
                prop_assert_eq!(crowd.holding.len(), size);
            }
            crowd.waiting.clear();
            crowd.holding.clear();
            for _ in 0..size {
                crowd.arrive();
            }
            crowd.look();
            prop_assert_eq!(crowd.holding.len(), size);
        }

        #[test]
        fn whoever_waits_longest_goes_first(
            size in 1..4usize,
            all in proptest::collection::vec(happens(), 0..60),
        ) {
            let mut crowd = Crowd::new(size);
            for happens in all {
                // After a shake everybody queues anew; all look at once, in order.
                perform(&mut crowd, happens);
                crowd.look();
                crowd.look();
            }
            let mut sorted = crowd.served.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&crowd.served, &sorted);
        }
    }

    #[test]
    fn who_waits_too_long_is_told_and_nobody_behind_it_suffers() {
        let mut crowd = Crowd::new(1);
        crowd.arrive();
        crowd.look();
        let pool = Rc::clone(&crowd.pool);
        let mut late: Taking =
            Box::pin(async move { pool.take(PART, &Rc::default(), usize::MAX, (|| 0, 5)).await });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        crowd.arrive();
        crowd.look();
        assert_eq!(crowd.pool.expire(4), 0);
        assert_eq!(crowd.pool.expire(5), 1);
        assert!(matches!(late.as_mut().poll(&mut cx), Poll::Ready(Had::Expired)));
        crowd.holding.clear();
        crowd.look();
        assert_eq!(crowd.served, [0, 1]);
    }
}
