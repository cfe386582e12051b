//! An experience: new models and labelled prompts, and the hub that they make.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Error, Result, bail};
use crate::files;
use crate::generation::NewModel;
use crate::hub::near::Known;
use crate::hub::{Hub, Model, domain_key};
use crate::learn::data::examples::{Example, held_out};
use crate::learn::settings::Settings;

/// One batch of new models with labelled prompts.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    /// Models to add, with their cards. Those whose names the hub knows are ignored.
    pub models: Vec<NewModel>,
    /// Labelled prompts. An unknown model is added if its example has a domain.
    pub examples: Vec<Example>,
}

/// A hub with the models of an experience.
pub(crate) struct Extended {
    /// With the new models, sorted by name.
    pub(crate) hub: Hub,
    /// The new models with their cards, by id.
    pub(crate) new: Vec<NewModel>,
    /// Names of the new models that came with an example and without a card.
    pub(crate) introduced: Vec<String>,
}

/// The hub with the experience's new models. `introduce`: examples may name new models and domains
/// that differ from known ones by no more than a typing error.
///
/// Errors name the example: its model is retired, is unknown and has no domain, or is probably a
/// known one misspelt; its domain is probably a known one misspelt.
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

/// Models and domains that are known before the examples.
struct Registered<'h> {
    models: Known<'h>,
    domains: Known<'h>,
    /// By [`domain_key`].
    keys: HashSet<String>,
}

impl<'h> Registered<'h> {
    /// Of the active models of a hub, and of those that come with cards.
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

    /// Errors: the example's domain is unknown, and similar to a known one.
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
                "domain {domain:?} is no model's in the hub; did you mean {near:?}? --introduce \
                 adds it as a new domain"
            ),
            None => Ok(()),
        }
    }

    /// The model of an example, whose name is unknown.
    fn introduce(&self, example: &Example, slips: bool) -> Result<Model> {
        let name = &example.model_name;
        let near = self.models.near_model(name).filter(|_| !slips);
        match (near, &example.domain) {
            (None, Some(domain)) => Ok(Model::new(name, domain)),
            (Some(near), Some(_)) => bail!(
                InvalidRequest,
                "model {name:?} is not in the hub; did you mean {near:?}? --introduce adds it as a \
                 new model"
            ),
            (near, None) => {
                let hint = near.map_or(String::new(), |near| {
                    format!("did you mean {near:?}? Else ")
                });
                bail!(
                    InvalidRequest,
                    "model {name:?} is not in the hub: {hint}introduce it with --models, or give \
                     the example a domain"
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
