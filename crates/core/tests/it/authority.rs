//! The guards on the authority record.

use quorate_core::authority::{Authority, Phase, judge};
use quorate_core::limits::{REIGNS_MAX, RULES_OPEN_MAX};
use quorate_core::state::State;
use quorate_core::{Because, Change, Lsn, Policy, Report, Term, TimelineId};

use crate::fixture::{done, node, refused, reign, report, reports, rule, state};

fn grant(state: &State, to: &str, of: &[(&str, Report)]) -> Change {
    let term = state.authority.term;
    Change::Grant { term, node: node(to), reports: reports(of), because: Because::default() }
}

fn begin(state: &State, last_seen: Option<u64>) -> Change {
    let expect_term = state.authority.term;
    let last_seen = last_seen.map(Lsn);
    let planned = false;
    Change::BeginElection { expect_term, last_seen, planned, because: Because::default() }
}

fn open_rule(state: &State, generation: u64, cohort: &str, policy: Policy) -> Change {
    let rule = rule(generation, cohort, policy);
    Change::OpenRule { term: state.authority.term, rule, because: Because::default() }
}

fn close(state: &State, generation: u64) -> Change {
    Change::CloseRule { term: state.authority.term, generation }
}

#[test]
fn terms_begin_once() {
    let mut s = state(4, Phase::Serving, Some("a"));
    let change = begin(&s, None);
    done(&mut s, change.clone());
    assert_eq!((s.authority.term, s.authority.phase), (Term(5), Phase::Electing));
    assert!(refused(&mut s, change).contains("at term 5"));
}

#[test]
fn a_grant_needs_reports_of_its_term_from_enough_members() {
    let mut s = state(4, Phase::Electing, None);
    let at = |lsn| report(4, 1, lsn, &[]);
    let one = grant(&s, "a", &[("a", at(9))]);
    assert!(refused(&mut s, one).contains("not enough promises: have a"));
    let stale = grant(&s, "a", &[("a", at(9)), ("b", report(3, 1, 9, &[]))]);
    assert!(refused(&mut s, stale).contains("b is for term 3"));
    let worse = grant(&s, "b", &[("a", at(9)), ("b", at(8))]);
    assert!(refused(&mut s, worse).contains("b does not have the most advanced log"));
    let stranger = grant(&s, "d", &[("a", at(9)), ("b", at(8)), ("d", at(99))]);
    refused(&mut s, stranger);
    let good = grant(&s, "a", &[("a", at(9)), ("b", at(8))]);
    done(&mut s, good.clone());
    assert!(refused(&mut s, good).contains("has a writer already"));
    assert_eq!(s.authority.reign().unwrap().timeline, TimelineId(2));
}

#[test]
fn elections_satisfy_every_rule_in_force() {
    let mut s = state(4, Phase::Electing, Some("a"));
    s.authority.rules.push(rule(2, "a b c", Policy::Copies(1)));
    let at = |lsn| report(4, 1, lsn, &[]);
    let two = reports(&[("b", at(1)), ("c", at(2))]);
    assert!(judge(&s.authority, &two, 0).unwrap_err().contains("only on a"));
    let all = reports(&[("a", at(1)), ("b", at(1)), ("c", at(2))]);
    assert!(judge(&s.authority, &all, 0).unwrap().candidates.contains_key(&node("c")));
}

/// Term 4 is a's, on timeline 3 from position 5 on; an election is under way.
fn after_the_reign_of_a() -> State {
    let mut s = state(5, Phase::Electing, Some("a"));
    s.authority.reigns = vec![reign(4, "a", Some(5))];
    let (timeline, last_seen) = (s.authority.reigns[0].timeline, Some(Lsn(40)));
    s.authority.timeline_max = timeline;
    s.authority.last_seen = last_seen;
    s
}

#[test]
fn the_last_writers_report_is_enough() {
    let s = after_the_reign_of_a();
    let own = s.authority.reigns[0].timeline.0;
    let alone = |lsn| judge(&s.authority, &reports(&[("a", report(5, own, lsn, &[(1, 5)]))]), 0);
    assert!(alone(40).unwrap().candidates.contains_key(&node("a")));
    // It was seen to have more: its disk was put back.
    assert!(alone(39).unwrap_err().contains("only on b and c"));
    // Before its own timeline begins the log is another reign's.
    assert!(alone(5).is_err());
    // A copy of it is not the writer: what was never sent to it may be on the two others.
    let copy = reports(&[("b", report(5, own, 40, &[(1, 5)]))]);
    assert!(judge(&s.authority, &copy, 0).unwrap_err().contains("only on a and c"));
}

