//! Membership, documents and the guards of the replicated state.

use quorate_core::authority::Phase;
use quorate_core::document::{Document, NodeSpec, Timing};
use quorate_core::drill::{Drill, Measures, Outcome, Record};
use quorate_core::limits::{
    DOCUMENTS_MAX, DRILLS_MAX, EVENTS_MAX, FORCED_EPOCH_TERMS, SLOT_BUDGET_MIN, TOKENS_MAX,
};
use quorate_core::role::Role;
use quorate_core::slots::{Gap, GapCause, SlotChange, SlotSpec};
use quorate_core::state::{CertificateAuthority, NodeKind, State};
use quorate_core::validation::{Finding, Validated, ValidationSpec, due, judge};
use quorate_core::{Answer, Because, Change, Command, Lsn, Policy, Term, TimelineId};

use crate::fixture::{apply, done, member, node, refused, rule, state};

fn serving() -> State {
    let mut s = state(4, Phase::Serving, Some("a"));
    s.nodes.insert(node("w"), member(NodeKind::Witness));
    s
}

fn admit(name: &str, token: &str) -> Change {
    let (name, token_hash) = (node(name), token.to_owned());
    Change::Admit { name, node: member(NodeKind::Data), token_hash }
}

fn leave(name: &str) -> Change {
    Change::Leave { name: node(name) }
}

fn remove(name: &str) -> Change {
    Change::RemoveNode { name: node(name) }
}

fn document(version: u64, document: Document) -> Change {
    Change::SetDocument { expect_version: version, document }
}

fn switch(to: Option<&str>) -> Change {
    Change::PlanSwitchover { term: Term(4), target: to.map(node) }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut s = State::default();
    let found = Change::Found {
        cluster_id: "00".into(),
        ca: CertificateAuthority::default(),
        name: node("a"),
        node: member(NodeKind::Data),
        document: Document::default(),
    };
    done(&mut s, found.clone());
    assert_eq!(s.authority.rules, [rule(1, "a", Policy::Copies(1))]);
    assert_eq!((s.document_version(), s.authority.phase), (1, Phase::Electing));
    assert!(refused(&mut s, found).contains("exists already"));
    done(&mut s, Change::SystemId { system_id: 7 });
    done(&mut s, Change::SystemId { system_id: 7 });
    assert!(refused(&mut s, Change::SystemId { system_id: 8 }).contains("is 7, not 8"));
}

#[test]
fn a_token_admits_one_new_node_before_it_expires() {
    let mut s = serving();
    assert!(refused(&mut s, admit("d", "t")).contains("not known"));
    done(&mut s, Change::AddToken { hash: "t".into(), expires: 1000 });
    let late = Command { at: 1001, change: admit("d", "t") };
    assert!(matches!(s.apply(&late), Answer::Refused { because } if because.contains("expired")));
    assert!(refused(&mut s, admit("b", "t")).contains("named b already"));
    done(&mut s, admit("d", "t"));
    assert!(refused(&mut s, admit("e", "t")).contains("used before"));
    assert!(!s.authority.cohort().contains(&node("d")), "it enters the commit rule by catching up");
}

#[test]
fn outstanding_tokens_are_bounded_and_expired_ones_forgotten() {
    let mut s = serving();
    let token = |i: usize, expires| Change::AddToken { hash: i.to_string(), expires };
    for i in 0..TOKENS_MAX {
        done(&mut s, token(i, 1000));
    }
    assert!(refused(&mut s, token(TOKENS_MAX, 1000)).contains("outstanding"));
    let later = Command { at: 1001, change: token(TOKENS_MAX, 2000) };
    assert_eq!(s.apply(&later), Answer::Done);
    assert_eq!(s.tokens.len(), 1);
}

#[test]
fn addresses_change_and_kinds_do_not() {
    let mut s = serving();
    let put = |name: &str, kind| Change::PutNode { name: node(name), node: member(kind) };
    done(&mut s, put("b", NodeKind::Data));
    assert!(refused(&mut s, put("b", NodeKind::Witness)).contains("cannot change"));
    assert!(refused(&mut s, put("x", NodeKind::Data)).contains("not a member"));
}

#[test]
fn members_leave_the_commit_rule_before_the_cluster() {
    let mut s = serving();
    assert!(refused(&mut s, leave("a")).contains("switch over first"));
    assert!(refused(&mut s, remove("a")).contains("switch over first"));
    assert!(refused(&mut s, leave("x")).contains("not a member"));
    done(&mut s, leave("b"));
    assert!(refused(&mut s, remove("b")).contains("still in the commit rule"));
    s.authority.rules.push(rule(2, "a c", Policy::Copies(2)));
    assert!(refused(&mut s, remove("b")).contains("still"), "the older rule is in force too");
    s.authority.rules.remove(0);
    done(&mut s, remove("b"));
    assert!(!s.nodes.contains_key(&node("b")) && s.leaving.is_empty());
    done(&mut s, leave("w"));
    done(&mut s, remove("w"));
}

