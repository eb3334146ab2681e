//! Server connections of one database and role to one server: taken for a transaction, put back,
//! waited for in order of arrival.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use quorate_core::NodeId;

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
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    pub(crate) node: NodeId,
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
    /// Milliseconds of the worker's clock at which it gives up.
    until: u64,
    gone: Cell<bool>,
}

enum Given {
    Server(Box<Server>),
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
        until: impl Fn() -> u64,
    ) -> Had {
        let mut first = false;
        loop {
            if let Some(had) = self.now(part, settings, first) {
                return had;
            }
            if self.waiting.borrow().len() >= waiting_max {
                return Had::Crowded;
            }
            let waiter = Rc::new(Waiter {
                given: Cell::default(),
                waker: Cell::default(),
                until: until(),
                gone: Cell::new(false),
            });
            self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
            match Waiting(&waiter, self).await {
                Given::Server(server) if server.part == part => return Had::Server(server),
                Given::Server(_) | Given::Look => first = true,
                Given::Expired => return Had::Expired,
            }
        }
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
        // More than are wanted: the size was lowered.
        if self.open.get() > self.size.get() {
            return;
        }
        self.next(Some(server));
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

    /// Lets those go who have waited until now; the number.
    pub(crate) fn expire(&self, now: u64) -> usize {
        let mut expired = 0;
        loop {
            let due = |w: &Rc<Waiter>| w.until <= now || w.gone.get();
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.front().is_some_and(due) {
                return expired;
            }
            let waiter = waiting.pop_front();
            drop(waiting);
            if let Some(waiter) = waiter.filter(|w| !w.gone.get()) {
                waiter.give(Given::Expired);
                expired += 1;
            }
        }
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
                async move { pool.take(PART, &Rc::default(), usize::MAX, || u64::MAX).await };
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
            Box::pin(async move { pool.take(PART, &Rc::default(), usize::MAX, || 5).await });
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