#[test]
fn a_report_that_another_one_refutes_is_not_enough() {
    let s = after_the_reign_of_a();
    let own = s.authority.reigns[0].timeline.0;
    let at = |lsn| report(5, own, lsn, &[(1, 5)]);
    let five = rule(1, "a b c d e", Policy::Copies(3));
    let of = reports(&[("a", at(40)), ("b", at(60))]);
    let authority = Authority { rules: vec![five], ..s.authority };
    assert!(judge(&authority, &of, 0).unwrap_err().contains("only on c, d and e"));
}

#[test]
fn a_writer_that_another_one_followed_is_one_report_of_many() {
    let mut s = after_the_reign_of_a();
    let own = s.authority.reigns[0].timeline.0;
    let of_a = |term| ("a", report(term, own, 90, &[(1, 5)]));
    // b is granted and may have released commits, though it never let clients in.
    let at = report(5, own, 50, &[(1, 5)]);
    let change = grant(&s, "b", &[("b", at.clone()), ("c", at)]);
    done(&mut s, change);
    let change = begin(&s, None);
    done(&mut s, change);
    assert!(judge(&s.authority, &reports(&[of_a(6)]), 0).is_err());
    let of_b = ("b", report(6, own + 1, 60, &[(1, 5), (own, 50)]));
    assert!(judge(&s.authority, &reports(&[of_b]), 0).is_ok());
}

#[test]
fn a_writer_outside_the_cohort_elects_nobody() {
    let mut s = after_the_reign_of_a();
    s.authority.rules = vec![rule(1, "b c", Policy::Copies(2))];
    let own = s.authority.reigns[0].timeline.0;
    let alone = reports(&[("a", report(5, own, 40, &[(1, 5)]))]);
    assert!(judge(&s.authority, &alone, 0).is_err());
}

#[test]
fn a_granted_timeline_is_above_what_the_grantee_is_on() {
    let mut s = state(4, Phase::Electing, None);
    let on = |lsn| report(4, 6, lsn, &[(1, 3), (5, 4)]);
    let change = grant(&s, "a", &[("a", on(9)), ("b", on(8))]);
    done(&mut s, change);
    assert_eq!(s.authority.timeline_max, TimelineId(7));
}

#[test]
fn forgotten_reigns_do_not_blur_the_order() {
    let mut s = state(4, Phase::Electing, Some("a"));
    // Timelines 3 and 4 hold the logs; hundreds of grants failed since.
    s.authority.reigns = vec![reign(2, "a", Some(5)), reign(3, "b", Some(50))];
    s.authority.term = Term(4);
    s.authority.timeline_max = TimelineId(4);
    for round in 0..REIGNS_MAX + 10 {
        let term = s.authority.term.0;
        // a has a longer log of an older reign, which lacks what b's reign acknowledged.
        let of = [
            ("a", report(term, 3, 900, &[(1, 5)])),
            ("b", report(term, 4, 60, &[(1, 5), (3, 50)])),
        ];
        let best = judge(&s.authority, &reports(&of), 0).unwrap();
        assert!(best.candidates.contains_key(&node("b")), "round {round}");
        let change = grant(&s, "b", &of);
        done(&mut s, change);
        let change = begin(&s, None);
        done(&mut s, change);
    }
    assert_eq!(s.authority.reigns.len(), REIGNS_MAX);
}

#[test]
fn a_log_without_its_history_owns_nothing_before_its_timeline_began() {
    let mut s = state(4, Phase::Electing, Some("a"));
    s.authority.reigns = vec![reign(2, "a", Some(5)), reign(3, "b", Some(50))];
    s.authority.reigns[1].elected_at.wal_term = Term(2);
    // c follows timeline 4 and has not reached its beginning; its history could not be read.
    let of = reports(&[("a", report(4, 3, 50, &[(1, 5)])), ("c", report(4, 4, 20, &[]))]);
    let best = judge(&s.authority, &of, 0).unwrap();
    assert_eq!(best.candidates.keys().collect::<Vec<_>>(), [&node("a")]);
    let of = reports(&[("a", report(4, 3, 50, &[(1, 5)])), ("c", report(4, 4, 51, &[]))]);
    assert!(judge(&s.authority, &of, 0).unwrap().candidates.contains_key(&node("c")));
}

