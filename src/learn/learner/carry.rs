//! Changes of the hub that were made while a child was learned. Where that is exact, the child gets
//! them too.

use std::sync::Arc;

use crate::generation::{Contents, GenerationId, HUB, Manifest};
use crate::hub::{Hub, Model};

/// The parent as it was when the update began, to see later what was changed.
pub(super) struct Base {
    manifest: Manifest,
    hub: Arc<Hub>,
}

impl Base {
    pub(super) fn of(parent: &Contents) -> Self {
        Self {
            manifest: parent.manifest.clone(),
            hub: parent.hub.clone(),
        }
    }

    /// The child as a child of `now`, as if the changes that led there had been made to it.
    ///
    /// `None` if they are more than retired models, new names and aliases: a row that the parent's
    /// router made of a card does not fit the child, and the card is not kept. `None` too if a new
    /// name is that of a new model of the child.
    pub(super) fn carry(
        &self,
        child: &Contents,
        id: &GenerationId,
        now: &Contents,
    ) -> Option<Contents> {
        let same = self.hub.iter().zip(now.hub.iter()).all(|(a, b)| {
            let renamed = Model {
                name: b.1.name.clone(),
                aliases: b.1.aliases.clone(),
                retired: b.1.retired,
                ..a.1.clone()
            };
            renamed == *b.1
        });
        if !same || self.hub.len() != now.hub.len() || !self.differs_by_hub_alone(&now.manifest) {
            return None;
        }
        let own = child.hub.iter().skip(self.hub.len());
        let hub = now.hub.with(own.map(|(_, model)| model.clone())).ok()?;
        let mut child = child.clone();
        child.manifest.sequence = now.manifest.sequence.saturating_add(1);
        child.manifest.parent = Some(id.clone());
        child.hub = Arc::new(hub);
        let retired = |hub: &Hub| hub.iter().filter(|(_, model)| model.retired).count();
        if retired(&self.hub) != retired(&now.hub) {
            // It was measured with those models.
            child.agreement = None;
        }
        Some(child)
    }

    fn differs_by_hub_alone(&self, now: &Manifest) -> bool {
        let mut then = self.manifest.clone();
        then.sequence = now.sequence;
        then.parent.clone_from(&now.parent);
        then.made_by.clone_from(&now.made_by);
        if let Some(hub) = now.files.get(HUB) {
            then.files.insert(HUB.to_owned(), hub.clone());
        }
        then == *now
    }
}
