//! The page around its sections. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use maud::{DOCTYPE, Markup, html};
use quorate_core::NodeId;
use quorate_core::state::WallMillis;

use super::assets;
use super::limits::TROUBLES_OPEN_MAX;
use super::parts::prose;
use super::picture::{Lateness, Over, Picture};
use super::verdict::{Level, Trouble, Verdict, verdict};
use super::{act, charts, checks, cluster, commits, history, slots};
use crate::explain::explain;

/// A part of the page that is replaced as a whole when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Where it is, and its address in the page.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What is in it.
    pub html: Arc<str>,
    /// Changes when `html` does.
    pub mark: u64,
}

impl Section {
    fn new(id: &'static str, title: &'static str, content: Markup) -> Self {
        let html: Arc<str> = content.into_string().into();
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        Self { id, title, html, mark: hasher.finish() }
    }
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// May look.
    Reader,
    /// May act: showed the token, or came through a door that is guarded by itself.
    Operator,
}

impl Viewer {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Reader, Self::Operator];
}

/// Everything but the charts and what can be done, in the order of the page. A new section is a function from the picture to
/// markup, and a line here.
pub fn sections(picture: &Picture) -> Vec<Section> {
    let Picture { status, document, events, running, drills, review, slots: report, traffic } =
        picture;
    let traffic = traffic.as_ref();
    vec![
        Section::new("now", "Now", now(&verdict(picture))),
        Section::new(
            "cluster",
            "Cluster",
            html! { (cluster::map(status)) (cluster::nodes(status)) },
        ),
        Section::new("events", "What happened", history::events(events)),
        Section::new("alerts", "Alerts", checks::alerts(&status.alerts)),
        Section::new("contracts", "Contracts", cluster::contracts(status)),
        Section::new("next", "Next in line", cluster::candidates(status)),
        Section::new("commits", "Commits", commits::commits(status, document, traffic)),
        Section::new("words", "In words", words(picture)),
        Section::new("gateway", "Pools and routes", commits::gateway(status, traffic)),
        Section::new("slots", "Slots and disk", slots::slots(status, report.as_ref())),
        Section::new("drills", "Drills", history::drills(running.as_ref(), drills)),
        Section::new("review", "Review", checks::review(review)),
    ]
}

/// The charts.
pub fn lag(picture: &Picture, lateness: &Lateness, over: Over, now: WallMillis) -> Section {
    Section::new("lag", "Lag over time", charts::charts(&picture.status, lateness, over, now))
}

/// What somebody can do, and how to get in and out.
pub fn deeds(viewer: Viewer, picture: &Picture) -> [Section; 2] {
    [
        Section::new("act", "Act", act::offers(viewer, picture)),
        Section::new("door", "", door(viewer)),
    ]
}

fn door(viewer: Viewer) -> Markup {
    match viewer {
        Viewer::Reader => html! { "read-only · " a href="/page/login" { "log in" } },
        Viewer::Operator => html! {
            form method="post" action="/page/logout" {
                "may act · " button.quiet { "log out" }
            }
        },
    }
}

/// The answer, and what is not right.
fn now(verdict: &Verdict) -> Markup {
    let all = &verdict.troubles;
    // A single one takes no more room than to say that there is one more.
    let most = TROUBLES_OPEN_MAX + usize::from(all.len() == TROUBLES_OPEN_MAX + 1);
    let (open, folded) = all.split_at(all.len().min(most));
    html! {
        div class={ "verdict " (verdict.level.word()) } {
            p.sentence {
                span.sign aria-hidden="true" { (verdict.level.sign()) }
                (verdict.sentence)
            }
            @if !open.is_empty() { (troubles(open)) }
            @if !folded.is_empty() {
                details #now-more { summary { (folded.len()) " more" } (troubles(folded)) }
            }
        }
    }
}

fn troubles(troubles: &[Trouble]) -> Markup {
    html! { ul.troubles { @for trouble in troubles {
        li class=(trouble.level.word()) {
            b { (label(trouble.level)) } " " (prose(&trouble.text))
        }
    } } }
}

fn label(level: Level) -> &'static str {
    match level {
        Level::Good => "Good.",
        Level::Notice => "To know.",
        Level::Warning => "Warning.",
        Level::Critical => "Now.",
    }
}

