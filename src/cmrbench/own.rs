//! A user's own hub as a benchmark: models and labelled prompts in two files (cmrbench.md section
//! 10).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde_json::json;

use crate::cmrbench::{BenchExperience, BenchRow, Data, Prefix, query_text};
use crate::error::{Result, bail};
use crate::hub::{ModelCard, read_models};
use crate::learn::{Example, Label, for_each_example, group_experiences};
use crate::text::query::query_digest;

/// Most names that a note lists.
const SHOWN: usize = 3;

/// The files of a user's own hub.
#[derive(Clone, Copy, Debug)]
pub struct OwnHub<'p> {
    /// Models, one card a line.
    pub models: &'p Path,
    /// Labelled prompts to learn from. Without `eval`, one in eight of them is predicted, not
    /// learned.
    pub examples: &'p Path,
    /// Labelled prompts to predict.
    pub eval: Option<&'p Path>,
    /// Number of experiences, into which the models are divided by `created_at`; `None`: the
    /// experiences that the examples name, or one.
    pub experiences: Option<usize>,
}

impl OwnHub<'_> {
    /// Reads the files. A model belongs to the experience with its first training example. A model
    /// without one is left out, as in CMRBench's own hub. Remarks for readers of the tables are in
    /// [`Data::notes`].
    ///
    /// Errors: a line is malformed or names an unknown model (with file and line); some rows name
    /// their experience and some do not; an eval row is of an experience without training rows; a
    /// model has no `created_at` where models are divided by it.
    pub fn read(self, prefix: Prefix) -> Result<Data> {
        let (cards, repeated) = read_models(self.models)?;
        for card in &cards {
            for (key, text) in [("model_name", &card.model_name), ("domain", &card.domain)] {
                if text.trim().is_empty() {
                    bail!(
                        Format,
                        "{}: {:?}: {key}: expected text, found {text:?}",
                        self.models.display(),
                        card.model_name
                    );
                }
            }
        }
        let mut notes = vec![self.description()];
        if !repeated.is_empty() {
            let names = shown(repeated.iter().map(String::as_str));
            notes.push(format!(
                "models with several lines, of which the last counts: {names}"
            ));
        }
        let by_name: HashMap<&str, &ModelCard> =
            cards.iter().map(|card| (&*card.model_name, card)).collect();
        let read = |path: &Path| self.examples_of(path, &by_name, prefix);
        let learned = read(self.examples)?;
        let evaluated = self.eval.map(read).transpose()?;
        let groups = match self.experiences {
            Some(count) => self.by_time(count, learned, evaluated, &by_name)?,
            None => self.by_label(learned, evaluated)?,
        };
        let families = cards.iter().any(|card| card.family.is_some());
        let mut data = Data {
            experiences: Vec::new(),
            missing: Vec::new(),
            commit: None,
            notes,
            own: true,
            families,
            limit: None,
        };
        let mut known: HashSet<&str> = HashSet::new();
        for (place, (name, learned, evaluated)) in groups.into_iter().enumerate() {
            let row = |example: Example| row(example, &by_name);
            let mut experience = BenchExperience {
                label: format!("E{}", place + 1),
                name,
                train: learned.into_iter().map(row).collect(),
                eval: evaluated.into_iter().map(row).collect(),
                ..BenchExperience::default()
            };
            let taught: BTreeSet<&str> = experience
                .train
                .iter()
                .map(|row| &*row.model_name)
                .collect();
            for card in taught.iter().filter_map(|name| by_name.get(name)) {
                if known.insert(&card.model_name) {
                    experience.documents.push(document(card));
                    experience.cards.push((*card).clone());
                }
            }
            data.experiences.push(experience);
        }
        let absent = cards.iter().map(|card| &*card.model_name);
        let absent: Vec<&str> = absent.filter(|name| !known.contains(name)).collect();
        if !absent.is_empty() {
            data.notes.push(format!(
                "models without a training example, left out: {}",
                shown(absent.iter().copied())
            ));
        }
        data.notes.extend(doubts(&data));
        Ok(data)
    }

    fn description(self) -> String {
        let name = |path: &Path| match path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => path.display().to_string(),
        };
        let rule = match self.eval {
            Some(eval) => format!("eval rows of {}", name(eval)),
            None => "eval rows whose query's SHA-256 begins with 0 or 1".to_owned(),
        };
        let (models, examples) = (name(self.models), name(self.examples));
        format!("models of {models}, training rows of {examples}, {rule}")
    }

    /// The examples of `path`, whose models are known.
    fn examples_of(
        self,
        path: &Path,
        by_name: &HashMap<&str, &ModelCard>,
        prefix: Prefix,
    ) -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        for_each_example(path, |mut example| {
            if !by_name.contains_key(&*example.model_name) {
                bail!(
                    Mismatch,
                    "model_name: expected a model of {}, found {:?}",
                    self.models.display(),
                    example.model_name
                );
            }
            example.prompt = query_text(&example.prompt, prefix).to_owned();
            examples.push(example);
            Ok(())
        })?;
        Ok(examples)
    }

    /// The experiences that the rows name, in order: name, rows to learn, rows to predict.
    fn by_label(
        self,
        learned: Vec<Example>,
        evaluated: Option<Vec<Example>>,
    ) -> Result<Vec<Division>> {
        let path = self.examples.display();
        let groups = group_experiences(learned).map_err(|e| e.at(path))?;
        let label = |group: &Vec<Example>| group.first().and_then(|e| e.experience.clone());
        let labels: Vec<Option<Label>> = groups.iter().map(label).collect();
        let named = labels.iter().enumerate().map(|(place, label)| match label {
            Some(label) => name(label),
            None => format!("E{}", place + 1),
        });
        let Some(evaluated) = evaluated else {
            let parts = named.zip(groups).map(|(name, group)| split(name, group));
            return Ok(parts.collect());
        };
        let mut all: Vec<Division> = named
            .zip(groups)
            .map(|(name, group)| (name, group, Vec::new()))
            .collect();
        for (row, example) in evaluated.into_iter().enumerate() {
            let Some(place) = labels.iter().position(|label| *label == example.experience) else {
                let wanted = labels
                    .iter()
                    .map(|label| label.as_ref().map_or("none".into(), name));
                bail!(
                    Format,
                    "{}: example {}: experience: expected one of the training rows' ({}), found {}",
                    self.eval.unwrap_or(self.examples).display(),
                    row + 1,
                    wanted.collect::<Vec<_>>().join(", "),
                    example.experience.as_ref().map_or("none".into(), name)
                );
            };
            all[place].2.push(example);
        }
        Ok(all)
    }

    /// Experiences of equally many models, the oldest first.
    fn by_time(
        self,
        count: usize,
        learned: Vec<Example>,
        evaluated: Option<Vec<Example>>,
        by_name: &HashMap<&str, &ModelCard>,
    ) -> Result<Vec<Division>> {
        let all = || learned.iter().chain(evaluated.iter().flatten());
        if let Some(label) = all().find_map(|example| example.experience.as_ref()) {
            bail!(
                InvalidRequest,
                "--experiences: expected examples that name no experience, found {:?}",
                name(label)
            );
        }
        let names: BTreeSet<&str> = all().map(|example| &*example.model_name).collect();
        let mut models = Vec::with_capacity(names.len());
        for name in names {
            let time = by_name.get(name).and_then(|card| card.created_at);
            let Some(time) = time else {
                bail!(
                    Format,
                    "{}: created_at: expected a time for every model with examples, by which \
                     --experiences divides them; {name:?} has none",
                    self.models.display()
                );
            };
            models.push((time, name.to_owned()));
        }
        models.sort();
        if count == 0 || count > models.len() {
            bail!(
                InvalidRequest,
                "--experiences: expected 1 to {}, as many as there are models with examples, \
                 found {count}",
                models.len()
            );
        }
        let sorted = models.iter().enumerate();
        let group: HashMap<String, usize> = sorted
            .map(|(place, (_, name))| (name.clone(), place * count / models.len()))
            .collect();
        let divide = |examples: Vec<Example>| {
            let mut groups = vec![Vec::new(); count];
            for example in examples {
                groups[group[&example.model_name]].push(example);
            }
            groups
        };
        let named = (1..=count).map(|place| format!("E{place}"));
        let learned = divide(learned);
        Ok(match evaluated.map(divide) {
            None => {
                let parts = named.zip(learned).map(|(name, group)| split(name, group));
                parts.collect()
            }
            Some(evaluated) => {
                let parts = named.zip(learned.into_iter().zip(evaluated));
                parts
                    .map(|(name, (learned, evaluated))| (name, learned, evaluated))
                    .collect()
            }
        })
    }
}

