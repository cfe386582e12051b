//! The normal forms of texts that are routed and compared (cmrbench.md section 1.4).

use crate::files;

/// What becomes of a leading `###Instruction:` (cmrbench.md section 1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefix {
    /// Dropped: it tells from which half of the stream a query comes.
    #[default]
    Strip,
    /// Kept as it is.
    Keep,
}

/// `instruction` as it is routed (cmrbench.md section 1.4).
pub fn query_text(instruction: &str, prefix: Prefix) -> &str {
    if prefix == Prefix::Keep {
        return instruction;
    }
    let text = instruction.trim();
    let hashes = text.trim_start_matches('#');
    if hashes.len() == text.len() {
        return text;
    }
    const WORD: &str = "instruction";
    let after = hashes.trim_start();
    match after.get(..WORD.len()) {
        Some(word) if word.eq_ignore_ascii_case(WORD) => {
            let rest = after[WORD.len()..].trim_start();
            rest.strip_prefix(':').unwrap_or(rest).trim()
        }
        _ => text,
    }
}

/// SHA-256 of what two instructions share that are the same query: the prefix dropped, runs of
/// white space one space, lower-case.
pub(crate) fn query_digest(instruction: &str) -> String {
    let words: Vec<&str> = query_text(instruction, Prefix::Strip)
        .split_whitespace()
        .collect();
    files::sha256(words.join(" ").to_lowercase().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, want) in [
            ("###Instruction: Find a model.", "Find a model."),
            ("  ### INSTRUCTION  :\n Find it. ", "Find it."),
            ("#instruction Find it", "Find it"),
            ("Instruction: Find it", "Instruction: Find it"),
            ("### Input: x", "### Input: x"),
            ("###Instruction: a\n###Input: b", "a\n###Input: b"),
            (" plain ", "plain"),
            ("###é", "###é"),
            ("", ""),
        ] {
            assert_eq!(query_text(text, Prefix::Strip), want);
            assert_eq!(query_text(text, Prefix::Keep), text);
        }
    }

    #[test]
    fn the_same_query_has_one_digest() {
        let want = query_digest("find a model.");
        for same in ["###Instruction: Find  a\nMODEL.", "  find a model. "] {
            assert_eq!(query_digest(same), want);
        }
        assert_ne!(query_digest("find a model"), want);
    }
}
