//! A text of SQL cut into statements and their words, for tools that look at what a person wrote.

use super::Span;
use super::lexer::{Kind, Lexer};

/// A piece of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A word that is not quoted: a keyword or a name.
    Word,
    /// A quoted name.
    Quoted,
    /// A string or a number.
    Literal,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `,`.
    Comma,
    /// `.` between names.
    Dot,
    /// Anything else: an operator, a cast, a parameter.
    Other,
}

/// A statement of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Where it stands, without its semicolon.
    pub span: Span,
    /// What it is made of, in order.
    pub pieces: Vec<(Piece, Span)>,
}

/// Cuts a text into its statements, empty ones left out. `None` when a string, a quoted name or a
/// comment has no end. The semicolons in a body of `BEGIN ATOMIC … END` end statements here.
pub fn statements(text: &[u8]) -> Option<Vec<Statement>> {
    let mut lexer = Lexer::new(text, true);
    let mut all = Vec::new();
    let mut pieces = Vec::new();
    loop {
        let token = lexer.next();
        let span = Span { start: token.start, end: token.end };
        let piece = match token.kind {
            Kind::Bad => return None,
            Kind::End | Kind::Semicolon => {
                all.extend(statement(std::mem::take(&mut pieces)));
                if token.kind == Kind::End {
                    return Some(all);
                }
                continue;
            }
            Kind::Word => Piece::Word,
            Kind::Quoted => Piece::Quoted,
            Kind::Literal => Piece::Literal,
            Kind::Open => Piece::Open,
            Kind::Close => Piece::Close,
            Kind::Comma => Piece::Comma,
            Kind::Dot => Piece::Dot,
            Kind::Param | Kind::Operator | Kind::CloseBracket | Kind::Cast | Kind::Other => {
                Piece::Other
            }
        };
        pieces.push((piece, span));
    }
}

fn statement(pieces: Vec<(Piece, Span)>) -> Option<Statement> {
    let (_, first) = pieces.first()?;
    let (_, last) = pieces.last()?;
    Some(Statement { span: Span { start: first.start, end: last.end }, pieces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_postgresql_ends_them() {
        let text = b"-- a; b\nSELECT ';' ; ; CREATE TABLE \"x;y\" (a int); DO $$ BEGIN; END $$";
        let all = statements(text).unwrap();
        let texts: Vec<&[u8]> = all.iter().map(|s| s.span.of(text)).collect();
        let expected: [&[u8]; 3] =
            [b"SELECT ';'", b"CREATE TABLE \"x;y\" (a int)", b"DO $$ BEGIN; END $$"];
        assert_eq!(texts, expected);
        let kinds: Vec<Piece> = all[1].pieces.iter().map(|(piece, _)| *piece).collect();
        use Piece::{Close, Open, Quoted, Word};
        assert_eq!(kinds, [Word, Word, Quoted, Open, Word, Word, Close]);
        assert_eq!(statements(b"SELECT 'open"), None);
        assert_eq!(statements(b" -- nothing"), Some(Vec::new()));
    }
}
