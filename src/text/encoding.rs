//! The encoding of a text file: UTF-8, with or without a byte-order mark.

use crate::error::{Result, bail};

/// UTF-8's mark, which some editors put first.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The first bytes of a text without a byte-order mark.
///
/// Errors: they are UTF-16 or UTF-32, as PowerShell's `>` writes them.
pub(crate) fn decoded(text: &[u8]) -> Result<&[u8]> {
    if let Some(rest) = text.strip_prefix(BOM) {
        return Ok(rest);
    }
    let marked = text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff");
    // An ASCII letter in UTF-16 has a zero byte beside it.
    let wide = matches!(text, [0, b, ..] | [b, 0, ..] if b.is_ascii() && *b != 0);
    if marked || wide {
        bail!(
            Format,
            "expected UTF-8, found UTF-16: save it as UTF-8 (PowerShell: Out-File -Encoding utf8; \
             elsewhere: iconv -f UTF-16 -t UTF-8)"
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_mark_is_skipped_and_utf_16_is_refused() {
        assert_eq!(decoded("\u{feff}é".as_bytes()).unwrap(), "é".as_bytes());
        for plain in ["é", "", "a", "{\"a\": 1}", "\0\0"] {
            assert_eq!(decoded(plain.as_bytes()).unwrap(), plain.as_bytes());
        }
        let bad: [&[u8]; 4] = [b"\xff\xfea\0", b"\xfe\xff\0a", b"a\0b\0", b"\0a\0b"];
        for wide in bad {
            assert!(decoded(wide).unwrap_err().to_string().contains("UTF-16"));
        }
    }
}
