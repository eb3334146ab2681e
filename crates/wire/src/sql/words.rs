//! Sets of words found by hash, built by the compiler.

use super::bytes;

/// One place of a table; an empty text is a free place.
#[derive(Clone, Copy)]
pub(super) struct Slot<T> {
    hash: u32,
    /// The first eight bytes.
    head: u64,
    text: &'static [u8],
    value: T,
}

impl<T: Copy> Slot<T> {
    pub(super) const fn empty(value: T) -> Self {
        Self { hash: 0, head: 0, text: b"", value }
    }

    /// Whether the word is `text[from..to]` but for its case.
    #[inline(always)]
    fn is(&self, text: &[u8], from: usize, to: usize) -> bool {
        // Most words end within the first eight bytes.
        self.text.len() == to - from
            && self.head == bytes::folded_at(text, from, to)
            && (to - from <= 8 || self.text[8..].eq_ignore_ascii_case(&text[from + 8..to]))
    }
}

/// Adds the words of `list`, separated by white space, to a table whose size is a power of two.
pub(super) const fn add<T: Copy, const N: usize>(
    mut table: [Slot<T>; N],
    list: &'static str,
    value: T,
) -> [Slot<T>; N] {
    let mut rest = list.as_bytes();
    while !rest.is_empty() {
        let mut len = 0;
        while len < rest.len() && !rest[len].is_ascii_whitespace() {
            len += 1;
        }
        let (word, after) = rest.split_at(len);
        if len > 0 {
            table = insert(table, word, value);
        }
        rest = if after.is_empty() { after } else { after.split_at(1).1 };
    }
    table
}

const fn insert<T: Copy, const N: usize>(
    mut table: [Slot<T>; N],
    text: &'static [u8],
    value: T,
) -> [Slot<T>; N] {
    let hash = bytes::hash_folded(text, 0, text.len());
    let mut at = hash as usize & (N - 1);
    while !table[at].text.is_empty() {
        at = (at + 1) & (N - 1);
    }
    let head = bytes::folded_at(text, 0, text.len());
    table[at] = Slot { hash: (hash >> 32) as u32, head, text, value };
    table
}

/// What the table says of `text[from..to]`, whose [`bytes::hash_folded`] is `hash`; case does not
/// matter.
#[inline(always)]
pub(super) fn find<T: Copy, const N: usize>(
    table: &[Slot<T>; N],
    hash: u64,
    text: &[u8],
    from: usize,
    to: usize,
) -> Option<T> {
    let mut at = hash as usize & (N - 1);
    loop {
        let slot = &table[at];
        if slot.text.is_empty() {
            return None;
        }
        if slot.hash == (hash >> 32) as u32 && slot.is(text, from, to) {
            return Some(slot.value);
        }
        at = (at + 1) & (N - 1);
    }
}
