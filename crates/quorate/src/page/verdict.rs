//! Is everything all right? One sentence, and what is not. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_agent::alerts::Stage;
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::NodeId;
use quorate_core::alert::{Alert, Rule};
use quorate_core::because::list;
use quorate_core::contract::Action;
use quorate_core::state::NodeKind;
use quorate_core::status::Doing;
use quorate_core::words::seconds;

use super::checks::level;
use super::parts;
use super::picture::Picture;
use crate::cli::operate::{self, SILENT_MS};
use crate::cli::show::doing_word;

/// How much something matters. In its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// Good to know.
    Notice,
    /// Somebody should look, before something else goes wrong.
    Warning,
    /// Somebody must look now.
    Critical,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The same without a word, for eyes that know it already.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Notice => "i",
            Self::Warning => "!",
            Self::Critical => "✗",
        }
    }
}

/// Something that is not as it should be, or that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// How much it matters.
    pub level: Level,
    /// What it is, and what to do where that is known.
    pub text: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The worst of all.
    pub level: Level,
    /// The answer in a sentence.
    pub sentence: String,
    /// The worst first.
    pub troubles: Vec<Trouble>,
}

/// Judges a cluster.
pub fn verdict(picture: &Picture) -> Verdict {
    let status = &picture.status;
    let mut troubles = Vec::new();
    let mut add = |level, text: String| troubles.push(Trouble { level, text });
    let writer = operate::writes(status);
    // Who takes over says itself how far it is.
    let next = status.writer.filter(|n| writer.is_none() && is_heard(status, *n));
    if writer.is_none() {
        add(Level::Critical, nobody_writes(status, next));
    }
    // What must never be comes first among the warnings.
    for (i, warning) in status.warnings.iter().enumerate() {
        let stops = i < status.breaches.len() || warning.starts_with("commits wait");
        add(if stops { Level::Critical } else { Level::Warning }, warning.clone());
    }
    for (name, member) in &status.nodes {
        // Who takes over was spoken of; and nobody gets log when nobody writes.
        let implied = next == Some(*name) || (writer.is_none() && lacks_feed(member));
        if let Some((level, text)) = member_trouble(*name, member).filter(|_| !implied) {
            add(level, text);
        }
        // Who is lost is late as well: that somebody is to be called for it is worth a word.
        let told =
            |(level, _): &(Level, String)| *level == Level::Critical || is_heard(status, *name);
        if let Some((level, text)) = broken_contract(*name, member).filter(told) {
            add(level, text);
        }
    }
    for told in status.alerts.iter().filter(|a| a.stage == Stage::Firing) {
        if !is_seen(told.alert.key.rule) {
            let Alert { key, severity, sentence, .. } = &told.alert;
            let about = match key.subject.as_str() {
                "" => String::new(),
                subject => format!("{subject}: "),
            };
            let since = parts::time(told.alert.since);
            let text = format!("{about}{sentence} (alert {} since {since} UTC)", key.rule);
            add(level(*severity), text);
        }
    }
    let others = data_nodes(status).filter(|n| status.writer != Some(*n)).count();
    if writer.is_some() && others > 0 && !status.candidates.iter().any(|c| c.eligible) {
        add(Level::Warning, "no node could take over from the writer now".to_owned());
    }
    if let Some(drill) = &picture.running {
        let (id, conductor) = (drill.id, drill.conductor);
        let text = format!("a drill is under way: {} (number {id}), by {conductor}", drill.drill);
        add(Level::Notice, text);
    }
    if let Some(plan) = &status.authority.switchover {
        let to = plan.target.map_or("the best standby".to_owned(), |n| n.to_string());
        add(Level::Notice, format!("a hand-over to {to} is under way"));
    }
    troubles.sort_by_key(|t| std::cmp::Reverse(t.level));
    let worst = troubles.first().map_or(Level::Good, |t| t.level);
    Verdict { level: worst, sentence: sentence(status, writer, worst, &troubles), troubles }
}

/// Whether a node is there.
pub fn is_heard(status: &ClusterStatus, name: NodeId) -> bool {
    status.nodes.get(&name).is_some_and(operate::is_heard)
}