/// The cluster in four sentences, and what an administrator should think about.
fn words(picture: &Picture) -> Markup {
    let told = explain(&picture.status, &picture.document);
    // What stands above already is not said again.
    let worries: Vec<&String> =
        told.worries.iter().filter(|w| !picture.status.warnings.contains(w)).collect();
    html! {
        @for sentence in [&told.writes, &told.copies, &told.reads, &told.failure] {
            p { (sentence) }
        }
        @if !worries.is_empty() {
            details { summary { "To think about (" (worries.len()) ")" }
                ul { @for worry in worries { li { (prose(worry)) } } } }
        }
    }
}

/// The whole page.
pub fn page(
    picture: &Picture,
    lateness: &Lateness,
    over: Over,
    viewer: Viewer,
    said: Option<&str>,
) -> Markup {
    let status = &picture.status;
    let mut all = sections(picture);
    let place = all.iter().position(|s| s.id == "gateway").unwrap_or(all.len());
    all.insert(place, lag(picture, lateness, over, status.at));
    let [deeds, _] = deeds(viewer, picture);
    all.push(deeds);
    let level = verdict(picture).level;
    let content = html! {
        @if let Some(said) = said { p.said role="status" { (said) } }
        @for section in &all { (framed(section)) }
    };
    let nav = html! {
        nav aria-label="Sections" { @for section in all.iter().filter(|s| s.id != "now") {
            a href={ "#" (section.id) } { (section.title) }
        } }
    };
    let title = match level {
        Level::Good | Level::Notice => format!("{} · Quorate", status.me),
        Level::Warning => format!("! {} · Quorate", status.me),
        Level::Critical => format!("✗ {} · Quorate", status.me),
    };
    let frame = Frame { title: &title, me: status.me, cluster: &status.cluster_id, viewer };
    frame.around(&nav, &content, Some(over))
}

fn framed(section: &Section) -> Markup {
    let Section { id, title, html, mark } = section;
    let title_id = format!("{id}-title");
    // Only the verdict is read aloud when it changes.
    let aloud = (*id == "now").then_some("polite");
    html! {
        section id=(id) .block aria-labelledby=(title_id) {
            h2 id=(title_id) { (title) }
            div.live data-mark=(format!("{mark:x}")) aria-live=[aloud] {
                (maud::PreEscaped(html.as_ref()))
            }
        }
    }
}

/// What is around the content of every page.
pub struct Frame<'a> {
    /// The title of the window.
    pub title: &'a str,
    /// The node that answers.
    pub me: NodeId,
    /// The cluster's identity.
    pub cluster: &'a str,
    /// Who looks.
    pub viewer: Viewer,
}

