//! Models that others describe: the list of an OpenAI-compatible server, a folder of model cards
//! and GGUF files. Only what is stated becomes an attribute; a report counts what is not.

mod card;
mod folder;
mod gguf;
mod nearest;
mod openai;
mod tasks;
mod yaml;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

pub(super) use nearest::Nearest;
use tasks::{DomainSpellings, StatedDomain};

use super::output::{self, counted};
use crate::error::{Result, bail};
use crate::{Hub, ModelCard};

/// The attribute with the source of a model, by which a later call finds the models of that source.
const SOURCE: &str = "source";

/// The domain of a model that states none.
const UNKNOWN: &str = "unknown";

/// Longest name of a model, and longest text of an attribute, in bytes.
const LONGEST_NAME: usize = 512;
const LONGEST_TEXT: usize = 256;

/// Most texts of an attribute.
const MOST_TEXTS: usize = 64;

/// Longest description, in characters; more than an encoder of 512 tokens reads.
const LONGEST_DESCRIPTION: usize = 2000;

/// Names of a list that are printed.
const SHOWN: usize = 5;

/// Models that others describe.
#[derive(Args)]
pub(super) struct FromArgs {
    /// The models of an OpenAI-compatible server: its URL, or a file with its list
    #[arg(long, value_name = "URL|FILE")]
    from_openai: Option<String>,
    /// A folder of Hugging Face model cards and GGUF files
    #[arg(long, value_name = "FOLDER", conflicts_with = "from_openai")]
    from_cards: Option<PathBuf>,
    /// Environment variable with the server's key, which is sent as a bearer token
    #[arg(long, value_name = "VARIABLE", requires = "from_openai")]
    key_env: Option<String>,
    /// Longest time for the server's answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "from_openai", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Name under which the hub remembers where the models are from [default: the URL, or the whole
    /// path]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Models that state no domain get one by the nearest cards of the store that is changed, or of
    /// the bundled one: a guess
    #[arg(long)]
    nearest_domain: bool,
}

impl FromArgs {
    /// Whether domains that are not stated are found by the nearest cards.
    pub(super) fn nearest(&self) -> bool {
        self.nearest_domain
    }

    /// The models of the source; `None`: the command line names none.
    ///
    /// Errors: there is no model, or the source cannot be read.
    pub(super) fn listing(&self) -> Result<Option<Listing>> {
        let (kind, place, entries) = match (&self.from_openai, &self.from_cards) {
            (Some(text), _) => {
                let timeout = Duration::from_secs(self.timeout.into());
                let (place, entries) = openai::asked(text, self.key_env.as_deref(), timeout)?;
                (&OPENAI, place.name(), entries)
            }
            (None, Some(path)) => (&CARDS, whole(path), folder::read(path)?),
            (None, None) => {
                if self.nearest_domain || self.source.is_some() {
                    bail!(
                        InvalidRequest,
                        "--source, --nearest-domain: expected --from-openai or --from-cards beside \
                         them, found neither"
                    );
                }
                return Ok(None);
            }
        };
        let source = self.source.clone().unwrap_or(place);
        if source.trim().is_empty() || source.len() > 4096 {
            bail!(
                InvalidRequest,
                "--source: expected a name of 1 to 4096 bytes, found one of {}",
                source.len()
            );
        }
        Listing::new(kind, source, entries).map(Some)
    }
}

/// A kind of source.
pub(super) struct Kind {
    name: &'static str,
    pub(super) made_by: &'static str,
    /// Attributes whose absence is counted.
    counted: &'static [&'static str],
}

static OPENAI: Kind = Kind {
    name: "openai",
    made_by: "hub build --from-openai",
    counted: &["context_length", "price", "modality", "tools"],
};

static CARDS: Kind = Kind {
    name: "cards",
    made_by: "hub build --from-cards",
    counted: &["licence", "context_length", "parameters"],
};

/// An entry of a source.
type SourceEntry = std::result::Result<Found, Skipped>;

/// A model as its source states it.
#[derive(Debug, Default)]
struct Found {
    name: String,
    domain: Option<StatedDomain>,
    family: Option<String>,
    /// The name for people.
    title: Option<String>,
    description: Option<String>,
    attributes: BTreeMap<String, Value>,
}

