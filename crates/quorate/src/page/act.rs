//! What can be done from the page: each deed says what it leads to before it is done, and leaves an
//! entry in the event history.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use maud::{Markup, html};
use quorate_agent::view::ClusterStatus;
use quorate_core::NodeId;
use quorate_core::because::list;
use quorate_core::drill::{Drill, Millis, Outcome};
use quorate_core::state::NodeKind;
use serde::Deserialize;

use super::guard::LOGIN;
use super::parts::prose;
use super::picture::Picture;
use super::verdict::data_nodes;
use super::view::Viewer;
use crate::cli::operate;
use crate::drill::plan;

/// What a form asks for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Form {
    deed: String,
    node: String,
    drill: String,
    /// The mark of what was read before the yes.
    read: String,
}

/// Something that can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Hand the writing over; to the best standby unless one is named.
    Switchover(Option<NodeId>),
    /// Stop automation.
    Pause,
    /// Let it go on.
    Resume,
    /// Throw a standby's data away and copy it again.
    Rebuild(NodeId),
    /// Rehearse a failure.
    Drill(Drill),
    /// End the drill under way.
    AbortDrill,
}

impl Form {
    /// What is asked for.
    ///
    /// # Errors
    /// Why it is nothing that can be done.
    pub fn deed(&self) -> Result<Deed, String> {
        let node = || NodeId::new(&self.node).map_err(|e| e.to_string());
        Ok(match self.deed.as_str() {
            "switchover" if self.node.is_empty() => Deed::Switchover(None),
            "switchover" => Deed::Switchover(Some(node()?)),
            "pause" => Deed::Pause,
            "resume" => Deed::Resume,
            "rebuild" => Deed::Rebuild(node()?),
            "drill" => Deed::Drill(self.drill.parse()?),
            "abort-drill" => Deed::AbortDrill,
            other => return Err(format!("there is nothing called {other:?} to be done here")),
        })
    }

    /// Whether the yes was said to this.
    pub fn agrees(&self, consequence: &Consequence) -> bool {
        self.read == consequence.mark()
    }
}

impl Deed {
    /// Its word in forms.
    pub fn word(self) -> &'static str {
        match self {
            Self::Switchover(_) => "switchover",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rebuild(_) => "rebuild",
            Self::Drill(_) => "drill",
            Self::AbortDrill => "abort-drill",
        }
    }

    /// The end of the sentence "somebody asked …" in the event history.
    pub fn words(self) -> String {
        match self {
            Self::Switchover(None) => "for a switchover to the best standby".to_owned(),
            Self::Switchover(Some(node)) => format!("for a switchover to {node}"),
            Self::Pause => "to pause automation".to_owned(),
            Self::Resume => "to resume automation".to_owned(),
            Self::Rebuild(node) => format!("to rebuild {node}"),
            Self::Drill(drill) => format!("for the drill {drill}"),
            Self::AbortDrill => "to abort the drill under way".to_owned(),
        }
    }

    fn fields(self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("deed", self.word().to_owned())];
        match self {
            Self::Switchover(Some(node)) | Self::Rebuild(node) => {
                fields.push(("node", node.to_string()));
            }
            Self::Drill(drill) => fields.push(("drill", drill.to_string())),
            Self::Switchover(None) | Self::Pause | Self::Resume | Self::AbortDrill => {}
        }
        fields
    }
}

/// What is said once a deed was begun, by its word; nothing for any other.
pub fn done(word: &str) -> Option<&'static str> {
    Some(match word {
        "switchover" => {
            "The hand-over was asked for: what becomes of it stands below and in the events."
        }
        "pause" => "The pause was asked for: nobody fails over until automation is resumed.",
        "resume" => "Automation was told to go on.",
        "rebuild" => "The rebuild was asked for: how far it is stands below.",
        "drill" => {
            "The drill was begun. It puts everything back by itself; its report stands under Drills when it is over."
        }
        "abort-drill" => "The drill was told to end: it puts everything back.",
        "log-in" => "You are logged in, for twelve hours at the most.",
        "log-out" => "You are logged out.",
        _ => return None,
    })
}

/// What a deed leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consequence {
    /// What is done, with nothing left open.
    pub deed: Deed,
    /// As a question.
    pub question: String,
    /// In plain words.
    pub points: Vec<String>,
    /// What the button says.
    pub button: String,
    /// Whether something is hurt or thrown away.
    pub grave: bool,
}

