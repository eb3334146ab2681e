//! What takes time: one job at once, and what it has done when it ends.

use std::time::Duration;

use quorate_core::node::Job;
use quorate_core::status::SurrenderReason;
use quorate_core::{Term, TimelineId};

use super::{Agent, JobEnd, Promoted, Running};
use quorate_core::limits::JOB_RETRY;

use crate::event::{AgentEvent, Event};
use crate::wal::lsn;
use crate::world::World;

impl World {
    pub(super) fn job(&mut self, node: usize, job: Job, end: JobEnd, (least, most): (u64, u64)) {
        let wait = self.some_us(least * 1000, most * 1000);
        let Some(agent) = self.agent(node) else { return };
        if agent.job.is_some() {
            return;
        }
        agent.jobs += 1;
        let (id, life) = (agent.jobs, agent.life);
        agent.job = Some(Running { id, job, term: agent.state.authority.term });
        let what = AgentEvent::JobDone { job: id, end };
        self.disk_event(node, wait, Event::Agent { node, life, what });
    }

    /// A job that did not succeed ends after a pause, so that it is not tried at once again.
    pub(super) fn job_fails(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        let Some(id) = agent.job.as_ref().map(|r| r.id) else { return };
        let end = JobEnd::Pause;
        self.agent_event(node, JOB_RETRY, AgentEvent::JobDone { job: id, end });
    }

    pub(super) fn job_done(&mut self, node: usize, job: u64, end: JobEnd) {
        let Some(agent) = self.agent(node) else { return };
        if agent.job.as_ref().is_none_or(|r| r.id != job) {
            return;
        }
        let full = self.hosts[node].disk.full;
        match end {
            JobEnd::Pause => {}
            JobEnd::Stop => self.end_server(node),
            JobEnd::Start | JobEnd::Promote(..) | JobEnd::Clone(..) | JobEnd::Rewind(..)
                if full =>
            {
                if matches!(end, JobEnd::Start) {
                    self.end_server(node);
                }
                return self.job_fails(node);
            }
            JobEnd::Start => {
                let data = &self.hosts[node].disk.data;
                if data.rewound.is_some_and(|need| data.depth() < need) {
                    // It answers once the writer has sent what it lacks.
                    if self.hosts[node].server.is_none() {
                        self.begin_server(node);
                        if let Some(server) = &mut self.hosts[node].server {
                            server.facts = None;
                        }
                    }
                    let what = AgentEvent::JobDone { job, end: JobEnd::Start };
                    return self.agent_event(node, Duration::from_millis(20), what);
                }
                self.hosts[node].disk.data.rewound = None;
                match self.hosts[node].server.is_none() {
                    true => self.begin_server(node),
                    false => self.probe(node),
                }
            }
            JobEnd::Freeze(term) => {
                if !self.keeps_feed(node) {
                    self.receiver_ended(node);
                }
                let Some(server) = &self.hosts[node].server else {
                    return self.job_fails(node);
                };
                let data = &self.hosts[node].disk.data;
                if server.stopped || server.writes {
                    return self.job_fails(node);
                }
                let report = data.report(term);
                if let Some(agent) = self.agent(node) {
                    agent.report = Some(report);
                }
            }
            JobEnd::Promote(term, timeline) => {
                let host = &self.hosts[node];
                // A timeline that has a history already is not begun again.
                let taken = host.disk.data.timeline == timeline;
                if taken || host.server.as_ref().is_none_or(|s| s.stopped) {
                    self.end_server(node);
                    if let Some(agent) = self.agent(node) {
                        agent.job = None;
                    }
                    self.surrender(node, term, SurrenderReason::BadPromotion);
                    return self.cycle(node);
                }
                self.promoted(node, term, timeline);
            }
            JobEnd::Clone(from, term) => {
                if !self.may_copy(node, from, term) {
                    return self.job_fails(node);
                }
                self.end_server(node);
                self.clone_to(node, from);
            }
            JobEnd::Rewind(from, term) => {
                if !self.may_copy(node, from, term) {
                    return self.job_fails(node);
                }
                self.rewind_to(node, from);
                self.hosts[node].disk.data.spoilt = false;
            }
        }
        if let Some(agent) = self.agent(node) {
            agent.job = None;
        }
        self.cycle(node);
    }

    pub(super) fn may_copy(&self, node: usize, from: usize, term: Term) -> bool {
        let reigns = |a: &Agent| a.reign.as_ref().is_some_and(|r| r.own.term == term);
        !self.is_cut(node, from)
            && !self.is_cut(from, node)
            && self.hosts[from].agent.as_ref().is_some_and(reigns)
            && self.hosts[from].server.as_ref().is_some_and(|s| s.writes && !s.stopped)
    }

    pub(super) fn promoted(&mut self, node: usize, term: Term, timeline: TimelineId) {
        let before = self.hosts[node].disk.data.clone();
        let fork = lsn(before.depth());
        let report = self.hosts[node].agent.as_ref().and_then(|a| a.report.clone());
        // A record ahead: promotion writes its own checkpoint, which nobody waits for.
        let end = self.hosts[node].disk.data.depth();
        self.promote_server(node, timeline);
        debug_assert_eq!(self.hosts[node].disk.data.depth(), end);
        self.probe(node);
        let report = report.unwrap_or_else(|| before.report(term));
        let owner = report.owner();
        let mut forks: Vec<_> =
            report.forks.iter().copied().take_while(|(t, _)| *t != owner).collect();
        forks.push((owner, fork));
        let next_id = self.hosts[node].server.as_ref().map_or(0, |s| s.next_id);
        if let Some(agent) = self.agent(node) {
            let forks = forks.into();
            agent.promoted = Some(Promoted { term, timeline, fork, next_id, forks });
        }
        self.append(node, None);
    }
}
