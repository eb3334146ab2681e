//! The quorum calculator's answer as text.

use quorate_core::plan::quorum::{Choice, Verdict};

use super::super::show;
use super::text::section;

/// Nodes up to which the table of all choices fits.
const GRID_MAX: u8 = 9;

/// The whole answer.
pub fn picture(verdict: &Verdict) -> String {
    let quorum = &verdict.quorum;
    let strong = if verdict.strong { "strong" } else { "EVENTUAL" };
    let writes =
        if verdict.writes_can_miss { "two writes can miss each other" } else { "two writes meet" };
    let mut out = format!("{quorum} · {strong} · {writes}");
    if let Some(with) = verdict.with_down {
        let works = |works: bool| if works { "go on" } else { "END" };
        out += &format!(
            " · with {} down reads {}, writes {}",
            quorum.down,
            works(with.reads),
            works(with.writes)
        );
    }
    out.push('\n');
    out += &section("Why", &verdict.because);
    if quorum.nodes <= GRID_MAX {
        out += &format!("\nEvery choice for N={}\n", quorum.nodes);
        for line in show::table(&grid(verdict)).lines() {
            out += &format!("  {line}\n");
        }
        out += "\n  S strong, two writes meet · s strong, two writes can miss each other\n  \
                · eventual · [ ] this choice\n";
    }
    let advice: Vec<String> = verdict
        .advice
        .iter()
        .map(|a| format!("{}: R={} W={}. {}", a.load, a.read, a.write, a.because))
        .collect();
    out += &section("What to take", &advice);
    out
}

fn grid(verdict: &Verdict) -> Vec<Vec<String>> {
    let nodes = verdict.quorum.nodes;
    let head = (1..=nodes).map(|w| format!(" W={w}"));
    let mut rows = vec![std::iter::once(String::new()).chain(head).collect::<Vec<_>>()];
    for read in 1..=nodes {
        let mut row = vec![format!("R={read}")];
        row.extend(verdict.choices.iter().filter(|c| c.read == read).map(|c| cell(c, verdict)));
        rows.push(row);
    }
    rows
}

fn cell(choice: &Choice, verdict: &Verdict) -> String {
    let mark = match (choice.strong, choice.writes_can_miss) {
        (true, false) => "S",
        (true, true) => "s",
        (false, _) => "·",
    };
    let this = (choice.read, choice.write) == (verdict.quorum.read, verdict.quorum.write);
    if this { format!("[{mark}]") } else { format!(" {mark}") }
}

#[cfg(test)]
mod tests {
    use quorate_core::plan::quorum::{Quorum, judge};

    use super::super::text::WIDTH;
    use super::*;

    #[test]
    fn the_choice_is_marked_once_and_fits() {
        for nodes in 1..=16 {
            let quorum = Quorum { nodes, read: 1, write: nodes, down: 0 };
            let text = picture(&judge(quorum).unwrap());
            assert_eq!(text.matches("[S]").count(), usize::from(nodes <= GRID_MAX), "{text}");
            assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        }
    }
}