/// Why nobody takes writes; `next` is who is about to.
fn nobody_writes(status: &ClusterStatus, next: Option<NodeId>) -> String {
    let said = next.and_then(|n| Some((n, status.nodes.get(&n)?.status.as_ref()?)));
    match (said, status.writer) {
        (Some((n, said)), _) => {
            let (term, word, why) = (status.term, doing_word(said.doing), &said.because.sentence);
            format!("{n} is to write in term {term}; now it is {word}: {why}")
        }
        // Nobody has judged that yet.
        (None, Some(writer)) if status.because.rule == "serving" => {
            format!("nothing was heard of the writer {writer} for a moment")
        }
        (None, _) => status.because.sentence.clone(),
    }
}

/// The answer when nobody takes writes.
fn no_writer(status: &ClusterStatus) -> String {
    let Some(writer) = status.writer else {
        return "Nobody takes writes: an election is under way.".to_owned();
    };
    if is_heard(status, writer) {
        return format!("Nobody takes writes at this moment: {writer} is taking over.");
    }
    let gone = status.nodes.get(&writer).is_none_or(|m| m.gone);
    let lost = match gone {
        true => format!("Nobody takes writes: {writer} is lost"),
        false => format!("Nobody may be taking writes: the writer {writer} is not heard"),
    };
    match (status.paused, gone) {
        (true, _) => format!("{lost}, and automation is paused."),
        (false, true) => format!("{lost}, and is to be replaced."),
        (false, false) => format!("{lost}."),
    }
}

/// Whether an alert is about what is seen here at once, by other words: it is not said twice.
fn is_seen(rule: Rule) -> bool {
    match rule {
        Rule::WriterDown
        | Rule::TwoWriters
        | Rule::NodeDown
        | Rule::ReplicationBroken
        | Rule::LagOverContract
        | Rule::CommitsWait
        | Rule::EvenVoters
        | Rule::AutomationPaused
        | Rule::SlotNearBudget
        | Rule::SlotUnknown
        | Rule::SlotGap => true,
        Rule::FailoverHappened
        | Rule::ClusterDegraded
        | Rule::Disk
        | Rule::CertificateExpiry
        | Rule::Clock
        | Rule::VersionSkew
        | Rule::WritesStopped
        | Rule::SlotOverBudget
        | Rule::ValidationFailed => false,
    }
}

fn sentence(
    status: &ClusterStatus,
    writer: Option<NodeId>,
    level: Level,
    troubles: &[Trouble],
) -> String {
    let Some(writer) = writer else {
        return no_writer(status);
    };
    let count = |at: Level| troubles.iter().filter(|t| t.level == at).count();
    let things = |n: usize| if n == 1 { "one thing".to_owned() } else { format!("{n} things") };
    let be = |n: usize| if n == 1 { "is" } else { "are" };
    match level {
        Level::Good => {
            let followers: BTreeSet<NodeId> = data_nodes(status).filter(|n| *n != writer).collect();
            let follow = if followers.len() == 1 { "follows" } else { "follow" };
            match followers.len() {
                0 => format!("All is well: {writer} writes. It is the only copy."),
                1..=4 => format!("All is well: {writer} writes, {} {follow}.", list(&followers)),
                n => format!("All is well: {writer} writes, {n} standbys follow."),
            }
        }
        Level::Notice => {
            let n = count(level);
            format!("All is well: {writer} writes. There {} {} to know.", be(n), things(n))
        }
        Level::Warning => {
            let n = count(level);
            format!("{writer} writes, and there {} {} to look at.", be(n), things(n))
        }
        Level::Critical => {
            let n = count(level);
            let must = if n == 1 { "needs" } else { "need" };
            format!("{writer} writes, but {} {must} you now.", things(n))
        }
    }
}

/// Nodes with a database.
pub fn data_nodes(status: &ClusterStatus) -> impl Iterator<Item = NodeId> + '_ {
    status.nodes.iter().filter(|(_, m)| m.node.kind == NodeKind::Data).map(|(n, _)| *n)
}

/// The state of a node in a word, and how much that matters.
pub fn state(member: &Member) -> (Level, &'static str) {
    match (member.gone, member.heard_ms, member.status.as_ref()) {
        (true, _, _) => (Level::Warning, "gone"),
        (_, None, _) | (_, _, None) => (Level::Warning, "never heard"),
        (_, Some(ms), _) if ms > SILENT_MS => (Level::Warning, "silent"),
        (_, _, Some(s)) => (concern(s.doing), doing_word(s.doing)),
    }
}

