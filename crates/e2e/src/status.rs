//! The status page as the harness reads it: only the fields that tests rely on, all optional.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::limits;

/// What one node says of the cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The term.
    pub term: u64,
    /// `electing`, `granted` or `serving`.
    pub phase: String,
    /// The writer by the record.
    pub writer: Option<String>,
    /// The leader of consensus.
    pub leader: Option<String>,
    /// Who votes in consensus.
    pub voters: BTreeSet<String>,
    /// Whether automation is paused.
    pub paused: bool,
    /// The coordinator's reason.
    pub because: Because,
    /// Version of the cluster document.
    pub document_version: u64,
    /// The record.
    pub authority: Authority,
    /// Each node's word about itself.
    pub nodes: BTreeMap<String, Heard>,
}

/// Rule id and sentence.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Because {
    /// Rule.
    pub rule: String,
    /// Sentence.
    pub sentence: String,
}

/// The record of authority.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Authority {
    /// Commit rules in force; two while a change is open.
    pub rules: Vec<CommitRule>,
}

/// A commit rule.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CommitRule {
    /// Grows with each change.
    pub generation: u64,
    /// Members.
    pub cohort: BTreeSet<String>,
    /// How many of them.
    pub policy: Value,
}

/// A node, as another hears it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Heard {
    /// What its copy is for.
    pub role: String,
    /// Its last word about itself.
    pub status: Option<Word>,
}

/// A node's word about itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Word {
    /// `writing`, `following`, `frozen`, and so on.
    pub doing: String,
    /// The newest term it knows.
    pub term: u64,
    /// The term it promised.
    pub promised: Option<u64>,
    /// Its reason.
    pub because: Because,
    /// What it does, in words.
    pub progress: Option<String>,
    /// Its frozen log end.
    pub report: Option<Value>,
    /// What it knows as the writer.
    pub writer: Option<Writing>,
    /// Whom it gets the log from instead of the writer.
    pub upstream: Option<String>,
    /// Its server.
    pub server: Option<Server>,
    /// Version of the cluster document that its server runs with.
    pub document: u64,
}

/// What only a writer can say.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Writing {
    /// Whether clients are served.
    pub serving: bool,
    /// Whether its lease runs.
    pub leased: bool,
    /// Standbys attached.
    pub standbys: BTreeMap<String, Value>,
}

/// A node's server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<String>,
}

impl Status {
    /// Asks the node whose web port is at `web`.
    pub fn of(web: SocketAddr) -> Result<Self> {
        let body = get(web, "/api/status")?;
        serde_json::from_str(&body).with_context(|| format!("status page answered: {body}"))
    }

    /// A node's word about itself.
    pub fn word(&self, node: &str) -> Option<&Word> {
        self.nodes.get(node)?.status.as_ref()
    }

    /// What a node is doing; empty when it is not known.
    pub fn doing(&self, node: &str) -> &str {
        self.word(node).map_or("", |word| &word.doing)
    }

    /// The writer, when it serves clients.
    pub fn serving(&self) -> Option<&str> {
        let writer = self.writer.as_deref().filter(|_| self.phase == "serving")?;
        self.word(writer)?.writer.as_ref().filter(|w| w.serving).map(|_| writer)
    }

    /// Whether a writer's lease runs.
    pub fn leased(&self, node: &str) -> bool {
        self.word(node).and_then(|w| w.writer.as_ref()).is_some_and(|w| w.leased)
    }

    /// Standbys attached to the serving writer, or to one that is.
    pub fn attached(&self) -> BTreeSet<String> {
        let writing = self.serving().and_then(|w| self.word(w)).and_then(|w| w.writer.as_ref());
        let fed = writing.into_iter().flat_map(|w| w.standbys.keys().cloned());
        let upstream = |name: &&String| self.word(name).is_some_and(|w| w.upstream.is_some());
        fed.chain(self.nodes.keys().filter(upstream).cloned()).collect()
    }

    /// Whether a node's copy is one that a commit rule counts, by its role.
    pub fn counts(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|n| n.role == "ha")
    }

    /// Members of the newest commit rule.
    pub fn cohort(&self) -> BTreeSet<String> {
        self.authority.rules.last().map(|r| r.cohort.clone()).unwrap_or_default()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, heard)| match &heard.status {
                Some(w) => format!("{name}: {} ({})", w.doing, w.because.sentence),
                None => format!("{name}: never heard"),
            })
            .collect();
        format!(
            "term {} {}, writer {:?} (serving: {}), leader {:?}, voters {:?}, attached {:?}, \
             cohort {:?}, rules {}; {} ({}); {}",
            self.term,
            self.phase,
            self.writer,
            self.serving().is_some(),
            self.leader,
            self.voters,
            self.attached(),
            self.cohort(),
            self.authority.rules.len(),
            self.because.sentence,
            self.because.rule,
            nodes.join("; ")
        )
    }
}

/// Gets a page for its body.
pub fn get(web: SocketAddr, path: &str) -> Result<String> {
    get_within(web, path, limits::STATUS)
}

/// The same from a node that may be slow.
pub fn get_within(web: SocketAddr, path: &str, limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&web, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {web}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(limits::ANSWER_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let first = head.lines().next().unwrap_or_default();
    anyhow::ensure!(first.contains(" 200 "), "{path} answered {first}: {body}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_page_and_knows_who_serves() {
        let page = r#"{"cluster_id":"a","term":3,"phase":"serving","writer":"n1","leader":"n2",
            "voters":["n1","n2"],"paused":false,"because":{"rule":"op","sentence":"all is well"},
            "authority":{"rules":[{"generation":2,"cohort":["n1","n2"],"policy":{"copies":2}}]},
            "nodes":{"n1":{"heard_ms":0,"gone":false,"status":{"doing":"writing","term":3,
              "promised":3,"because":{"rule":"R10","sentence":"x"},"progress":null,"server":null,
              "writer":{"serving":true,"standbys":{"n2":{"flushed":"0/1"}},"safe":"0/1"}}},
              "n2":{"heard_ms":null,"status":null}}}"#;
        let status: Status = serde_json::from_str(page).unwrap();
        assert_eq!(status.serving(), Some("n1"));
        assert_eq!(status.attached(), BTreeSet::from(["n2".to_owned()]));
        assert_eq!(status.cohort().len(), 2);
        assert_eq!(status.doing("n2"), "");
        assert!(status.line().contains("n2: never heard"));
    }
}
