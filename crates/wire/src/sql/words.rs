//! Sets of words found by hash, built by the compiler.

use super::bytes;

/// One place of a table; an empty text is a free place.
#[derive(Clone, Copy)]
pub(super) struct Slot<T> {
    hash: u32,
    text: &'static [u8],
    value: T,
}

impl<T: Copy> Slot<T> {
    pub(super) const fn empty(value: T) -> Self {
        Self { hash: 0, text: b"", value }
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
    table[at] = Slot { hash: (hash >> 32) as u32, text, value };
    table
}

/// What the table says of `word`, whose [`bytes::hash_folded`] is `hash`; case does not matter.
#[inline(always)]
pub(super) fn find<T: Copy, const N: usize>(
    table: &[Slot<T>; N],
    hash: u64,
    word: &[u8],
) -> Option<T> {
    let mut at = hash as usize & (N - 1);
    loop {
        let slot = &table[at];
        if slot.text.is_empty() {
            return None;
        }
        if slot.hash == (hash >> 32) as u32 && slot.text.eq_ignore_ascii_case(word) {
            return Some(slot.value);
        }
        at = (at + 1) & (N - 1);
    }
}
