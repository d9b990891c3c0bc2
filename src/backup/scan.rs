//! Reads a plain dump as it passes, as psql would: which tables have data in it, how many rows, and whether it came to its end.
//!
//! Outside of data it knows PostgreSQL's quoting (documentation 4.1), so that a line in a function's body that looks like a COPY is none.

use serde::{Deserialize, Serialize};

/// The rows of one table, as counted in a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// Rows in the dump.
    pub rows: u64,
}

/// What a dump's last comment says is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// One database (pg_dump).
    Database,
    /// A whole cluster (pg_dumpall), in which each database ends with the other comment.
    Cluster,
}

impl End {
    fn of_comment(text: &[u8]) -> Option<Self> {
        match text {
            b"-- PostgreSQL database dump complete" => Some(Self::Database),
            b"-- PostgreSQL database cluster dump complete" => Some(Self::Cluster),
            _ => None,
        }
    }
}

/// Longer statements are no COPY: a table has at most 1,600 columns of 63 bytes, quoted.
const HEAD_LIMIT: usize = 1 << 18;

/// The state of the reading; bounded, whatever the size of the dump.
#[derive(Debug)]
pub struct Scan {
    place: Place,
    /// The statement so far: all of it if it is a COPY, else its first bytes.
    head: Vec<u8>,
    /// The byte before, outside of quotes.
    before: u8,
    /// The identifier that runs right now is this long, and it is just the letter E.
    word: (usize, bool),
    /// Backslashes escape in plain quotes too.
    backslashes: bool,
    tables: Vec<TableRows>,
    strange: Option<String>,
    end: Option<End>,
    bytes: u64,
}

#[derive(Debug)]
enum Place {
    Statement,
    /// In '…'; whether a backslash escapes, and whether the last byte was one.
    Quote {
        escapes: bool,
        escaped: bool,
    },
    Identifier,
    /// After a dollar sign: what may be a tag.
    DollarTag(Vec<u8>),
    /// In $tag$…$tag$: the whole delimiter, and how much of it was just met.
    Dollar(Vec<u8>, usize),
    Line(Vec<u8>),
    /// Nested depth, and the byte before.
    Block(u32, u8),
    /// A command of psql, to the line's end.
    Meta(Vec<u8>),
    /// After a COPY, to the line's end: the data begins there.
    BeforeData,
    /// In a COPY's data; the length of this line so far, and whether it is the beginning of `\.`.
    Data(u64, bool),
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            place: Place::Statement,
            head: Vec::new(),
            before: b'\n',
            word: (0, false),
            backslashes: false,
            tables: Vec::new(),
            strange: None,
            end: None,
            bytes: 0,
        }
    }
}

impl Scan {
    /// Takes the next part of the dump.
    pub fn feed(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        let mut rest = part;
        while !rest.is_empty() {
            let used = match self.place {
                Place::Data(..) => self.data(rest),
                Place::Quote { escapes, .. } => self.quote(rest, escapes),
                _ => {
                    self.byte(rest[0]);
                    1
                }
            };
            rest = &rest[used..];
        }
    }