impl Consequence {
    /// What a yes is bound to: whoever agreed to something else is asked again. What a question
    /// explains may change with every commit, but not what a rebuild throws away.
    pub fn mark(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.question.hash(&mut hasher);
        if matches!(self.deed, Deed::Rebuild(_)) {
            self.points.hash(&mut hasher);
        }
        format!("{:x}", hasher.finish())
    }
}

/// What a deed would lead to now.
///
/// # Errors
/// Why it cannot be done.
pub fn consequence(deed: Deed, picture: &Picture) -> Result<Consequence, String> {
    match deed {
        Deed::Switchover(to) => switchover(to, picture),
        Deed::Pause => Ok(Consequence {
            deed,
            question: "Pause automation?".to_owned(),
            points: vec![
                "Until somebody resumes it nobody takes over when the writer is lost, and the commit rule \
                 does not change: when too few copies are there, commits wait."
                    .to_owned(),
                "Writes and reads go on as now.".to_owned(),
            ],
            button: "Pause automation".to_owned(),
            grave: false,
        }),
        Deed::Resume => Ok(Consequence {
            deed,
            question: "Resume automation?".to_owned(),
            points: vec![
                "What was put off happens at once: an election, when there is no writer, and changes of \
                 the commit rule."
                    .to_owned(),
            ],
            button: "Resume automation".to_owned(),
            grave: false,
        }),
        Deed::Rebuild(node) => rebuild(node, &picture.status),
        Deed::Drill(drill) => {
            let plan = plan::plan(drill, &picture.status, &picture.document)?;
            let mut points = vec![plan.intent, format!("What it may cost: {}", plan.cost)];
            points.push(format!(
                "{} conducts it; this will be done: {}.",
                plan.conductor,
                plan.steps.join("; ")
            ));
            points.push("Everything is put back at the end, whatever happens.".to_owned());
            Ok(Consequence {
                deed,
                question: format!("Begin the drill {drill} on this running cluster?"),
                points,
                button: format!("Begin the drill {drill}"),
                grave: true,
            })
        }
        Deed::AbortDrill => match &picture.running {
            None => Err("no drill is under way".to_owned()),
            Some(drill) => Ok(Consequence {
                deed,
                question: format!("End the drill {} before it can tell?", drill.drill),
                points: vec!["Everything is put back first, which takes a moment.".to_owned()],
                button: "End the drill".to_owned(),
                grave: false,
            }),
        },
    }
}

fn switchover(to: Option<NodeId>, picture: &Picture) -> Result<Consequence, String> {
    let status = &picture.status;
    let writer = operate::writes(status).ok_or("no writer serves that could hand over")?;
    if to == Some(writer) {
        return Err(format!("{writer} is the writer already"));
    }
    let candidate = match to {
        None => {
            status.candidates.iter().find(|c| c.eligible).ok_or("no standby could take over")?
        }
        Some(to) => match status.candidates.iter().find(|c| c.node == to) {
            None => return Err(format!("{to} cannot write: it holds no data")),
            Some(c) if !c.eligible => return Err(format!("{to} cannot write now: {}", c.because)),
            Some(c) => c,
        },
    };
    let next = candidate.node;
    let target = Millis(picture.document.targets.switchover_ms);
    let rehearsed = picture
        .drills
        .iter()
        .find(|d| d.drill == Drill::Switchover && d.outcome == Outcome::Passed)
        .map_or_else(
            || "it was never rehearsed here".to_owned(),
            |d| format!("{} when it was rehearsed last", Millis(d.measures.write_gap_ms)),
        );
    Ok(Consequence {
        deed: Deed::Switchover(Some(next)),
        question: format!("Hand the writing over from {writer} to {next}?"),
        points: vec![
            format!(
                "{next} ({}) writes from then on, in a new term; {writer} follows it.",
                candidate.because
            ),
            format!(
                "Writes pause, for a fraction of a second as a rule ({rehearsed}; target: {target})."
            ),
            "Clients wait and get no error; transactions that do not end in time are cut."
                .to_owned(),
            format!(
                "If {next} has not everything in time, {writer} goes on writing, and nothing changes."
            ),
        ],
        button: format!("Hand over to {next}"),
        grave: false,
    })
}

