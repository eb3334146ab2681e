//! The coordinator's decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_core::authority::{Phase, Switchover};
use quorate_core::coordinator::{ClusterView, Memory, Peer, Verdict, decide};
use quorate_core::document::{Document, NodeSpec, Timing};
use quorate_core::limits::{
    BETTER_CANDIDATE_WAIT, COHORT_ABSENCE, COHORT_ENTRY_LAG, COORDINATOR_GAP, DEGRADE_AFTER,
    FLAP_DELAY, FLAP_MAX, LOSSY_WAIT, OPEN_WAIT, OPEN_WAIT_MAX, PREFERRED_WAIT,
};
use quorate_core::role::Role;
use quorate_core::state::{DocumentVersion, NodeKind, State};
use quorate_core::status::{
    Doing, Hearing, NodeStatus, ServerStatus, StandbyLink, Surrender, SurrenderReason, WriterStatus,
};
use quorate_core::{Because, Change, Lsn, Moment, NodeId, Policy, Rule, Term};

use crate::fixture::{member, node, reign, report, rule, state};

const END: u64 = 100 * 1024 * 1024;

/// A cluster as its coordinator sees it, which is `w` unless said otherwise.
struct Seen {
    me: NodeId,
    now: Moment,
    state: State,
    voters: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    memory: Memory,
}

impl Seen {
    /// Data nodes a, b and c and the witness w; a serves in term 4, b and c follow it.
    fn serving() -> Self {
        let mut state = state(4, Phase::Serving, Some("a"));
        state.nodes.insert(node("w"), member(NodeKind::Witness));
        let names = ["a", "b", "c", "w"];
        let peers = names.map(|n| (node(n), peer(n, 4))).into();
        let mut seen = Self {
            me: node("w"),
            now: Moment(0) + Duration::from_secs(1000),
            state,
            voters: names.map(node).into(),
            peers,
            memory: Memory::default(),
        };
        seen.document(Document::default());
        seen.writes("a", &["b", "c"]);
        seen
    }

    /// As [`Seen::serving`], without c.
    fn pair() -> Self {
        let mut seen = Self::serving();
        seen.remove("c");
        seen.rule("a b", Policy::Copies(2));
        seen.writes("a", &["b"]);
        seen
    }

    /// Term 5 began: a is not heard.
    fn electing() -> Self {
        let mut seen = Self::serving();
        seen.state.authority.term = Term(5);
        seen.state.authority.phase = Phase::Electing;
        seen.state.authority.reigns = vec![reign(4, "a", Some(5))];
        for n in ["b", "c", "w"] {
            seen.status(n).term = Term(5);
        }
        seen.lose("a");
        seen
    }

    fn remove(&mut self, name: &str) {
        self.state.nodes.remove(&node(name));
        self.voters.remove(&node(name));
        self.peers.remove(&node(name));
    }

    fn document(&mut self, document: Document) {
        self.state.documents = [DocumentVersion { version: 1, at: 0, document }].into();
    }

    fn rule(&mut self, cohort: &str, policy: Policy) {
        self.state.authority.rules = vec![rule(1, cohort, policy)];
    }

    fn status(&mut self, name: &str) -> &mut NodeStatus {
        self.peers.get_mut(&node(name)).unwrap().status.as_mut().unwrap()
    }

    /// `name` says that it writes and whom it feeds.
    fn writes(&mut self, name: &str, standbys: &[&str]) {
        let term = self.state.authority.term;
        let generation = self.state.authority.rule().unwrap().generation;
        let end = Lsn(END);
        let link = StandbyLink { written: end, flushed: end, applied: end };
        let standbys = standbys.iter().map(|n| (node(n), link)).collect();
        let status = self.status(name);
        status.doing = Doing::Writing;
        status.server = Some(ServerStatus { flushed: Lsn(END), ..ServerStatus::default() });
        status.writer = Some(WriterStatus {
            term,
            serving: true,
            leased: true,
            rule: generation,
            standbys,
            ..WriterStatus::default()
        });
    }

