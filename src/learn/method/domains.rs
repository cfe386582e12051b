//! The models of each domain and the domains of each parent group, for training.

use std::collections::HashMap;

use crate::hub::{Hub, domain_key, parent_group};
use crate::num::to_u32;

/// Made once per update; all lists of ids ascend.
pub(crate) struct DomainGroups {
    /// Normalised, in the order of their first model.
    names: Vec<String>,
    /// Models of each domain.
    models: Vec<Vec<u32>>,
    /// Domain of each model.
    of: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// Domains of each parent group.
    groups: HashMap<String, Vec<usize>>,
    /// Models that may be negatives.
    usable: Vec<u32>,
}

impl DomainGroups {
    pub(crate) fn new(hub: &Hub) -> Self {
        let mut domains = Self {
            names: Vec::new(),
            models: Vec::new(),
            of: Vec::with_capacity(hub.len()),
            by_name: HashMap::new(),
            groups: HashMap::new(),
            usable: Vec::new(),
        };
        for (id, model) in hub.iter() {
            let domain = domains.index(domain_key(&model.domain));
            domains.of.push(domain);
            domains.models[domain].push(id.0);
            // carve.md section 4.2; a retired model is never an answer, so nobody needs to learn
            // that it is a wrong one.
            let page = model.name.to_lowercase().contains("huggingface.co/");
            if !(model.retired || page || model.name.trim().is_empty()) {
                domains.usable.push(id.0);
            }
        }
        domains
    }

    /// The domain called `name`, which is created if it is missing.
    fn index(&mut self, name: String) -> usize {
        if let Some(domain) = self.by_name.get(&name) {
            return *domain;
        }
        let domain = self.names.len();
        let group = parent_group(&name).to_owned();
        self.groups.entry(group).or_default().push(domain);
        self.by_name.insert(name.clone(), domain);
        self.names.push(name);
        self.models.push(Vec::new());
        domain
    }

    /// Models M of the registry, retired ones included.
    pub(crate) fn len(&self) -> u32 {
        to_u32(self.of.len())
    }

    /// Models whose registry domain is `domain`.
    pub(crate) fn models(&self, domain: &str) -> &[u32] {
        let domain = self.by_name.get(domain);
        domain.map_or(&[], |domain| &self.models[*domain])
    }

    /// Models of the registry domain of `model`.
    pub(crate) fn peers(&self, model: u32) -> &[u32] {
        &self.models[self.of[model as usize]]
    }

    /// Registry domains with the parent group of `domain`.
    pub(crate) fn related(&self, domain: &str) -> Vec<&str> {
        let group = self.groups.get(parent_group(domain));
        let domains = group.into_iter().flatten();
        domains.map(|domain| self.names[*domain].as_str()).collect()
    }

    /// Models that may be negatives: neither retired nor named like a web page.
    pub(crate) fn usable(&self) -> &[u32] {
        &self.usable
    }

    pub(crate) fn is_usable(&self, model: u32) -> bool {
        self.usable.binary_search(&model).is_ok()
    }
}

/// A hub of models `m<id>` with these domains, for tests.
#[cfg(test)]
pub(crate) fn hub_of<'d>(domains: impl IntoIterator<Item = &'d str>) -> Hub {
    let models = domains
        .into_iter()
        .enumerate()
        .map(|(id, domain)| crate::hub::Model::new(&format!("m{id}"), domain));
    match Hub::default().with(models) {
        Ok(hub) => hub,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hub::Model;

    #[test]
    fn models_and_groups() {
        let hub = hub_of(["Audio A", " audio  a", "audio b", "Graph x", ""]);
        let domains = DomainGroups::new(&hub);
        assert_eq!(domains.len(), 5);
        assert_eq!(domains.models("audio a"), [0, 1]);
        assert_eq!(domains.models("unknown"), [4]);
        assert!(domains.models("audio").is_empty());
        assert_eq!(domains.peers(1), [0, 1]);
        assert_eq!(domains.related("audio c"), ["audio a", "audio b"]);
        assert!(domains.related("video").is_empty());
    }

    #[test]
    fn pages_and_retired_models_are_no_negatives() {
        let hub = Hub::default()
            .with(
                ["a", "https://HuggingFace.co/b", "huggingface.co", "c"]
                    .map(|name| Model::new(name, "d")),
            )
            .unwrap();
        let domains = DomainGroups::new(&hub.retire("c").unwrap());
        assert_eq!(domains.usable(), [0, 2]);
        assert!(domains.is_usable(2) && !domains.is_usable(1) && !domains.is_usable(3));
    }
}
