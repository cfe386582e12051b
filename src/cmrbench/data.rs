//! Readers of a CMRBench checkout (collagelab/CMR) or of a folder with its layout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Result, bail};
use crate::generation::NewModel;
use crate::hub::Model;
use crate::hub::cards::{ModelCard, for_each_line};
use crate::text::query::{Prefix, query_digest, query_text};

/// The experiences in order: poster label, file stem, index of cards.
const EXPERIENCES: [(&str, &str, &str); 4] = [
    ("E1", "apibench-hf", "e1"),
    ("E2", "mllm", "e1_e2"),
    ("E3", "hugging-bench-1", "e1_e2_e3"),
    ("E4", "hugging-bench-2", "e1_e2_e3_e4"),
];

/// One labelled prompt.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Row {
    /// Gold label.
    pub model_name: String,
    /// Family of the gold model within this experience.
    pub model_family: String,
    /// Creation time of the model, Unix milliseconds.
    #[serde(default)]
    pub created_at: Option<i64>,
    /// The query, with its prefix as [`Prefix`] says.
    pub instruction: String,
    /// Gold domain of the row.
    pub domain: String,
}

impl Row {
    /// SHA-256 of what rows of the same query share (cmrbench.md section 1.4).
    pub fn digest(&self) -> String {
        query_digest(&self.instruction)
    }
}

/// One batch of new models with labelled prompts.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Experience {
    /// `E1` to `E4`.
    pub label: &'static str,
    /// Stem of its files.
    pub name: &'static str,
    /// Train rows, then val rows, which are training data too.
    pub train: Vec<Row>,
    /// Eval rows.
    pub eval: Vec<Row>,
    /// Cards that this experience adds.
    pub cards: Vec<ModelCard>,
}

/// The benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Data {
    /// In order.
    pub experiences: Vec<Experience>,
    /// Files that the layout allows to miss and that are missing.
    pub missing: Vec<PathBuf>,
}

impl Data {
    /// Reads `folder`: a checkout, or a folder that holds `processed` and `model_indices`.
    ///
    /// A missing train file is noted; a missing val, eval or index file is an error.
    pub fn open(folder: impl AsRef<Path>, prefix: Prefix) -> Result<Self> {
        let folder = folder.as_ref();
        let inside = folder.join("data");
        let root = if inside.join("processed").is_dir() {
            inside
        } else {
            folder.to_owned()
        };
        if !root.join("processed").is_dir() {
            bail!(
                Io,
                "{}: expected a CMRBench checkout, with data/processed and data/model_indices, found neither",
                folder.display()
            );
        }
        let mut data = Self {
            experiences: Vec::new(),
            missing: Vec::new(),
        };
        let mut known = Vec::new();
        for (label, name, index) in EXPERIENCES {
            let file = |part: &str| {
                root.join("processed")
                    .join(format!("cleaned-{name}-{part}.json"))
            };
            let mut experience = Experience {
                label,
                name,
                ..Experience::default()
            };
            if file("train").exists() {
                experience.train = rows(&file("train"), prefix)?;
            } else {
                data.missing.push(file("train"));
            }
            experience.train.extend(rows(&file("val"), prefix)?);
            experience.eval = rows(&file("eval"), prefix)?;
            experience.cards = new_cards(
                &root.join("model_indices").join(format!("{index}.json")),
                &mut known,
            )?;
            data.experiences.push(experience);
        }
        Ok(data)
    }

    /// The hub after the first `steps` experiences, in the order of its ids (section 1.5).
    ///
    /// Models new at a step follow all older ones, by code point among themselves. Domain, family
    /// and time are those of the row that introduced the model.
    pub fn hub(&self, steps: usize) -> Vec<NewModel> {
        let mut cards: HashMap<&str, Vec<String>> = HashMap::new();
        for card in self
            .experiences
            .iter()
            .take(steps)
            .flat_map(|experience| &experience.cards)
        {
            cards.entry(&card.model_name).or_default().push(card.text());
        }
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut models = Vec::new();
        for experience in self.experiences.iter().take(steps) {
            let mut new: BTreeMap<&str, &Row> = BTreeMap::new();
            for row in &experience.train {
                if !known.contains(row.model_name.as_str()) {
                    new.entry(&row.model_name).or_insert(row);
                }
            }
            known.extend(new.keys());
            for (name, row) in new {
                let mut model = Model::new(name, &row.domain);
                model.family = Some(row.model_family.as_str().into());
                model.created_at = row.created_at;
                models.push(NewModel::new(model, cards.remove(name).unwrap_or_default()));
            }
        }
        models
    }
}

fn rows(path: &Path, prefix: Prefix) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for_each_line(path, |mut row: Row| {
        row.instruction = query_text(&row.instruction, prefix).to_owned();
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// The lines of `path` past those that the index before it had, which it must begin with.
fn new_cards(path: &Path, known: &mut Vec<String>) -> Result<Vec<ModelCard>> {
    let mut names = Vec::new();
    let mut cards = Vec::new();
    for_each_line(path, |card: ModelCard| {
        if names.len() >= known.len() {
            cards.push(card.clone());
        } else if known[names.len()] != card.model_name {
            bail!(
                Mismatch,
                "expected {:?}, as in the index before, found {:?}",
                known[names.len()],
                card.model_name
            );
        }
        names.push(card.model_name);
        Ok(())
    })?;
    *known = names;
    Ok(cards)
}
