//! Labelled prompts: one JSON object a line (cmrbench.md section 10).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::hub::cards::for_each_line;
use crate::text::query::{Prefix, query_digest, query_text};

/// One prompt and the model that should get it: a line of an `examples.jsonl`, or of a CMRBench
/// file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Example {
    /// The prompt.
    #[serde(rename = "instruction")]
    pub prompt: String,
    /// Name of the model.
    pub model_name: String,
    /// The task of the prompt; `None`: the model's domain.
    #[serde(default)]
    pub domain: Option<String>,
    /// The experience that the example belongs to.
    #[serde(default)]
    pub experience: Option<Label>,
}

/// The name of an experience in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged, expecting = "experience: expected an integer or a text")]
pub enum Label {
    /// Experiences are learned in ascending order.
    Number(i64),
    /// Experiences are learned in the order of their first examples.
    Name(String),
}

impl Example {
    /// An example without a domain of its own.
    pub fn new(prompt: impl Into<String>, model_name: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            model_name: model_name.into(),
            domain: None,
            experience: None,
        }
    }
}

/// The examples of the JSON Lines file at `path`, in its order. Unknown keys are ignored. A leading
/// `###Instruction:` is removed, as `eval` does: prompts of users do not have it.
///
/// Errors name the file and the line: a line is no object with `instruction` and `model_name`, one
/// of them is empty, or the file has no example.
pub fn read_examples(path: impl AsRef<Path>) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for_each_example(path.as_ref(), |mut example| {
        let query = query_text(&example.prompt, Prefix::Strip);
        if query.is_empty() {
            let found = &example.prompt;
            bail!(Format, "instruction: expected text, found {found:?}");
        }
        // Without one the prompt stays as it is, white space around it included.
        if query.len() != example.prompt.trim().len() {
            example.prompt = query.to_owned();
        }
        examples.push(example);
        Ok(())
    })?;
    Ok(examples)
}

/// Calls `each` with the examples of the file at `path`, as [`read_examples`] reads them. Its
/// errors get the file and the line.
pub(crate) fn for_each_example(
    path: &Path,
    mut each: impl FnMut(Example) -> Result<()>,
) -> Result<()> {
    let mut none = true;
    for_each_line(path, |example: Example| {
        for (key, text) in [
            ("instruction", &example.prompt),
            ("model_name", &example.model_name),
        ] {
            if text.trim().is_empty() {
                bail!(Format, "{key}: expected text, found {text:?}");
            }
        }
        none = false;
        each(example)
    })?;
    if none {
        bail!(
            Format,
            "{}: expected at least one example, found none",
            path.display()
        );
    }
    Ok(())
}

/// The examples by experience, in the order in which experiences are learned.
///
/// Errors: some examples name an experience and some do not, or some by number and some by name.
pub fn group_experiences(examples: Vec<Example>) -> Result<Vec<Vec<Example>>> {
    let form = |label: Option<&Label>| match label {
        None => "no experience",
        Some(Label::Number(_)) => "an experience by number",
        Some(Label::Name(_)) => "an experience by name",
    };
    let mut places: HashMap<Option<Label>, usize> = HashMap::new();
    let mut groups: Vec<(Option<Label>, Vec<Example>)> = Vec::new();
    for (row, example) in examples.into_iter().enumerate() {
        let label = example.experience.clone();
        let expected = groups.first().map(|(first, _)| form(first.as_ref()));
        let found = form(label.as_ref());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            bail!(
                Format,
                "example {}: expected {expected}, as the first example has, found {found}",
                row + 1
            );
        }
        let place = *places.entry(label.clone()).or_insert(groups.len());
        if place == groups.len() {
            groups.push((label, Vec::new()));
        }
        groups[place].1.push(example);
    }
    if let Some((Some(Label::Number(_)), _)) = groups.first() {
        groups.sort_by(|a, b| a.0.cmp(&b.0));
    }
    Ok(groups.into_iter().map(|(_, examples)| examples).collect())
}

/// Bounds of the number of held-out examples; the lower one holds up to a quarter of all.
const HELD_OUT: std::ops::RangeInclusive<usize> = 8..=512;

