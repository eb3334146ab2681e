//! One node's decisions.

use quorate_core::authority::Phase;
use quorate_core::node::{
    Action, Data, Decision, Feed, Job, NodeView, OwnReign, Promise, Server, decide,
};
use quorate_core::state::{NodeKind, State};
use quorate_core::status::{Doing, Surrender, SurrenderReason};
use quorate_core::{Lsn, Policy, Report, Rule, Term, TimelineId};

use crate::fixture::{node, rule, state};

fn view(state: &State) -> NodeView<'_> {
    NodeView {
        me: node("a"),
        kind: NodeKind::Data,
        state,
        promise: Promise::Kept(state.authority.term),
        current: true,
        server: Server::Standby,
        data: Data::Ready,
        job: None,
        feed: Feed::Closed,
        report: None,
        surrender: None,
        reign: None,
        writer_open: false,
        writer_serving: false,
        writer_waits: false,
        lease_clear: false,
        upstream: None,
        restart: false,
        yields: false,
        starved: false,
    }
}

#[test]
fn a_server_that_ended_with_its_reign_starts_after_the_next_writer_serves() {
    fn ended(state: &State) -> NodeView<'_> {
        NodeView { server: Server::Down, yields: true, ..view(state) }
    }
    let electing = state(4, Phase::Electing, None);
    assert_eq!(decide(&ended(&electing)).actions, []);
    let later = NodeView { yields: false, ..ended(&electing) };
    assert_eq!(decide(&later).actions, [Action::StartServer]);
    let mut pair = electing.clone();
    pair.authority.rules = vec![rule(1, "a b", Policy::Copies(1))];
    assert_eq!(decide(&ended(&pair)).actions, [Action::StartServer], "its report is needed");
    let granted = state(4, Phase::Granted, Some("b"));
    assert_eq!(decide(&ended(&granted)).actions, []);
}

#[test]
fn a_new_term_is_promised_before_anything_else() {
    let state = state(4, Phase::Electing, None);
    let view = NodeView {
        promise: Promise::Kept(Term(3)),
        server: Server::Writer(TimelineId(3)),
        ..view(&state)
    };
    let decision = decide(&view);
    assert_eq!(
        decision.actions,
        [Action::Fence, Action::CloseFeed, Action::Promise { term: Term(4) }]
    );
}

#[test]
fn a_node_that_promised_more_follows_nobody() {
    let state = state(4, Phase::Serving, Some("b"));
    let view = NodeView { promise: Promise::Kept(Term(5)), ..view(&state) };
    assert_eq!(decide(&view).actions, []);
}

#[test]
fn a_writer_of_an_old_term_stops_before_it_reports() {
    let state = state(4, Phase::Electing, None);
    let view = NodeView { server: Server::Writer(TimelineId(3)), ..view(&state) };
    assert_eq!(decide(&view).actions, [Action::Fence, Action::StopServer]);
}

#[test]
fn amnesia_keeps_a_cohort_member_out() {
    let mut state = state(4, Phase::Serving, Some("b"));
    let lost = NodeView { promise: Promise::Lost, ..view(&state) };
    assert_eq!(decide(&lost).doing, Doing::Broken);
    state.authority.rules[0].cohort.remove(&node("a"));
    let lost = NodeView { promise: Promise::Lost, ..view(&state) };
    assert!(decide(&lost).actions.contains(&Action::Promise { term: Term(4) }));
    let early = NodeView { promise: Promise::Lost, current: false, ..view(&state) };
    assert_eq!(decide(&early).actions, [], "it may be a member by now");
}

#[test]
fn a_grantee_serves_only_after_marker_record_and_lease() {
    let mut state = state(4, Phase::Granted, Some("a"));
    let writer = Server::Writer(TimelineId(5));
    let begin = decide(&NodeView { server: writer, ..view(&state) });
    assert!(matches!(begin.actions[..], [Action::BeginReign { .. }]));
    let mut own = OwnReign {
        term: Term(4),
        rule: 1,
        marked: None,
        open: false,
        lease_lost: false,
        stuck: None,
        drained: false,
    };
    let opens = |state: &State, own: &OwnReign, clear: bool| {
        let view = NodeView { server: writer, reign: Some(own), lease_clear: clear, ..view(state) };
        decide(&view).actions.contains(&Action::Open { term: Term(4) })
    };
    assert!(!opens(&state, &own, true), "no marker");
    own.marked = Some(1);
    assert!(!opens(&state, &own, true), "not recorded");
    state.authority.phase = Phase::Serving;
    assert!(!opens(&state, &own, false), "lease");
    assert!(opens(&state, &own, true));
}

