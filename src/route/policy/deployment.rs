//! Deployments: what a gateway can send a request to.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::hub::ModelCard;

/// A name that a gateway serves, and the model behind it.
///
/// In JSON a text is a deployment of that name, whose model has the same name.
///
/// ```
/// let json = r#"["gpt2", {"name": "eu-1", "model": "gpt2", "attributes": {"price": 0.2}}]"#;
/// let deployments: Vec<hubrouter::Deployment> = serde_json::from_str(json)?;
/// assert_eq!(deployments[0], hubrouter::Deployment::new("gpt2"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Deployment {
    /// The gateway's name; two deployments have different ones.
    pub name: String,
    /// The model's name or alias in the hub. `None`: the deployment's own name, or that of its
    /// card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Attributes of this deployment, such as its price and context length; they count before the
    /// model's. Null takes an attribute away.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Value>,
    /// The card of a model that the hub does not know. It is ranked as if it had been added to the
    /// hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<ModelCard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeploymentFields {
    name: Option<String>,
    model: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
    card: Option<ModelCard>,
}

impl<'de> Deserialize<'de> for Deployment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Ok(Self::new(name)),
            object @ Value::Object(_) => {
                let fields: DeploymentFields =
                    serde_json::from_value(object).map_err(D::Error::custom)?;
                let card_name = fields.card.as_ref().map(|card| card.model_name.clone());
                let Some(name) = fields.name.or(fields.model.clone()).or(card_name) else {
                    return Err(D::Error::custom(
                        "a deployment: expected a name, a model or a card, found none",
                    ));
                };
                Ok(Self {
                    name,
                    model: fields.model,
                    attributes: fields.attributes,
                    card: fields.card,
                })
            }
            other => Err(D::Error::custom(format!(
                "a deployment: expected a name or an object, found {other}"
            ))),
        }
    }
}

impl Deployment {
    /// The deployment `name` of the model of that name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            model: None,
            attributes: BTreeMap::new(),
            card: None,
        }
    }

    /// The deployment of the model `model`.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// The deployment with an attribute of its own.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The deployment of a model that the hub does not know.
    pub fn card(mut self, card: ModelCard) -> Self {
        self.card = Some(card);
        self
    }

    /// The name by which the model is looked up.
    pub(super) fn model_name(&self) -> &str {
        let card = self.card.as_ref().map(|card| card.model_name.as_str());
        let own = self.model.as_deref().or(card);
        own.unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_deployment_is_a_name_or_an_object() {
        let json = r#"["a", {"name": "b", "model": "c", "attributes": {"price": 1}},
            {"model": "d"}, {"card": {"model_name": "e", "domain": "x"}}]"#;
        let read: Vec<Deployment> = serde_json::from_str(json).unwrap();
        let names: Vec<(&str, &str)> = read.iter().map(|d| (&*d.name, d.model_name())).collect();
        assert_eq!(names, [("a", "a"), ("b", "c"), ("d", "d"), ("e", "e")]);
        let back = serde_json::to_string(&read).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<Deployment>>(&back).unwrap(),
            read
        );
        for (json, want) in [
            ("{}", "expected a name, a model or a card"),
            ("3", "expected a name or an object, found 3"),
            (r#"{"name":"a","prise":1}"#, "unknown field `prise`"),
            (
                r#"{"name":"a","card":{"model_name":"a"}}"#,
                "missing field `domain`",
            ),
        ] {
            let error = serde_json::from_str::<Deployment>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
