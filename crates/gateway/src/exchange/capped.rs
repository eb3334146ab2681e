//! Answers whose size is limited: the stages of a statement whose result is too large.

use quorate_wire::Error;
use quorate_wire::backend::{COPY_DATA, DATA_ROW, ERROR, Fields, NOTICE, READY, Status};

use super::{Exchange, Expect, Kind, PARAMETER, POSITION, Undo};
use crate::cap::{Stage, TooLarge};

impl Exchange {
    /// Whether the statement under way is given copy data.
    pub(crate) fn wants_copy_data(&self) -> bool {
        self.copying
    }

    /// The same as [`Exchange::message`], and where results are limited no more than that.
    #[inline(always)]
    pub(super) fn within_cap(
        &mut self,
        tag: u8,
        len: usize,
        seen: Option<&[u8]>,
        ours: bool,
    ) -> Result<bool, Error> {
        match self.cap {
            Some(_) if !ours => self.capped(tag, len, seen),
            _ => self.message(tag, seen, ours),
        }
    }

    fn capped(&mut self, tag: u8, len: usize, seen: Option<&[u8]>) -> Result<bool, Error> {
        let was_in_block = self.status != Status::Idle;
        let Some(cap) = &mut self.cap else { return self.message(tag, seen, false) };
        match (cap.stage, tag) {
            (_, NOTICE | PARAMETER | POSITION | b'A') => self.message(tag, seen, false),
            (Stage::Within, DATA_ROW | COPY_DATA) => {
                if cap.counts(len) {
                    cap.stage = Stage::Beyond;
                    self.seen.too_large = Some(TooLarge::Cancel);
                    return self.message(tag, seen, false).map(|_| false);
                }
                self.message(tag, seen, false)
            }
            (Stage::Within, b'C' | b'I' | b's' | ERROR) => {
                cap.restart();
                self.message(tag, seen, false)
            }
            (Stage::Within, _) => self.message(tag, seen, false),
            (Stage::Beyond, ERROR) => {
                let cancelled = seen.and_then(|b| Fields::parse(b).ok());
                if cancelled.is_some_and(|fields| fields.code() != "57014") {
                    cap.restart();
                    return self.message(tag, seen, false);
                }
                self.message(tag, seen, false)?;
                self.told_beyond(false, was_in_block);
                Ok(false)
            }
            (Stage::Beyond, b'C' | b'I' | b's') => {
                self.message(tag, seen, false)?;
                self.told_beyond(true, was_in_block);
                Ok(false)
            }
            (Stage::Told { late: true }, READY) if seen == Some(b"T") => {
                self.ready(b"T")?;
                self.seen.ready = false;
                self.seen.too_large = Some(TooLarge::Fail);
                if let Some(cap) = &mut self.cap {
                    cap.stage = Stage::Failing;
                }
                Ok(false)
            }
            (Stage::Beyond | Stage::Told { .. } | Stage::Failing, READY) => {
                cap.restart();
                self.message(tag, seen, false)
            }
            (Stage::Beyond | Stage::Told { .. } | Stage::Failing, _) => {
                self.message(tag, seen, false).map(|_| false)
            }
        }
    }

    /// The client is told that a result is too large, and hears nothing more up to ReadyForQuery.
    fn told_beyond(&mut self, late: bool, in_block: bool) {
        let Some(cap) = &mut self.cap else { return };
        cap.stage = Stage::Told { late };
        self.instead = Some(cap.report(late, in_block));
        self.seen.too_large = None;
        if !late {
            return;
        }
        // For the client nothing behind it is carried out; the server has what it prepared.
        let ends = |e: &Expect| matches!(e.kind, Kind::Sync | Kind::Query);
        self.skipping = !self.expect.iter().any(ends);
        self.seen.error = Some(*b"54000");
        for expect in self.expect.iter_mut().take_while(|e| !ends(e)) {
            match std::mem::replace(&mut expect.undo, Undo::Nothing) {
                Undo::Parse { whose, .. } | Undo::Parsed(whose) => {
                    self.seen.undo.push(Undo::Parsed(whose));
                }
                Undo::Nothing | Undo::Closed(_) => {}
                close @ Undo::Close { .. } => self.seen.undo.push(close),
            }
        }
    }
}