    fn reports(&mut self, name: &str, lsn: u64) {
        let term = self.state.authority.term.0;
        let status = self.status(name);
        status.report = Some(report(term, 5, lsn, &[(1, 5)]));
        status.term = Term(term);
        status.doing = Doing::Frozen;
    }

    fn surrenders(&mut self, name: &str, reason: SurrenderReason) {
        let term = self.status(name).term;
        self.status(name).surrender = Some(Surrender { term, reason, released: true });
    }

    /// Nobody hears `name` any more.
    fn lose(&mut self, name: &str) {
        self.peers.get_mut(&node(name)).unwrap().gone = true;
        for peer in self.peers.values_mut() {
            let status = peer.status.as_mut().unwrap();
            status.hears.insert(node(name), Hearing { silent_ms: Some(9000), gone: true });
        }
    }

    fn returns(&mut self, name: &str) {
        self.peers.get_mut(&node(name)).unwrap().gone = false;
        for peer in self.peers.values_mut() {
            peer.status.as_mut().unwrap().hears.insert(node(name), hears());
        }
    }

    fn decide(&mut self) -> Verdict {
        for peer in self.peers.values_mut().filter(|p| !p.gone) {
            peer.heard = Some(self.now);
        }
        let Self { me, now, state, voters, peers, memory } = self;
        let view = ClusterView { me: *me, now: *now, state, voters, peers };
        decide(&view, memory)
    }

    /// Decides every 200 ms until `wait` is over; the last verdict.
    fn after(&mut self, wait: Duration) -> Verdict {
        let end = self.now + wait;
        let mut verdict = self.decide();
        while self.now < end {
            self.now = (self.now + Duration::from_millis(200)).min(end);
            verdict = self.decide();
        }
        verdict
    }

    fn begins(&mut self) -> bool {
        matches!(self.decide().change, Some(Change::BeginElection { .. }))
    }

    /// The rule that the verdict opens.
    fn opens(&mut self) -> Option<Rule> {
        opened(self.decide())
    }

    /// Applies what is decided now.
    fn apply(&mut self) {
        let change = self.decide().change.expect("nothing was decided");
        crate::fixture::done(&mut self.state, change);
    }
}

fn opened(verdict: Verdict) -> Option<Rule> {
    match verdict.change {
        Some(Change::OpenRule { rule, .. }) => Some(rule),
        _ => None,
    }
}

fn granted(verdict: &Verdict) -> Option<NodeId> {
    match &verdict.change {
        Some(Change::Grant { node, .. }) => Some(*node),
        _ => None,
    }
}

fn hears() -> Hearing {
    Hearing { silent_ms: Some(10), gone: false }
}

fn peer(name: &str, term: u64) -> Peer {
    let hears = ["a", "b", "c", "w"].map(|n| (node(n), hears())).into();
    let status = NodeStatus {
        kind: if name == "w" { NodeKind::Witness } else { NodeKind::Data },
        term: Term(term),
        promised: Some(Term(term)),
        doing: Doing::Following,
        server: Some(ServerStatus::default()),
        hears,
        document: 1,
        ..NodeStatus::new(node(name))
    };
    Peer { heard: None, gone: false, status: Some(status) }
}

fn timing(timing: Timing) -> Document {
    Document { timing, ..Document::default() }
}

fn sync(names: &[&str], copies: u8) -> Document {
    let sync_nodes = names.iter().map(|n| node(n)).collect();
    Document { sync_nodes, copies, ..timing(Timing::Sync) }
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    let mut seen = Seen::serving();
    let verdict = seen.after(Duration::from_secs(60));
    assert_eq!((verdict.change, verdict.because.rule.as_str()), (None, "serving"));
    assert_eq!(Seen::pair().after(Duration::from_secs(60)).change, None);
    seen.state.cluster_id.clear();
    assert_eq!(seen.decide().because.rule, "op-init");
}

