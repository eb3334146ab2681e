//! What becomes of bytes of a server: which go on to the client, and what goes between them.

use std::cell::Cell;

use bytes::{BufMut, BytesMut};

/// Which bytes of an input go on, and what goes between them.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    pieces: Vec<Piece>,
    own: BytesMut,
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Input(usize, usize),
    Own(usize, usize),
}

impl Cuts {
    pub(super) fn pass(&mut self, from: usize, to: usize) {
        match self.pieces.last_mut() {
            Some(Piece::Input(_, end)) if *end == from => *end = to,
            _ if from == to => {}
            _ => self.pieces.push(Piece::Input(from, to)),
        }
    }

    /// A message of ours goes here.
    pub(crate) fn own(&mut self, message: &[u8]) {
        let from = self.own.len();
        self.own.put_slice(message);
        self.pieces.push(Piece::Own(from, self.own.len()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The bytes as one slice; `room` holds them where they are not one already.
    pub(crate) fn join<'a>(&'a self, input: &'a [u8], room: &'a mut BytesMut) -> &'a [u8] {
        if let [Piece::Input(from, to)] = self.pieces[..] {
            return &input[from..to];
        }
        for piece in &self.pieces {
            room.put_slice(match *piece {
                Piece::Input(from, to) => &input[from..to],
                Piece::Own(from, to) => &self.own[from..to],
            });
        }
        room
    }

    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.own.clear();
    }
}

thread_local! {
    static SPARE: Cell<Option<Cuts>> = const { Cell::new(None) };
}

/// Cuts whose memory is used again.
#[derive(Debug)]
pub(crate) struct SpareCuts(Cuts);

impl SpareCuts {
    pub(crate) fn take() -> Self {
        Self(SPARE.with(Cell::take).unwrap_or_default())
    }
}

impl Drop for SpareCuts {
    fn drop(&mut self) {
        self.0.clear();
        SPARE.with(|spare| spare.set(Some(std::mem::take(&mut self.0))));
    }
}

impl std::ops::Deref for SpareCuts {
    type Target = Cuts;

    fn deref(&self) -> &Cuts {
        &self.0
    }
}

impl std::ops::DerefMut for SpareCuts {
    fn deref_mut(&mut self) -> &mut Cuts {
        &mut self.0
    }
}
