//! One node's step: the real decision, and its actions performed on the modelled world.

use std::collections::BTreeMap;

use quorate_core::node::{Action, Data, Feed, NodeView, OwnReign, Promise, Server, decide};
use quorate_core::state::NodeKind;
use quorate_core::status::{Surrender, SurrenderReason};
use quorate_core::{Because, Change, Lsn, Policy, Rule, State, Term, TimelineId};

use super::Flaw;
use super::world::{MARKER, Own, Process, World, index, name, shared_rule};

/// Local preparations; a step goes on after them, for nothing can come between that matters.
fn is_quiet(action: &Action) -> bool {
    match action {
        Action::Fence
        | Action::CloseFeed
        | Action::StartServer
        | Action::StopServer
        | Action::Promote { .. }
        | Action::AdoptRule { .. } => true,
        Action::Promise { .. }
        | Action::Bootstrap
        | Action::ShutServer
        | Action::Freeze { .. }
        | Action::Follow { .. }
        | Action::Clone { .. }
        | Action::Rewind { .. }
        | Action::BeginReign { .. }
        | Action::Mark { .. }
        | Action::ProposeOpened { .. }
        | Action::CloseRule { .. }
        | Action::Open { .. }
        | Action::Drain { .. }
        | Action::Surrender { .. } => false,
    }
}

/// Lets node `i` decide and act until something happened that others can see.
pub(crate) fn step(world: &mut World, flaw: Flaw, i: usize) {
    for _ in 0..4 {
        let actions = decisions(world, flaw, i);
        let quiet = actions.iter().all(is_quiet);
        for action in &actions {
            perform(world, flaw, i, action);
        }
        if actions.is_empty() || !quiet {
            break;
        }
    }
    settle(world, flaw, i);
}

fn decisions(world: &World, flaw: Flaw, i: usize) -> Vec<Action> {
    let node = &world.nodes[i];
    let known = node.known_term();
    let mut state = node.known.value.clone();
    if flaw == Flaw::GrantUnbound {
        let mut wrong = State::clone(&state);
        wrong.authority.rules = world.record.value.authority.rules.clone();
        state = wrong.into();
    }
    let writer = node.known.value.authority.writer.map(index);
    let promised = if flaw == Flaw::FollowStale { known.min(node.promised) } else { node.promised };
    let report = (node.reported > 0).then(|| node.report(node.reported));
    let surrender = (node.surrendered > 0).then(|| Surrender {
        term: Term(u64::from(node.surrendered)),
        reason: SurrenderReason::Crash,
        released: true,
    });
    let reign = node.own.as_ref().map(|own| OwnReign {
        term: Term(u64::from(own.term)),
        rule: own.rule.value.generation,
        marked: own.marked,
        open: own.open,
        lease_lost: false,
        stuck: None,
        drained: false,
    });
    let view = NodeView {
        me: name(i),
        kind: NodeKind::Data,
        state: &state,
        promise: match promised {
            0 if flaw == Flaw::AmnesiaTrusted => Promise::Kept(Term(u64::from(known))),
            0 => Promise::Lost,
            kept => Promise::Kept(Term(u64::from(kept))),
        },
        current: node.current || flaw == Flaw::OldRecord,
        server: match node.process {
            Process::Down => Server::Down,
            Process::Standby => Server::Standby,
            Process::Writer(line) => Server::Writer(TimelineId(line)),
        },
        data: Data::Ready,
        job: None,
        feed: feed(world, i),
        report: report.as_ref(),
        surrender: surrender.as_ref(),
        reign: reign.as_ref(),
        writer_open: writer.is_some_and(|w| world.nodes[w].reigns_in(known)),
        // Earlier than in production, where the writer must serve: the bolder rule is checked.
        writer_serving: writer.is_some_and(|w| world.nodes[w].reigns_in(known)),
        writer_waits: false,
        lease_clear: true,
        upstream: None,
        restart: false,
        // Only a delay: what it delays is explored as happening at any time.
        yields: false,
        starved: false,
    };
    decide(&view).actions
}

fn feed(world: &World, i: usize) -> Feed {
    let node = &world.nodes[i];
    match node.feed {
        Some((from, term)) if world.nodes[from as usize].reigns_in(term) => {
            Feed::Open { from: name(from as usize), term: Term(u64::from(term)) }
        }
        _ if node.diverged > 0 => Feed::Diverged { term: Term(u64::from(node.diverged)) },
        _ => Feed::Closed,
    }
}

fn perform(world: &mut World, flaw: Flaw, i: usize, action: &Action) {
    let small = |term: &Term| term.0 as u8;
    let node = &mut world.nodes[i];
    match action {
        Action::Promise { term } => node.promised = node.promised.max(small(term)),
        Action::Fence => node.own = None,
        Action::CloseFeed if flaw == Flaw::NoCut => {}
        Action::CloseFeed => node.feed = None,
        Action::StartServer => node.process = Process::Standby,
        Action::StopServer | Action::ShutServer => node.process = Process::Down,
        Action::Freeze { term } => freeze(world, flaw, i, small(term)),
        Action::Promote { term, timeline } => promote(world, i, small(term), timeline.0),
        Action::Follow { from, term } => follow(world, flaw, i, index(*from), small(term)),
        Action::Rewind { from, .. } => rewind(world, i, index(*from)),
        Action::BeginReign { term, rule } => begin_reign(world, i, small(term), rule),
        Action::AdoptRule { rule, .. } => adopt(world, i, rule),
        Action::Mark { rule, .. } => mark(world, flaw, i, *rule),
        Action::ProposeOpened { term } => {
            let fork = node.forks.last().map_or(Lsn(0), |f| Lsn(u64::from(f.1)));
            let because = Because::default();
            world.apply(Change::Opened { term: *term, fork, next_xid: 0, because });
        }
        Action::CloseRule { term, generation } => {
            world.apply(Change::CloseRule { term: *term, generation: *generation });
        }
        Action::Open { .. } => open(world, i),
        Action::Surrender { term, .. } => node.surrendered = small(term),
        Action::Bootstrap | Action::Clone { .. } | Action::Drain { .. } => {
            unreachable!("not in this world: {action:?}")
        }
    }
}

