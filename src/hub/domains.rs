//! The models of each domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::hub::{Hub, domain_key};
use crate::num::to_u32;

/// Domains of a hub by their key, in its order.
pub(crate) struct Domains {
    /// As first spelled in the hub.
    pub(crate) names: Vec<Arc<str>>,
    /// Ids of each.
    pub(crate) members: Vec<Vec<u32>>,
    /// Domain of each model, [M].
    pub(crate) of: Vec<u32>,
}

impl Domains {
    pub(crate) fn new(hub: &Hub) -> Self {
        let mut groups: BTreeMap<String, (Arc<str>, Vec<u32>)> = BTreeMap::new();
        for (id, model) in hub.iter() {
            let group = groups
                .entry(domain_key(&model.domain))
                .or_insert_with(|| (Arc::clone(&model.domain), Vec::new()));
            group.1.push(id.0);
        }
        let (names, members): (Vec<_>, Vec<Vec<u32>>) = groups.into_values().unzip();
        let mut of = vec![0; hub.len()];
        for (domain, ids) in members.iter().enumerate() {
            for id in ids {
                of[*id as usize] = to_u32(domain);
            }
        }
        Self { names, members, of }
    }
}