#[test]
fn losses_are_bounded_through_a_whole_outage() {
    let mut s = state(4, Phase::Serving, Some("a"));
    s.authority.rules = vec![rule(1, "a b c", Policy::WriterOnly)];
    let far = 50 * 1024 * 1024;
    let change = begin(&s, Some(far));
    done(&mut s, change);
    let at = |term, lsn| report(term, 1, lsn, &[]);
    let lossy = grant(&s, "b", &[("b", at(5, 10))]);
    assert!(refused(&mut s, lossy).contains("allow-loss"));
    // The best copy is granted, does not open, and the next election starts without it.
    let change = grant(&s, "c", &[("c", at(5, far))]);
    done(&mut s, change);
    let change = begin(&s, None);
    done(&mut s, change);
    let lossy = grant(&s, "b", &[("b", at(6, 10))]);
    assert!(refused(&mut s, lossy.clone()).contains("allow-loss"));
    done(&mut s, Change::AllowLoss { term: Term(6), bytes: far });
    done(&mut s, lossy);
    assert_eq!(s.authority.reign().unwrap().lost_bytes, far - 10);
}

#[test]
fn an_operators_word_on_loss_ends_with_the_outage() {
    let mut s = state(4, Phase::Electing, Some("a"));
    done(&mut s, Change::AllowLoss { term: Term(4), bytes: 9 });
    let change = begin(&s, None);
    done(&mut s, change);
    assert_eq!(s.authority.allow_loss, Some(9));
    s.authority.phase = Phase::Serving;
    let change = begin(&s, None);
    done(&mut s, change);
    assert_eq!(s.authority.allow_loss, None);
    let wrong = Change::AllowLoss { term: Term(5), bytes: 9 };
    assert!(refused(&mut s, wrong).contains("no election is under way in term 5"));
}

#[test]
fn opening_happens_once_after_the_grant() {
    let mut s = state(4, Phase::Electing, None);
    let opened = |term| Change::Opened {
        term: Term(term),
        fork: Lsn(9),
        next_xid: 7,
        because: Because::default(),
    };
    assert!(refused(&mut s, opened(4)).contains("not waiting"));
    let at = |lsn| report(4, 1, lsn, &[]);
    let change = grant(&s, "a", &[("a", at(9)), ("b", at(9))]);
    done(&mut s, change);
    assert!(refused(&mut s, opened(3)).contains("at term 4"));
    done(&mut s, opened(4));
    assert_eq!(s.authority.reign().unwrap().fork, Some(Lsn(9)));
    refused(&mut s, opened(4));
}

#[test]
fn rules_open_in_order_and_close_at_their_barrier() {
    let mut s = state(4, Phase::Serving, Some("a"));
    let skipped = open_rule(&s, 3, "a b", Policy::Copies(2));
    assert!(refused(&mut s, skipped).contains("generation 1"));
    let hopeless = open_rule(&s, 2, "a b", Policy::Copies(3));
    assert!(refused(&mut s, hopeless).contains("no commit set"));
    let change = open_rule(&s, 2, "a b", Policy::Copies(2));
    done(&mut s, change);
    let wrong = close(&s, 1);
    assert!(refused(&mut s, wrong).contains("not open"));
    let change = close(&s, 2);
    done(&mut s, change.clone());
    assert_eq!(s.authority.rules, [rule(2, "a b", Policy::Copies(2))]);
    refused(&mut s, change);
}

#[test]
fn a_change_that_cannot_close_is_superseded() {
    let mut s = state(4, Phase::Serving, Some("a"));
    let change = open_rule(&s, 2, "a b c", Policy::Copies(3));
    done(&mut s, change);
    let change = open_rule(&s, 3, "a b", Policy::Copies(2));
    done(&mut s, change);
    assert_eq!(s.authority.rules.len(), 3);
    // A barrier of the middle rule still counts for what is older.
    let change = close(&s, 2);
    done(&mut s, change);
    assert_eq!(s.authority.rules.len(), 2);
    let change = close(&s, 3);
    done(&mut s, change);
    assert_eq!(s.authority.rules.len(), 1);
    for generation in 4..3 + RULES_OPEN_MAX as u64 {
        let change = open_rule(&s, generation, "a b", Policy::Copies(2));
        done(&mut s, change);
    }
    let more = open_rule(&s, 3 + RULES_OPEN_MAX as u64, "a b", Policy::Copies(2));
    assert!(refused(&mut s, more).contains("in force already"));
}

#[test]
fn rules_change_only_while_a_writer_serves() {
    for phase in [Phase::Electing, Phase::Granted] {
        let mut s = state(4, phase, Some("a"));
        let change = open_rule(&s, 2, "a b", Policy::Copies(2));
        assert!(refused(&mut s, change).contains("serves"));
    }
    let mut s = state(4, Phase::Electing, Some("a"));
    s.authority.rules.push(rule(2, "a b", Policy::Copies(2)));
    let change = close(&s, 2);
    assert!(refused(&mut s, change.clone()).contains("election"));
    s.authority.phase = Phase::Granted;
    done(&mut s, change);
}
