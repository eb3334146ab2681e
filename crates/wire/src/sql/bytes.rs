//! What single bytes mean to PostgreSQL's scanner, and a hash of words that ignores case.

/// May begin an identifier.
pub(super) const IDENT_START: u8 = 1;
/// May continue an identifier.
pub(super) const IDENT: u8 = 2;
/// White space.
pub(super) const SPACE: u8 = 4;
/// May be part of an operator of several characters.
pub(super) const OPERATOR: u8 = 8;
/// Decimal digit.
pub(super) const DIGIT: u8 = 16;

/// Classes of every byte.
pub(super) static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xFF => IDENT_START | IDENT,
            b'0'..=b'9' => IDENT | DIGIT,
            b'$' => IDENT,
            b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C => SPACE,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*'
            | b'/' | b'%' | b'<' | b'>' | b'=' => OPERATOR,
            _ => 0,
        };
        b += 1;
    }
    table
}

/// Whether `byte` is in `class`.
#[inline(always)]
pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
const MIX: u64 = 0xD6E8_FEB8_6659_FD93;

/// Stirs `value` into `state`.
#[inline(always)]
pub(super) const fn mix(state: u64, value: u64) -> u64 {
    let wide = ((state ^ value) as u128) * (MIX as u128);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// Hash of `text[from..to]` with ASCII letters folded, as identifiers are.
#[inline(always)]
pub(super) const fn hash_folded(text: &[u8], from: usize, to: usize) -> u64 {
    let mut state = SEED ^ (to - from) as u64;
    let mut at = from;
    while at < to {
        state = mix(state, folded_at(text, at, to));
        at += 8;
    }
    state
}

/// Hash of `text[from..to]` as it is, different from its folded hash.
#[inline(always)]
pub(super) fn hash_exact(text: &[u8], from: usize, to: usize) -> u64 {
    let state = SEED.rotate_left(32) ^ (to - from) as u64;
    (from..to).step_by(8).fold(state, |state, at| mix(state, word_at(text, at, to)))
}

/// Up to eight bytes from `at`; read at once where the text is long enough.
#[inline(always)]
const fn word_at(text: &[u8], at: usize, to: usize) -> u64 {
    let left = to - at;
    if let Some((word, _)) = text.split_at(at).1.split_first_chunk() {
        let word = u64::from_le_bytes(*word);
        return if left >= 8 { word } else { word & ((1 << (left * 8)) - 1) };
    }
    let mut word = 0;
    let mut i = 0;
    while i < left && i < 8 {
        word |= (text[at + i] as u64) << (i * 8);
        i += 1;
    }
    word
}

/// The same with ASCII letters folded.
#[inline(always)]
pub(super) const fn folded_at(text: &[u8], at: usize, to: usize) -> u64 {
    fold_ascii(word_at(text, at, to))
}

/// Lower-cases the ASCII letters among eight bytes.
#[inline(always)]
const fn fold_ascii(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7F * ONES);
    let above_z = low + (0x7F - b'Z' as u64) * ONES;
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let upper = !word & (from_a ^ above_z) & (0x80 * ONES);
    word | (upper >> 2)
}