#[test]
fn a_rule_cannot_count_on_who_was_removed_or_holds_no_data() {
    let mut s = serving();
    let open = |cohort| Change::OpenRule {
        term: Term(4),
        rule: rule(2, cohort, Policy::Copies(2)),
        because: Because::default(),
    };
    assert!(refused(&mut s, open("a b x")).contains("x is no data node"));
    assert!(refused(&mut s, open("a w")).contains("w is no data node"));
    done(&mut s, open("a b"));
}

#[test]
fn a_named_copy_does_not_leave_silently() {
    let mut s = serving();
    let sync = |names: &[&str]| Document {
        timing: Timing::Sync,
        sync_nodes: names.iter().map(|n| node(n)).collect(),
        ..Document::default()
    };
    assert!(refused(&mut s, document(0, sync(&["x"]))).contains("x is no data node"));
    assert!(refused(&mut s, document(0, sync(&["w"]))).contains("w is no data node"));
    let mut reader = sync(&["b"]);
    reader
        .nodes
        .insert(node("b"), NodeSpec { role: Role::Read, priority: 1, ..NodeSpec::default() });
    assert!(refused(&mut s, document(0, reader)).contains("never counts"));
    done(&mut s, document(0, sync(&["b"])));
    assert!(refused(&mut s, leave("b")).contains("sync_nodes"));
    done(&mut s, document(1, Document::default()));
    done(&mut s, leave("b"));
}

#[test]
fn documents_are_versioned_and_checked() {
    let mut s = serving();
    done(&mut s, document(0, Document::default()));
    assert!(refused(&mut s, document(0, Document::default())).contains("at version 1 now"));
    let bad = Document { copies: 0, ..Document::default() };
    assert!(refused(&mut s, document(1, bad)).starts_with("copies:"));
    for version in 1..DOCUMENTS_MAX as u64 + 5 {
        done(&mut s, document(version, Document::default()));
    }
    assert_eq!(s.documents.len(), DOCUMENTS_MAX);
    assert_eq!(s.document_version(), DOCUMENTS_MAX as u64 + 5);
}

#[test]
fn a_handover_goes_to_a_copy_that_counts() {
    let mut s = serving();
    s.nodes.insert(node("d"), member(NodeKind::Data));
    assert!(refused(&mut s, switch(Some("a"))).contains("is the writer already"));
    for outside in ["d", "w", "x"] {
        assert!(refused(&mut s, switch(Some(outside))).contains("not in the commit rule"));
    }
    done(&mut s, switch(Some("b")));
    assert!(refused(&mut s, switch(None)).contains("under way already"));
    let drop = Change::DropSwitchover { term: Term(4), because: Because::default() };
    done(&mut s, drop.clone());
    refused(&mut s, drop);
    done(&mut s, switch(None));
    s.authority.switchover = None;
    s.authority.rules = vec![rule(1, "a", Policy::Copies(1))];
    assert!(refused(&mut s, switch(None)).contains("no other node"));
    s.authority.phase = Phase::Electing;
    assert!(refused(&mut s, switch(None)).contains("no writer serves"));
}

#[test]
fn a_forced_epoch_starts_over_with_one_survivor() {
    let mut s = serving();
    let force = |n: &str| Change::ForceEpoch { survivor: node(n), because: Because::default() };
    assert!(refused(&mut s, force("x")).contains("not a member"));
    assert!(refused(&mut s, force("w")).contains("witness"));
    s.leaving = [node("b"), node("c")].into();
    s.authority.rules.push(rule(2, "a b", Policy::Copies(2)));
    s.authority.preferred = Some(node("c"));
    done(&mut s, force("b"));
    assert_eq!(s.authority.term, Term(4 + FORCED_EPOCH_TERMS));
    assert_eq!(s.authority.phase, Phase::Electing);
    assert_eq!(s.authority.rules, [rule(3, "b", Policy::Copies(1))]);
    assert_eq!(s.nodes.keys().collect::<Vec<_>>(), [&node("b")]);
    assert!(s.leaving.is_empty(), "nodes of those names may be admitted again");
    assert_eq!(s.authority.preferred, None);
    assert!(
        s.authority.timeline_max > TimelineId(50),
        "grants the survivor never heard of may have taken the next timelines"
    );
}