fn rebuild(node: NodeId, status: &ClusterStatus) -> Result<Consequence, String> {
    let member = status.nodes.get(&node).ok_or_else(|| format!("there is no node {node}"))?;
    if member.node.kind == NodeKind::Witness {
        return Err(format!("{node} is a witness: it has no data"));
    }
    let writer = operate::writes(status).ok_or("no writer serves that could be copied from")?;
    if writer == node {
        return Err(format!("{node} is the writer: hand over first"));
    }
    let word = status.nodes.get(&writer).and_then(|m| m.status.as_ref()?.writer.as_ref());
    let left: BTreeSet<NodeId> = word
        .iter()
        .flat_map(|w| w.standbys.keys().copied())
        .filter(|n| *n != node)
        .chain([writer])
        .collect();
    let copies = if left.len() == 1 { "one copy is left" } else { "these copies are left" };
    let mut points = vec![
        format!("All data of {node} is thrown away and copied from {writer} again."),
        format!("Until that is done {node} serves nobody, and {copies}: {}.", list(&left)),
    ];
    if status.authority.rule().is_some_and(|rule| !rule.is_commit_set(&left)) {
        points.push(format!(
            "Commits need {node} by the present rule: they wait until the rule has changed, or until it \
             is back."
        ));
    }
    Ok(Consequence {
        deed: Deed::Rebuild(node),
        question: format!("Throw the data of {node} away and copy it again?"),
        points,
        button: format!("Rebuild {node}"),
        grave: true,
    })
}

/// A question with what a yes leads to; `again`: a yes was said to something else.
pub fn ask(consequence: &Consequence, again: bool) -> Markup {
    html! {
        section.ask.critical[consequence.grave] {
            @if again {
                p.bad role="alert" {
                    "Nothing was done: the cluster has changed since you were asked. Read again."
                }
            }
            h1 { (consequence.question) }
            ul { @for point in &consequence.points { li { (point) } } }
            p.soft { "It will be in the event history, with your address." }
            form method="post" action="/page/act" {
                @for (name, value) in consequence.deed.fields() {
                    input type="hidden" name=(name) value=(value);
                }
                input type="hidden" name="read" value=(consequence.mark());
                p.answers {
                    button.grave[consequence.grave] { (consequence.button) }
                    (leave("Leave it"))
                }
            }
        }
    }
}

/// A deed that cannot be done, and why.
pub fn cannot(because: &str) -> Markup {
    html! {
        section.ask { h1 { "Nothing was done" } p { (prose(because)) } p { (leave("Back")) } }
    }
}