#[test]
fn a_crash_of_the_writers_server_gives_the_term_up() {
    let state = state(4, Phase::Serving, Some("a"));
    let view = NodeView { server: Server::Down, ..view(&state) };
    let surrender = Action::Surrender { term: Term(4), reason: SurrenderReason::Crash };
    assert_eq!(decide(&view).actions, [Action::Fence, surrender]);
}

#[test]
fn a_diverged_standby_is_rewound_only_once_the_writer_serves() {
    let state = state(4, Phase::Serving, Some("b"));
    let feed = Feed::Diverged { term: Term(4) };
    let early = NodeView { feed, ..view(&state) };
    assert_eq!(decide(&early).actions, []);
    let late = NodeView { feed, writer_open: true, writer_serving: true, ..view(&state) };
    let rewind = Action::Rewind { from: node("b"), term: Term(4) };
    assert_eq!(decide(&late).actions, [Action::CloseFeed, rewind]);
}

fn own(rule: u64) -> OwnReign {
    OwnReign {
        term: Term(4),
        rule,
        marked: Some(rule),
        open: true,
        lease_lost: false,
        stuck: None,
        drained: false,
    }
}

fn reigning(state: &State, own: &OwnReign) -> Decision {
    let server = Server::Writer(TimelineId(5));
    decide(&NodeView { server, reign: Some(own), lease_clear: true, ..view(state) })
}

fn gives_up(decision: &Decision, reason: SurrenderReason) -> bool {
    decision.actions == [Action::Fence, Action::Surrender { term: Term(4), reason }]
}

#[test]
fn outside_a_cluster_nothing_is_done_and_a_removed_node_stops() {
    let mut state = state(4, Phase::Serving, Some("b"));
    state.nodes.remove(&node("a"));
    assert!(decide(&view(&state)).actions.contains(&Action::StopServer));
    state.cluster_id.clear();
    assert_eq!(decide(&view(&state)).actions, []);
}

#[test]
fn a_witness_promises_and_votes_only() {
    let state = state(4, Phase::Electing, None);
    let witness = NodeView { kind: NodeKind::Witness, ..view(&state) };
    assert_eq!(decide(&witness).doing, Doing::Witness);
    let behind = NodeView { promise: Promise::Kept(Term(3)), ..witness };
    assert!(decide(&behind).actions.contains(&Action::Promise { term: Term(4) }));
}

#[test]
fn refused_data_is_never_touched() {
    let state = state(4, Phase::Electing, None);
    let view = NodeView { data: Data::Refused("strange".into()), ..view(&state) };
    let decision = decide(&view);
    assert_eq!((decision.actions, decision.doing), (vec![Action::Fence], Doing::Broken));
}

#[test]
fn every_state_of_a_server_leads_to_a_report() {
    let state = state(4, Phase::Electing, None);
    let first = |server| decide(&NodeView { server, ..view(&state) }).actions;
    assert_eq!(first(Server::Down), [Action::StartServer]);
    assert_eq!(first(Server::Starting), []);
    assert_eq!(first(Server::Hung), [Action::Fence, Action::StopServer]);
    let freeze = Action::Freeze { term: Term(4) };
    assert_eq!(first(Server::Standby), [Action::CloseFeed, freeze]);
    let busy = NodeView { job: Some(Job::Freeze), ..view(&state) };
    assert_eq!(decide(&busy).doing, Doing::Freezing);
    let empty = NodeView { data: Data::Missing, ..view(&state) };
    assert_eq!(decide(&empty).actions, [], "no database to report");
}

#[test]
fn a_report_answers_one_term_only() {
    let state = state(4, Phase::Electing, None);
    let report =
        |term| Report { term: Term(term), timeline: TimelineId(1), lsn: Lsn(5), forks: Vec::new() };
    let doing = |r: &Report| decide(&NodeView { report: Some(r), ..view(&state) }).doing;
    assert_eq!(doing(&report(4)), Doing::Frozen);
    assert_eq!(doing(&report(3)), Doing::Freezing);
}

#[test]
fn only_the_founder_of_a_cluster_that_never_had_data_makes_a_database() {
    let mut state = state(4, Phase::Electing, None);
    state.system_id = None;
    let bootstraps = |state: &State| {
        let view = NodeView { data: Data::Missing, server: Server::Down, ..view(state) };
        decide(&view).actions == [Action::Bootstrap]
    };
    assert!(!bootstraps(&state), "not alone in the cohort");
    state.authority.rules[0].cohort = [node("a")].into();
    assert!(bootstraps(&state));
    state.system_id = Some(7);
    assert!(!bootstraps(&state), "there was a database");
}

