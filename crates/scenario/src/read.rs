//! From words to values.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use quorate_core::NodeId;

use crate::deed::{Deed, Who};
use crate::scenario::{Condition, Expectation, Scenario, Shape, Step};

/// A scenario that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Misread {
    /// Counted from one.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// What is wrong with a line.
type Problem = String;

impl FromStr for Scenario {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Self, Misread> {
        let misread = |line: usize, problem: Problem| Misread { line, problem };
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let intent: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.is_empty()).collect();
        if intent.is_empty() {
            return Err(misread(1, "begin with a sentence that says what this shows".to_owned()));
        }
        let mut steps = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let (at, first) = steps.next().ok_or_else(|| {
            misread(intent.len() + 1, "after an empty line, say `cluster 3`".to_owned())
        })?;
        Ok(Self {
            intent: intent.join("\n"),
            shape: first.parse().map_err(|problem| misread(at, problem))?,
            steps: steps
                .map(|(at, line)| line.parse().map_err(|problem| misread(at, problem)))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl FromStr for Shape {
    type Err = Problem;

    fn from_str(line: &str) -> Result<Self, Problem> {
        let (data, witness) = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["cluster", data] => (data, false),
            ["cluster", data, "and", "a", "witness"] => (data, true),
            _ => return Err("say `cluster 3` or `cluster 2 and a witness` first".to_owned()),
        };
        match data.parse() {
            Ok(data @ 1..=7) => Ok(Self { data, witness }),
            Ok(_) | Err(_) => Err(format!("a cluster has 1 to 7 nodes with data, not {data}")),
        }
    }
}

impl FromStr for Step {
    type Err = Problem;

    fn from_str(line: &str) -> Result<Self, Problem> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["wait", "until", ref rest @ ..] => Ok(Self::WaitUntil(condition(rest)?)),
            ["wait", ref time @ ..] => Ok(Self::Wait(span(time)?)),
            ["expect", "no", "loss"] => Ok(Self::Expect(Expectation::NoLoss)),
            ["expect", "no", "writer"] => Ok(Self::Expect(Expectation::NoWriter)),
            ["expect", ref rest @ ..] => Ok(Self::Expect(Expectation::Now(condition(rest)?))),
            ref words => deed(words).map(Self::Do),
        }
    }
}

impl FromStr for Deed {
    type Err = Problem;

    fn from_str(line: &str) -> Result<Self, Problem> {
        deed(&line.split_whitespace().collect::<Vec<_>>())
    }
}

fn condition(words: &[&str]) -> Result<Condition, Problem> {
    match words {
        ["a", "writer", "serves"] => Ok(Condition::AnyWriter),
        ["the", "cluster", "is", "whole"] => Ok(Condition::Whole),
        [who, "follows"] => Ok(Condition::Follows(node(who)?)),
        [who @ .., "is", "writer"] if !who.is_empty() => who
            .split(|word| *word == "or")
            .map(|name| match name {
                [name] => node(name),
                _ => Err("between names of nodes, say `or`".to_owned()),
            })
            .collect::<Result<_, _>>()
            .map(Condition::Writer),
        _ => Err(format!(
            "`{}` is no condition: say `n1 is writer`, `n1 or n2 is writer`, `a writer serves`, \
             `n2 follows` or `the cluster is whole`",
            words.join(" ")
        )),
    }
}

fn deed(words: &[&str]) -> Result<Deed, Problem> {
    Ok(match words {
        ["lose", "all"] => Deed::LoseAll,
        ["start", "all"] => Deed::StartAll,
        ["heal"] => Deed::Heal,
        ["pause"] => Deed::Pause,
        ["resume"] => Deed::Resume,
        ["switchover"] => Deed::Switchover(None),
        ["switchover", "to", to] => Deed::Switchover(Some(node(to)?)),
        ["set", field, value] => Deed::Set((*field).to_owned(), (*value).to_owned()),
        ["lossy", permille] => Deed::Lossy(number(permille)?),
        ["partition", sides @ ..] => Deed::Partition(partition(sides)?),
        ["cut", from, "->", to] => Deed::Cut(node(from)?, node(to)?),
        ["slow", name, "by", time @ ..] => Deed::Slow(who(name)?, span(time)?),
        ["drift", name, "by", permille] => Deed::Drift(who(name)?, number(permille)?),
        ["suspend", name, "for", time @ ..] => Deed::Suspend(who(name)?, span(time)?),
        ["kill", "postgres", name] => Deed::KillPostgres(who(name)?),
        ["stop", "postgres", name] => Deed::StopPostgres(who(name)?),
        ["continue", "postgres", name] => Deed::ContinuePostgres(who(name)?),
        ["stall", "disk", name] => Deed::StallDisk(who(name)?),
        ["fill", "disk", name] => Deed::FillDisk(who(name)?),
        ["free", "disk", name] => Deed::FreeDisk(who(name)?),
        ["forget", "promise", name] => Deed::ForgetPromise(who(name)?),
        ["open", "slot", name] => Deed::OpenSlot(who(name)?),
        ["drop", "slot", name] => Deed::DropSlot(who(name)?),
        ["pause", "replay", name] => Deed::PauseReplay(who(name)?),
        ["resume", "replay", name] => Deed::ResumeReplay(who(name)?),
        ["kill", name] => Deed::Kill(who(name)?),
        ["lose", name] => Deed::Lose(who(name)?),
        ["start", name] => Deed::Start(who(name)?),
        ["mute", name] => Deed::Mute(who(name)?),
        ["stop", name] => Deed::Stop(who(name)?),
        ["continue", name] => Deed::Continue(who(name)?),
        _ => {
            return Err(format!(
                "`{}` is no step: docs/scenarios.md lists the words",
                words.join(" ")
            ));
        }
    })
}