/// An experience's name, rows to learn, rows to predict.
type Division = (String, Vec<Example>, Vec<Example>);

/// Holds out one row in eight, by its query, to be predicted.
fn split(name: String, examples: Vec<Example>) -> Division {
    let held = |example: &Example| query_digest(&example.prompt).starts_with(['0', '1']);
    let (evaluated, learned) = examples.into_iter().partition(held);
    (name, learned, evaluated)
}

fn name(label: &Label) -> String {
    match label {
        Label::Number(number) => number.to_string(),
        Label::Name(name) => name.clone(),
    }
}

/// The first of `names`.
fn shown<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let some = names[..names.len().min(SHOWN)].join(", ");
    match names.len() - names.len().min(SHOWN) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

/// An example as a row of the benchmark. Domain and family are the model's where the row has none;
/// a model without a family is a family of one.
fn row(example: Example, by_name: &HashMap<&str, &ModelCard>) -> BenchRow {
    let card = by_name.get(&*example.model_name);
    let own = example.domain.filter(|domain| !domain.trim().is_empty());
    let family = card.and_then(|card| card.family.clone());
    BenchRow {
        model_family: family.unwrap_or_else(|| example.model_name.clone()),
        created_at: card.and_then(|card| card.created_at),
        domain: own
            .or_else(|| card.map(|card| card.domain.clone()))
            .unwrap_or_default(),
        instruction: example.prompt,
        model_name: example.model_name,
    }
}

