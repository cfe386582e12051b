//! Readers of a CMRBench checkout (collagelab/CMR) or of a folder with its layout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::NewModel;
use crate::hub::Model;
use crate::hub::cards::{ModelCard, for_each_line, for_each_text};
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
pub struct BenchRow {
    /// Gold label.
    pub model_name: String,
    /// Family of the gold model within this experience.
    pub model_family: String,
    /// Creation time of the model, Unix milliseconds.
    #[serde(default)]
    pub created_at: Option<i64>,
    /// The query, with or without its prefix as [`Prefix`] demands.
    pub instruction: String,
    /// Gold domain of the row.
    pub domain: String,
}

impl BenchRow {
    /// SHA-256 of the query, equal for rows of the same query (cmrbench.md section 1.4).
    pub fn digest(&self) -> String {
        query_digest(&self.instruction)
    }

    /// Whether the row is in the public half of the eval rows: the SHA-256 of its query in lower
    /// case without prefix begins with an even digit.
    fn is_public(&self) -> bool {
        let text = query_text(&self.instruction, Prefix::Strip).to_lowercase();
        let digest = files::sha256(text.as_bytes());
        matches!(
            digest.as_bytes().first(),
            Some(b'0' | b'2' | b'4' | b'6' | b'8' | b'a' | b'c' | b'e')
        )
    }
}

/// One batch of new models with labelled prompts.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BenchExperience {
    /// `E1`, `E2`, ...
    pub label: String,
    /// Stem of its files, or its name in the rows of your own hub.
    pub name: String,
    /// Train rows, then val rows, which are training data too.
    pub train: Vec<BenchRow>,
    /// Eval rows.
    pub eval: Vec<BenchRow>,
    /// Cards that this experience adds.
    pub cards: Vec<ModelCard>,
    /// The same cards as in the file, one JSON object each.
    pub documents: Vec<String>,
}

/// Which rows predictions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalRows {
    /// The public half: eval rows whose text's SHA-256 begins with an even digit. The other half is
    /// kept for a test that nobody has seen.
    Public,
    /// All eval rows.
    Whole,
    /// No eval row: one training row of every model that has two, which is then not learned. For
    /// choosing settings (cmrbench.md section 8.1).
    Development,
}

impl EvalRows {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Public, Self::Whole, Self::Development];

    /// `public`, `whole` or `development`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Whole => "whole",
            Self::Development => "development",
        }
    }
}

/// The benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Data {
    /// In order.
    pub experiences: Vec<BenchExperience>,
    /// Optional files of the layout that are missing.
    pub missing: Vec<PathBuf>,
    /// The commit of the checkout; `None`: the folder is no checkout.
    pub commit: Option<String>,
    /// Remarks for the readers of its tables.
    pub notes: Vec<String>,
    /// The user's own hub ([`crate::cmrbench::OwnHub`]): no published results stand beside it.
    pub own: bool,
    /// Some model has a family. Without any, the family metric says nothing.
    pub families: bool,
    /// Most eval rows of an experience, as [`Data::limit`] set it.
    pub limit: Option<usize>,
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
            commit: commit(folder),
            notes: Vec::new(),
            own: false,
            families: true,
            limit: None,
        };
        let mut known = Vec::new();
        for (label, name, index) in EXPERIENCES {
            let file = |part: &str| {
                root.join("processed")
                    .join(format!("cleaned-{name}-{part}.json"))
            };
            let mut experience = BenchExperience {
                label: label.to_owned(),
                name: name.to_owned(),
                ..BenchExperience::default()
            };
            if file("train").exists() {
                experience.train = rows(&file("train"), prefix)?;
            } else {
                data.missing.push(file("train"));
            }
            experience.train.extend(rows(&file("val"), prefix)?);
            experience.eval = rows(&file("eval"), prefix)?;
            let index = root.join("model_indices").join(format!("{index}.json"));
            (experience.cards, experience.documents) = new_cards(&index, &mut known)?;
            data.experiences.push(experience);
        }
        Ok(data)
    }

    /// The same data with these rows to predict. [`EvalRows::Development`] takes them from the rows
    /// to learn.
    pub fn evaluate(mut self, rows: EvalRows) -> Self {
        for experience in &mut self.experiences {
            match rows {
                EvalRows::Whole => {}
                EvalRows::Public => experience.eval.retain(BenchRow::is_public),
                EvalRows::Development => experience.eval = held_out(experience),
            }
        }
        self
    }

    /// The same data with at most `rows` eval rows of each experience, evenly spread.
    pub fn limit(mut self, rows: usize) -> Self {
        for experience in &mut self.experiences {
            let all = experience.eval.len();
            if all > rows {
                let mut place = 0;
                experience.eval.retain(|_| {
                    place += 1;
                    // A row stays where the whole part of its share grows.
                    place * rows / all > (place - 1) * rows / all
                });
            }
        }
        self.limit = Some(rows);
        self
    }

    /// SHA-256 over all rows and cards, in order.
    pub fn digest(&self) -> String {
        let mut text = String::new();
        let mut add = |part: &str| text.push_str(&format!("{}:{part}", part.len()));
        for experience in &self.experiences {
            for rows in [&experience.train, &experience.eval] {
                add(&rows.len().to_string());
                for row in rows {
                    for part in [
                        &row.model_name,
                        &row.model_family,
                        &row.instruction,
                        &row.domain,
                    ] {
                        add(part);
                    }
                }
            }
            experience
                .documents
                .iter()
                .for_each(|document| add(document));
        }
        files::sha256(text.as_bytes())
    }

    /// The hub after the first `steps` experiences, in the order of its ids (section 1.5).
    ///
    /// Models that are new at a step follow all older ones, sorted by code point. Domain, family
    /// and time are those of the row that introduced the model. Models of your own hub keep the
    /// other attributes of their cards, such as a price; no method reads them.
    pub fn hub(&self, steps: usize) -> Vec<NewModel> {
        let mut cards: HashMap<&str, Vec<&ModelCard>> = HashMap::new();
        for card in self
            .experiences
            .iter()
            .take(steps)
            .flat_map(|experience| &experience.cards)
        {
            cards.entry(&card.model_name).or_default().push(card);
        }
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut models = Vec::new();
        for experience in self.experiences.iter().take(steps) {
            let mut new: BTreeMap<&str, &BenchRow> = BTreeMap::new();
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
                let cards = cards.remove(name).unwrap_or_default();
                if let (true, Some(card)) = (self.own, cards.first()) {
                    model.attributes = card.model().attributes;
                }
                let texts = cards.into_iter().map(ModelCard::text).collect();
                models.push(NewModel::new(model, texts));
            }
        }
        models
    }
}

