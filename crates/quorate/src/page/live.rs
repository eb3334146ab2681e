//! What changed, sent to whoever watches: one look at the cluster serves all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use quorate_agent::slots::SlotsReport;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::limits::{
    ALIVE_EVERY, CHART_EVERY, LOOK_EVERY, LOOK_PAUSE, SECTIONS_WAITING_MAX, WATCHERS_MAX,
};
use super::memo::Memo;
use super::picture::{Over, Source};
use super::trend::Trend;
use super::view::{Section, Viewer, deeds, lag, sections};
use crate::review::Item;

/// One look at the cluster, drawn.
#[derive(Debug, Default)]
struct Look {
    sections: Vec<Section>,
    /// As in [`Over::ALL`].
    charts: Vec<Section>,
    /// As in [`Viewer::ALL`].
    deeds: Vec<[Section; 2]>,
}

/// What a watcher wants to see, and may.
#[derive(Debug, Clone, Copy)]
pub struct Watcher {
    /// Its charts.
    pub over: Over,
    /// Whether it is offered to act.
    pub viewer: Viewer,
}

impl Look {
    /// What this watcher sees.
    fn seen(&self, watcher: Watcher) -> impl Iterator<Item = &Section> {
        let charts = Over::ALL.iter().position(|o| *o == watcher.over).unwrap_or_default();
        let deeds = Viewer::ALL.iter().position(|v| *v == watcher.viewer).unwrap_or_default();
        let deeds = self.deeds.get(deeds).into_iter().flatten();
        self.sections.iter().chain(self.charts.get(charts)).chain(deeds)
    }
}

/// Looks at the cluster while somebody watches.
#[derive(Debug)]
pub struct Live {
    look: watch::Sender<Arc<Look>>,
    /// Whether a task is looking.
    looking: Mutex<bool>,
    places: Arc<Semaphore>,
    /// What the gateway was like.
    pub trend: Arc<Trend>,
    /// The checklist.
    pub review: Memo<Vec<Item>>,
    /// The writer's slots.
    pub slots: Memo<SlotsReport>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            look: watch::Sender::default(),
            looking: Mutex::new(false),
            places: Arc::new(Semaphore::new(WATCHERS_MAX)),
            trend: Arc::default(),
            review: Memo::default(),
            slots: Memo::default(),
        }
    }
}

/// What a watcher has, as its page says: section by section, `id:mark`.
pub type Has = BTreeMap<String, u64>;

/// Reads what a watcher says that it has; what makes no sense is left out.
pub fn has(text: &str) -> Has {
    let one = |pair: &str| {
        let (id, mark) = pair.split_once(':')?;
        Some((id.to_owned(), u64::from_str_radix(mark, 16).ok()?))
    };
    text.split(',').filter_map(one).collect()
}

impl Live {
    /// A stream of what changes for a watcher that has this; `None` when there are as many watchers as
    /// there may be.
    pub fn watch(
        self: &Arc<Self>,
        source: &impl Source,
        watcher: Watcher,
        has: Has,
    ) -> Option<Body> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (to, inbox) = mpsc::channel(SECTIONS_WAITING_MAX);
        let seen = self.look.subscribe();
        self.begin(source);
        tokio::spawn(tell(seen, to, watcher, has));
        Some(Body::new(Stream { inbox, _place: place }))
    }

    /// Begins to look, unless somebody does already.
    fn begin(self: &Arc<Self>, source: &impl Source) {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if !*looking {
            *looking = true;
            // What the last watcher saw is not what is.
            self.look.send_replace(Arc::default());
            let every = interval(LOOK_EVERY);
            tokio::spawn(keep_looking(Arc::clone(self), source.clone(), every));
        }
    }

    /// Whether nobody watches any more; if so, looking ends.
    fn ends(&self) -> bool {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        *looking = self.look.receiver_count() > 0;
        !*looking
    }
}

async fn keep_looking(live: Arc<Live>, source: impl Source, mut every: Interval) {
    let mut charts: Vec<Section> = Vec::new();
    let mut drawn: Option<Instant> = None;
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut agreed = source.agreed();
    while !live.ends() {
        tokio::select! {
            _ = every.tick() => {}
            Ok(()) = agreed.changed() => every.reset(),
        }
        let picture = source.picture().await;
        if drawn.is_none_or(|at| at.elapsed() >= CHART_EVERY) {
            drawn = Some(Instant::now());
            let now = picture.status.at;
            let chart = |over: &Over| lag(&picture, &source.lateness(*over), *over, now);
            charts = Over::ALL.iter().map(chart).collect();
        }
        let deeds = Viewer::ALL.map(|viewer| deeds(viewer, &picture)).into();
        let look = Look { sections: sections(&picture), charts: charts.clone(), deeds };
        live.look.send_replace(Arc::new(look));
        sleep(LOOK_PAUSE).await;
    }
}