#[test]
fn a_writer_that_a_majority_cannot_hear_is_replaced() {
    let mut seen = Seen::serving();
    seen.lose("a");
    assert!(seen.begins());
    // One voter that hears it still: three of four are deaf, enough; with two it is not.
    seen.status("b").hears.insert(node("a"), hears());
    assert!(!seen.begins(), "two of four voters are no majority");
    assert_eq!(seen.decide().because.rule, "suspect");
}

#[test]
fn the_coordinators_own_ear_is_needed_and_only_fresh_words_count() {
    let mut seen = Seen::serving();
    seen.lose("a");
    seen.peers.get_mut(&node("a")).unwrap().gone = false;
    assert!(!seen.begins(), "the coordinator hears it");
    let mut seen = Seen::serving();
    seen.lose("a");
    seen.lose("b");
    assert!(!seen.begins(), "the word of b is not fresh: w and c are two of four");
}

#[test]
fn a_surrender_begins_an_election_at_once_and_only_for_its_term() {
    let mut seen = Seen::serving();
    seen.surrenders("a", SurrenderReason::Crash);
    assert!(seen.begins());
    seen.status("a").surrender.as_mut().unwrap().term = Term(3);
    assert!(!seen.begins());
}

#[test]
fn a_writer_that_says_it_is_broken_is_replaced() {
    let mut seen = Seen::serving();
    seen.status("a").doing = Doing::Broken;
    seen.status("a").writer = None;
    assert!(seen.begins(), "it answers, and will never serve again by itself");
    seen.status("a").promised = None;
    assert!(seen.begins(), "amnesia");
}

#[test]
fn no_election_begins_that_could_not_conclude() {
    let mut seen = Seen::serving();
    seen.lose("a");
    for (promised, doing) in [(None, Doing::Following), (Some(Term(4)), Doing::Broken)] {
        seen.status("c").promised = promised;
        seen.status("c").doing = doing;
        let verdict = seen.decide();
        assert_eq!((verdict.change, verdict.because.rule.as_str()), (None, "R5"));
        assert!(verdict.because.sentence.contains("only on a and c"), "{}", verdict.because);
    }
}

#[test]
fn the_last_writer_alone_is_enough_to_begin() {
    let mut seen = Seen::serving();
    seen.state.authority.reigns = vec![reign(4, "a", Some(5))];
    seen.lose("b");
    seen.lose("c");
    seen.surrenders("a", SurrenderReason::Crash);
    assert!(seen.begins());
    seen.lose("a");
    assert!(!seen.begins());
}

#[test]
fn paused_automation_hands_over_as_planned_and_nothing_else() {
    let mut seen = Seen::pair();
    seen.state.paused = true;
    seen.writes("a", &[]);
    assert_eq!(seen.after(Duration::from_secs(60)).because.rule, "op-pause", "no rule change");
    seen.surrenders("a", SurrenderReason::Crash);
    assert!(!seen.begins());
    seen.surrenders("a", SurrenderReason::Switchover);
    assert!(seen.begins());
}

#[test]
fn failovers_in_a_row_are_slowed_and_handovers_are_not() {
    let mut seen = Seen::serving();
    seen.surrenders("a", SurrenderReason::Crash);
    for failover in 0..FLAP_MAX {
        assert!(seen.begins(), "failover {failover}");
        seen.state.authority.term = seen.state.authority.term.next();
        let term = seen.state.authority.term;
        seen.status("a").term = term;
        seen.surrenders("a", SurrenderReason::Crash);
        seen.now = seen.now + Duration::from_secs(1);
    }
    assert_eq!(seen.decide().because.rule, "flap");
    seen.surrenders("a", SurrenderReason::Restart);
    assert!(seen.begins());
    seen.surrenders("a", SurrenderReason::Crash);
    assert!(matches!(seen.after(FLAP_DELAY).change, Some(Change::BeginElection { .. })));
}