/// Which examples are held out: not learned, but used to measure.
///
/// One in eight within the bounds of [`HELD_OUT`], those whose query has the smallest SHA-256.
/// Every model that is not `known` from earlier updates keeps an example to learn from, and no
/// query is on both sides.
pub(crate) fn held_out(examples: &[Example], known: impl Fn(&str) -> bool) -> Vec<bool> {
    let all = examples.len();
    let (least, most) = (*HELD_OUT.start(), *HELD_OUT.end());
    let wanted = (all / 8).max(least.min(all / 4)).min(most);
    let mut by_query: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut left: HashMap<&str, usize> = HashMap::new();
    for (place, example) in examples.iter().enumerate() {
        let query = by_query.entry(query_digest(&example.prompt)).or_default();
        query.push(place);
        *left.entry(&example.model_name).or_default() += 1;
    }
    let (mut out, mut count) = (vec![false; all], 0);
    for places in by_query.values() {
        if count + places.len() > wanted {
            continue;
        }
        let mut taken: HashMap<&str, usize> = HashMap::new();
        for place in places {
            *taken.entry(&examples[*place].model_name).or_default() += 1;
        }
        if taken.iter().all(|(name, n)| left[name] > *n || known(name)) {
            for (name, n) in taken {
                left.entry(name).and_modify(|left| *left -= n);
            }
            places.iter().for_each(|place| out[*place] = true);
            count += places.len();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::testing::Folder;

    fn read(name: &str, text: &str) -> Result<Vec<Example>> {
        let folder = Folder::new("examples");
        read_examples(folder.write(&format!("{name}.jsonl"), text))
    }

    #[test]
    fn lines_are_read() {
        let text = r#"{"instruction":"Who signed this?","model_name":"acme\/ner","experience":1}

{"model_name":"b","model_family":"f","created_at":3,"instruction":"x","domain":"Graph","api_data":{}}
"#;
        let examples = read("good", text).unwrap();
        let mut want = Example::new("Who signed this?", "acme/ner");
        want.experience = Some(Label::Number(1));
        assert_eq!(examples[0], want);
        assert_eq!(examples[1].domain.as_deref(), Some("Graph"));
        assert_eq!((examples.len(), &examples[1].experience), (2, &None));
    }

    #[test]
    fn a_leading_instruction_mark_is_dropped_and_nothing_else() {
        let lines = ["###Instruction: Find it.", " find  it ", "Instruction: it"].map(|prompt| {
            serde_json::json!({"instruction": prompt, "model_name": "m"}).to_string()
        });
        let examples = read("marks", &lines.join("\n")).unwrap();
        let prompts: Vec<&str> = examples.iter().map(|e| e.prompt.as_str()).collect();
        assert_eq!(prompts, ["Find it.", " find  it ", "Instruction: it"]);
    }

    #[test]
    fn errors_name_the_line_and_what_was_expected() {
        let good = r#"{"instruction":"x","model_name":"m"}"#;
        for (bad, want) in [
            (r#"{"instruction":"x"}"#, "missing field `model_name`"),
            (r#"{"model_name":"x"}"#, "missing field `instruction`"),
            (r#"{"instruction":7,"model_name":"m"}"#, "expected a string"),
            (
                r#"{"instruction":" ","model_name":"m"}"#,
                "instruction: expected text",
            ),
            (
                r#"{"instruction":" # Instruction:","model_name":"m"}"#,
                "instruction: expected text, found \" # Instruction:\"",
            ),
            (
                r#"{"instruction":"x","model_name":""}"#,
                "model_name: expected text",
            ),
            (
                r#"{"instruction":"x","model_name":"m","experience":[1]}"#,
                "experience: expected an integer or a text",
            ),
            ("{", "EOF"),
        ] {
            let error = read("bad", &format!("{good}\n\n{bad}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format);
            let error = error.to_string();
            assert!(
                error.contains(".jsonl:3: ") && error.contains(want),
                "{error}"
            );
        }
        let error = read("empty", "\n").unwrap_err().to_string();
        assert!(error.contains("at least one example"), "{error}");
    }

    fn labelled(labels: &[Option<Label>]) -> Vec<Example> {
        let example = |label: &Option<Label>| Example {
            experience: label.clone(),
            ..Example::new("x", "m")
        };
        labels.iter().map(example).collect()
    }

    #[test]
    fn experiences_are_in_order() {
        let sizes = |labels: &[Option<Label>]| -> Vec<usize> {
            let groups = group_experiences(labelled(labels)).unwrap();
            groups.iter().map(Vec::len).collect()
        };
        let number = |n| Some(Label::Number(n));
        let name = |text: &str| Some(Label::Name(text.to_owned()));
        assert_eq!(sizes(&[number(10), number(-2), number(10)]), [1, 2]);
        assert_eq!(sizes(&[name("b"), name("a"), name("b")]), [2, 1]);
        assert_eq!(sizes(&[None, None]), [2]);
        assert!(sizes(&[]).is_empty());
        let error = group_experiences(labelled(&[number(1), None])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("example 2: expected an experience by number"),
            "{error}"
        );
        assert!(group_experiences(labelled(&[number(1), name("1")])).is_err());
    }

    fn rows(count: usize, models: usize) -> Vec<Example> {
        (0..count)
            .map(|row| Example::new(format!("prompt {row}"), format!("m{}", row % models)))
            .collect()
    }

    fn count(examples: &[Example]) -> usize {
        held_out(examples, |_| false)
            .into_iter()
            .filter(|out| *out)
            .count()
    }

    #[test]
    fn an_eighth_is_held_out_within_bounds() {
        for (all, want) in [
            (2000, 250),
            (100, 12),
            (40, 8),
            (20, 5),
            (4, 1),
            (3, 0),
            (8000, 512),
        ] {
            assert_eq!(count(&rows(all, 1)), want, "of {all}");
        }
    }

    #[test]
    fn no_new_model_is_left_without_an_example_and_no_query_is_on_both_sides() {
        assert_eq!(count(&rows(50, 50)), 0);
        let all = held_out(&rows(50, 50), |name| name.ends_with('7'));
        assert_eq!(
            all.iter().filter(|out| **out).count(),
            5,
            "models that are known"
        );
        // Models with two rows; the same query under several models.
        let examples: Vec<Example> = (0..600)
            .map(|row| Example::new(format!("prompt {}", row % 500), format!("m{}", row / 2)))
            .collect();
        let held = held_out(&examples, |_| false);
        assert_eq!(held.iter().filter(|out| **out).count(), 75);
        let mut sides: HashMap<&str, bool> = HashMap::new();
        let mut learned = std::collections::HashSet::new();
        for (example, held) in examples.iter().zip(&held) {
            assert_eq!(sides.entry(&example.prompt).or_insert(*held), held);
            if !held {
                learned.insert(&example.model_name);
            }
        }
        assert_eq!(learned.len(), 300);
    }
}
