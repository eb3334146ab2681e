//! Texts seen before, told again by what they have besides their numbers and strings: applications
//! send the same few statements with other values, and comparing bytes is cheaper than reading them.
//!
//! A text is taken for one that was read before only where both certainly have the same tokens:
//! everything between the values is the same byte by byte, a whole number stands where one stood,
//! and a plain string where one stood.

use super::{
    Options, Script, bytes,
    lexer::{Kind, Lexer},
};
use crate::limits::{SHAPE_TEXT_MAX, SHAPES};

/// Bytes at the beginning by which a shape is found. A shorter text is read at once.
const HEAD: usize = 16;

/// Misses after which a shape gives way to another. Shapes that come in turns at one place do not
/// push each other out each time.
const PATIENCE: u8 = 8;

/// What texts were found to be, for one set of [`Options`]: the caller empties it when these change.
#[derive(Debug, Default)]
pub struct Shapes {
    /// A power of two of places, made when the first is needed.
    places: Vec<Place>,
}

#[derive(Debug, Default, Clone)]
struct Place {
    shape: Option<Shape>,
    patience: u8,
}

impl Shapes {
    /// The same as [`super::classify`].
    ///
    /// `options` must have standard strings and a whole text, and otherwise be the same at each call.
    #[inline]
    pub fn classify(&mut self, text: &[u8], options: &Options<'_>) -> Script {
        debug_assert!(options.standard_strings && options.whole);
        let Some(head) = text.get(..HEAD) else { return super::classify(text, options) };
        if self.places.is_empty() {
            self.places.resize(SHAPES, Place::default());
        }
        let at = bytes::hash_exact(head, 0, HEAD) as usize % SHAPES;
        let place = &mut self.places[at];
        if let Some(shape) = place.shape.as_ref().filter(|shape| shape.fits(text)) {
            place.patience = PATIENCE;
            return shape.script;
        }
        place.read(text, options)
    }
}

impl Place {
    /// Reads a text that is not of the shape that is here; its own may come here instead.
    #[cold]
    fn read(&mut self, text: &[u8], options: &Options<'_>) -> Script {
        let script = super::classify(text, options);
        self.patience = self.patience.saturating_sub(1);
        if self.patience == 0
            && let Some(shape) = Shape::of(text, script)
        {
            *self = Place { shape: Some(shape), patience: PATIENCE };
        }
        script
    }
}

/// A text and where its values are.
#[derive(Debug, Clone)]
struct Shape {
    text: Box<[u8]>,
    values: Box<[Value]>,
    script: Script,
}

#[derive(Debug, Clone, Copy)]
struct Value {
    start: usize,
    end: usize,
    kind: ValueKind,
}

#[derive(Debug, Clone, Copy)]
enum ValueKind {
    /// Decimal digits.
    Number,
    /// `'...'`, in other texts without a quote in it.
    String,
}

impl Shape {
    /// `None` for a text whose script says where something is in it, or depends on its values.
    fn of(text: &[u8], script: Script) -> Option<Self> {
        if !script.first.is_plain()
            || script.statements != 1
            || script.directive.is_some()
            || script.by_values
            || text.len() > SHAPE_TEXT_MAX
        {
            return None;
        }
        let mut values = Vec::new();
        let mut lexer = Lexer::new(text, true);
        loop {
            let token = lexer.next();
            match token.kind {
                Kind::End => break,
                Kind::Bad => return None,
                Kind::Literal => {}
                _ => continue,
            }
            let (start, end) = (token.start as usize, token.end as usize);
            let kind = match &text[start..end] {
                digits if digits.iter().all(u8::is_ascii_digit) => ValueKind::Number,
                [b'\'', .., b'\''] => ValueKind::String,
                // Others have to be the same.
                _ => continue,
            };
            values.push(Value { start, end, kind });
        }
        Some(Self { text: text.into(), values: values.into(), script })
    }

    /// Whether a text differs in its values only.
    #[inline]
    fn fits(&self, text: &[u8]) -> bool {
        let (mut from, mut rest) = (0, text);
        for value in &self.values {
            // A number or string ends where it does because of what follows it here: the same there.
            let Some(behind) = rest.strip_prefix(&self.text[from..value.start]) else {
                return false;
            };
            let Some(len) = value.kind.len(behind) else { return false };
            rest = &behind[len..];
            from = value.end;
        }
        *rest == self.text[from..]
    }
}

impl ValueKind {
    /// How long the value of this kind is that a text begins with.
    #[inline]
    fn len(self, text: &[u8]) -> Option<usize> {
        match self {
            ValueKind::Number => {
                let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
                (digits > 0).then_some(digits)
            }
            ValueKind::String => {
                let inner = text.strip_prefix(b"'")?;
                let len = inner.iter().position(|&b| b == b'\'' || b == 0)?;
                (inner[len] == b'\'').then_some(len + 2)
            }
        }
    }
}
