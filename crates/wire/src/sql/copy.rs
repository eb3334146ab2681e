//! `COPY`.

use super::{
    CopyKind, Verb, Why,
    keyword::Keyword,
    lexer::Kind,
    scan::Scan,
    walk::{Mode, Until},
};

impl Scan<'_> {
    /// After `COPY`.
    pub(super) fn copy(&mut self) -> Verb {
        if self.peek().kind == Kind::Open {
            self.take();
            self.depth += 1;
            self.walk(Mode::Query, Until::Close);
        } else {
            self.copied_table();
        }
        let direction = self.take().keyword;
        let place = self.take().keyword;
        let terminal = matches!(place, Keyword::Stdin | Keyword::Stdout);
        let kind = match direction {
            Keyword::To if terminal => CopyKind::ToStdout,
            Keyword::From if terminal => CopyKind::FromStdin,
            _ => CopyKind::Other,
        };
        match kind {
            CopyKind::ToStdout => self.script.returns_rows = true,
            CopyKind::FromStdin | CopyKind::Other => self.write(Why::Keyword),
        }
        // Options, and for `FROM` a condition.
        self.walk(Mode::Options, Until::End);
        Verb::Copy(kind)
    }

    /// `[BINARY] name [(columns)]`. Columns are plain names, nothing that could nest.
    fn copied_table(&mut self) {
        let mut word = self.take();
        // The old syntax `COPY BINARY name`.
        if word.text(self.sql).eq_ignore_ascii_case(b"binary") && self.peek().is_name() {
            word = self.take();
        }
        self.check_relation(word);
        while self.peek().kind == Kind::Dot {
            self.take();
            let part = self.take();
            self.check_relation(part);
        }
        if self.peek().kind != Kind::Open {
            return;
        }
        while !matches!(self.take().kind, Kind::Close | Kind::End | Kind::Bad | Kind::Semicolon) {}
    }
}
