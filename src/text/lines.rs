//! Lines of a text input: bounded in memory, numbered, without a byte-order mark.

use std::io::BufRead;

use crate::error::{Result, error};
use crate::text::encoding::decoded;

/// Longest line that is read, in bytes; a longer one is passed over.
pub(crate) const LONGEST_LINE: usize = 4 << 20;

/// Marks of UTF-16: all of such an input is refused.
const UTF_16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Reads an input line by line and holds one line at a time.
pub(crate) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: usize,
}

/// A line without its line break, or why it has none.
pub(crate) struct Line<'l> {
    /// From 1.
    pub(crate) number: usize,
    /// Errors: the line is longer than [`LONGEST_LINE`], or it is the first and looks like UTF-16.
    pub(crate) text: Result<&'l [u8]>,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// Errors: the input cannot be read, or is marked as UTF-16.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>> {
        loop {
            self.line.clear();
            let Some(whole) = self.read().map_err(|e| error!(Io, "cannot read: {e}"))? else {
                return Ok(None);
            };
            self.number += 1;
            if self.number == 1 {
                self.skip_mark()?;
            }
            if !whole || !self.line.trim_ascii().is_empty() {
                return Ok(Some(self.found(whole)));
            }
        }
    }

    fn skip_mark(&mut self) -> Result<()> {
        let marked = UTF_16.iter().any(|mark| self.line.starts_with(mark));
        match decoded(&self.line) {
            Ok(text) => {
                let mark = self.line.len() - text.len();
                self.line.drain(..mark);
            }
            Err(error) if marked => return Err(error),
            // Bytes that only look like UTF-16 spoil the line, and not the whole input.
            Err(_) => (),
        }
        Ok(())
    }

    fn found(&self, whole: bool) -> Line<'_> {
        let text = match (whole, self.number) {
            (false, _) => Err(error!(
                Format,
                "expected a line of at most {LONGEST_LINE} bytes, found a longer one"
            )),
            (true, 1) => decoded(&self.line),
            (true, _) => Ok(self.line.as_slice()),
        };
        Line {
            number: self.number,
            text,
        }
    }

    /// Reads one line into `line`, without its break. False: it was too long, and is passed over.
    fn read(&mut self) -> std::io::Result<Option<bool>> {
        let (mut whole, mut any) = (true, false);
        loop {
            let bytes = match self.reader.fill_buf() {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if bytes.is_empty() {
                return Ok(any.then_some(whole));
            }
            any = true;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            whole &= self.line.len() + part.len() <= LONGEST_LINE;
            if whole {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(bytes.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }
}

/// A line that is one JSON value.
///
/// Errors name the column; the line is the caller's to name.
pub(crate) fn json_line<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|e| {
        let text = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        match text.strip_suffix(&place) {
            Some(what) => error!(Format, "{what} at column {}", e.column()),
            None => error!(Format, "{text}"),
        }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(input: &[u8]) -> Vec<(usize, Option<String>)> {
        let mut lines = Lines::new(input);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            let text = line.text.ok();
            let text = text.map(|text| String::from_utf8(text.to_vec()).unwrap());
            found.push((line.number, text));
        }
        found
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_passed_over() {
        let text = |number, text: &str| (number, Some(text.to_owned()));
        assert_eq!(
            read(b"\xef\xbb\xbfone\n\n \t\ntwo \r\nthree"),
            [text(1, "one"), text(4, "two \r"), text(5, "three")]
        );
        assert!(read(b"").is_empty() && read(b"\n\n").is_empty());
        assert!(read(b"\xef\xbb\xbf\n").is_empty(), "a mark is no text");
    }

    #[test]
    fn utf_16_is_refused_by_its_mark_and_a_line_that_looks_so_alone() {
        for mark in [b"\xff\xfea\0\n\0".as_slice(), b"\xfe\xff\0a\0\n"] {
            let error = Lines::new(mark).next().err().map(|e| e.to_string());
            assert!(error.is_some_and(|error| error.contains("UTF-16")));
        }
        let found = read(b"a\0b\0\nafter\n");
        assert_eq!(found, [(1, None), (2, Some("after".to_owned()))]);
    }

    #[test]
    fn a_line_that_is_too_long_spoils_only_itself() {
        let mut input = b"before\n".to_vec();
        input.extend(vec![b'x'; LONGEST_LINE]);
        input.push(b'\n');
        input.extend(vec![b'y'; LONGEST_LINE + 1]);
        input.extend(b"\nafter\n");
        let found = read(&input);
        assert_eq!(found.len(), 4);
        assert_eq!(found[1].1.as_ref().map(String::len), Some(LONGEST_LINE));
        assert_eq!(found[2], (3, None));
        assert_eq!(found[3], (4, Some("after".to_owned())));
    }

    /// What is passed over is not held: an endless line takes no memory.
    #[test]
    fn a_line_that_is_too_long_is_not_held() {
        let endless = std::io::BufReader::new(std::io::Read::take(std::io::repeat(b'z'), 1 << 27));
        let mut lines = Lines::new(endless);
        assert!(lines.next().unwrap().unwrap().text.is_err());
        assert!(lines.line.capacity() <= 2 * LONGEST_LINE);
    }

    #[test]
    fn errors_of_json_name_the_column_alone() {
        let error = json_line::<u32>(b"{").unwrap_err().to_string();
        assert!(!error.contains("line"), "{error}");
        let error = json_line::<Vec<u32>>(b"[1, x]").unwrap_err().to_string();
        assert_eq!(error, "expected value at column 5");
    }
}
