//! What a server says: errors and notices, readiness, keys. Encoding is for answers of our own.

use bytes::{BufMut, BytesMut};

use crate::Error;
use crate::frame::{put, put_cstr, take_cstr};

/// Tag of ErrorResponse.
pub const ERROR: u8 = b'E';
/// Tag of NoticeResponse.
pub const NOTICE: u8 = b'N';
/// Tag of ReadyForQuery.
pub const READY: u8 = b'Z';
/// Tag of DataRow.
pub const DATA_ROW: u8 = b'D';
/// Tag of CopyData.
pub const COPY_DATA: u8 = b'd';
/// Tag of CopyInResponse.
pub const COPY_IN: u8 = b'G';
/// Tag of CopyBothResponse.
pub const COPY_BOTH: u8 = b'W';
/// Tag of BackendKeyData.
pub const KEY_DATA: u8 = b'K';
/// Tag of the authentication messages.
pub const AUTHENTICATION: u8 = b'R';

/// How serious a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// Only a word of warning.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
        }
    }
}

/// An error or notice of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How serious it is; a warning is sent as a notice.
    pub severity: Severity,
    /// SQLSTATE, five characters.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// More about it.
    pub detail: Option<Box<str>>,
    /// What a person should do.
    pub hint: Option<Box<str>>,
    /// More for the log of this side, which the other one is not to know.
    pub log: Option<Box<str>>,
}

impl Report {
    /// A report that ends the session.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        let severity = Severity::Fatal;
        Self { severity, code, message: message.into(), detail: None, hint: None, log: None }
    }

    /// A report that ends the statement.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::fatal(code, message) }
    }

    /// A report that changes nothing.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::fatal(code, message) }
    }

    /// The same report with more for our own log.
    pub fn log(self, why: impl Into<String>) -> Self {
        Self { log: Some(why.into().into()), ..self }
    }

    /// The same report with a detail.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into().into()), ..self }
    }

    /// The same report with a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into().into()), ..self }
    }

    /// The report as a message.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        let tag = if self.severity == Severity::Warning { NOTICE } else { ERROR };
        put(&mut out, tag, |out| {
            let severity = self.severity.as_str();
            let fields = [
                (b'S', Some(severity)),
                (b'V', Some(severity)),
                (b'C', Some(self.code)),
                (b'M', Some(self.message.as_str())),
                (b'D', self.detail.as_deref()),
                (b'H', self.hint.as_deref()),
            ];
            for (field, value) in fields {
                if let Some(value) = value {
                    out.put_u8(field);
                    put_cstr(out, value.as_bytes());
                }
            }
            out.put_u8(0);
        });
        out
    }
}

/// The fields of an ErrorResponse or NoticeResponse body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields<'a>(Vec<(u8, &'a [u8])>);

impl<'a> Fields<'a> {
    /// Reads a body.
    pub fn parse(mut body: &'a [u8]) -> Result<Self, Error> {
        const WHAT: &str = "an error or notice";
        let mut fields = Vec::new();
        loop {
            let (&field, rest) = body.split_first().ok_or(Error::Truncated { what: WHAT })?;
            body = rest;
            if field == 0 {
                return Ok(Self(fields));
            }
            fields.push((field, take_cstr(&mut body, WHAT)?));
        }
    }

    /// A field by its letter.
    pub fn get(&self, field: u8) -> Option<&'a [u8]> {
        self.0.iter().find(|(f, _)| *f == field).map(|(_, v)| *v)
    }

    /// SQLSTATE, or an empty string.
    pub fn code(&self) -> &'a str {
        self.text(b'C')
    }

    /// The primary message, or an empty string.
    pub fn message(&self) -> &'a str {
        self.text(b'M')
    }

    /// Whether this is the word of a commit whose wait for synchronous standbys was cancelled: it
    /// is committed locally and nothing is known of copies. Told by the place in PostgreSQL's
    /// source, which no locale translates.
    pub fn is_cancelled_sync_wait(&self) -> bool {
        self.get(b'F') == Some(b"syncrep.c") && self.get(b'R') == Some(b"SyncRepWaitForLSN")
    }

    fn text(&self, field: u8) -> &'a str {
        self.get(field).and_then(|v| std::str::from_utf8(v).ok()).unwrap_or("")
    }
}

/// What a session is in when its server is ready for the next query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No transaction.
    Idle,
    /// A transaction block.
    InTransaction,
    /// A transaction block that failed and waits for its end.
    Failed,
}

impl Status {
    /// Reads the body of ReadyForQuery.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        match body {
            b"I" => Ok(Status::Idle),
            b"T" => Ok(Status::InTransaction),
            b"E" => Ok(Status::Failed),
            _ => Err(Error::Invalid { what: "the status in ReadyForQuery" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::take;

    #[test]
    fn a_report_carries_its_fields() {
        let report = Report::fatal("57P01", "the writer moved").hint("reconnect").detail("d");
        let message = take(&mut report.encode(), 1000).unwrap().unwrap();
        assert_eq!(message.tag, ERROR);
        let fields = Fields::parse(&message.body).unwrap();
        assert_eq!((fields.code(), fields.message()), ("57P01", "the writer moved"));
        assert_eq!(fields.get(b'V'), Some(&b"FATAL"[..]));
        assert_eq!(fields.get(b'H'), Some(&b"reconnect"[..]));
        assert!(!fields.is_cancelled_sync_wait());
    }

    #[test]
    fn the_cancelled_wait_is_known_in_every_language() {
        let body =
            b"SWARNUNG\0VWARNING\0C01000\0Mwarte nicht\0Fsyncrep.c\0L281\0RSyncRepWaitForLSN\0\0";
        assert!(Fields::parse(body).unwrap().is_cancelled_sync_wait());
        // A user can raise a warning with that text, but not from that place.
        let body =
            b"SWARNING\0C01000\0Msyncrep.c SyncRepWaitForLSN\0Fpl_exec.c\0Rexec_stmt_raise\0\0";
        assert!(!Fields::parse(body).unwrap().is_cancelled_sync_wait());
        assert!(Fields::parse(b"SWARNING").is_err());
        assert!(Fields::parse(b"").is_err());
    }

    #[test]
    fn status_is_one_of_three() {
        assert_eq!(Status::parse(b"T").unwrap(), Status::InTransaction);
        assert!(Status::parse(b"X").is_err());
        assert!(Status::parse(b"").is_err());
    }
}