/// The commit that `HEAD` of a git checkout points to.
fn commit(folder: &Path) -> Option<String> {
    let git = folder.join(".git");
    let read = |name: &str| files::read_text(&git.join(name), 1 << 20).ok();
    let head = read("HEAD")?;
    let Some(name) = head.trim().strip_prefix("ref: ") else {
        return Some(head.trim().to_owned());
    };
    let loose = read(name).map(|commit| commit.trim().to_owned());
    let packed = || {
        let all = read("packed-refs")?;
        let line = all.lines().find_map(|line| line.strip_suffix(name))?;
        Some(line.trim().to_owned())
    };
    loose.or_else(packed)
}

/// Moves one training row of every model that has two out of `experience`: the one with the
/// smallest digest. The other rows keep their order.
fn held_out(experience: &mut BenchExperience) -> Vec<BenchRow> {
    let mut by_model: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, row) in experience.train.iter().enumerate() {
        by_model.entry(&row.model_name).or_default().push(place);
    }
    let held: BTreeSet<usize> = by_model
        .into_values()
        .filter(|places| places.len() > 1)
        .filter_map(|places| {
            let digest = |place: &usize| experience.train[*place].digest();
            places.into_iter().min_by_key(digest)
        })
        .collect();
    let rows = std::mem::take(&mut experience.train);
    let (mut out, mut stay) = (Vec::new(), Vec::new());
    for (place, row) in rows.into_iter().enumerate() {
        let side = if held.contains(&place) {
            &mut out
        } else {
            &mut stay
        };
        side.push(row);
    }
    experience.train = stay;
    out
}

fn rows(path: &Path, prefix: Prefix) -> Result<Vec<BenchRow>> {
    let mut rows = Vec::new();
    for_each_line(path, |mut row: BenchRow| {
        row.instruction = query_text(&row.instruction, prefix).to_owned();
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// The cards of `path` behind those of the index before it, which it must begin with: parsed, and
/// as text.
fn new_cards(path: &Path, known: &mut Vec<String>) -> Result<(Vec<ModelCard>, Vec<String>)> {
    let mut names = Vec::new();
    let (mut cards, mut documents) = (Vec::new(), Vec::new());
    for_each_text(path, |line| {
        let card: ModelCard = serde_json::from_slice(line).map_err(|e| error!(Format, "{e}"))?;
        if names.len() >= known.len() {
            let text = std::str::from_utf8(line).map_err(|e| error!(Format, "not UTF-8: {e}"))?;
            documents.push(text.to_owned());
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
    Ok((cards, documents))
}