fn concern(doing: Doing) -> Level {
    match doing {
        Doing::Witness | Doing::Writing | Doing::Following => Level::Good,
        Doing::Starting
        | Doing::Recovering
        | Doing::Freezing
        | Doing::Frozen
        | Doing::Promoting
        | Doing::Opening
        | Doing::Cloning
        | Doing::Rewinding => Level::Notice,
        Doing::Detached | Doing::Fenced => Level::Warning,
        Doing::Broken => Level::Critical,
    }
}

/// Whether a node that is heard gets no log.
fn lacks_feed(member: &Member) -> bool {
    state(member).1 == doing_word(Doing::Detached)
}

fn member_trouble(name: NodeId, member: &Member) -> Option<(Level, String)> {
    let (level, word) = state(member);
    if level == Level::Good {
        return None;
    }
    let status = member.status.as_ref();
    let text = match (member.gone, member.heard_ms) {
        (true, _) => format!("{name} is gone: its host answers, and no Quorate runs there"),
        (_, None) => format!("{name} was never heard"),
        (_, Some(ms)) if ms > SILENT_MS => {
            format!("{name} has been silent for {}", about(ms))
        }
        // It does what it should.
        _ if lacks_feed(member) && status.is_some_and(|s| s.because.rule == "following") => {
            format!("{name} gets no log from the writer")
        }
        _ => {
            let why = status.map_or("", |s| s.because.sentence.as_str());
            let progress = status.and_then(|s| s.progress.as_ref());
            let progress = progress.map_or(String::new(), |p| format!(" ({p})"));
            match why.starts_with(word) {
                true => format!("{name} is {why}{progress}"),
                false => format!("{name} is {word}: {why}{progress}"),
            }
        }
    };
    Some((level, text))
}

/// A time that does not change with every look: this is read aloud to those who do not see.
fn about(ms: u64) -> String {
    let whole = match ms {
        0..1000 => ms,
        1000..10_000 => ms / 1000 * 1000,
        _ => ms / 10_000 * 10_000,
    };
    seconds(Duration::from_millis(whole))
}

fn broken_contract(name: NodeId, member: &Member) -> Option<(Level, String)> {
    let lag = member.lag.filter(|lag| lag.broken_ms.is_some())?;
    let level =
        if member.contract.action == Action::Page { Level::Critical } else { Level::Warning };
    let more = if lag.or_more { " or more" } else { "" };
    let why = member.late_because.as_ref().map_or(String::new(), |c| format!("; {}", c.evidence));
    let (limits, late) = (member.contract.words(), about(lag.replay_ms));
    let recovers = member.contract.recovers(Duration::from_millis(lag.replay_ms), lag.bytes);
    let text = match recovers {
        None => format!(
            "{name} breaks its contract ({limits}): what it shows is {late}{more} late{why}"
        ),
        Some(recovers) => format!("{name} {recovers} ({limits}): what it shows is {late} late"),
    };
    Some((level, text))
}

#[cfg(test)]
mod tests {
    use quorate_core::Because;
    use quorate_core::authority::Phase;
    use quorate_core::status::Lag;

    use super::*;
    use crate::fixture::{candidate, node};
    use crate::page::fixture::picture;

    #[test]
    fn a_good_cluster_in_a_sentence() {
        let verdict = verdict(&picture());
        assert_eq!(verdict.sentence, "All is well: n1 writes, n2 and n3 follow.");
        assert_eq!(verdict.troubles, []);
    }

    #[test]
    fn a_contract_that_is_about_to_be_kept_again() {
        let mut picture = picture();
        let late = |ms| Lag { replay_ms: ms, broken_ms: Some(9000), ..Lag::default() };
        let n2 = |picture: &mut Picture, ms| {
            picture.status.nodes.get_mut(&node("n2")).unwrap().lag = Some(late(ms));
            verdict(picture).troubles.remove(0).text
        };
        let text = n2(&mut picture, 12_000);
        assert!(text.starts_with("n2 breaks its contract (at most 10 s late): what it"), "{text}");
        assert_eq!(
            n2(&mut picture, 160),
            "n2 is within its contract again, and has to stay so for 3 s (at most 10 s late): what it \
             shows is 160 ms late"
        );
    }