/// Tells one watcher what changed, until it goes.
async fn tell(
    mut seen: watch::Receiver<Arc<Look>>,
    to: mpsc::Sender<Bytes>,
    watcher: Watcher,
    mut has: Has,
) {
    loop {
        let look = Arc::clone(&seen.borrow_and_update());
        for section in look.seen(watcher) {
            if has.insert(section.id.to_owned(), section.mark) != Some(section.mark)
                && to.send(event(section)).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            changed = timeout(ALIVE_EVERY, seen.changed()) => match changed {
                Ok(Err(_)) => return,
                Ok(Ok(())) => {}
                Err(_) => {}
            },
            () = to.closed() => return,
        }
        if to.capacity() == to.max_capacity() && to.send(alive()).await.is_err() {
            return;
        }
    }
}

/// A section as an event: its name and mark, then its text. No line of it may stand alone.
fn event(section: &Section) -> Bytes {
    let mut out = format!("event: section\ndata: {} {:x}\n", section.id, section.mark);
    for line in section.html.split(['\n', '\r']) {
        out += "data: ";
        out += line;
        out.push('\n');
    }
    out.push('\n');
    out.into()
}

fn alive() -> Bytes {
    Bytes::from_static(b"event: alive\ndata:\n\n")
}

/// The body of an answer that does not end by itself.
struct Stream {
    inbox: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = ready!(self.inbox.poll_recv(cx));
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::state::State;

    use super::*;
    use crate::page::fixture;
    use crate::page::picture::{Lateness, Picture};

    /// Tells when it is looked at.
    #[derive(Clone)]
    struct Looked {
        at: mpsc::UnboundedSender<()>,
        agreed: watch::Receiver<Arc<State>>,
    }

    impl Source for Looked {
        async fn picture(&self) -> Picture {
            let _ = self.at.send(());
            fixture::picture()
        }

        fn lateness(&self, _over: Over) -> Lateness {
            Lateness::default()
        }

        fn agreed(&self) -> watch::Receiver<Arc<State>> {
            self.agreed.clone()
        }
    }

    #[tokio::test]
    async fn what_the_cluster_agrees_on_is_looked_at_without_waiting_for_the_next_turn() {
        let (agree, agreed) = watch::channel(Arc::default());
        let (at, mut looks) = mpsc::unbounded_channel();
        let live = Arc::new(Live::default());
        let _watcher = live.look.subscribe();
        let hours = interval(std::time::Duration::from_secs(36_000));
        tokio::spawn(keep_looking(live, Looked { at, agreed }, hours));
        for _ in 0..3 {
            let look = timeout(std::time::Duration::from_secs(60), looks.recv()).await;
            assert!(look.is_ok_and(|look| look.is_some()), "nobody looked");
            agree.send_replace(Arc::default());
        }
    }

    fn section(id: &'static str, html: &str, mark: u64) -> Section {
        Section { id, title: "", html: html.into(), mark }
    }

    #[test]
    fn what_a_watcher_has() {
        let has = has("now:1f,cluster:a,x:zz,nonsense,:");
        assert_eq!(has, [("cluster".to_owned(), 10), ("now".to_owned(), 31)].into());
    }

    #[test]
    fn no_line_of_a_section_escapes_its_event() {
        let event = event(&section("now", "a\n\nevent: x\rb", 255));
        assert_eq!(
            event,
            "event: section\ndata: now ff\ndata: a\ndata: \ndata: event: x\ndata: b\n\n"
        );
    }

    #[tokio::test]
    async fn only_what_changed_is_told() {
        let may = |html, mark| [section("act", html, mark), section("door", html, mark)];
        let (looks, seen) = watch::channel(Arc::new(Look {
            sections: vec![section("now", "a", 1), section("next", "b", 2)],
            charts: vec![section("lag", "c", 3)],
            deeds: vec![may("look", 5), may("act", 6)],
        }));
        let (to, mut inbox) = mpsc::channel(SECTIONS_WAITING_MAX);
        let has = [("now", 1), ("lag", 9), ("act", 6), ("door", 5)];
        let has = has.map(|(id, mark)| (id.to_owned(), mark)).into();
        let watcher = Watcher { over: Over::Minutes, viewer: Viewer::Operator };
        tokio::spawn(tell(seen, to, watcher, has));
        let told = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(told(inbox.recv().await.unwrap()).contains("next 2"));
        assert!(told(inbox.recv().await.unwrap()).contains("lag 3"));
        assert!(told(inbox.recv().await.unwrap()).contains("door 6"), "it logged in meanwhile");
        looks.send_replace(Arc::new(Look {
            sections: vec![section("now", "d", 4), section("next", "b", 2)],
            ..Look::default()
        }));
        let (mut changed, mut rest) = (String::new(), 0);
        while changed.is_empty() {
            let event = told(inbox.recv().await.unwrap());
            if event.starts_with("event: section") { changed = event } else { rest += 1 }
        }
        assert!(changed.contains("now 4") && rest <= 1, "{changed}");
    }
}
