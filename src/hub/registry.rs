//! The registry: names, aliases, domains, families, states. Ids are dense and never reused.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::files;
use crate::hub::near::Known;

/// Most models of a hub: ids are 32 bits, and one value means no model.
const MOST: usize = u32::MAX as usize - 1;

/// A model's place in the registry and its row in the table E; never changes, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ModelId(pub u32);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One model of the hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Model {
    /// The name, an opaque string compared exactly.
    pub name: Arc<str>,
    /// The task of the model.
    pub domain: Arc<str>,
    /// The lineage of the model, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Arc<str>>,
    /// When the model was created, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<i64>,
    /// Anything else that is known: `context_length`, `price`, `licence`, `modality`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Other names; a former name stays as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Arc<str>>,
    /// True once the model was taken out of routing. It keeps its id and names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

/// The changing set of models to choose from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "HubFile", into = "HubFile")]
pub struct Hub {
    models: Vec<Model>,
    by_name: HashMap<Arc<str>, ModelId>,
}

/// `hub.json`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HubFile {
    schema_version: u32,
    models: Vec<Model>,
}

impl From<Hub> for HubFile {
    fn from(hub: Hub) -> Self {
        Self {
            schema_version: 1,
            models: hub.models,
        }
    }
}

impl TryFrom<HubFile> for Hub {
    type Error = crate::Error;

    fn try_from(file: HubFile) -> Result<Self> {
        files::check_version(file.schema_version)?;
        let mut hub = Self::default();
        for model in file.models {
            hub.push(model)?;
        }
        Ok(hub)
    }
}

impl Hub {
    /// Models with an id, retired ones included.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// True when no model was ever added.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// The model of `id`, retired or not.
    pub fn get(&self, id: ModelId) -> Option<&Model> {
        self.models.get(id.0 as usize)
    }

    /// The id of the model with this name or alias.
    pub fn find(&self, name: &str) -> Option<ModelId> {
        self.by_name.get(name).copied()
    }

    /// All models with their ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (ModelId, &Model)> {
        // A hub has at most MOST models.
        self.models
            .iter()
            .enumerate()
            .map(|(id, model)| (ModelId(crate::num::to_u32(id)), model))
    }

    /// Models that routing may return.
    pub fn active(&self) -> usize {
        self.models.iter().filter(|model| !model.retired).count()
    }

    /// The id of the model called `name`.
    ///
    /// Errors: there is none; the text suggests similar names.
    pub fn resolve(&self, name: &str) -> Result<ModelId> {
        if let Some(id) = self.find(name) {
            return Ok(id);
        }
        let known = Known::models(self.by_name.keys().map(|known| &**known));
        let near = known.near_models(name, 3);
        let hint = if near.is_empty() {
            String::new()
        } else {
            format!("; did you mean {}?", near.join(", "))
        };
        bail!(
            InvalidRequest,
            "{name:?}: expected a model of the hub, found none of that name{hint}"
        );
    }

    /// Appends `model` with the next id.
    pub(super) fn push(&mut self, model: Model) -> Result<ModelId> {
        if self.models.len() >= MOST {
            bail!(Refused, "the hub is full: {MOST} models");
        }
        let id = ModelId(crate::num::to_u32(self.models.len()));
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            self.claim(name, id)?;
        }
        self.models.push(model);
        Ok(id)
    }

    /// Makes `name` mean `id` alone.
    pub(super) fn claim(&mut self, name: &Arc<str>, id: ModelId) -> Result<()> {
        if name.trim().is_empty() {
            bail!(
                InvalidRequest,
                "a model's name: expected text, found {name:?}"
            );
        }
        if let Some(holder) = self.find(name) {
            let state = match self.get(holder) {
                Some(model) if model.retired => "the retired model",
                _ => "model",
            };
            bail!(
                Refused,
                "{name:?} is already a name of {state} {holder}; names and ids are never reused"
            );
        }
        self.by_name.insert(Arc::clone(name), id);
        Ok(())
    }

    pub(super) fn model_mut(&mut self, id: ModelId) -> &mut Model {
        &mut self.models[id.0 as usize]
    }
}

impl Model {
    /// A model of this name and domain, active, nothing else known.
    pub fn new(name: &str, domain: &str) -> Self {
        Self {
            name: name.into(),
            domain: domain.into(),
            family: None,
            created_at: None,
            attributes: BTreeMap::new(),
            aliases: Vec::new(),
            retired: false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn json_keeps_everything() {
        let mut hub = Hub::default();
        let mut model = Model::new("a/b", "Text Classification");
        model.family = Some("b".into());
        model.created_at = Some(1_726_000_000_000);
        model.attributes.insert("price".into(), 0.2.into());
        model.aliases.push("b".into());
        model.retired = true;
        hub.push(model).unwrap();
        hub.push(Model::new("c", "unknown")).unwrap();
        let json = serde_json::to_string(&hub).unwrap();
        let back: Hub = serde_json::from_str(&json).unwrap();
        assert_eq!(back.models, hub.models);
        assert_eq!(
            (back.find("b"), back.find("c")),
            (Some(ModelId(0)), Some(ModelId(1)))
        );
        assert_eq!((back.len(), back.active()), (2, 1));
    }

    #[test]
    fn a_hub_that_contradicts_itself_is_refused() {
        let twice = r#"{"schema_version":1,"models":[{"name":"a","domain":"d"},{"name":"a","domain":"d"}]}"#;
        assert!(serde_json::from_str::<Hub>(twice).is_err());
        let later = r#"{"schema_version":2,"models":[]}"#;
        assert!(
            serde_json::from_str::<Hub>(later)
                .unwrap_err()
                .to_string()
                .contains("schema_version")
        );
    }

    #[test]
    fn unknown_names_get_a_hint() {
        let mut hub = Hub::default();
        hub.push(Model::new("google/flan-t5-xxl", "d")).unwrap();
        let error = hub.resolve("flan-t5").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("did you mean google/flan-t5-xxl?"),
            "{error}"
        );
    }
}