/// The card as retrieval reads it: words alone, without a price or other attributes.
fn document(card: &ModelCard) -> String {
    let mut document = json!({"model_name": card.model_name, "domain": card.domain});
    for (key, text) in [
        ("family", &card.family),
        ("functionality", &card.functionality),
        ("description", &card.description),
    ] {
        if let Some(text) = text {
            document[key] = text.as_str().into();
        }
    }
    document.to_string()
}

/// Remarks on rows that change the meaning of the numbers.
fn doubts(data: &Data) -> Vec<String> {
    let mut notes = Vec::new();
    let digests = |rows: &[BenchRow]| rows.iter().map(BenchRow::digest).collect::<Vec<_>>();
    let learned: HashSet<String> = data
        .experiences
        .iter()
        .flat_map(|e| digests(&e.train))
        .collect();
    let evaluated = data.experiences.iter().flat_map(|e| digests(&e.eval));
    let same = evaluated.filter(|digest| learned.contains(digest)).count();
    if same > 0 {
        notes.push(format!(
            "eval rows with the query of a training row: {same}"
        ));
    }
    let mut known: HashSet<&str> = HashSet::new();
    let mut without = 0;
    for experience in &data.experiences {
        known.extend(experience.train.iter().map(|row| &*row.model_name));
        let gold = experience.eval.iter().map(|row| &*row.model_name);
        without += gold.filter(|gold| !known.contains(gold)).count();
    }
    if without > 0 {
        notes.push(format!(
            "eval rows of a model without a training row so far, where only the domain can be \
             hit: {without}"
        ));
    }
    notes
}