#[test]
fn a_restarted_grantee_starts_promotes_and_gives_up_without_data() {
    let state = state(4, Phase::Granted, Some("a"));
    let next = |server| decide(&NodeView { server, ..view(&state) }).actions;
    assert_eq!(next(Server::Down), [Action::StartServer]);
    assert_eq!(next(Server::Starting), []);
    let promote = Action::Promote { term: Term(4), timeline: TimelineId(5) };
    assert_eq!(next(Server::Standby), [Action::CloseFeed, promote]);
    let at_work = NodeView { job: Some(Job::Promote), ..view(&state) };
    assert_eq!(decide(&at_work).doing, Doing::Promoting);
    let server = Server::Writer(TimelineId(9));
    let early = NodeView { server, job: Some(Job::Promote), ..view(&state) };
    assert_eq!(decide(&early).actions, [], "what it made is known when its job has ended");
    let wrong = NodeView { server, ..view(&state) };
    assert!(gives_up(&decide(&wrong), SurrenderReason::BadPromotion));
    for data in [Data::Missing, Data::Spoilt] {
        let empty = NodeView { data, server: Server::Down, ..view(&state) };
        assert!(gives_up(&decide(&empty), SurrenderReason::Crash));
    }
    let own = own(1);
    let crashed = NodeView { server: Server::Down, reign: Some(&own), ..view(&state) };
    assert!(gives_up(&decide(&crashed), SurrenderReason::Crash));
}

#[test]
fn a_serving_writer_whose_agent_restarted_gives_up_in_any_state_of_its_server() {
    let state = state(4, Phase::Serving, Some("a"));
    for server in [Server::Down, Server::Starting, Server::Standby] {
        let view = NodeView { server, ..view(&state) };
        assert!(gives_up(&decide(&view), SurrenderReason::Crash), "{server:?}");
    }
    let hung = NodeView { server: Server::Hung, ..view(&state) };
    assert!(gives_up(&decide(&hung), SurrenderReason::Hang));
}

#[test]
fn who_surrendered_stays_fenced_until_the_next_term() {
    let state = state(4, Phase::Serving, Some("a"));
    let surrender =
        Surrender { term: Term(4), reason: SurrenderReason::Switchover, released: true };
    let server = Server::Writer(TimelineId(5));
    let up = NodeView { surrender: Some(&surrender), server, ..view(&state) };
    assert_eq!(decide(&up).actions, [Action::Fence, Action::StopServer]);
    let down = NodeView { server: Server::Down, ..up };
    assert_eq!(decide(&down).actions, [Action::Fence]);
    let old = Surrender { term: Term(3), ..surrender };
    let own = own(1);
    let again = NodeView {
        surrender: Some(&old),
        server,
        reign: Some(&own),
        lease_clear: true,
        ..view(&state)
    };
    assert_eq!(decide(&again).doing, Doing::Writing, "granted anew");
}

#[test]
fn a_stuck_or_unheard_writer_gives_up() {
    let state = state(4, Phase::Serving, Some("a"));
    let lost = OwnReign { lease_lost: true, ..own(1) };
    assert!(gives_up(&reigning(&state, &lost), SurrenderReason::LeaseLost));
    let stuck = OwnReign { stuck: Some(SurrenderReason::Disk), ..own(1) };
    assert!(gives_up(&reigning(&state, &stuck), SurrenderReason::Disk));
}

#[test]
fn a_rule_change_is_adopted_marked_and_only_then_closed() {
    let mut state = state(4, Phase::Serving, Some("a"));
    for generation in [2, 3] {
        let cohort = ["a", "b"].map(node).into();
        state.authority.rules.push(Rule { generation, cohort, policy: Policy::Copies(2) });
    }
    let newest = state.authority.rules[2].clone();
    let mut own = own(1);
    let adopt = Action::AdoptRule { term: Term(4), rule: newest };
    assert_eq!(reigning(&state, &own).actions, [adopt]);
    own.rule = 3;
    let mark = Action::Mark { term: Term(4), rule: 3 };
    assert_eq!(reigning(&state, &own).actions, [mark]);
    own.marked = Some(3);
    let close = Action::CloseRule { term: Term(4), generation: 3 };
    assert_eq!(reigning(&state, &own).actions, [close], "with three rules in force as with two");
}

#[test]
fn a_handover_drains_first_and_a_restart_waits_for_it() {
    let mut state = state(4, Phase::Serving, Some("a"));
    let (term, target) = (Term(4), Some(node("b")));
    state.authority.switchover = Some(quorate_core::authority::Switchover { term, target });
    let drain = Action::Drain { term, target };
    assert_eq!(reigning(&state, &own(1)).actions, [drain]);
    let drained = OwnReign { drained: true, ..own(1) };
    assert!(gives_up(&reigning(&state, &drained), SurrenderReason::Switchover));
    state.authority.switchover = None;
    let own = own(1);
    let restart = NodeView {
        server: Server::Writer(TimelineId(5)),
        reign: Some(&own),
        restart: true,
        ..view(&state)
    };
    assert!(gives_up(&decide(&restart), SurrenderReason::Restart));
}

