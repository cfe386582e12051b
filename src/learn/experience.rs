//! What an experience brings: models for the hub, rows to learn from, rows to measure on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::encoder::seen::Seen;
use crate::error::{Error, Result, bail, error};
use crate::files;
use crate::generation::NewModel;
use crate::hub::{Hub, Model, domain_key};
use crate::learn::coreset::{self, Item};
use crate::learn::data::{Example, held_out};
use crate::learn::near::Known;
use crate::learn::replay::{Replay, ReplayEntry};
use crate::learn::settings::{Privacy, Settings};
use crate::ops::normalize::unit;
use crate::text::tokenizer::Tokens;

/// One batch of new models with labelled prompts.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    /// Models to add, with their cards; those that the hub knows by name are passed over.
    pub models: Vec<NewModel>,
    /// Labelled prompts. A model that nobody introduced is added when its example has a domain.
    pub examples: Vec<Example>,
}

/// A prompt as learning sees it.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) input: RowInput,
    pub(crate) gold: u32,
    /// The example's own, normalised.
    pub(crate) domain: String,
    pub(crate) replay: bool,
    /// The update that brought it, from 1.
    pub(crate) experience: u64,
    /// What was seen of it when it was kept.
    pub(crate) seen: Option<Seen>,
    /// Its place among what is kept; 0 for an example.
    pub(crate) place: usize,
}

#[derive(Clone)]
pub(crate) enum RowInput {
    Tokens(Arc<Tokens>),
    /// Kept as a vector of the frozen encoder, without its text.
    Pooled(Vec<f32>),
}

impl Row {
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        match &self.input {
            RowInput::Tokens(tokens) => Some(tokens),
            RowInput::Pooled(_) => None,
        }
    }
}

/// What an experience makes of a hub.
pub(crate) struct Extended {
    /// With the new models, sorted by name.
    pub(crate) hub: Hub,
    /// These models, with their cards, by id.
    pub(crate) new: Vec<NewModel>,
    /// Names of those among them that came with an example alone.
    pub(crate) introduced: Vec<String>,
}

/// The hub with the experience's new models. `introduce`: examples may name models and domains that
/// differ from known ones by no more than a slip of the keyboard does.
///
/// Errors name the example: a model is retired, is not known and has no domain, or was probably meant
/// to be another one; a domain likewise.
pub(crate) fn extend(hub: &Hub, experience: &Experience, introduce: bool) -> Result<Extended> {
    let mut new: BTreeMap<String, NewModel> = BTreeMap::new();
    for model in &experience.models {
        if hub.find(&model.model.name).is_none() {
            new.insert(model.model.name.to_string(), model.clone());
        }
    }
    let known = Registered::new(hub, &experience.models);
    let mut introduced = BTreeSet::new();
    for (place, example) in experience.examples.iter().enumerate() {
        let at = |e: Error| e.at(format!("example {}", place + 1));
        if !introduce {
            known.check_domain(example).map_err(at)?;
        }
        let name = &example.model_name;
        if let Some(id) = hub.find(name) {
            if hub.get(id).is_some_and(|model| model.retired) {
                bail!(
                    InvalidRequest,
                    "example {}: model {name:?} is retired",
                    place + 1
                );
            }
        } else if !new.contains_key(name) {
            let model = known.introduce(example, introduce).map_err(at)?;
            new.insert(name.clone(), NewModel::new(model, Vec::new()));
            introduced.insert(name.clone());
        }
    }
    let new: Vec<NewModel> = new.into_values().collect();
    Ok(Extended {
        hub: hub.with(new.iter().map(|new| new.model.clone()))?,
        new,
        introduced: introduced.into_iter().collect(),
    })
}

/// Models and domains that are known before any example is looked at.
struct Registered<'h> {
    models: Known<'h>,
    domains: Known<'h>,
    /// By [`domain_key`].
    keys: HashSet<String>,
}