#[test]
fn an_election_proposed_again_counts_once() {
    let mut seen = Seen::serving();
    seen.lose("a");
    for _ in 0..FLAP_MAX * 3 {
        assert!(seen.begins(), "the change did not come through; no failover happened yet");
        seen.now = seen.now + Duration::from_millis(200);
    }
}

#[test]
fn an_election_concludes_with_enough_reports() {
    let mut seen = Seen::electing();
    seen.reports("b", 90);
    let verdict = seen.decide();
    assert!(verdict.because.sentence.contains("not enough promises"), "{}", verdict.because);
    seen.reports("c", 80);
    assert_eq!(granted(&seen.decide()), Some(node("b")), "nobody else can report");
}

#[test]
fn a_member_about_to_report_is_waited_for_briefly() {
    let mut seen = Seen::electing();
    seen.returns("a");
    seen.status("a").doing = Doing::Freezing;
    seen.reports("b", 90);
    seen.reports("c", 90);
    assert_eq!(granted(&seen.decide()), None);
    assert_eq!(granted(&seen.after(BETTER_CANDIDATE_WAIT)), Some(node("b")));
}

#[test]
fn the_node_a_handover_named_is_waited_for_longer_while_it_is_heard() {
    let named = || {
        let mut seen = Seen::electing();
        seen.returns("a");
        seen.state.authority.preferred = Some(node("c"));
        seen.reports("a", 90);
        seen.reports("b", 90);
        seen.status("c").doing = Doing::Recovering;
        seen
    };
    let mut seen = named();
    assert_eq!(granted(&seen.after(PREFERRED_WAIT / 2)), None);
    seen.reports("c", 90);
    assert_eq!(granted(&seen.decide()), Some(node("c")));
    assert!(granted(&named().after(PREFERRED_WAIT)).is_some(), "not for ever");
    let mut seen = named();
    seen.lose("c");
    assert!(granted(&seen.after(BETTER_CANDIDATE_WAIT)).is_some(), "not when it is lost");
}

#[test]
fn among_equal_logs_the_best_placed_wins() {
    let equal = || {
        let mut seen = Seen::electing();
        seen.returns("a");
        for n in ["a", "b", "c"] {
            seen.reports(n, 90);
        }
        seen
    };
    let chosen = |seen: &mut Seen| granted(&seen.decide()).unwrap().to_string();
    assert_eq!(chosen(&mut equal()), "a", "by name");
    let mut seen = equal();
    seen.state.nodes.get_mut(&node("a")).unwrap().zone = "east".into();
    seen.state.nodes.get_mut(&node("b")).unwrap().zone = "west".into();
    seen.state.nodes.get_mut(&node("c")).unwrap().zone = "west".into();
    seen.state.authority.writer = Some(node("c"));
    assert_eq!(chosen(&mut seen), "b", "in the zone of the former writer");
    let mut document = Document::default();
    document
        .nodes
        .insert(node("c"), NodeSpec { role: Role::Ha, priority: 200, ..NodeSpec::default() });
    seen.document(document);
    assert_eq!(chosen(&mut seen), "c", "by priority");
    seen.state.leaving.insert(node("c"));
    assert_eq!(chosen(&mut seen), "b", "c is leaving");
    seen.state.authority.preferred = Some(node("c"));
    assert_eq!(chosen(&mut seen), "c", "the operator named it");
    seen.reports("b", 91);
    assert_eq!(chosen(&mut seen), "b", "and never above a longer log");
}

#[test]
fn who_gave_the_last_term_up_is_the_last_choice() {
    for reason in [
        SurrenderReason::Crash,
        SurrenderReason::BadPromotion,
        SurrenderReason::Switchover,
        SurrenderReason::Restart,
    ] {
        let mut seen = Seen::electing();
        seen.returns("a");
        seen.surrenders("a", reason);
        for n in ["a", "b", "c"] {
            seen.reports(n, 90);
        }
        assert_eq!(granted(&seen.decide()), Some(node("b")), "{reason:?}");
    }
}