fn freeze(world: &mut World, flaw: Flaw, i: usize, term: u8) {
    world.nodes[i].reported = term;
    let early = flaw == Flaw::ReportBeforeCut && world.reports.contains_key(&name(i));
    if world.term() == term && !early {
        world.reports.insert(name(i), world.nodes[i].report(term));
    }
}

fn promote(world: &mut World, i: usize, term: u8, line: u32) {
    let node = &mut world.nodes[i];
    node.process = Process::Writer(line);
    // A grantee that crashed after its promotion goes on with the timeline it has.
    if node.line != line || node.wal.last().is_none_or(|r| r.0 != term) {
        // As PostgreSQL writes it: the parent is the timeline it was following, whether or not it
        // had reached that timeline's own beginning.
        node.forks.push((node.line, node.wal.len() as u8));
        node.wal.push((term, MARKER + term));
        node.line = line;
    }
}

fn follow(world: &mut World, flaw: Flaw, i: usize, writer: usize, term: u8) {
    if !world.nodes[writer].reigns_in(term) {
        return;
    }
    let (from, node) = (world.nodes[writer].clone(), &mut world.nodes[i]);
    if !node.fits(&from) && flaw != Flaw::NoLineage {
        node.diverged = term;
        return;
    }
    node.feed = Some((writer as u8, term));
    node.diverged = 0;
    // The receiver takes the writer's history at once, before any byte of its timeline.
    node.line = from.line;
    node.forks = from.forks;
    node.feedback = Some((writer as u8, term, node.wal.len() as u8));
    let own = world.nodes[writer].own.as_mut();
    let link = own.map(|o| &mut o.links[i]);
    if let Some(link @ None) = link {
        *link = Some(0);
    }
}

fn rewind(world: &mut World, i: usize, writer: usize) {
    let from = world.nodes[writer].clone();
    let node = &mut world.nodes[i];
    let common = node.wal.iter().zip(&from.wal).take_while(|(a, b)| a == b).count();
    node.wal.truncate(common);
    node.line = from.line;
    node.forks = from.forks;
    node.diverged = 0;
}

fn begin_reign(world: &mut World, i: usize, term: u8, rule: &Rule) {
    let links = vec![None; world.nodes.len()];
    let rule = shared_rule(rule);
    let own = Own { term, rule, mark: None, marked: None, open: false, links };
    world.nodes[i].own = Some(own);
}

pub(crate) fn adopt(world: &mut World, i: usize, rule: &Rule) {
    if let Some(own) = world.nodes[i].own.as_mut() {
        own.rule = shared_rule(rule);
    }
}

fn mark(world: &mut World, flaw: Flaw, i: usize, rule: u64) {
    let node = &mut world.nodes[i];
    let length = node.wal.len() as u8;
    let changing = node.known.value.authority.rules.len() > 1;
    let Some(own) = node.own.as_mut() else { return };
    if own.mark.is_none_or(|(generation, _)| generation != rule) {
        own.mark = Some((rule, length));
    }
    if flaw == Flaw::NoBarrier && changing || flaw == Flaw::ServeEarly && !own.open {
        own.marked = Some(rule);
    }
}

/// A writer opens: what it has from former terms becomes visible.
pub(crate) fn open(world: &mut World, i: usize) {
    let node = &mut world.nodes[i];
    let Some(own) = node.own.as_mut() else { return };
    own.open = true;
    let term = own.term;
    if own.rule.value.policy == Policy::WriterOnly {
        return;
    }
    world.shown.extend(node.wal.iter().filter(|r| r.1 < MARKER).map(|r| (r.1, term)));
}

/// What follows at once from what a writer knows: its marker is held, commits are acknowledged.
/// Acknowledging early loses no generality: it only adds to what must survive.
pub(crate) fn settle(world: &mut World, flaw: Flaw, i: usize) {
    let node = &mut world.nodes[i];
    let Some(own) = node.own.as_mut() else { return };
    let mut reached: BTreeMap<_, _> = own
        .links
        .iter()
        .enumerate()
        .filter_map(|(f, at)| Some((name(f), Lsn(u64::from((*at)?)))))
        .collect();
    reached.insert(name(i), Lsn(node.wal.len() as u64));
    let mut rule = own.rule.value.clone();
    if flaw == Flaw::WriterOutside && !rule.cohort.contains(&name(i)) {
        let mut wrong = Rule::clone(&rule);
        wrong.cohort.insert(name(i));
        rule = wrong.into();
    }
    if flaw == Flaw::ZonesUncounted
        && let Policy::Zones { copies, .. } = rule.policy
    {
        let mut wrong = Rule::clone(&rule);
        wrong.policy = Policy::Copies(copies);
        rule = wrong.into();
    }
    let safe = rule.safe_position(name(i), &reached).unwrap_or_default().0;
    if let Some((generation, at)) = own.mark
        && own.rule.value.generation == generation
        && safe >= u64::from(at)
    {
        own.marked = Some(generation);
    }
    // What the writer alone acknowledges may be lost: that is what its operator chose.
    if rule.policy == Policy::WriterOnly {
        return;
    }
    for (at, record) in node.wal.iter().enumerate() {
        if record.0 == own.term && record.1 < MARKER && (at as u64) < safe {
            world.acked.insert((record.1, own.term));
        }
    }
}