impl Found {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn state(&mut self, key: &str, value: Option<impl Into<Value>>) {
        let value = value.map(|value| (key.to_owned(), value.into()));
        self.attributes.extend(value);
    }

    /// The card, with a domain.
    fn card(&self, domain: String, source: &str) -> ModelCard {
        let mut card = ModelCard::new(&self.name, domain);
        card.family.clone_from(&self.family);
        let parts = [&self.title, &self.description];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        card.description = (!parts.is_empty()).then(|| parts.join(". "));
        card.attributes.clone_from(&self.attributes);
        card.attributes.insert(SOURCE.to_owned(), source.into());
        card
    }
}

/// An entry that is no model.
#[derive(Clone, Debug, Serialize)]
struct Skipped {
    name: String,
    reason: String,
}

impl Skipped {
    fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            reason: reason.into(),
        }
    }
}

/// The models of a source.
pub(super) struct Listing {
    pub(super) kind: &'static Kind,
    source: String,
    found: Vec<Found>,
    repeated: Vec<String>,
    skipped: Vec<Skipped>,
}

impl Listing {
    /// Of a repeated name the first entry counts.
    ///
    /// Errors: no entry is a model.
    fn new(kind: &'static Kind, source: String, entries: Vec<SourceEntry>) -> Result<Self> {
        let mut listing = Self {
            kind,
            source,
            found: Vec::new(),
            repeated: Vec::new(),
            skipped: Vec::new(),
        };
        let mut names = HashSet::new();
        for entry in entries {
            match entry.and_then(named) {
                Ok(found) if names.insert(found.name.clone()) => listing.found.push(found),
                Ok(found) => listing.repeated.push(found.name),
                Err(skipped) => listing.skipped.push(skipped),
            }
        }
        if listing.found.is_empty() {
            let why = listing.skipped.first();
            let why = why.map(|first| format!("; skipped {}: {}", first.name, first.reason));
            bail!(
                Format,
                "{}: expected at least one model, found none{}",
                listing.source,
                why.unwrap_or_default()
            );
        }
        Ok(listing)
    }

    /// What is new to `hub`, which gets a card, and what it has already. `domain` is that of models
    /// that state none; without it `nearest` gives one.
    pub(super) fn compared(
        self,
        hub: &Hub,
        domain: Option<&str>,
        nearest: Option<&Nearest<'_>>,
    ) -> Result<(Vec<ModelCard>, SourceReport)> {
        let mut report = SourceReport {
            kind: self.kind.name,
            source: self.source.clone(),
            found: self.found.len(),
            new: 0,
            known: 0,
            changed: Vec::new(),
            updated: false,
            updates: Vec::new(),
            vanished: self.vanished(hub),
            repeated: self.repeated,
            skipped: self.skipped,
            domains: DomainCounts::default(),
            missing: BTreeMap::new(),
            models: Vec::new(),
        };
        let there = DomainSpellings::of(hub);
        let mut cards = Vec::new();
        let mut without = Vec::new();
        for found in self.found {
            if let Some(id) = hub.find(&found.name) {
                report.known += 1;
                let old = hub.get(id).map(|model| &model.attributes);
                let same_source = |old: &&BTreeMap<String, Value>| {
                    old.get(SOURCE).and_then(Value::as_str) == Some(&self.source)
                };
                if let Some(old) = old.filter(same_source) {
                    let mut now = found.card(String::new(), &self.source).attributes;
                    now.retain(|key, value| old.get(key) != Some(value));
                    if !now.is_empty() {
                        report.changed.push(found.name.clone());
                        report.updates.push((found.name, now));
                    }
                }
                continue;
            }
            report.count_missing(&found, self.kind);
            let own = match (&found.domain, domain) {
                (Some(stated), _) => {
                    report.domains.stated += 1;
                    stated.name(&there)
                }
                (None, Some(told)) => {
                    report.domains.told += 1;
                    told.to_owned()
                }
                (None, None) => {
                    without.push(cards.len());
                    UNKNOWN.to_owned()
                }
            };
            cards.push(found.card(own, &self.source));
        }
        report.new = cards.len();
        match nearest {
            Some(nearest) => {
                let wanted: Vec<&ModelCard> = without.iter().map(|at| &cards[*at]).collect();
                let domains = nearest.domains(&wanted)?;
                for (at, domain) in without.into_iter().zip(domains) {
                    cards[at].domain = domain;
                    report.domains.nearest += 1;
                }
            }
            None => report.domains.unknown = without.len(),
        }
        Ok((cards, report))
    }