    /// The dump's last comment, if nothing but comments came after it.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end.filter(|_| matches!(self.place, Place::Statement) && self.head.is_empty())
    }

    /// Bytes read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The tables whose data was read so far.
    #[must_use]
    pub fn tables(&self) -> &[TableRows] {
        &self.tables
    }

    /// The first thing in it that reaches beyond the database that it is restored into: a command of psql, or a statement on a whole
    /// database or a role. A dump of one database has none.
    #[must_use]
    pub fn strange(&self) -> Option<&str> {
        self.strange.as_deref()
    }

    /// Counts lines up to `\.`; returns how many bytes that took.
    fn data(&mut self, part: &[u8]) -> usize {
        let Place::Data(length, mut marks) = self.place else { return 0 };
        let (mut at, mut length, mut rows) = (0, length, 0);
        let mut over = false;
        while let Some(found) = memchr::memchr(b'\n', &part[at..]) {
            let line = &part[at..at + found];
            at += found + 1;
            if ends_data(length, marks, line) {
                over = true;
                break;
            }
            rows += 1;
            (length, marks) = (0, true);
        }
        if let Some(table) = self.tables.last_mut() {
            table.rows += rows;
        }
        if over {
            self.place = Place::Statement;
            self.before = b'\n';
            return at;
        }
        let line = &part[at..];
        marks = marks && starts_end(length, line);
        self.place = Place::Data(length + line.len() as u64, marks);
        part.len()
    }

    /// Skips to the next byte that matters in a quote.
    fn quote(&mut self, part: &[u8], escapes: bool) -> usize {
        let Place::Quote { escaped, .. } = &mut self.place else { return 0 };
        if std::mem::take(escaped) {
            return 1;
        }
        let found = if escapes { memchr::memchr2(b'\'', b'\\', part) } else { memchr::memchr(b'\'', part) };
        let Some(at) = found else { return part.len() };
        if part[at] == b'\\' {
            *escaped = true;
        } else {
            // A doubled quote begins the next one at once: the same for us, but for what escapes in it.
            self.place = Place::Statement;
            self.before = if escapes { QUOTE_THAT_ESCAPED } else { b'\'' };
        }
        at + 1
    }

    fn byte(&mut self, byte: u8) {
        match &mut self.place {
            Place::Statement => self.statement(byte),
            Place::Identifier => {
                self.keep(byte);
                if byte == b'"' {
                    self.leave(byte);
                }
            }
            Place::DollarTag(tag) => {
                if byte == b'$' {
                    tag.push(byte);
                    self.place = Place::Dollar(std::mem::take(tag), 0);
                } else if is_identifier(byte) && !(tag.len() == 1 && byte.is_ascii_digit()) && tag.len() < 256 {
                    tag.push(byte);
                } else {
                    self.leave(b'$');
                    self.statement(byte);
                }
            }
            Place::Dollar(delimiter, met) => {
                *met = if byte == delimiter[*met] { *met + 1 } else { usize::from(byte == b'$') };
                if *met == delimiter.len() {
                    self.leave(b'$');
                }
            }
            Place::Line(text) => {
                if byte == b'\n' {
                    self.end = End::of_comment(text).or(self.end);
                    self.leave(byte);
                } else if text.len() < 128 {
                    text.push(byte);
                }
            }
            Place::Block(depth, before) => {
                match (*before, byte) {
                    (b'*', b'/') => (*depth, *before) = (*depth - 1, 0),
                    (b'/', b'*') => (*depth, *before) = (*depth + 1, 0),
                    _ => *before = byte,
                }
                if *depth == 0 {
                    self.leave(b' ');
                }
            }
            Place::Meta(text) => {
                if byte == b'\n' {
                    if ![&b"\\restrict "[..], b"\\unrestrict "].iter().any(|harmless| text.starts_with(harmless)) {
                        self.strange = self.strange.take().or(Some(String::from_utf8_lossy(text).into_owned()));
                    }
                    self.leave(byte);
                } else if text.len() < 64 {
                    text.push(byte);
                }
            }
            Place::BeforeData => {
                if byte == b'\n' {
                    self.place = Place::Data(0, true);
                }
            }
            Place::Quote { .. } | Place::Data(..) => {}
        }
    }

    fn leave(&mut self, before: u8) {
        self.place = Place::Statement;
        self.before = before;
        self.word = (0, false);
    }

    fn statement(&mut self, byte: u8) {
        let before = std::mem::replace(&mut self.before, byte);
        match (before, byte) {
            (b'-', b'-') => {
                self.forget_last();
                self.place = Place::Line(b"--".to_vec());
                return;
            }
            (b'/', b'*') => {
                self.forget_last();
                self.place = Place::Block(1, 0);
                return;
            }
            (_, b'\\') if self.head.is_empty() => {
                self.place = Place::Meta(vec![byte]);
                return;
            }
            (_, b'$') if self.word.0 == 0 => {
                self.keep(byte);
                self.place = Place::DollarTag(vec![byte]);
                return;
            }
            _ => {}
        }
        if byte.is_ascii_whitespace() {
            if !self.head.is_empty() {
                self.keep(byte);
            }
            self.word = (0, false);
            return;
        }
        self.keep(byte);
        match byte {
            b'\'' => {
                let escapes = self.backslashes || before == QUOTE_THAT_ESCAPED || self.word == (1, true);
                self.place = Place::Quote { escapes, escaped: false };
            }
            b'"' => self.place = Place::Identifier,
            b';' => self.end_statement(),
            _ => {}
        }
        self.word = if is_identifier(byte) { (self.word.0 + 1, matches!(byte, b'e' | b'E')) } else { (0, false) };
    }

    /// A comment began: its first byte was taken for a part of the statement.
    fn forget_last(&mut self) {
        if self.head.len() <= 1 {
            self.head.clear();
        }
        self.word = (0, false);
    }

    fn keep(&mut self, byte: u8) {
        let limit = if self.head.starts_with(b"COPY ") { HEAD_LIMIT } else { 64 };
        if self.head.len() < limit {
            self.head.push(byte);
        }
    }

    fn end_statement(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.end = None;
        if let Some((schema, table)) = copied(&head) {
            self.tables.push(TableRows { schema, table, rows: 0 });
            self.place = Place::BeforeData;
        } else if reaches_beyond(&head) {
            self.strange = self.strange.take().or(Some(String::from_utf8_lossy(&head).into_owned()));
        } else if head == b"SET standard_conforming_strings = off;" {
            self.backslashes = true;
        }
    }
}