fn partition(words: &[&str]) -> Result<Vec<BTreeSet<NodeId>>, Problem> {
    let sides = words.split(|word| *word == "|");
    let sides: Vec<BTreeSet<NodeId>> =
        sides.map(|side| side.iter().map(|name| node(name)).collect()).collect::<Result<_, _>>()?;
    let members: usize = sides.iter().map(BTreeSet::len).sum();
    let all: BTreeSet<&NodeId> = sides.iter().flatten().collect();
    match sides.iter().any(BTreeSet::is_empty) || all.len() != members {
        true => Err("name sides like `n1 | n2 n3`, each node once".to_owned()),
        false => Ok(sides),
    }
}

fn who(name: &str) -> Result<Who, Problem> {
    match name {
        "writer" => Ok(Who::Writer),
        "leader" => Ok(Who::Leader),
        name => node(name).map(Who::Node),
    }
}

fn node(name: &str) -> Result<NodeId, Problem> {
    NodeId::new(name).map_err(|e| e.to_string())
}

fn number<T: FromStr>(word: &str) -> Result<T, Problem> {
    word.parse().map_err(|_| format!("`{word}` is no number that fits here"))
}

fn span(words: &[&str]) -> Result<Duration, Problem> {
    match words {
        [number_of, "ms"] => number(number_of).map(Duration::from_millis),
        [number_of, "s"] => number(number_of).map(Duration::from_secs),
        _ => Err(format!("`{}` is no time: say `300 ms` or `5 s`", words.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "The writer's host is lost,\nand comes back.\n\ncluster 2 and a witness\n\
        # both ways\npartition n1 | n2 n3\nwait until n2 or n3 is writer\nwait 1500 ms\nheal\n\
        expect n1 follows\nexpect no loss\n";

    #[test]
    fn a_scenario_is_read_and_written() {
        let scenario: Scenario = TEXT.parse().unwrap();
        assert_eq!(scenario.shape, Shape { data: 2, witness: true });
        assert_eq!(scenario.steps.len(), 6);
        let written = scenario.to_string();
        assert_eq!(written, TEXT.replace("# both ways\n", ""));
        assert_eq!(written.parse(), Ok(scenario));
    }

    #[test]
    fn every_deed_is_read_as_it_is_written() {
        for words in [
            "kill n1",
            "kill writer",
            "kill postgres n1",
            "lose leader",
            "lose all",
            "start n1",
            "start all",
            "stop n1",
            "continue n1",
            "suspend n1 for 3 s",
            "stop postgres n1",
            "continue postgres n1",
            "partition n1 n3 | n2",
            "cut n1 -> n2",
            "slow n1 by 250 ms",
            "lossy 20",
            "mute leader",
            "heal",
            "stall disk n1",
            "fill disk n1",
            "free disk n1",
            "forget promise n1",
            "drift n1 by -2",
            "open slot writer",
            "drop slot writer",
            "pause replay n2",
            "resume replay n2",
            "switchover",
            "switchover to n2",
            "set copies 3",
            "set timing async",
            "pause",
            "resume",
        ] {
            let deed: Deed = words.parse().unwrap();
            assert_eq!(deed.to_string(), words);
            assert!(words.starts_with(deed.kind()), "{words}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        let told = |text: &str| text.parse::<Scenario>().unwrap_err().to_string();
        assert!(told("").starts_with("line 1: begin with a sentence"));
        assert!(told("Nothing.\n").starts_with("line 2: after an empty line"));
        assert!(told("Nothing.\n\nkill n1\n").starts_with("line 3: say `cluster 3`"));
        assert!(told("Nothing.\n\ncluster 9\n").contains("1 to 7 nodes"));
        let step = |line: &str| told(&format!("Nothing.\n\ncluster 3\n{line}\n"));
        assert!(step("kil n1").starts_with("line 4: `kil n1` is no step"));
        assert!(step("wait 3 m").contains("`3 m` is no time"));
        assert!(step("partition n1 | n1").contains("each node once"));
        assert!(step("wait until n1 n2 is writer").contains("say `or`"));
        assert!(step("expect luck").contains("`luck` is no condition"));
        assert!(step("kill N1").contains("lower-case"));
    }
}