    /// Models of the hub that came from this source and are not in it any more.
    fn vanished(&self, hub: &Hub) -> Vec<String> {
        let found = self.found.iter().map(|found| &*found.name);
        // What cannot be read is there all the same.
        let skipped = self.skipped.iter().map(|skipped| &*skipped.name);
        let here: HashSet<&str> = found.chain(skipped).collect();
        let from_here = hub.iter().map(|(_, model)| model).filter(|model| {
            let source = model.attributes.get(SOURCE).and_then(Value::as_str);
            !model.retired && source == Some(&self.source)
        });
        from_here
            .filter(|model| {
                let aliases = model.aliases.iter().map(|alias| &**alias);
                std::iter::once(&*model.name)
                    .chain(aliases)
                    .all(|name| !here.contains(name))
            })
            .map(|model| model.name.to_string())
            .collect()
    }
}

/// `found` if its name can be that of a model.
fn named(found: Found) -> SourceEntry {
    let name = &found.name;
    let reason = if name.trim().is_empty() {
        "expected a name, found none".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!(
            "expected a name of at most {LONGEST_NAME} bytes, found {}",
            name.len()
        )
    } else if name.chars().any(char::is_control) {
        "expected a name without control characters, found some".to_owned()
    } else {
        return Ok(found);
    };
    let begin = name.chars().take(40).collect::<String>();
    Err(Skipped::new(begin, reason))
}

/// How many domains are from where.
#[derive(Default, Serialize)]
struct DomainCounts {
    stated: usize,
    told: usize,
    nearest: usize,
    unknown: usize,
}

/// What a source gave, and what it did not state.
#[derive(Serialize)]
pub(super) struct SourceReport {
    kind: &'static str,
    source: String,
    /// Models of the source.
    found: usize,
    pub(super) new: usize,
    known: usize,
    /// Known models that state other attributes than the hub has.
    changed: Vec<String>,
    /// Whether the hub takes those.
    updated: bool,
    #[serde(skip)]
    updates: Vec<(String, BTreeMap<String, Value>)>,
    /// Models of the hub that the source does not have any more.
    vanished: Vec<String>,
    repeated: Vec<String>,
    skipped: Vec<Skipped>,
    domains: DomainCounts,
    /// Of the new models, how many do not state the attribute.
    missing: BTreeMap<&'static str, usize>,
    /// The new cards, in a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<ModelCard>,
}

impl SourceReport {
    fn count_missing(&mut self, found: &Found, kind: &Kind) {
        for key in kind.counted {
            let stated = found.attributes.contains_key(*key)
                || (*key == "modality" && found.attributes.contains_key("input_modalities"));
            *self.missing.entry(key).or_default() += usize::from(!stated);
        }
        let missing = self.missing.entry("description").or_default();
        *missing += usize::from(found.description.is_none());
    }

    /// Takes the attributes that changed, if `wanted`, and returns them by model.
    pub(super) fn update(&mut self, wanted: bool) -> Vec<(String, BTreeMap<String, Value>)> {
        self.updated = wanted && !self.updates.is_empty();
        match wanted {
            true => std::mem::take(&mut self.updates),
            false => Vec::new(),
        }
    }

    /// Adds the cards, for a dry run.
    pub(super) fn with_models(mut self, cards: &[ModelCard]) -> Self {
        self.models = cards.to_vec();
        self
    }