#[test]
fn history_is_bounded_and_numbered() {
    let mut s = serving();
    for _ in 0..EVENTS_MAX + 3 {
        let note = Change::Note { kind: "x".into(), because: Because::default() };
        assert_eq!(apply(&mut s, note), Answer::Done);
    }
    assert_eq!(s.events.len(), EVENTS_MAX);
    assert_eq!(s.events.back().unwrap().seq, EVENTS_MAX as u64 + 3);
    done(&mut s, Change::Pause { paused: true, because: Because::default() });
    assert!(s.paused && s.events.back().unwrap().kind == "paused");
}

#[test]
fn one_drill_at_a_time_and_none_for_ever() {
    let begin = |conductor: &str, until| Change::BeginDrill {
        drill: Drill::HostLoss,
        conductor: node(conductor),
        until,
    };
    let end = |id| {
        let record = Record {
            id,
            drill: Drill::HostLoss,
            at: 0,
            seconds: 9,
            conductor: node("b"),
            writer: node("a"),
            term: Term(4),
            outcome: Outcome::Passed,
            sentence: "passed".into(),
            measures: Measures::default(),
            checks: Vec::new(),
        };
        Change::EndDrill { record: Box::new(record) }
    };
    let at = |s: &mut State, at, change| s.apply(&Command { at, change });
    let mut s = serving();
    assert_eq!(at(&mut s, 100, begin("b", 200)), Answer::Done);
    let Answer::Refused { because } = at(&mut s, 199, begin("c", 300)) else { panic!() };
    assert!(because.contains("b conducts a drill already (host-loss)"), "{because}");
    // Its conductor has died.
    assert_eq!(at(&mut s, 200, begin("c", 300)), Answer::Done);
    assert_eq!(s.drill.as_ref().map(|d| d.id), Some(2));
    assert!(refused(&mut s, end(1)).contains("not under way"), "it is alive after all");
    done(&mut s, end(2));
    assert_eq!((s.drill.is_none(), s.drills.len()), (true, 1));
    assert_eq!(s.events.back().map(|e| e.kind.as_str()), Some("drill-passed"));
    for id in 3..(DRILLS_MAX as u64 + 10) {
        assert_eq!(at(&mut s, 400, begin("b", 500)), Answer::Done);
        done(&mut s, end(id));
    }
    assert_eq!(s.drills.len(), DRILLS_MAX);
    done(&mut s, switch(None));
    assert!(refused(&mut s, begin("b", u64::MAX)).contains("the writer is changing"));
    let mut paused = serving();
    done(&mut paused, Change::Pause { paused: true, because: Because::default() });
    assert!(refused(&mut paused, begin("b", u64::MAX)).contains("`quorate resume` first"));
}

fn adopting(names: &[&str]) -> Document {
    let spec = SlotSpec {
        owner: "data team".to_owned(),
        consumer: "the warehouse".to_owned(),
        max_bytes: SLOT_BUDGET_MIN,
        ..SlotSpec::default()
    };
    let slots = names.iter().map(|n| ((*n).to_owned(), spec.clone())).collect();
    Document { slots, ..Document::default() }
}

fn seen(name: &str, term: u64, by: &str) -> Change {
    let (name, term, node) = (name.to_owned(), Term(term), node(by));
    Change::Slot {
        change: SlotChange::Seen { name, term, node, confirmed: Some(Lsn(10)), carried: None },
    }
}

fn lost(name: &str, term: u64, cause: GapCause) -> Change {
    let because = Because::new("slot-10", "it was lost");
    let gap = Gap { cause, confirmed: Some(Lsn(20)), resumes: Some(Lsn(30)), because };
    let (name, term, node) = (name.to_owned(), Term(term), node("a"));
    Change::Slot { change: SlotChange::Lost { name, term, node, gap } }
}

fn acknowledge(name: &str) -> Change {
    Change::Slot { change: SlotChange::Acknowledge { name: name.to_owned() } }
}

#[test]
fn only_the_writer_speaks_of_slots_and_only_of_adopted_ones() {
    let mut s = serving();
    assert!(refused(&mut s, seen("cdc", 4, "a")).contains("nobody has adopted"));
    done(&mut s, document(0, adopting(&["cdc"])));
    assert!(refused(&mut s, seen("cdc", 3, "a")).contains("not the word of the writer"));
    assert!(refused(&mut s, seen("cdc", 4, "b")).contains("not the word of the writer"));
    done(&mut s, seen("cdc", 4, "a"));
    assert_eq!(s.slots["cdc"].confirmed, Some(Lsn(10)));
    done(&mut s, document(1, adopting(&[])));
    assert!(s.slots.is_empty(), "nobody answers for it any more");
}