#[test]
fn a_grantee_that_did_not_open_is_not_granted_again_while_others_are_well() {
    let mut seen = Seen::electing();
    seen.state.authority.reigns = vec![reign(4, "b", None)];
    seen.reports("b", 5);
    seen.reports("c", 5);
    assert_eq!(granted(&seen.decide()), Some(node("c")));
    seen.state.authority.reigns.push(reign(3, "x", None));
    assert_eq!(granted(&seen.decide()), Some(node("b")), "an older failure is forgotten");
}

#[test]
fn a_grantee_has_some_time_and_more_while_it_works() {
    let mut seen = Seen::electing();
    seen.reports("b", 90);
    seen.reports("c", 90);
    seen.apply();
    assert_eq!(seen.decide().because.rule, "R9");
    assert_eq!(seen.after(OPEN_WAIT).change, None);
    seen.status("b").doing = Doing::Promoting;
    assert_eq!(seen.after(OPEN_WAIT_MAX - OPEN_WAIT).change, None);
    seen.now = seen.now + Duration::from_millis(1);
    assert!(seen.begins());
}

#[test]
fn a_grantee_that_is_lost_is_replaced_at_once() {
    let mut seen = Seen::electing();
    seen.returns("a");
    seen.reports("a", 80);
    seen.reports("b", 90);
    seen.reports("c", 90);
    seen.apply();
    seen.lose("b");
    assert!(seen.begins());
}

#[test]
fn a_lossy_election_waits_for_better_copies_and_for_the_writer_itself() {
    let mut seen = Seen::electing();
    seen.rule("a b c", Policy::WriterOnly);
    seen.reports("b", 10);
    seen.status("c").doing = Doing::Freezing;
    assert_eq!(granted(&seen.after(LOSSY_WAIT / 2)), None, "c may have more");
    seen.reports("c", 90);
    assert_eq!(granted(&seen.decide()), Some(node("c")));
    let mut seen = Seen::electing();
    seen.rule("a b c", Policy::WriterOnly);
    seen.returns("a");
    seen.status("a").doing = Doing::Recovering;
    seen.reports("b", 10);
    seen.reports("c", 10);
    assert_eq!(granted(&seen.after(LOSSY_WAIT)), None, "the writer's log loses nothing");
    seen.surrenders("a", SurrenderReason::Disk);
    assert!(granted(&seen.decide()).is_some(), "its disk does not answer");
}

#[test]
fn what_the_writer_was_seen_to_have_bounds_the_loss() {
    let mut seen = Seen::serving();
    seen.rule("a b c", Policy::WriterOnly);
    seen.document(timing(Timing::Async));
    seen.decide();
    seen.lose("a");
    seen.apply();
    assert_eq!(seen.state.authority.last_seen, Some(Lsn(END)));
    seen.reports("b", 10);
    seen.reports("c", 10);
    let verdict = seen.after(LOSSY_WAIT);
    assert!(verdict.because.sentence.contains("--allow-loss"), "{}", verdict.because);
    // A coordinator that has just taken over learns it from the writer's last word.
    let mut seen = Seen::serving();
    seen.rule("a b c", Policy::WriterOnly);
    seen.lose("a");
    seen.apply();
    assert_eq!(seen.state.authority.last_seen, Some(Lsn(END)));
}

#[test]
fn a_standby_that_caught_up_enters_the_rule() {
    let mut seen = Seen::serving();
    seen.rule("a", Policy::Copies(1));
    let both = seen.opens().unwrap();
    assert_eq!(both, rule(2, "a b c", Policy::Copies(2)));
    let late = Lsn(END - COHORT_ENTRY_LAG - 1);
    let writer = seen.status("a").writer.as_mut().unwrap();
    writer.standbys.get_mut(&node("c")).unwrap().flushed = late;
    assert_eq!(seen.opens().unwrap(), rule(2, "a b", Policy::Copies(2)));
    let mut document = Document::default();
    document
        .nodes
        .insert(node("b"), NodeSpec { role: Role::Read, priority: 1, ..NodeSpec::default() });
    seen.document(document);
    assert_eq!(seen.opens(), None, "b serves reads only, c is far behind");
}