    /// The report for people, with the new cards of a dry run.
    pub(super) fn print(&self) -> Result<()> {
        if !self.models.is_empty() {
            let mut table = output::TextTable::new(&["model", "domain"]);
            for card in &self.models {
                table.row(vec![card.model_name.clone(), card.domain.clone()]);
            }
            table.print_list()?;
        }
        let (found, new, known) = (counted(self.found, "model"), self.new, self.known);
        output::line(format!(
            "{}: {found}, {new} new, {known} known",
            self.source
        ))?;
        let from = &self.domains;
        let counts = [
            (from.stated, "stated"),
            (from.told, "as --domain says"),
            (from.nearest, "by the nearest cards"),
            (from.unknown, "unknown"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts.map(|(n, how)| format!("{n} {how}")).collect();
        if !counts.is_empty() {
            output::line(format!("domains: {}", counts.join(", ")))?;
        }
        let missing = self.missing.iter().filter(|(_, count)| **count > 0);
        let missing: Vec<String> = missing.map(|(key, n)| format!("{key} {n}")).collect();
        if !missing.is_empty() {
            output::paragraph(format!("not stated: {}", missing.join(", ")))?;
        }
        let skipped = self.skipped.iter().take(SHOWN);
        for Skipped { name, reason } in skipped {
            output::paragraph(format!("skipped {name}: {reason}"))?;
        }
        if self.skipped.len() > SHOWN {
            output::line(format!("skipped {} more", self.skipped.len() - SHOWN))?;
        }
        for (names, what, advice) in [
            (&self.repeated, "repeated", "the first entry counts"),
            (
                &self.changed,
                "changed",
                match self.updated {
                    true => "the hub takes the new attributes",
                    false => {
                        "the hub keeps the attributes that it has; --update takes the new ones"
                    }
                },
            ),
            (
                &self.vanished,
                "vanished",
                "hub retire takes a model out of routing",
            ),
        ] {
            if !names.is_empty() {
                let shown = names
                    .iter()
                    .take(SHOWN)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ");
                let more = match names.len().saturating_sub(SHOWN) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                output::paragraph(format!("{what}: {shown}{more}; {advice}"))?;
            }
        }
        if from.unknown > 0 {
            output::paragraph(
                "models of an unknown domain are found by their text alone: --domain or \
                 --nearest-domain gives them one",
            )?;
        }
        Ok(())
    }
}

/// A number above 0.
fn count(value: &Value) -> Option<u64> {
    let whole = |x: f64| {
        let fits = x.fract() == 0.0 && (1.0..9e15).contains(&x);
        fits.then(|| format!("{x:.0}").parse().ok()).flatten()
    };
    let count = value.as_u64().or_else(|| whole(value.as_f64()?));
    count.filter(|count| *count > 0)
}

/// The text of an attribute, if it is short enough.
fn short_text(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= LONGEST_TEXT).then(|| text.to_owned())
}

/// A text, or the texts of a list, those that are short enough; `None`: there is none, or too many.
fn texts(value: &Value) -> Option<Vec<String>> {
    let texts: Vec<String> = match value {
        Value::String(text) => short_text(text).into_iter().collect(),
        Value::Array(all) if all.len() <= MOST_TEXTS => {
            let texts = all.iter().filter_map(Value::as_str);
            texts.filter_map(short_text).collect()
        }
        _ => return None,
    };
    (!texts.is_empty()).then_some(texts)
}

/// A description: white space made single, cut at a word.
fn description(text: &str) -> Option<String> {
    let mut short = String::new();
    let mut left = LONGEST_DESCRIPTION;
    for word in text.split_whitespace() {
        let length = word.chars().count() + 1;
        if length > left {
            break;
        }
        left -= length;
        if !short.is_empty() {
            short.push(' ');
        }
        short.extend(word.chars().filter(|c| !c.is_control()));
    }
    (!short.is_empty()).then_some(short)
}

/// The whole path, or the path as it is.
fn whole(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Model;
    use serde_json::json;

    fn found(name: &str, context: u64) -> Found {
        let mut found = Found::new(name);
        found.state("context_length", Some(context));
        found
    }

    fn listing(entries: Vec<SourceEntry>) -> Result<Listing> {
        Listing::new(&OPENAI, "here".to_owned(), entries)
    }

    #[test]
    fn of_a_repeated_name_the_first_counts_and_names_are_bounded() {
        let listing = listing(vec![
            Ok(found("a", 1)),
            Ok(found("a", 2)),
            Ok(found(&"n".repeat(1 << 20), 3)),
            Ok(found(" ", 4)),
            Ok(found("b\n", 5)),
            Err(Skipped::new("data[5]", "no object")),
        ]);
        let listing = listing.unwrap();
        assert_eq!((listing.found.len(), &*listing.repeated[0]), (1, "a"));
        assert_eq!(listing.found[0].attributes["context_length"], 1);
        let skipped: Vec<(usize, &str)> = listing
            .skipped
            .iter()
            .map(|skipped| (skipped.name.len(), &*skipped.reason))
            .collect();
        let want = [
            (40, "expected a name of at most 512 bytes, found 1048576"),
            (1, "expected a name, found none"),
            (2, "expected a name without control characters, found some"),
            (7, "no object"),
        ];
        assert_eq!(skipped, want);
    }

    #[test]
    fn a_source_without_models_is_an_error() {
        let error = listing(vec![]).err().unwrap().to_string();
        assert_eq!(error, "here: expected at least one model, found none");
        let error = listing(vec![Err(Skipped::new("x", "cut"))]).err().unwrap();
        assert!(error.to_string().ends_with("found none; skipped x: cut"));
    }

    #[test]
    fn a_second_call_adds_what_is_new_and_names_what_vanished() {
        let first = listing(vec![
            Ok(found("a", 1)),
            Ok(found("b", 2)),
            Ok(found("c", 3)),
        ]);
        let (cards, report) = first
            .unwrap()
            .compared(&Hub::default(), None, None)
            .unwrap();
        assert_eq!(
            (report.new, report.known, report.domains.unknown),
            (3, 0, 3)
        );
        assert_eq!(cards[0].domain, "unknown");
        let want = json!({"context_length": 1, "source": "here"});
        assert_eq!(serde_json::to_value(&cards[0].attributes).unwrap(), want);
        let models = cards.iter().map(ModelCard::model);
        let hub = Hub::default().with(models).unwrap();
        let hub = hub.with([Model::new("own", "x")]).unwrap();
        // The old name of a model that was renamed here is known.
        let hub = hub.rename("a", "mine").unwrap();
        let again = listing(vec![
            Ok(found("a", 10)),
            Ok(found("d", 4)),
            Ok(found("own", 5)),
        ]);
        let (cards, report) = again.unwrap().compared(&hub, Some("x"), None).unwrap();
        assert_eq!(
            (cards.len(), &*cards[0].model_name, &*cards[0].domain),
            (1, "d", "x")
        );
        assert_eq!((report.new, report.known, report.domains.told), (1, 2, 1));
        assert_eq!(report.changed, ["a"]);
        assert_eq!(report.vanished, ["b", "c"]);
        let hub = hub.retire("b").unwrap();
        let damaged = vec![Ok(found("a", 1)), Err(Skipped::new("c", "cut"))];
        let (_, report) = listing(damaged)
            .unwrap()
            .compared(&hub, None, None)
            .unwrap();
        assert_eq!((report.changed.len(), report.vanished.len()), (0, 0));
    }

    #[test]
    fn what_is_not_stated_is_counted() {
        let mut full = found("a", 1);
        full.description = Some("Finds names.".to_owned());
        full.title = Some("A".to_owned());
        full.state("tools", Some(false));
        full.state("input_modalities", Some(vec!["text".to_owned()]));
        let both = listing(vec![Ok(full), Ok(Found::new("b"))]).unwrap();
        let (cards, report) = both.compared(&Hub::default(), None, None).unwrap();
        let want = json!({"context_length": 1, "description": 1, "modality": 1, "price": 2,
            "tools": 1});
        assert_eq!(serde_json::to_value(&report.missing).unwrap(), want);
        assert_eq!(cards[0].text(), "a. unknown. A. Finds names.");
    }

    #[test]
    fn numbers_and_texts_are_taken_if_they_are_sane() {
        for (value, want) in [
            (json!(1), Some(1)),
            (json!(4096.0), Some(4096)),
            (json!(0), None),
            (json!(-1), None),
            (json!(0.5), None),
            (json!(1e300), None),
            (json!("8"), None),
            (json!(u64::MAX), Some(u64::MAX)),
        ] {
            assert_eq!(count(&value), want, "{value}");
        }
        let some = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(
            texts(&json!(["a", 7, " b ", "x".repeat(300)])),
            some(&["a", "b"])
        );
        assert_eq!(texts(&json!("a")), some(&["a"]));
        assert_eq!(texts(&json!(vec!["a"; 65])), None);
        assert_eq!(texts(&json!({"a": 1})), None);
        assert_eq!(description("a\u{7}\n b\tc"), Some("a b c".to_owned()));
        assert_eq!(description(&"x".repeat(5000)), None);
    }
}