#[test]
fn a_broken_stream_stands_until_it_is_acknowledged() {
    let mut s = serving();
    done(&mut s, document(0, adopting(&["cdc"])));
    done(&mut s, seen("cdc", 4, "a"));
    assert!(refused(&mut s, acknowledge("cdc")).contains("nothing of slot cdc"));
    done(&mut s, lost("cdc", 4, GapCause::Moved));
    assert_eq!(s.events.back().unwrap().kind, "slot-lost");
    assert!(refused(&mut s, seen("cdc", 4, "a")).contains("not acknowledged"));
    done(&mut s, acknowledge("cdc"));
    assert_eq!(s.slots["cdc"].since, Some(Lsn(30)), "an older slot is not taken for a new one");
    done(&mut s, seen("cdc", 4, "a"));
    assert_eq!((&s.slots["cdc"].gap, s.slots["cdc"].since), (&None, None));
    done(&mut s, lost("cdc", 4, GapCause::Budget));
    assert_eq!(s.events.back().unwrap().kind, "slot-dropped");
    done(&mut s, acknowledge("cdc"));
    let gone = SlotChange::Gone { name: "cdc".to_owned(), term: Term(4) };
    done(&mut s, Change::Slot { change: gone });
    assert!(s.slots.is_empty());
    let kinds: Vec<&str> = s.events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "slot-acknowledged").count(), 2);
}

fn asking(sql: &str) -> Document {
    let spec = ValidationSpec {
        database: "shop".to_owned(),
        role: "checker".to_owned(),
        sql: sql.to_owned(),
        ..ValidationSpec::default()
    };
    Document { validation: [("orders".to_owned(), spec)].into(), ..Document::default() }
}

fn validated(term: u64, by: &str, document: u64, finding: &Finding) -> Change {
    let judged = judge(&ValidationSpec::default(), finding);
    let ran = Validated { term: Term(term), node: node(by), at: 1, took_ms: 3, judged };
    Change::Validate { name: "orders".to_owned(), document, ran }
}

#[test]
fn a_query_is_due_once_in_each_term_and_again_when_it_is_another() {
    let mut s = serving();
    let names = |s: &State, term| due(s, Term(term)).1.into_keys().collect::<Vec<_>>();
    assert!(refused(&mut s, validated(4, "a", 0, &Finding::True)).contains("has no query orders"));
    done(&mut s, document(0, asking("SELECT true")));
    assert_eq!(names(&s, 4), ["orders"]);
    assert!(names(&s, 3).is_empty(), "a writer of the past has nothing to run");
    assert!(refused(&mut s, validated(3, "a", 1, &Finding::True)).contains("not the word"));
    assert!(refused(&mut s, validated(4, "b", 1, &Finding::True)).contains("not the word"));
    done(&mut s, validated(4, "a", 1, &Finding::False));
    assert!(names(&s, 4).is_empty(), "not again by itself");
    let event = s.events.back().unwrap();
    assert_eq!(event.kind, "validation-failed");
    let words = "orders failed on a after 3 ms: it is false (validation-02)";
    assert_eq!(event.because.to_string(), words);
    // A person has it run again.
    done(&mut s, validated(4, "a", 1, &Finding::True));
    assert_eq!(s.events.back().unwrap().kind, "validation-passed");
    // What else the document says does not matter.
    let more = Document { copies: 3, ..asking("SELECT true") };
    done(&mut s, document(1, more));
    assert!(s.validations["orders"].judged.passed);
    // An answer to another question counts for nothing.
    done(&mut s, document(2, asking("SELECT false")));
    assert!(s.validations.is_empty());
    assert_eq!((due(&s, Term(4)).0, names(&s, 4)), (3, vec!["orders".to_owned()]));
    assert!(refused(&mut s, validated(4, "a", 2, &Finding::True)).contains("was changed"));
    done(&mut s, validated(4, "a", 3, &Finding::True));
    done(&mut s, document(3, Document::default()));
    assert!(s.validations.is_empty());
}

#[test]
fn a_next_term_has_its_queries_run_again() {
    let mut s = serving();
    done(&mut s, document(0, asking("SELECT true")));
    done(&mut s, validated(4, "a", 1, &Finding::True));
    s.authority.term = Term(5);
    assert_eq!(due(&s, Term(5)).1.len(), 1);
    s.authority.phase = Phase::Granted;
    assert!(due(&s, Term(5)).1.is_empty(), "nobody serves yet");
}