    #[test]
    fn a_lost_node_and_nobody_to_take_over() {
        let mut picture = picture();
        picture.status.nodes.get_mut(&node("n3")).unwrap().gone = true;
        picture.status.candidates = vec![candidate("n2", false, "not in the commit rule")];
        let verdict = verdict(&picture);
        assert_eq!(verdict.level, Level::Warning);
        assert_eq!(verdict.sentence, "n1 writes, and there are 2 things to look at.");
        assert_eq!(
            verdict.troubles[0].text,
            "n3 is gone: its host answers, and no Quorate runs there"
        );
    }

    #[test]
    fn no_writer_is_the_worst() {
        let mut picture = picture();
        picture.status.phase = Phase::Electing;
        picture.status.writer = None;
        picture.status.because = Because::new("R5", "term 4: not enough promises");
        picture.status.warnings = vec!["4 voters are no safer than 3".to_owned()];
        let verdict = verdict(&picture);
        assert_eq!(verdict.level, Level::Critical);
        assert_eq!(verdict.sentence, "Nobody takes writes: an election is under way.");
        assert_eq!(verdict.troubles[0].text, "term 4: not enough promises");
        assert_eq!(verdict.troubles[1].level, Level::Warning);
    }

    #[test]
    fn who_takes_over_says_how_far_it_is_and_nobody_says_that_it_writes() {
        let mut picture = picture();
        let n1 = picture.status.nodes.get_mut(&node("n1")).unwrap().status.as_mut().unwrap();
        n1.doing = Doing::Opening;
        n1.because = Because::new("R10", "waiting until a commit set holds the marker");
        n1.writer = None;
        let verdict = verdict(&picture);
        let said = "Nobody takes writes at this moment: n1 is taking over.";
        assert_eq!(verdict.sentence, said);
        let texts: Vec<&str> = verdict.troubles.iter().map(|t| t.text.as_str()).collect();
        let marker = "n1 is to write in term 3; now it is opening: waiting until a commit set holds \
                      the marker";
        assert_eq!(texts, [marker], "said once");
    }

    #[test]
    fn a_writer_that_is_lost_writes_nothing_and_takes_nothing_over() {
        let mut picture = picture();
        picture.status.because = Because::new("serving", "n1 writes in term 3");
        let n1 = picture.status.nodes.get_mut(&node("n1")).unwrap();
        n1.heard_ms = Some(2500);
        let silent = verdict(&picture);
        assert_eq!(silent.level, Level::Critical);
        let said = "Nobody may be taking writes: the writer n1 is not heard.";
        assert_eq!(silent.sentence, said);
        assert!(silent.troubles[0].text.starts_with("nothing was heard of"), "{silent:?}");
        picture.status.nodes.get_mut(&node("n1")).unwrap().gone = true;
        let gone = verdict(&picture).sentence;
        assert_eq!(gone, "Nobody takes writes: n1 is lost, and is to be replaced.");
        picture.status.paused = true;
        let paused = verdict(&picture).sentence;
        assert_eq!(paused, "Nobody takes writes: n1 is lost, and automation is paused.");
        let n2 = picture.status.nodes.get_mut(&node("n2")).unwrap().status.as_mut().unwrap();
        n2.doing = Doing::Detached;
        n2.because = Because::new("following", "follows n1");
        let texts: Vec<String> = verdict(&picture).troubles.into_iter().map(|t| t.text).collect();
        assert!(!texts.iter().any(|t| t.starts_with("n2")), "it has no other choice: {texts:?}");
        picture.status.nodes.get_mut(&node("n1")).unwrap().gone = false;
        picture.status.nodes.get_mut(&node("n1")).unwrap().heard_ms = Some(0);
        assert_eq!(verdict(&picture).troubles[0].text, "n2 gets no log from the writer");
    }

    #[test]
    fn things_are_counted_as_people_count() {
        let mut picture = picture();
        let say = |picture: &mut Picture, name: &str| {
            let node = picture.status.nodes.get_mut(&node(name)).unwrap();
            node.status.as_mut().unwrap().doing = Doing::Cloning;
            verdict(picture).sentence
        };
        let one = "All is well: n1 writes. There is one thing to know.";
        assert_eq!(say(&mut picture, "n2"), one);
        let two = "All is well: n1 writes. There are 2 things to know.";
        assert_eq!(say(&mut picture, "n3"), two);
    }
}