impl Frame<'_> {
    /// A page with this content; a live one with the charts that it shows.
    pub fn around(&self, nav: &Markup, content: &Markup, live: Option<Over>) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    link rel="stylesheet" href=(assets::STYLE.address());
                    link rel="icon" type="image/svg+xml" href=(assets::ICON.address());
                    @if live.is_some() {
                        noscript { meta http-equiv="refresh" content="10"; }
                    }
                    script src=(assets::SCRIPT.address()) defer {}
                }
                body data-live=[live.map(Over::word)] {
                    a.skip href="#main" { "Skip to content" }
                    header {
                        a.brand href="/" { "Quorate" }
                        span.soft {
                            @if !self.cluster.is_empty() { "cluster " (self.cluster) ", " }
                            "seen by " b { (self.me) }
                        }
                        @if live.is_some() {
                            span #link role="status" { noscript { "loaded again every 10 s" } }
                        }
                        @let door = Section::new("door", "", door(self.viewer));
                        div id=(door.id) {
                            div.live data-mark=(format!("{:x}", door.mark)) {
                                (maud::PreEscaped(door.html.as_ref()))
                            }
                        }
                    }
                    (nav)
                    main id="main" tabindex="-1" {
                        @if live.is_some() {
                            p #lost .said hidden role="alert" {
                                "Nothing is heard of " (self.me) ". What stands below is how it was; how it is, \
                                 another node's page tells."
                            }
                        }
                        (content)
                    }
                    footer {
                        "Quorate " (env!("CARGO_PKG_VERSION")) ". The same in a terminal: "
                        code { "quorate top" } "; for programs: "
                        a href="/api/status" { "/api/status" } "."
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::{huge, large, lateness, picture};

    /// Bytes of the page with its style and script.
    const BYTES_MAX: usize = 150 * 1024;

    fn whole(picture: &Picture) -> String {
        let history = lateness(&picture.status);
        page(picture, &history, Over::Minutes, Viewer::Reader, None).into_string()
    }

    #[test]
    fn a_page_says_what_matters() {
        let page = whole(&picture());
        for words in [
            "All is well: n1 writes, n2 and n3 follow.",
            "Zone b",
            "takes over when the writer fails",
            "A commit is acknowledged once",
            "read-only",
        ] {
            assert!(page.contains(words), "{words}");
        }
    }

    #[test]
    fn sixteen_nodes_are_a_small_page() {
        let page = whole(&large(16));
        let all = page.len() + assets::STYLE.text.len() + assets::SCRIPT.text.len();
        assert!(all <= BYTES_MAX, "{all} bytes, {} of them the page", page.len());
        assert!(assets::SCRIPT.text.len() <= 10 * 1024);
    }

    #[test]
    fn fifty_nodes_and_five_hundred_slots_are_still_a_small_page() {
        let page = whole(&huge());
        let all = page.len() + assets::STYLE.text.len() + assets::SCRIPT.text.len();
        assert!(all <= BYTES_MAX, "{all} bytes, {} of them the page", page.len());
        let mut lost = huge();
        // A whole zone goes: what needs nobody at once is folded.
        for member in lost.status.nodes.values_mut().filter(|m| m.node.zone == "par-1") {
            member.gone = true;
        }
        let html = now(&verdict(&lost)).into_string();
        let (open, folded) = html.split_once("<details").unwrap();
        assert_eq!(open.matches("<li ").count(), TROUBLES_OPEN_MAX);
        assert!(open.contains("n31 is BROKEN") && folded.contains("To know."), "{html}");
    }

    #[test]
    fn nothing_is_asked_of_anybody_else() {
        let page = whole(&large(16));
        let texts = [&page, assets::STYLE.text, assets::SCRIPT.text];
        for text in texts {
            let references = ["src=\"", "href=\"", "url(", "action=\"", "@import ", "fetch("];
            for reference in references {
                for (at, _) in text.match_indices(reference) {
                    let target = text[at + reference.len()..].trim_start_matches(['\'', '"']);
                    let own = (target.starts_with('/') && !target.starts_with("//"))
                        || target.starts_with('#');
                    assert!(own, "{}", target.chars().take(60).collect::<String>());
                }
            }
        }
        assert!(!page.contains(" style=\""), "the policy forbids styles in the page");
    }

    #[test]
    fn text_of_others_is_escaped() {
        let mut picture = picture();
        picture.status.warnings.push("<script>alert(1)</script>".to_owned());
        let page = whole(&picture);
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(!page.contains("<script>alert"));
    }

    #[test]
    fn a_section_changes_its_mark_with_its_text() {
        let before = sections(&picture());
        assert_eq!(before, sections(&picture()));
        let mut changed = picture();
        changed.status.paused = true;
        let after = sections(&changed);
        let differ: Vec<&str> = before
            .iter()
            .zip(&after)
            .filter(|(a, b)| a.mark != b.mark)
            .map(|(a, _)| a.id)
            .collect();
        assert!(differ.contains(&"next") && !differ.contains(&"events"), "{differ:?}");
    }

    /// Writes pages to look at into the directory that `QUORATE_PAGES` names.
    #[test]
    fn pages_to_look_at() {
        let Ok(dir) = std::env::var("QUORATE_PAGES") else { return };
        let dir = std::path::Path::new(&dir);
        std::fs::create_dir_all(dir).unwrap();
        let began = std::time::Instant::now();
        let pages = [
            ("3", picture()),
            ("trouble", crate::page::fixture::troubled()),
            ("16", large(16)),
            ("50", huge()),
        ];
        for (name, picture) in &pages {
            let page = whole(picture);
            let style = format!("<style>{}</style>", assets::STYLE.text);
            let at = page.find("</head>").unwrap();
            let page = format!("{}{style}{}", &page[..at], &page[at..]);
            println!("{name}: {} bytes", page.len());
            std::fs::write(dir.join(format!("{name}.html")), page).unwrap();
        }
        println!("rendered in {:?}", began.elapsed());
    }
}