#[test]
fn the_writers_own_word_on_the_rule_is_waited_for() {
    let mut seen = Seen::serving();
    seen.rule("a b", Policy::Copies(2));
    assert!(seen.opens().is_some());
    seen.status("a").writer.as_mut().unwrap().rule = 0;
    assert_eq!(seen.opens(), None);
}

#[test]
fn an_absent_member_leaves_when_enough_copies_remain() {
    let mut seen = Seen::serving();
    seen.writes("a", &["b"]);
    assert_eq!(seen.after(COHORT_ABSENCE - Duration::from_secs(1)).change, None);
    let verdict = seen.after(Duration::from_secs(1));
    assert_eq!(opened(verdict), Some(rule(2, "a b", Policy::Copies(2))));
}

#[test]
fn absences_seen_long_ago_or_in_another_term_do_not_count() {
    let mut seen = Seen::serving();
    seen.writes("a", &["b"]);
    seen.after(COHORT_ABSENCE / 2);
    // Another coordinator in between.
    seen.now = seen.now + COHORT_ABSENCE + COORDINATOR_GAP;
    assert_eq!(seen.opens(), None);
    let mut seen = Seen::pair();
    seen.writes("a", &[]);
    seen.after(DEGRADE_AFTER - Duration::from_secs(1));
    // b was away from a, and writes now; a is not attached yet.
    seen.state.authority.term = Term(5);
    seen.state.authority.writer = Some(node("b"));
    seen.status("b").term = Term(5);
    seen.writes("b", &[]);
    assert_eq!(seen.after(DEGRADE_AFTER - Duration::from_secs(1)).change, None);
}

#[test]
fn with_two_data_nodes_either_may_be_lost() {
    // The standby is gone: the writer goes on alone at once.
    let mut seen = Seen::pair();
    seen.lose("b");
    seen.writes("a", &[]);
    let alone = rule(2, "a", Policy::Copies(1));
    assert_eq!(seen.opens(), Some(alone.clone()));
    // It is heard and not attached: a little later.
    let mut seen = Seen::pair();
    seen.writes("a", &[]);
    assert_eq!(seen.opens(), None);
    assert_eq!(opened(seen.after(DEGRADE_AFTER)), Some(alone));
    // An operator forbids it.
    seen.document(Document { min_copies: Some(2), ..Document::default() });
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
}

#[test]
fn with_two_data_nodes_the_standby_takes_over_and_goes_on_alone() {
    let mut seen = Seen::pair();
    seen.lose("a");
    seen.apply();
    seen.reports("b", 90);
    seen.apply();
    let opened =
        Change::Opened { term: Term(5), fork: Lsn(90), next_xid: 9, because: Because::default() };
    crate::fixture::done(&mut seen.state, opened);
    seen.writes("b", &[]);
    assert_eq!(seen.opens(), Some(rule(2, "b", Policy::Copies(1))));
}

#[test]
fn after_the_standby_was_given_up_only_the_writer_may_return() {
    let mut seen = Seen::pair();
    seen.rule("a", Policy::Copies(1));
    seen.lose("a");
    let verdict = seen.decide();
    assert_eq!(verdict.change, None);
    assert!(verdict.because.sentence.contains("only on a"), "{}", verdict.because);
}

#[test]
fn three_data_nodes_do_not_go_below_two_copies_by_themselves() {
    let mut seen = Seen::serving();
    seen.lose("b");
    seen.lose("c");
    seen.writes("a", &[]);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
    seen.document(Document { min_copies: Some(1), ..Document::default() });
    assert_eq!(seen.opens(), Some(rule(2, "a", Policy::Copies(1))));
}