impl<'h> Registered<'h> {
    /// Of the models of a hub that are not retired, and those that come with cards.
    fn new(hub: &'h Hub, cards: &'h [NewModel]) -> Self {
        let active = || hub.iter().map(|(_, m)| m).filter(|m| !m.retired);
        let all = || active().chain(cards.iter().map(|card| &card.model));
        let names = |model: &'h Model| std::iter::once(&model.name).chain(&model.aliases);
        let mut keys = HashSet::new();
        let domains: Vec<&str> = all()
            .map(|model| &*model.domain)
            .filter(|domain| keys.insert(domain_key(domain)))
            .collect();
        Self {
            models: Known::models(all().flat_map(names).map(|name| &**name)),
            domains: Known::domains(domains.into_iter()),
            keys,
        }
    }

    /// Errors: the example's domain is not known, and near to one that is.
    fn check_domain(&self, example: &Example) -> Result<()> {
        let Some(domain) = &example.domain else {
            return Ok(());
        };
        if self.keys.contains(&domain_key(domain)) {
            return Ok(());
        }
        match self.domains.near_domain(domain) {
            Some(near) => bail!(
                InvalidRequest,
                "domain {domain:?} is no model's in the hub; did you mean {near:?}? --introduce takes \
                 it as a new domain"
            ),
            None => Ok(()),
        }
    }

    /// The model that an example brings, whose name is not known.
    fn introduce(&self, example: &Example, slips: bool) -> Result<Model> {
        let name = &example.model_name;
        let near = self.models.near_model(name).filter(|_| !slips);
        match (near, &example.domain) {
            (None, Some(domain)) => Ok(Model::new(name, domain)),
            (Some(near), Some(_)) => bail!(
                InvalidRequest,
                "model {name:?} is not in the hub; did you mean {near:?}? --introduce adds it as a new \
                 model"
            ),
            (near, None) => {
                let hint = near.map_or(String::new(), |near| {
                    format!("did you mean {near:?}? Else ")
                });
                bail!(
                    InvalidRequest,
                    "model {name:?} is not in the hub: {hint}introduce it with --models, or give the \
                     example a domain"
                )
            }
        }
    }
}

/// The examples to learn from and those to measure on; `known`: models with earlier examples.
pub(crate) fn split(
    examples: &[Example],
    settings: &Settings,
    known: impl Fn(&str) -> bool,
) -> (Vec<Example>, Vec<Example>) {
    let out = if settings.hold_out {
        held_out(examples, known)
    } else {
        vec![false; examples.len()]
    };
    let (mut learned, mut measured) = (Vec::new(), Vec::new());
    for (example, out) in examples.iter().zip(out) {
        let side = if out { &mut measured } else { &mut learned };
        side.push(example.clone());
    }
    (learned, measured)
}

/// SHA-256 over prompts, golds and domains, in order.
pub(crate) fn digest(examples: &[Example]) -> String {
    let mut text = String::new();
    for example in examples {
        let domain = example.domain.as_deref().unwrap_or("");
        for part in [&example.prompt, &example.model_name, domain] {
            text.push_str(&format!("{}:{part}", part.len()));
        }
    }
    files::sha256(text.as_bytes())
}

/// SHA-256 over the examples' digest and the new models with their cards, in order.
pub(crate) fn digest_of_update(examples: &str, new_models: &[NewModel]) -> String {
    let mut text = examples.to_owned();
    for new in new_models {
        let parts = [&*new.model.name, &*new.model.domain];
        for part in parts
            .into_iter()
            .chain(new.cards.iter().map(String::as_str))
        {
            text.push_str(&format!("{}:{part}", part.len()));
        }
        text.push(';');
    }
    files::sha256(text.as_bytes())
}

fn gold(hub: &Hub, example: &Example) -> Result<(u32, String)> {
    let id = hub.resolve(&example.model_name)?;
    let registered = hub.get(id).map_or("", |model| &model.domain);
    let domain = example.domain.as_deref().unwrap_or(registered);
    Ok((id.0, domain_key(domain)))
}

/// Tokenized; a bad prompt is named.
pub(crate) fn rows(
    encoder: &Encoder,
    examples: &[Example],
    hub: &Hub,
    experience: u64,
) -> Result<Vec<Row>> {
    let prompts: Vec<&str> = examples.iter().map(|e| e.prompt.as_str()).collect();
    let tokens = encoder.tokenize_prompts(&prompts);
    let mut rows = Vec::with_capacity(examples.len());
    for (place, (example, tokens)) in examples.iter().zip(tokens).enumerate() {
        let tokens = tokens.map_err(|e| e.at(format!("example {}", place + 1)))?;
        let (gold, domain) = gold(hub, example)?;
        rows.push(Row {
            input: RowInput::Tokens(Arc::new(tokens)),
            gold,
            domain,
            replay: false,
            experience,
            seen: None,
            place: 0,
        });
    }
    Ok(rows)
}

