//! The text form of constraints.
//!
//! ```text
//! any    = all { "or" all }
//! all    = one { "and" one }
//! one    = "not" one | "(" any ")" | "exists" name | name test
//! test   = ( "=" | "!=" | "has" ) value | ( "<" | "<=" | ">" | ">=" ) number
//!        | [ "not" ] "in" "[" value { "," value } "]" | "matches" text | nothing: = true
//! value  = number | "true" | "false" | word | 'text' | "text"
//! ```

use std::str::FromStr;

use serde_json::Value;

use crate::error::{Error, Result, bail, error};
use crate::route::policy::constraint::{AttributeTest, Constraint};
use crate::route::policy::lexer::{Lexeme, LexemeKind, in_word, lexemes};

/// Longest text that is read.
const LONGEST: usize = 1 << 16;

/// Conditions inside one another.
pub(super) const DEEPEST: usize = 64;

/// Words with a meaning of their own, in lower case.
const KEYWORDS: [&str; 9] = [
    "and", "or", "not", "in", "has", "matches", "exists", "true", "false",
];

/// Whether `text` is the name or text that it is without quotes.
pub(super) fn is_word(text: &str) -> bool {
    let alone = |lexemes: Vec<Lexeme>| {
        let first = lexemes.first().map(|lexeme| &lexeme.kind);
        lexemes.len() == 2 && first == Some(&LexemeKind::Word(text.to_owned()))
    };
    text.chars().all(in_word) && keyword(text).is_none() && lexemes(text).is_ok_and(alone)
}

fn keyword(word: &str) -> Option<&'static str> {
    let lower = word.to_ascii_lowercase();
    KEYWORDS.into_iter().find(|keyword| *keyword == lower)
}

impl FromStr for Constraint {
    type Err = Error;

    /// Reads the text form.
    ///
    /// Errors: of kind [`crate::ErrorKind::InvalidRequest`]; the text names the column, what was
    /// expected and what was found.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            bail!(
                InvalidRequest,
                "a constraint: expected at most {LONGEST} bytes, found {}",
                text.len()
            );
        }
        let lexemes = lexemes(text)?;
        let mut parser = Parser {
            lexemes: &lexemes,
            at: 0,
        };
        let read = parser.any(0)?;
        match &parser.next().kind {
            LexemeKind::End => Ok(read),
            _ => Err(parser.wrong("and, or, or the end")),
        }
    }
}

struct Parser<'l> {
    lexemes: &'l [Lexeme],
    at: usize,
}