#[test]
fn a_follower_in_every_state_works_its_way_to_the_feed() {
    let state = state(4, Phase::Serving, Some("b"));
    let base = || NodeView { writer_open: true, ..view(&state) };
    let (from, term) = (node("b"), Term(4));
    let clone = Action::Clone { from, term };
    for data in [Data::Missing, Data::Spoilt] {
        let view = NodeView { data: data.clone(), server: Server::Down, ..base() };
        assert_eq!(decide(&view).actions, [Action::CloseFeed, clone.clone()]);
        let early = NodeView { data, server: Server::Down, writer_open: false, ..base() };
        assert_eq!(decide(&early).actions, [], "nobody to copy from yet");
    }
    let next = |server| decide(&NodeView { server, ..base() }).actions;
    assert_eq!(next(Server::Down), [Action::CloseFeed, Action::StartServer]);
    assert_eq!(next(Server::Hung), [Action::StopServer]);
    assert_eq!(next(Server::Starting), []);
    assert_eq!(next(Server::Writer(TimelineId(2))), [Action::Fence, Action::StopServer]);
    let follow = || vec![Action::CloseFeed, Action::Follow { from, term }];
    assert_eq!(next(Server::Standby), follow());
    let fed = |from, term| decide(&NodeView { feed: Feed::Open { from, term }, ..base() });
    assert_eq!(fed(from, Term(3)).actions, follow(), "a feed of an older term");
    assert_eq!(fed(node("c"), term).actions, follow(), "a feed of another writer");
    assert_eq!(fed(from, term).doing, Doing::Following);
    let by_way = |feed| decide(&NodeView { feed, upstream: Some(node("c")), ..base() });
    let cascade = vec![Action::CloseFeed, Action::Follow { from: node("c"), term }];
    assert_eq!(by_way(Feed::Closed).actions, cascade, "by way of another one");
    assert_eq!(by_way(Feed::Open { from, term }).actions, cascade, "away from the writer");
    let there = by_way(Feed::Open { from: node("c"), term });
    assert_eq!((there.doing, &*there.because.sentence), (Doing::Following, "follows c"));
    assert_eq!(fed(node("c"), term).actions, follow(), "back to the writer");
    let old = NodeView { feed: Feed::Diverged { term: Term(3) }, ..base() };
    assert_eq!(decide(&old).actions, follow(), "a refusal of an older term");
    let restart = NodeView { restart: true, ..base() };
    assert_eq!(decide(&restart).actions, [Action::ShutServer]);
    for job in [Job::Clone, Job::Rewind, Job::Freeze, Job::Start] {
        let busy = NodeView { job: Some(job), ..base() };
        assert_eq!(decide(&busy).actions, [], "{job:?}");
    }
}

#[test]
fn a_rewound_server_waits_for_the_present_writers_log_only() {
    let state = state(4, Phase::Serving, Some("b"));
    let rewound = |feed, job| NodeView {
        data: Data::Incomplete,
        server: Server::Starting,
        feed,
        job,
        writer_serving: true,
        ..view(&state)
    };
    let present = Feed::Open { from: node("b"), term: Term(4) };
    assert_eq!(decide(&rewound(present, Some(Job::Start))).actions, []);
    assert_eq!(decide(&rewound(present, None)).actions, []);
    // The term changed while this node was not looking: nothing comes over the closed feed.
    let old = [
        Feed::Closed,
        Feed::Open { from: node("c"), term: Term(3) },
        Feed::Diverged { term: Term(3) },
    ];
    for feed in old {
        assert_eq!(decide(&rewound(feed, None)).actions, [Action::ShutServer], "{feed:?}");
    }
    // What this writer refused it refuses again, whether or not the server still runs.
    for server in [Server::Down, Server::Starting] {
        let feed = Feed::Diverged { term: Term(4) };
        let refused = NodeView { server, writer_open: true, ..rewound(feed, None) };
        let clone = Action::Clone { from: node("b"), term: Term(4) };
        // That answer is not about the copy.
        assert_eq!(decide(&refused).actions, [Action::CloseFeed, clone], "{server:?}");
    }
}

/// A timeline that came to nothing is forgotten by a restart of the server alone.
#[test]
fn a_server_that_waits_for_a_timeline_of_nobody_is_restarted() {
    let state = state(4, Phase::Serving, Some("b"));
    let astray = |term| NodeView {
        server: Server::Standby,
        feed: Feed::Astray { term: Term(term) },
        writer_serving: true,
        ..view(&state)
    };
    assert_eq!(decide(&astray(4)).actions, [Action::CloseFeed, Action::ShutServer]);
    // Of another term: the present writer may have that timeline.
    let follow = Action::Follow { from: node("b"), term: Term(4) };
    assert_eq!(decide(&astray(3)).actions, [Action::CloseFeed, follow]);
}
