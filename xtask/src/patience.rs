//! Tests that drive real servers wait for what they expect, and a machine that does something else
//! meanwhile can be too slow for them. Those that waited in vain, and those alone, are tried once more
//! with nothing beside them. A promise that was seen broken is never tried again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup::run;

/// More than this many that waited in vain are no hiccup.
const SECOND_TRIES_MAX: usize = 3;

/// What the end-to-end tests say when a wait ran out.
const IN_VAIN: [(&str, &str); 2] =
    [("waited ", " in vain until "), ("no write was acknowledged for ", "")];

/// Runs `cargo test` with these words, and once more what only waited in vain.
pub fn cargo_test(words: &[&str], filter: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let all = [&["cargo", "test"], words, &["--"], filter, &["--test-threads", "2"]].concat();
    println!("$ {}", all.join(" "));
    let mut child = Command::new(all[0])
        .args(&all[1..])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", all[0]))?;
    let mut lines = Vec::new();
    let output = child.stdout.take().context("the tests have no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what the tests say")?;
        println!("{line}");
        lines.push(line);
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if status.success() {
        return Ok(());
    }
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let Some(slow) = waited_in_vain(&lines) else {
        bail!("{} failed: {status}", all.join(" "));
    };
    println!("waited in vain; once more, with nothing beside: {}", slow.join(", "));
    let again = ["--test-threads", "1", "--exact"];
    run(&[&["cargo", "test"], words, &["--"], &slow[..], &again].concat(), env)?;
    println!("passed only at the second try, look into it: {}", slow.join(", "));
    Ok(())
}

/// The tests that failed, when all of them did so because a wait ran out.
fn waited_in_vain<'a>(lines: &[&'a str]) -> Option<Vec<&'a str>> {
    let failed: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    let waited = |name: &&str| {
        let title = format!("---- {name} stdout ----");
        let story = lines.iter().skip_while(|line| **line != title).skip(1);
        let mut story = story.take_while(|line| !line.starts_with("---- "));
        story.any(|line| is_reason(line))
    };
    let few = !failed.is_empty() && failed.len() <= SECOND_TRIES_MAX;
    (few && failed.iter().all(waited)).then_some(failed)
}

/// Whether a line of a failed test gives a wait that ran out as the reason: at the bottom of an
/// error's causes, or alone.
fn is_reason(line: &str) -> bool {
    let numbered = |c: char| c.is_ascii_digit() || c == ':' || c == ' ';
    let reason = line.trim_start_matches("Error: ").trim_start_matches(numbered);
    IN_VAIN.iter().any(|(begin, then)| reason.starts_with(begin) && reason.contains(then))
}

#[cfg(test)]
mod tests {
    use super::waited_in_vain;

    fn output(failed: &[(&str, &str)]) -> String {
        let mut text = "test a::fine ... ok\n".to_owned();
        for (name, _) in failed {
            text += &format!("test {name} ... FAILED\n");
        }
        text += "\nfailures:\n\n";
        for (name, story) in failed {
            text += &format!("---- {name} stdout ----\nscenario: it waits\n{story}\n\n");
        }
        text + "failures:\n    names\n"
    }

    fn tried_again(failed: &[(&str, &str)]) -> Option<Vec<String>> {
        let text = output(failed);
        let lines: Vec<&str> = text.lines().collect();
        Some(waited_in_vain(&lines)?.into_iter().map(str::to_owned).collect())
    }

    const WAITED: &str =
        "Error: \n--- n1 (up)\n\nCaused by:\n    waited 60s in vain until n1 serves";
    const STARVED: &str = "Caused by:\n    0: later\n    1: no write was acknowledged for 60s; \
                           failed logins: 0";
    const LOST: &str = "Error: 5 acked, 0 unknown, 4 rows; 1 acknowledged rows missing: [3]";

    #[test]
    fn what_waited_in_vain_is_tried_again() {
        let names = ["one".to_owned(), "two".to_owned()].to_vec();
        assert_eq!(tried_again(&[("one", WAITED), ("two", STARVED)]), Some(names));
    }

    #[test]
    fn a_broken_promise_is_not() {
        assert_eq!(tried_again(&[("one", LOST)]), None);
        assert_eq!(tried_again(&[("one", WAITED), ("two", LOST)]), None);
    }

    #[test]
    fn many_are_no_hiccup() {
        let many = ["a", "b", "c", "d"].map(|name| (name, WAITED));
        assert_eq!(tried_again(&many), None);
    }

    #[test]
    fn a_build_that_failed_is_no_test() {
        assert_eq!(tried_again(&[]), None);
    }
}
