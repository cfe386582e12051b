//! Changes of a hub, each of which makes a new one: add, retire, rename, alias, set.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Result, bail};
use crate::hub::{Hub, Model};

impl Hub {
    /// The hub with `models` appended in this order.
    ///
    /// Errors: a name or alias is taken, also by a retired model; attributes are nested too deeply.
    pub fn with(&self, models: impl IntoIterator<Item = Model>) -> Result<Self> {
        let mut hub = self.clone();
        for model in models {
            check_depth(&model)?;
            hub.push(model)?;
        }
        Ok(hub)
    }

    /// The hub in which the model called `name` is never returned again; it keeps its id.
    pub fn retire(&self, name: &str) -> Result<Self> {
        let id = self.resolve(name)?;
        let mut hub = self.clone();
        let model = hub.model_mut(id);
        if model.retired {
            bail!(Refused, "{name:?} is already retired");
        }
        model.retired = true;
        Ok(hub)
    }

    /// The hub in which the model called `name` is called `new`; the old name stays an alias.
    pub fn rename(&self, name: &str, new: &str) -> Result<Self> {
        let id = self.resolve(name)?;
        let mut hub = self.clone();
        let new: Arc<str> = new.into();
        let own_alias = hub.find(&new) == Some(id) && hub.model_mut(id).name != new;
        if !own_alias {
            hub.claim(&new, id)?;
        }
        let model = hub.model_mut(id);
        let old = std::mem::replace(&mut model.name, Arc::clone(&new));
        model.aliases.retain(|alias| *alias != new);
        model.aliases.push(old);
        Ok(hub)
    }

    /// The hub in which `alias` is another name of the model called `name`.
    pub fn alias(&self, name: &str, alias: &str) -> Result<Self> {
        let id = self.resolve(name)?;
        let mut hub = self.clone();
        let alias: Arc<str> = alias.into();
        hub.claim(&alias, id)?;
        hub.model_mut(id).aliases.push(alias);
        Ok(hub)
    }

    /// The hub in which the model called `name` has these attributes; it keeps its others, and
    /// `null` takes one away.
    ///
    /// Errors: no model has the name; an attribute is nested too deeply.
    pub fn set(&self, name: &str, attributes: &BTreeMap<String, Value>) -> Result<Self> {
        let id = self.resolve(name)?;
        let mut hub = self.clone();
        let model = hub.model_mut(id);
        for (key, value) in attributes {
            match value {
                Value::Null => model.attributes.remove(key),
                value => model.attributes.insert(key.clone(), value.clone()),
            };
        }
        check_depth(model)?;
        Ok(hub)
    }
}

/// Greatest nesting depth of an attribute. JSON readers may refuse a whole file whose values are
/// nested more deeply.
const DEEPEST: usize = 32;

fn check_depth(model: &Model) -> Result<()> {
    for (key, value) in &model.attributes {
        if deeper_than(value, DEEPEST) {
            bail!(
                InvalidRequest,
                "model {:?}: attribute {key:?}: expected at most {DEEPEST} values inside one another, \
                 found more",
                model.name
            );
        }
    }
    Ok(())
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    let below = |value: &Value| levels == 0 || deeper_than(value, levels - 1);
    match value {
        Value::Array(values) => values.iter().any(below),
        Value::Object(values) => values.values().any(below),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::hub::ModelId;

    fn hub() -> Hub {
        Hub::default()
            .with([Model::new("a", "x"), Model::new("b", "y")])
            .unwrap()
    }

    #[test]
    fn ids_never_move_and_names_are_never_reused() {
        let hub = hub().retire("a").unwrap();
        let error = hub.with([Model::new("a", "x")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("retired model 0"), "{error}");
        let hub = hub.with([Model::new("c", "x")]).unwrap();
        assert_eq!(hub.find("c"), Some(ModelId(2)));
        assert_eq!((hub.len(), hub.active()), (3, 2));
        assert_eq!(hub.retire("a").unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_former_name_still_resolves() {
        let hub = hub().rename("a", "a2").unwrap();
        assert_eq!(
            (hub.find("a"), hub.find("a2")),
            (Some(ModelId(0)), Some(ModelId(0)))
        );
        assert_eq!(&*hub.get(ModelId(0)).unwrap().name, "a2");
        // And back: the alias becomes the name again.
        let hub = hub.rename("a2", "a").unwrap();
        let model = hub.get(ModelId(0)).unwrap();
        assert_eq!((&*model.name, model.aliases.len()), ("a", 1));
        assert_eq!(hub.rename("a", "b").unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(hub.rename("a", "a").unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn attributes_are_set_and_taken_away() {
        let of = |attributes: Value| serde_json::from_value(attributes).unwrap();
        let hub = hub();
        let hub = hub.set("a", &of(serde_json::json!({"price": 2, "tools": true})));
        let hub = hub.unwrap();
        let hub = hub.set(
            "a",
            &of(serde_json::json!({"price": 0.5, "tools": null, "no": null})),
        );
        let hub = hub.unwrap();
        let attributes = &hub.get(ModelId(0)).unwrap().attributes;
        assert_eq!(*attributes, of(serde_json::json!({"price": 0.5})));
        assert!(hub.get(ModelId(1)).unwrap().attributes.is_empty());
        let deep = (0..40).fold(Value::from(1), |value, _| serde_json::json!([value]));
        let error = hub
            .set("a", &of(serde_json::json!({"deep": deep})))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(hub.set("nobody", &BTreeMap::new()).is_err());
    }

    #[test]
    fn aliases_are_unique() {
        let hub = hub().alias("a", "first").unwrap();
        assert_eq!(hub.find("first"), Some(ModelId(0)));
        assert_eq!(
            hub.alias("b", "first").unwrap_err().kind(),
            ErrorKind::Refused
        );
        assert_eq!(
            hub.alias("nobody", "z").unwrap_err().kind(),
            ErrorKind::InvalidRequest
        );
        assert_eq!(
            hub.alias("b", " ").unwrap_err().kind(),
            ErrorKind::InvalidRequest
        );
    }
}