/// The way back to where it was asked for, also by Escape. It is where the keyboard begins: a key
/// that is hit too early does nothing.
fn leave(word: &str) -> Markup {
    html! { a.button #leave href="/#act" autofocus { (word) } }
}

/// What can be done, as forms that ask again.
pub fn offers(viewer: Viewer, picture: &Picture) -> Markup {
    if viewer == Viewer::Reader {
        return html! {
            p {
                "This page only shows. To act, " a href=(LOGIN) { "log in" }
                " with the admin token of this node."
            }
        };
    }
    let status = &picture.status;
    // By name, and without the reasons: these change with every commit, and a list should stand still
    // while somebody chooses.
    let able = status.candidates.iter().filter(|c| c.eligible);
    let able: BTreeSet<NodeId> = able.map(|c| c.node).collect();
    let standbys = data_nodes(status).filter(|n| status.writer != Some(*n));
    html! {
        p.soft { "Each asks once more, and says what it leads to." }
        div.deeds {
            (offer("switchover", "Switchover", "Hand over …", &html! {
                label for="to" { "Next writer" }
                select id="to" name="node" {
                    option value="" { "the best standby" }
                    @for n in able { option id={ "to-" (n) } value=(n) { (n) } }
                }
            }))
            @if status.paused { (offer("resume", "Automation is paused", "Resume …", &html! {})) }
            @else { (offer("pause", "Automation", "Pause …", &html! {})) }
            (offer("rebuild", "Rebuild a standby", "Rebuild …", &html! {
                label for="node" { "Standby" }
                select id="node" name="node" {
                    @for n in standbys { option id={ "node-is-" (n) } value=(n) { (n) } }
                }
            }))
            @if picture.running.is_some() {
                (offer("abort-drill", "A drill is under way", "End it …", &html! {}))
            }
            @else { (offer("drill", "Drill", "Rehearse …", &html! {
                label for="drill" { "Failure" }
                select id="drill" name="drill" { @for d in Drill::ALL { option value=(d) { (d) } } }
            })) }
        }
    }
}

fn offer(word: &str, title: &str, button: &str, choice: &Markup) -> Markup {
    html! {
        form method="get" action="/page/act" {
            h3 { (title) }
            input type="hidden" name="deed" value=(word);
            p { (choice) }
            p { button { (button) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{candidate, node};
    use crate::page::fixture::picture;

    fn deed(deed: &str, node: &str, drill: &str) -> Result<Deed, String> {
        let [deed, node, drill] = [deed, node, drill].map(str::to_owned);
        Form { deed, node, drill, ..Form::default() }.deed()
    }

    #[test]
    fn forms_are_read() {
        assert_eq!(deed("switchover", "", ""), Ok(Deed::Switchover(None)));
        assert_eq!(deed("switchover", "n2", ""), Ok(Deed::Switchover(Some(node("n2")))));
        assert_eq!(deed("drill", "", "writer-crash"), Ok(Deed::Drill(Drill::WriterCrash)));
        assert!(deed("rebuild", "", "").is_err());
        assert!(deed("drill", "", "fire").unwrap_err().contains("no drill"));
        assert!(deed("format", "n1", "").is_err());
    }

    #[test]
    fn a_switchover_says_who_writes_next() {
        let told = consequence(Deed::Switchover(None), &picture()).unwrap();
        assert_eq!(told.question, "Hand the writing over from n1 to n2?");
        assert!(told.points[1].contains("target: 5"), "{}", told.points[1]);
        let mut picture = picture();
        picture.status.candidates[1] = candidate("n3", false, "not heard");
        let to = Deed::Switchover(Some(node("n3")));
        assert_eq!(consequence(to, &picture), Err("n3 cannot write now: not heard".to_owned()));
        let to = Deed::Switchover(Some(node("n1")));
        assert!(consequence(to, &picture).is_err());
    }

    #[test]
    fn a_rebuild_says_which_copies_are_left_and_when_commits_wait() {
        let mut picture = picture();
        let told = consequence(Deed::Rebuild(node("n3")), &picture).unwrap();
        assert!(told.grave);
        assert!(told.points[1].contains("copies are left: n1 and n2"), "{:?}", told.points);
        assert_eq!(told.points.len(), 2);
        let n1 = picture.status.nodes.get_mut(&node("n1")).and_then(|m| m.status.as_mut());
        n1.unwrap().writer.as_mut().unwrap().standbys.remove(&node("n2"));
        let told = consequence(Deed::Rebuild(node("n3")), &picture).unwrap();
        assert!(told.points[2].starts_with("Commits need n3"), "{:?}", told.points);
        assert!(consequence(Deed::Rebuild(node("n1")), &picture).is_err());
    }

    #[test]
    fn a_drill_says_what_it_costs() {
        let told = consequence(Deed::Drill(Drill::WriterCrash), &picture()).unwrap();
        assert!(told.points[1].starts_with("What it may cost: Writes pause"), "{:?}", told.points);
        let why = consequence(Deed::Drill(Drill::Restore), &picture()).unwrap_err();
        assert!(why.contains("no backups"), "{why}");
    }

    #[test]
    fn a_yes_holds_for_what_was_read_only() {
        let mut picture = picture();
        let best = |picture: &Picture| consequence(Deed::Switchover(None), picture).unwrap();
        let told = best(&picture);
        assert_eq!(told.deed, Deed::Switchover(Some(node("n2"))), "the one that was named");
        let yes = |told: &Consequence| Form { read: told.mark(), ..Form::default() };
        picture.status.candidates[0].because = "112 bytes behind".to_owned();
        assert!(yes(&told).agrees(&best(&picture)), "it is the same question");
        picture.status.candidates.swap(0, 1);
        assert!(!yes(&told).agrees(&best(&picture)), "another one would write");
        assert!(!Form::default().agrees(&told));

        let rebuild = |picture: &Picture| consequence(Deed::Rebuild(node("n3")), picture).unwrap();
        let told = rebuild(&picture);
        let n1 = picture.status.nodes.get_mut(&node("n1")).and_then(|m| m.status.as_mut());
        n1.unwrap().writer.as_mut().unwrap().standbys.remove(&node("n2"));
        assert!(!yes(&told).agrees(&rebuild(&picture)), "commits would wait");
    }

    #[test]
    fn the_lists_stand_still_while_the_log_grows() {
        let mut picture = picture();
        let before = offers(Viewer::Operator, &picture).into_string();
        picture.status.candidates.swap(0, 1);
        picture.status.candidates[0].because = "7 bytes behind the next in line".to_owned();
        assert_eq!(offers(Viewer::Operator, &picture).into_string(), before);
        assert!(!offers(Viewer::Reader, &picture).into_string().contains("<form"));
    }
}