/// Stands for a closing quote of a constant with escapes: if another follows at once, the constant goes on.
const QUOTE_THAT_ESCAPED: u8 = 0;

fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Whether a line, of which `length` bytes were seen before, ends the data. `marks`: those were the beginning of `\.`.
fn ends_data(length: u64, marks: bool, line: &[u8]) -> bool {
    marks && length + line.len() as u64 == 2 && starts_end(length, line)
}

/// Whether these bytes, after `length` others that are the beginning of `\.`, still are.
fn starts_end(length: u64, line: &[u8]) -> bool {
    let rest = &br"\."[usize::try_from(length.min(2)).unwrap_or(2)..];
    rest.starts_with(line)
}

/// Whether a statement is on a whole database, or on what all databases share.
fn reaches_beyond(statement: &[u8]) -> bool {
    let text = String::from_utf8_lossy(statement).to_ascii_uppercase();
    let mut words = text.split(|c: char| c.is_ascii_whitespace() || c == ';').filter(|word| !word.is_empty());
    let mut word = || words.next().unwrap_or_default();
    let (verb, object, next) = (word(), word(), word());
    let shared = ["DATABASE", "ROLE", "USER", "GROUP", "TABLESPACE", "SYSTEM"].contains(&object);
    ["CREATE", "ALTER", "DROP"].contains(&verb) && shared && (object, next) != ("USER", "MAPPING")
}

/// Schema and table of `COPY schema.table (columns) FROM stdin;`.
fn copied(statement: &[u8]) -> Option<(String, String)> {
    // In a database without an encoding a name may be of any bytes.
    let text = String::from_utf8_lossy(statement);
    let (schema, rest) = name(text.strip_prefix("COPY ")?.strip_suffix(" FROM stdin;")?)?;
    let (table, rest) = name(rest.strip_prefix('.')?)?;
    (rest.trim_start().is_empty() || rest.starts_with(" (")).then_some((schema, table))
}