/// Rows of what a generation kept; entries that are only hashes, or whose model is retired, are
/// none.
pub(crate) fn kept_rows(encoder: &Encoder, kept: &Replay, hub: &Hub) -> Result<Vec<Row>> {
    let retired: HashSet<u32> = hub
        .iter()
        .filter(|(_, model)| model.retired)
        .map(|(id, _)| id.0)
        .collect();
    let mut rows = Vec::new();
    for (place, entry) in kept.entries.iter().enumerate() {
        let input = match (&entry.text, &entry.embedding, &entry.seen) {
            _ if retired.contains(&entry.model) => continue,
            (Some(text), ..) => {
                let tokens = encoder.tokenize_prompts(&[text]).pop();
                let tokens = tokens.ok_or_else(|| error!(Tokenizer, "no tokens"))??;
                RowInput::Tokens(Arc::new(tokens))
            }
            (None, Some(vector), _) => {
                RowInput::Pooled(vector.iter().map(|value| value.to_f32()).collect())
            }
            (None, None, Some(seen)) => RowInput::Pooled(seen.pooled.clone()),
            (None, None, None) => continue,
        };
        rows.push(Row {
            input,
            gold: entry.model,
            domain: entry.domain.clone(),
            replay: true,
            experience: entry.experience,
            seen: entry.seen.clone(),
            place,
        });
    }
    Ok(rows)
}

/// Pooled vectors of the frozen encoder: what the coreset measures distances with.
pub(crate) fn frozen_vectors(encoder: &Encoder, examples: &[Example]) -> Result<Vec<Vec<f32>>> {
    let prompts: Vec<&str> = examples.iter().map(|e| e.prompt.as_str()).collect();
    encoder.embed(&prompts).into_iter().collect()
}

/// Of the rows just learned those that later experiences learn again.
pub(crate) fn choose(
    examples: &[Example],
    rows: &[Row],
    vectors: &[Vec<f32>],
    settings: &Settings,
    experience: u64,
) -> Vec<ReplayEntry> {
    let units: Vec<Vec<f32>> = vectors
        .iter()
        .map(|vector| {
            let mut vector = vector.clone();
            unit(&mut vector);
            vector
        })
        .collect();
    let items: Vec<Item<'_>> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| Item {
            vector: units.get(i).map(Vec::as_slice),
            domain: &row.domain,
            model: row.gold,
        })
        .collect();
    let chosen = coreset::select(&items, settings, experience);
    let entry = |i: usize| {
        let (row, prompt) = (&rows[i], &examples[i].prompt);
        ReplayEntry::new(
            experience,
            row.gold,
            &row.domain,
            prompt,
            &vectors[i],
            settings.replay_privacy,
        )
    };
    chosen.into_iter().map(entry).collect()
}

/// The measured rows, as far as privacy allows to keep them for the next time; `seen`: what is seen of
/// each, where the encoder stays as it is.
pub(crate) fn keep(
    examples: &[Example],
    rows: &[Row],
    seen: &[Seen],
    settings: &Settings,
    experience: u64,
) -> Vec<ReplayEntry> {
    let privacy = settings.replay_privacy;
    let entry = |(place, (row, example)): (usize, (&Row, &Example))| {
        let text = match privacy {
            Privacy::Text => Privacy::Text,
            // The frozen encoder's vector does not measure one that was trained.
            _ => Privacy::Hashes,
        };
        let (domain, prompt) = (&row.domain, &example.prompt);
        let mut entry = ReplayEntry::new(experience, row.gold, domain, prompt, &[], text);
        entry.seen = seen
            .get(place)
            .filter(|_| privacy != Privacy::Hashes)
            .cloned();
        (entry.text.is_some() || entry.seen.is_some()).then_some(entry)
    };
    rows.iter()
        .zip(examples)
        .enumerate()
        .filter_map(entry)
        .collect()
}