/// a and b stand in one zone, c in another.
fn in_zones(seen: &mut Seen, document: Document) -> Policy {
    let mut zone_of = BTreeMap::new();
    for (name, zone) in [("a", "west"), ("b", "west"), ("c", "east")] {
        seen.state.nodes.get_mut(&node(name)).unwrap().zone = zone.to_owned();
        zone_of.insert(node(name), zone.to_owned());
    }
    seen.document(document);
    Policy::Zones { copies: 2, zones: 2, zone_of }
}

#[test]
fn copies_are_spread_over_zones_and_a_lost_zone_stops_nothing() {
    let mut seen = Seen::serving();
    let policy = in_zones(&mut seen, Document { copy_zones: 2, ..Document::default() });
    let spread = rule(2, "a b c", policy.clone());
    assert_eq!(seen.opens(), Some(spread));
    // The other zone is gone: commits go on in one.
    seen.rule("a b c", policy);
    seen.lose("c");
    seen.writes("a", &["b"]);
    assert_eq!(seen.opens(), Some(rule(2, "a b", Policy::Copies(2))));
    // Unless the operator wants two whatever happens.
    let strict = Document { copy_zones: 2, min_copy_zones: Some(2), ..Document::default() };
    in_zones(&mut seen, strict);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
}

#[test]
fn where_there_is_one_zone_copies_are_enough() {
    let mut seen = Seen::serving();
    seen.document(Document { copy_zones: 2, ..Document::default() });
    assert_eq!(seen.opens(), None);
}

#[test]
fn a_read_only_copy_is_no_third_data_node() {
    let mut seen = Seen::serving();
    let mut document = Document::default();
    document
        .nodes
        .insert(node("c"), NodeSpec { role: Role::Read, priority: 1, ..NodeSpec::default() });
    seen.document(document);
    seen.rule("a b", Policy::Copies(2));
    seen.lose("b");
    seen.writes("a", &["c"]);
    assert_eq!(seen.opens(), Some(rule(2, "a", Policy::Copies(1))));
}

#[test]
fn one_copy_is_the_writers() {
    let mut seen = Seen::serving();
    seen.document(Document { copies: 1, ..Document::default() });
    assert_eq!(seen.opens(), Some(rule(2, "a", Policy::Copies(1))));
}

#[test]
fn a_leaving_member_is_dropped_only_when_enough_remain() {
    let mut seen = Seen::serving();
    seen.state.leaving.insert(node("c"));
    assert_eq!(seen.opens(), Some(rule(2, "a b", Policy::Copies(2))));
    seen.writes("a", &["c"]);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None, "c holds the second copy");
}

#[test]
fn a_change_that_lost_its_copies_is_superseded_and_any_other_is_left_to_close() {
    let mut seen = Seen::pair();
    seen.rule("a", Policy::Copies(1));
    seen.apply();
    assert_eq!(seen.state.authority.rules.len(), 2);
    seen.writes("a", &["b"]);
    assert_eq!(seen.opens(), None, "it is about to close");
    seen.writes("a", &[]);
    let verdict = seen.after(DEGRADE_AFTER);
    assert_eq!(opened(verdict), Some(rule(3, "a", Policy::Copies(1))), "b was lost again");
}

#[test]
fn sync_names_stay_however_long_they_are_away() {
    let named = |copies| Policy::Named { copies, all_of: [node("b")].into() };
    let mut seen = Seen::serving();
    seen.document(sync(&["b"], 2));
    assert_eq!(seen.opens(), Some(rule(2, "a b c", named(2))));
    seen.rule("a b c", named(2));
    seen.lose("b");
    seen.writes("a", &["c"]);
    assert_eq!(seen.after(COHORT_ABSENCE * 3).change, None);
    // Others may go, as long as enough copies remain.
    seen.returns("b");
    seen.writes("a", &["b"]);
    assert_eq!(opened(seen.after(COHORT_ABSENCE)), Some(rule(2, "a b", named(2))));
}