/// The identifier that a text begins with, and what follows.
fn name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['.', ' ']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: &str = "--\n-- PostgreSQL database dump complete\n--\n\n";

    fn scan(text: &str) -> Scan {
        let mut scan = Scan::default();
        scan.feed(text.as_bytes());
        scan
    }

    fn rows(text: &str) -> Vec<(String, String, u64)> {
        scan(text).tables().iter().map(|t| (t.schema.clone(), t.table.clone(), t.rows)).collect()
    }

    fn row(schema: &str, table: &str, rows: u64) -> (String, String, u64) {
        (schema.into(), table.into(), rows)
    }

    #[test]
    fn rows_of_each_table_are_counted() {
        let text = "COPY public.a (x, y) FROM stdin;\n1\t2\n\\\\.\n\\.\n\n--\n-- x\n--\n\nCOPY \"we\"\"ird.\".\"b (\" (\"FROM stdin;\") FROM stdin;\n\\.\n\
                    COPY public.none  FROM stdin;\n\n\n\\.\n";
        assert_eq!(rows(text), [row("public", "a", 2), row("we\"ird.", "b (", 0), row("public", "none", 2)]);
    }

    #[test]
    fn copy_within_quotes_and_comments_is_none() {
        for hidden in [
            "CREATE FUNCTION f() RETURNS void AS $_$\nCOPY public.t (a) FROM stdin;\n1\n$$ ; $_$;",
            "COMMENT ON TABLE t IS 'it''s\nCOPY public.t (a) FROM stdin;\n';",
            "SELECT E'\\'\nCOPY public.t (a) FROM stdin;\n';",
            "SELECT E'''\\'\nCOPY public.t (a) FROM stdin;\n';",
            "/* /* */ ;\nCOPY public.t (a) FROM stdin;\n*/",
            "-- ; '\n-- COPY public.t (a) FROM stdin;\n",
            "SELECT 1 AS \"\n;COPY public.t (a) FROM stdin;\n\";",
            "\\restrict 'x\n",
        ] {
            let text = format!("{hidden}\nCOPY public.real (a) FROM stdin;\nx\n\\.\n{END}");
            assert_eq!(rows(&text), [row("public", "real", 1)], "{hidden}");
            assert_eq!(scan(&text).end(), Some(End::Database), "{hidden}");
        }
    }

    #[test]
    fn dollar_within_an_identifier_and_backslash_in_a_plain_quote_open_nothing() {
        for plain in ["SELECT a$b$c;", "SELECT '\\';", "SELECT re'\\';", "SELECT $1;", "SELECT 5 - -2, 4 / 2;"] {
            let text = format!("{plain}\nCOPY s.t (a) FROM stdin;\n\\.\n");
            assert_eq!(rows(&text), [row("s", "t", 0)], "{plain}");
        }
    }

    #[test]
    fn backslash_escapes_where_the_dump_says_so() {
        let text = "SET standard_conforming_strings = off;\nSELECT '\\';COPY s.x (a) FROM stdin;\n';\nCOPY s.t (a) FROM stdin;\n\\.\n";
        assert_eq!(rows(text), [row("s", "t", 0)]);
    }

    #[test]
    fn dump_is_complete_only_with_its_last_comment_at_its_end() {
        assert_eq!(scan(END).end(), Some(End::Database));
        assert_eq!(scan(&format!("{END}\\unrestrict abc\n\n")).end(), Some(End::Database));
        let cluster = format!("{END}SELECT 1;\n-- PostgreSQL database cluster dump complete\n--\n");
        assert_eq!(scan(&cluster).end(), Some(End::Cluster));
        for cut in ["", "SELECT 1;\n", "--\n-- PostgreSQL database dump complet", "COPY s.t (a) FROM stdin;\n1\n"] {
            assert_eq!(scan(cut).end(), None, "{cut}");
        }
        for text in ["{END}SELECT 1;\n", "{END}SELECT", "SELECT '{END}", "COPY s.t (a) FROM stdin;\n{END}"] {
            assert_eq!(scan(&text.replace("{END}", END)).end(), None, "{text}");
        }
    }

    #[test]
    fn what_reaches_beyond_the_database_is_found() {
        for strange in [
            "\\connect shop\n",
            "\\! rm -r /\n",
            "DROP DATABASE shop;",
            "create  role x;",
            "ALTER USER postgres PASSWORD 'x';",
        ] {
            assert!(scan(&format!("SELECT 1;\n{strange}\nSELECT 2;")).strange().is_some(), "{strange}");
        }
        for usual in [
            "\\restrict x\n",
            "SELECT '\n\\connect shop\n';",
            "ALTER TABLE t OWNER TO x;",
            "CREATE USER MAPPING FOR x SERVER s;",
        ] {
            assert_eq!(scan(usual).strange(), None, "{usual}");
        }
    }

    proptest! {
        #[test]
        fn dump_cut_into_parts_anywhere_is_read_the_same(cuts in proptest::collection::vec(1..9usize, 0..200)) {
            let text = format!(
                "SELECT E'\\'', $a$ $ $b$ $a$, 'x''y', \"q\"\"r\"; /* a /* b */ c */\nCOPY s.\"t;\" (a) FROM stdin;\n1\n\\.x\n\\\\.\nlonger\n\\.\n{END}"
            );
            let whole = scan(&text);
            let mut parts = Scan::default();
            let mut rest = text.as_bytes();
            for cut in cuts.into_iter().chain(std::iter::repeat(3)) {
                if rest.is_empty() { break; }
                let (part, more) = rest.split_at(cut.min(rest.len()));
                parts.feed(part);
                rest = more;
            }
            prop_assert_eq!(whole.tables(), &[TableRows { schema: "s".into(), table: "t;".into(), rows: 4 }]);
            prop_assert_eq!(parts.tables(), whole.tables());
            prop_assert_eq!((parts.end(), whole.end()), (Some(End::Database), Some(End::Database)));
        }
    }
}
