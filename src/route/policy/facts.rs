//! What is known of a model, or of a deployment of one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::hub::{Model, domain_key, parent_group};

/// A model's record, with the attributes that a deployment states itself.
#[derive(Clone, Copy)]
pub(super) struct Facts<'f> {
    pub(super) id: u32,
    pub(super) model: &'f Model,
    /// The name of the deployment and its attributes, which count before the model's.
    pub(super) deployment: Option<(&'f str, &'f BTreeMap<String, Value>)>,
}

/// The value of an attribute.
pub(super) enum Fact<'f> {
    Value(Cow<'f, Value>),
    /// The names of a model, any of which may be meant.
    Names(Vec<&'f str>),
}

impl<'f> Facts<'f> {
    /// The attribute `name`; `None` if it is not stated, or null.
    pub(super) fn get(&self, name: &str) -> Option<Fact<'f>> {
        let model = self.model;
        let owned = |value: Value| Some(Fact::Value(Cow::Owned(value)));
        match name {
            "id" => owned(self.id.into()),
            "name" => {
                let own = self.deployment.map(|(name, _)| name);
                let others = model.aliases.iter().map(|alias| &**alias);
                Some(Fact::Names(
                    own.into_iter()
                        .chain([&*model.name])
                        .chain(others)
                        .collect(),
                ))
            }
            "domain" => owned(domain_key(&model.domain).into()),
            "group" => owned(parent_group(&domain_key(&model.domain)).into()),
            "family" => owned(model.family.as_deref()?.into()),
            "created_at" => owned(model.created_at?.into()),
            _ => {
                let stated = self
                    .deployment
                    .and_then(|(_, own)| within(own.get(name), own, name));
                let all = &model.attributes;
                let value = stated.or_else(|| within(all.get(name), all, name))?;
                (!value.is_null()).then_some(Fact::Value(Cow::Borrowed(value)))
            }
        }
    }

    /// The attribute `name` as a number.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        match self.get(name)? {
            Fact::Value(value) => value.as_f64(),
            Fact::Names(_) => None,
        }
    }
}

/// `whole`, or the entry that `a.b` names inside of `attributes`.
pub(crate) fn within<'v>(
    whole: Option<&'v Value>,
    attributes: &'v BTreeMap<String, Value>,
    path: &str,
) -> Option<&'v Value> {
    whole.or_else(|| {
        let (first, rest) = path.split_once('.')?;
        let mut value = attributes.get(first)?;
        for key in rest.split('.') {
            value = value.get(key)?;
        }
        Some(value)
    })
}