#[test]
fn a_sync_name_that_is_not_there_yet_leaves_the_rule_as_it_is() {
    let mut seen = Seen::serving();
    seen.rule("a c", Policy::Copies(2));
    seen.document(sync(&["b"], 2));
    seen.writes("a", &["c"]);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
    seen.writes("a", &["b", "c"]);
    let all_of = [node("b")].into();
    assert_eq!(seen.opens(), Some(rule(2, "a b c", Policy::Named { copies: 2, all_of })));
}

#[test]
fn sync_keeps_its_least_copies() {
    let mut seen = Seen::serving();
    let policy = Policy::Named { copies: 2, all_of: [node("a")].into() };
    seen.document(sync(&["a"], 2));
    seen.rule("a b c", policy);
    seen.lose("b");
    seen.lose("c");
    seen.writes("a", &[]);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None, "a alone would be one copy");
}

#[test]
fn semi_sync_falls_back_after_its_time_and_returns() {
    let mut seen = Seen::pair();
    let document = Document { semi_sync_timeout_ms: 40_000, ..timing(Timing::SemiSync) };
    seen.document(document);
    assert_eq!(seen.opens(), None);
    seen.lose("b");
    seen.writes("a", &[]);
    let verdict = seen.after(Duration::from_secs(39));
    assert_eq!(verdict.change, None, "also when the member is away for longer than others may be");
    let fallback = rule(2, "a b", Policy::WriterOnly);
    assert_eq!(opened(seen.after(Duration::from_secs(1))), Some(fallback));
    seen.rule("a b", Policy::WriterOnly);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
    seen.returns("b");
    seen.writes("a", &["b"]);
    assert_eq!(seen.opens(), Some(rule(2, "a b", Policy::Copies(2))));
}

#[test]
fn a_fallback_elects_no_copy_that_never_counted() {
    let mut seen = Seen::serving();
    let mut document = timing(Timing::SemiSync);
    document
        .nodes
        .insert(node("c"), NodeSpec { role: Role::Read, priority: 1, ..NodeSpec::default() });
    seen.document(document);
    seen.rule("a b", Policy::Copies(2));
    seen.lose("b");
    seen.writes("a", &["c"]);
    let verdict = seen.after(Duration::from_secs(10));
    assert_eq!(opened(verdict), Some(rule(2, "a b", Policy::WriterOnly)));
}

#[test]
fn async_keeps_every_copy_as_a_candidate() {
    let mut seen = Seen::serving();
    seen.document(timing(Timing::Async));
    assert_eq!(seen.opens(), Some(rule(2, "a b c", Policy::WriterOnly)));
    seen.rule("a b c", Policy::WriterOnly);
    seen.writes("a", &[]);
    assert_eq!(seen.after(COHORT_ABSENCE * 2).change, None);
}

#[test]
fn without_waiting_for_copies_who_forgot_its_promise_leaves_to_come_back() {
    let mut seen = Seen::serving();
    seen.document(timing(Timing::Async));
    seen.rule("a b c", Policy::WriterOnly);
    seen.writes("a", &["b"]);
    seen.status("c").doing = Doing::Broken;
    assert_eq!(seen.opens(), None, "broken for another reason, it may still be the last candidate");
    seen.status("c").promised = None;
    assert_eq!(seen.opens(), Some(rule(2, "a b", Policy::WriterOnly)));
    seen.lose("c");
    assert_eq!(seen.opens(), None, "whoever is not heard may have its promise");
}

#[test]
fn a_planned_handover_ends_with_the_named_node_writing() {
    let mut seen = Seen::serving();
    let (term, target) = (Term(4), Some(node("c")));
    seen.state.authority.switchover = Some(Switchover { term, target });
    assert_eq!(seen.decide().change, None, "the writer drains first");
    seen.surrenders("a", SurrenderReason::Switchover);
    seen.apply();
    for n in ["a", "b", "c"] {
        seen.reports(n, 90);
    }
    assert_eq!(granted(&seen.decide()), Some(node("c")));
}