impl<'l> Parser<'l> {
    fn next(&self) -> &'l Lexeme {
        // The last one is the end, which nothing takes.
        &self.lexemes[self.at.min(self.lexemes.len() - 1)]
    }

    fn take(&mut self) -> &'l Lexeme {
        let next = self.next();
        self.at += 1;
        next
    }

    /// The keyword that comes next.
    fn keyword(&self) -> Option<&'static str> {
        match &self.next().kind {
            LexemeKind::Word(word) => keyword(word),
            _ => None,
        }
    }

    /// Takes the keyword if it comes next.
    fn takes(&mut self, word: &str) -> bool {
        let taken = self.keyword() == Some(word);
        self.at += usize::from(taken);
        taken
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let taken = matches!(&self.next().kind, LexemeKind::Sign(next) if *next == sign);
        self.at += usize::from(taken);
        taken
    }

    fn wrong(&self, expected: &str) -> Error {
        let Lexeme { column, kind } = self.next();
        error!(
            InvalidRequest,
            "column {column}: expected {expected}, found {kind}"
        )
    }

    fn any(&mut self, depth: usize) -> Result<Constraint> {
        let mut parts = vec![self.all(depth)?];
        while self.takes("or") {
            parts.push(self.all(depth)?);
        }
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Constraint::Any(parts),
        })
    }

    fn all(&mut self, depth: usize) -> Result<Constraint> {
        let mut parts = vec![self.one(depth)?];
        while self.takes("and") {
            parts.push(self.one(depth)?);
        }
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Constraint::All(parts),
        })
    }

    fn one(&mut self, depth: usize) -> Result<Constraint> {
        if depth == DEEPEST {
            return Err(self.wrong(&format!("at most {DEEPEST} conditions inside one another")));
        }
        if self.takes("not") {
            return Ok(Constraint::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes_sign("(") {
            let inner = self.any(depth + 1)?;
            return match self.takes_sign(")") {
                true => Ok(inner),
                false => Err(self.wrong("and, or, or \")\"")),
            };
        }
        if self.takes("exists") {
            let (attribute, test) = (self.name()?, AttributeTest::Exists);
            return Ok(Constraint::Test { attribute, test });
        }
        let attribute = self.name()?;
        let (test, negated) = self.test()?;
        let test = Constraint::Test { attribute, test };
        Ok(match negated {
            true => Constraint::Not(Box::new(test)),
            false => test,
        })
    }

    fn name(&mut self) -> Result<String> {
        match &self.next().kind {
            LexemeKind::Word(word) if keyword(word).is_none() => {
                self.at += 1;
                Ok(word.clone())
            }
            LexemeKind::Name(name) => {
                self.at += 1;
                Ok(name.clone())
            }
            _ => Err(self.wrong("the name of an attribute, not, exists, or \"(\"")),
        }
    }

    /// What follows a name, and whether a `not` is in front of it.
    fn test(&mut self) -> Result<(AttributeTest, bool)> {
        use AttributeTest::{AtLeast, AtMost, Has, In, Is, IsNot, Less, Matches, More};
        const OPERATORS: &str = "an operator (=, !=, <, <=, >, >=, in, not in, has, matches)";
        if let LexemeKind::Sign(sign) = self.next().kind {
            let test = match sign {
                "=" | "==" => {
                    self.at += 1;
                    Is(self.value()?)
                }
                "!=" => {
                    self.at += 1;
                    IsNot(self.value()?)
                }
                "<" | "<=" | ">" | ">=" => {
                    self.at += 1;
                    let number = self.number()?;
                    match sign {
                        "<" => Less(number),
                        "<=" => AtMost(number),
                        ">" => More(number),
                        _ => AtLeast(number),
                    }
                }
                ")" => Is(true.into()),
                _ => return Err(self.wrong(OPERATORS)),
            };
            return Ok((test, false));
        }
        if self.takes("has") {
            return Ok((Has(self.value()?), false));
        }
        if self.takes("matches") {
            return match &self.take().kind {
                LexemeKind::Word(pattern) | LexemeKind::Quoted(pattern) => {
                    Ok((Matches(pattern.clone()), false))
                }
                _ => {
                    self.at -= 1;
                    Err(self.wrong("a pattern as a text"))
                }
            };
        }
        if self.takes("in") {
            return Ok((In(self.list()?), false));
        }
        if self.takes("not") {
            return match self.takes("in") {
                true => Ok((In(self.list()?), true)),
                false => Err(self.wrong("in")),
            };
        }
        match (self.keyword(), &self.next().kind) {
            (Some("and" | "or"), _) | (_, LexemeKind::End) => Ok((Is(true.into()), false)),
            _ => Err(self.wrong(OPERATORS)),
        }
    }

    fn list(&mut self) -> Result<Vec<Value>> {
        if !self.takes_sign("[") {
            return Err(self.wrong("a list such as [a, b]"));
        }
        let mut values = Vec::new();
        if self.takes_sign("]") {
            return Ok(values);
        }
        loop {
            values.push(self.value()?);
            if self.takes_sign("]") {
                return Ok(values);
            }
            if !self.takes_sign(",") {
                return Err(self.wrong("\",\" or \"]\""));
            }
        }
    }

    fn number(&mut self) -> Result<f64> {
        match &self.next().kind {
            LexemeKind::Number(number) => {
                self.at += 1;
                number
                    .as_f64()
                    .ok_or_else(|| error!(Numeric, "{number}: expected a number that f64 holds"))
            }
            _ => Err(self.wrong("a number")),
        }
    }

    fn value(&mut self) -> Result<Value> {
        let value = match &self.next().kind {
            LexemeKind::Number(number) => Value::Number(number.clone()),
            LexemeKind::Quoted(text) => Value::from(text.as_str()),
            LexemeKind::Word(word) => match keyword(word) {
                None => Value::from(word.as_str()),
                Some("true") => Value::Bool(true),
                Some("false") => Value::Bool(false),
                Some(_) => return Err(self.wrong("a value; a keyword as a text is in quotes")),
            },
            _ => return Err(self.wrong("a number, a text, true or false")),
        };
        self.at += 1;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    fn test(attribute: &str, test: AttributeTest) -> Constraint {
        let attribute = attribute.to_owned();
        Constraint::Test { attribute, test }
    }

    #[test]
    fn and_binds_closer_than_or_and_not_closest() {
        let read: Constraint = "not a = 1 and b or c >= 2.5".parse().unwrap();
        let a = Constraint::Not(Box::new(test("a", AttributeTest::Is(1.into()))));
        let b = test("b", AttributeTest::Is(true.into()));
        let c = test("c", AttributeTest::AtLeast(2.5));
        let want = Constraint::Any(vec![Constraint::All(vec![a, b]), c]);
        assert_eq!(read, want);
    }

    #[test]
    fn values_come_with_and_without_quotes() {
        for (text, want) in [
            ("x = mit", "mit".into()),
            ("x = 'it is'", "it is".into()),
            (r#"x = "a\"b""#, "a\"b".into()),
            ("x = 7b", "7b".into()),
            ("x = apache-2.0", "apache-2.0".into()),
            ("x = -3", Value::from(-3)),
            ("x == 1e3", Value::from(1000.0)),
            ("x = TRUE", Value::from(true)),
            ("x = \"true\"", Value::from("true")),
            ("x=über", "über".into()),
        ] {
            let read: Constraint = text.parse().unwrap();
            assert_eq!(read, test("x", AttributeTest::Is(want)), "{text}");
        }
    }

    #[test]
    fn errors_name_the_column_what_was_expected_and_what_was_found() {
        for (text, want) in [
            (
                "",
                "column 1: expected the name of an attribute, not, exists, or \"(\", found the end",
            ),
            (
                "price < cheap",
                "column 9: expected a number, found \"cheap\"",
            ),
            (
                "price 2",
                "column 7: expected an operator (=, !=, <, <=, >, >=, in, not in, has, matches), \
                 found the number 2",
            ),
            (
                "price <= 2 licence = mit",
                "column 12: expected and, or, or the end, found \"licence\"",
            ),
            (
                "(a = 1",
                "column 7: expected and, or, or \")\", found the end",
            ),
            (
                "a in mit",
                "column 6: expected a list such as [a, b], found \"mit\"",
            ),
            (
                "a in [x y]",
                "column 9: expected \",\" or \"]\", found \"y\"",
            ),
            (
                "a in [x,]",
                "column 9: expected a number, a text, true or false, found \"]\"",
            ),
            ("a not 3", "column 7: expected in, found the number 3"),
            (
                "ü = 1 and \"b\" = 2",
                "column 11: expected the name of an attribute, not, exists, or \"(\", \
                 found the text \"b\"",
            ),
            ("a = 'x", "column 5: expected a closing ', found the end"),
            ("a = \"x", "column 5: expected a closing \", found the end"),
            (
                "a = \"\\q\"",
                "column 5: expected a text as in JSON, found \"\\q\"",
            ),
            (
                "a = and",
                "column 5: expected a value; a keyword as a text is in quotes, found \"and\"",
            ),
            (
                "a & b",
                "column 3: expected a name, a value, an operator or a bracket, found \"&\"",
            ),
            (
                "a = 1e999",
                "column 5: expected a number that f64 holds, found 1e999",
            ),
            (
                "a matches 3",
                "column 11: expected a pattern as a text, found the number 3",
            ),
            ("exists 3", "column 8: expected the name of an attribute"),
            (
                "a = 1)",
                "column 6: expected and, or, or the end, found \")\"",
            ),
        ] {
            let error = text.parse::<Constraint>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{text}");
            assert!(error.to_string().starts_with(want), "{text}: {error}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        for open in ["(", "not "] {
            let deep = format!("{}a", open.repeat(10_000));
            let error = deep.parse::<Constraint>().unwrap_err().to_string();
            assert!(error.contains("at most 64 conditions"), "{error}");
        }
        let long = format!("a = '{}'", "x".repeat(1 << 16));
        let error = long.parse::<Constraint>().unwrap_err().to_string();
        assert!(error.contains("at most 65536 bytes"), "{error}");
    }

    #[test]
    fn words_that_need_quotes_are_told_from_others() {
        for (text, want) in [
            ("mit", true),
            ("apache-2.0", true),
            ("google/*", true),
            ("7b", true),
            ("2", false),
            ("-1.5", false),
            ("And", false),
            ("a b", false),
            ("", false),
            ("a`b", false),
        ] {
            assert_eq!(is_word(text), want, "{text}");
        }
    }
}
