//! A language model that names the domain of each prompt, after Shen et al., "HuggingGPT" (2023).
//! It sees no training row, no example and no model of the hub (carve.md section 12.9).
//!
//! Requests may cost money. Every answer is kept in `answers.jsonl` of the cell's folder under the
//! digest of its request, and no request is sent twice. Prompts are not kept.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Answer, Common, Method, Named, Progressed, StepReport, Watching};
use crate::cmrbench::{Chat, DomainList, Tables};
use crate::error::{Result, bail, error};
use crate::files;

/// The file of the answers.
const ANSWERS: &str = "answers.jsonl";

pub(super) struct Controller<'c> {
    common: &'c Common<'c>,
    chat: &'c Chat,
    seed: u64,
    answers: AnswerFile,
    /// The domains of the hub at the step, sorted.
    domains: BTreeSet<String>,
}

impl<'c> Controller<'c> {
    pub(super) fn new(common: &'c Common<'c>, seed: u64, folder: &Path) -> Result<Self> {
        let Some(chat) = common.chat else {
            bail!(
                InvalidRequest,
                "llm: expected a chat endpoint, found none; name one with --llm-endpoint URL"
            );
        };
        Ok(Self {
            common,
            chat,
            seed,
            answers: AnswerFile::open(folder.join(ANSWERS))?,
            domains: BTreeSet::new(),
        })
    }

    /// The domains to choose from for the eval rows of experience `test`, from 1.
    fn choices(&self, test: usize) -> BTreeSet<&str> {
        match self.chat.domains {
            DomainList::Hub => self.domains.iter().map(String::as_str).collect(),
            DomainList::File => {
                let rows = &self.common.data.experiences[test - 1].eval;
                rows.iter().map(|row| row.domain.as_str()).collect()
            }
        }
    }
}

impl Method for Controller<'_> {
    fn learn(&mut self, step: usize, _watch: Watching<'_>) -> Result<Progressed> {
        let tables = Tables::new(self.common.data, step);
        let domains = tables.models().filter_map(|model| tables.domain(model));
        self.domains = domains.map(str::to_owned).collect();
        let learned = StepReport::nothing(&self.chat.description());
        Ok(Progressed::Done(learned))
    }

    fn resume(&mut self, step: usize, _state: &str) -> Result<()> {
        self.learn(step, &mut |_, _| crate::learn::Control::Continue)
            .map(|_| ())
    }

    fn rank(&mut self, _prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        bail!(Unsupported, "llm names domains, not models")
    }

    fn answers(&mut self, test: usize, prompts: &[&str]) -> Result<Vec<Answer>> {
        let choices: Vec<&str> = self.choices(test).into_iter().collect();
        let requests: Vec<_> = prompts
            .iter()
            .map(|prompt| self.chat.request(&choices, prompt, self.seed))
            .collect();
        let mut answers = Vec::with_capacity(prompts.len());
        for request in &requests {
            let digest = files::sha256(request.to_string().as_bytes());
            let answer = match self.answers.get(&digest) {
                Some(answer) => answer,
                None => {
                    let answer = self.chat.ask(request);
                    let answer = answer.map_err(|e| error!(Io, "{e}"))?;
                    self.answers.keep(digest, answer)?
                }
            };
            answers.push(Answer::Domain(answer));
        }
        Ok(answers)
    }
}

/// Answers by the digest of their request, in a file that grows.
struct AnswerFile {
    path: PathBuf,
    known: HashMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerLine {
    request: String,
    answer: String,
}

impl AnswerFile {
    /// Reads the answers of an earlier run. A last line that was cut off is dropped.
    fn open(path: PathBuf) -> Result<Self> {
        let mut known = HashMap::new();
        if path.exists() {
            let bytes = files::read_bytes(&path, 1 << 30)?;
            let whole = bytes
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
                if line.is_empty() {
                    continue;
                }
                let line: AnswerLine = serde_json::from_slice(line)
                    .map_err(|e| error!(Format, "{}:{}: {e}", path.display(), number + 1))?;
                known.insert(line.request, line.answer);
            }
            if whole < bytes.len() {
                files::replace(&path, &bytes[..whole])?;
            }
        }
        Ok(Self { path, known })
    }

    fn get(&self, digest: &str) -> Option<String> {
        self.known.get(digest).cloned()
    }

    fn keep(&mut self, request: String, answer: String) -> Result<String> {
        let line = AnswerLine { request, answer };
        let mut text =
            serde_json::to_string(&line).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
        text.push('\n');
        files::append(&self.path, text.as_bytes())?;
        self.known.insert(line.request, line.answer.clone());
        Ok(line.answer)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn answers_outlive_a_torn_line() {
        let folder = Folder::new("answers");
        let path = folder.join("answers.jsonl");
        let mut answers = AnswerFile::open(path.clone()).unwrap();
        answers.keep("a".into(), "Audio\n".into()).unwrap();
        answers.keep("b".into(), "Text".into()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 4);
        std::fs::write(&path, &bytes).unwrap();
        let mut answers = AnswerFile::open(path.clone()).unwrap();
        assert_eq!(answers.get("a").as_deref(), Some("Audio\n"));
        assert_eq!(answers.get("b"), None);
        answers.keep("b".into(), "Text".into()).unwrap();
        let again = AnswerFile::open(path.clone()).unwrap();
        assert_eq!(again.get("b").as_deref(), Some("Text"));
        std::fs::write(&path, "{}\n{\"request\":\"a\",\"answer\":\"b\"}\n").unwrap();
        let error = AnswerFile::open(path.clone()).err().unwrap().to_string();
        assert!(error.contains(".jsonl:1: missing field"), "{error}");
    }
}
