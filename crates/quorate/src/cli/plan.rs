//! `quorate plan`: what is asked, given to the arithmetic of `core`, and told. Asks no node.

use std::io::{ErrorKind, Write};

use anyhow::Result;
use quorate_core::plan::{self, Contradiction, Request, quorum};
use serde::Serialize;

use super::reach::Failure;
use super::{Global, PlanArgs, PlanCommand};

mod calculator;
mod picture;
mod text;
pub mod words;

/// Does what was asked.
pub fn plan(global: &Global, args: &PlanArgs) -> Result<()> {
    match args.command {
        Some(PlanCommand::Quorum { nodes, read, write, down }) => {
            let verdict = quorum::judge(quorum::Quorum { nodes, read, write, down });
            tell(global, &verdict.map_err(refused)?, calculator::picture)
        }
        None => tell(global, &plan::plan(&request(args)).map_err(refused)?, picture::picture),
    }
}

fn tell<T: Serialize>(global: &Global, answer: &T, picture: fn(&T) -> String) -> Result<()> {
    let text = match global.json {
        true => serde_json::to_string_pretty(answer)? + "\n",
        false => picture(answer),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Who reads the first lines only has what it wants.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn refused(contradiction: Contradiction) -> Failure {
    Failure::Refused(contradiction.to_string())
}

fn request(args: &PlanArgs) -> Request {
    Request {
        reads: args.reads,
        writes: args.writes,
        capacity: args.capacity,
        share_percent: args.share,
        write_capacity: args.write_capacity,
        write_bytes: args.write_bytes,
        kind: args.kind,
        regions: words::regions(&args.regions),
        zones: args.zones,
        witness_in: args.witness_in.clone(),
        round_trips: args.rtt.clone(),
        flush: args.flush,
        loss: args.rpo,
        recover_within: args.rto,
        survive: args.survive,
        losses: args.losses,
        must_hold: args.must_hold.clone(),
        commit_max: args.commit_max,
    }
}
