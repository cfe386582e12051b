//! Changes of a store's current generation that need no learning.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::{Contents, GenerationId, NewModel};
use crate::hub::Hub;
use crate::options::Options;
use crate::store::{Lock, Store};

/// A change under way: the current generation in memory, to be published as its child.
///
/// Until the value is dropped no other writer can change the store: two changes at once would both
/// start from the same parent, and one would be lost. A dry run takes no lock and publishes
/// nothing.
///
/// ```no_run
/// let store = hubrouter::Store::open("my-store")?;
/// let mut edit = store.edit(false)?;
/// edit.retire("gpt2")?;
/// edit.rename("acme/ner", "acme/ner-v1")?;
/// println!("{} is current", edit.commit()?);
/// # Ok::<(), hubrouter::Error>(())
/// ```
pub struct Edit {
    store: Store,
    lock: Option<Lock>,
    parent: GenerationId,
    contents: Contents,
    /// The generation's encoder, if it was opened.
    encoder: Option<Arc<Encoder>>,
    /// The changes so far, in words.
    made_by: Vec<String>,
}

impl Store {
    /// Begins a change of the current generation: reads it, every part checked, and keeps other
    /// writers out, unless it is a dry run.
    ///
    /// Errors: the current generation is damaged; another process writes for too long; the store is
    /// read-only and this is no dry run.
    pub fn edit(&self, dry_run: bool) -> Result<Edit> {
        let lock = if dry_run { None } else { Some(self.lock()?) };
        let parent = self.current()?;
        let contents = self.contents(&parent)?;
        Ok(Edit {
            store: self.clone(),
            lock,
            parent,
            contents,
            encoder: None,
            made_by: Vec::new(),
        })
    }
}

impl Edit {
    /// The generation that is changed.
    pub fn parent(&self) -> &GenerationId {
        &self.parent
    }

    /// The hub with the changes so far.
    pub fn hub(&self) -> &Hub {
        &self.contents.hub
    }

    /// The generation with the changes so far.
    pub(crate) fn contents(&mut self) -> &mut Contents {
        &mut self.contents
    }

    /// Opens the encoder that the generation belongs to.
    ///
    /// Errors: it is not found, or cannot be opened.
    pub fn open_encoder(&self, options: &Options) -> Result<Encoder> {
        let pin = &self.contents.manifest.encoder;
        self.store.open_encoder(pin, options)
    }

    /// Adds models: their rows are their encoded cards.
    ///
    /// Errors: a name is taken; `encoder` is not the generation's.
    pub fn add(
        &mut self,
        encoder: &Arc<Encoder>,
        models: &[NewModel],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        self.contents.grow(encoder, models, progress)?;
        self.encoder = Some(Arc::clone(encoder));
        self.made_by.push(format!("hub add {}", shown(models)));
        Ok(())
    }

    /// Takes a model out of routing; its id and names stay taken.
    pub fn retire(&mut self, name: &str) -> Result<()> {
        self.change_hub(format!("hub retire {name}"), |hub| hub.retire(name))
    }

    /// Renames a model; the old name stays an alias.
    pub fn rename(&mut self, name: &str, new: &str) -> Result<()> {
        self.change_hub(format!("hub rename {name} {new}"), |hub| {
            hub.rename(name, new)
        })
    }

    /// Gives a model another name.
    pub fn alias(&mut self, name: &str, alias: &str) -> Result<()> {
        self.change_hub(format!("hub alias {name} {alias}"), |hub| {
            hub.alias(name, alias)
        })
    }

    /// Gives a model attributes in place of those of the same names; `null` takes one away.
    pub fn set(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, serde_json::Value>,
    ) -> Result<()> {
        let keys: Vec<&str> = attributes.keys().map(String::as_str).collect();
        self.change_hub(format!("hub set {name} {}", keys.join(" ")), |hub| {
            hub.set(name, attributes)
        })
    }

    fn change_hub(&mut self, how: String, change: impl FnOnce(&Hub) -> Result<Hub>) -> Result<()> {
        self.contents.hub = Arc::new(change(&self.contents.hub)?);
        self.made_by.push(how);
        Ok(())
    }

    /// Publishes the child and makes it current; on an error the store is as it was.
    ///
    /// Errors: this is a dry run; nothing was changed; the store cannot be written; the child
    /// cannot be opened.
    pub fn commit(self) -> Result<GenerationId> {
        if self.made_by.is_empty() {
            bail!(InvalidRequest, "{}: nothing was changed", self.parent);
        }
        let made_by = self.made_by.join("; ");
        self.commit_as(made_by)
    }

    /// As [`Edit::commit`], of a change that gives prompts other vectors, which `encoder` asks: what
    /// was measured of the parent does not hold for the child.
    pub(crate) fn commit_anew(
        self,
        encoder: &Arc<Encoder>,
        made_by: String,
    ) -> Result<GenerationId> {
        let Some(lock) = &self.lock else {
            bail!(InvalidRequest, "a dry run publishes nothing");
        };
        let child = self.contents.child(self.parent, made_by);
        self.store.publish(lock, &child, Some(encoder))
    }

    /// As [`Edit::commit`], of any change that leaves prompts' vectors as they are; `made_by`: the
    /// change in words.
    pub(crate) fn commit_as(mut self, made_by: String) -> Result<GenerationId> {
        let Some(lock) = &self.lock else {
            bail!(InvalidRequest, "a dry run publishes nothing");
        };
        self.contents.agreement = self.store.inherited_agreement(&self.parent);
        self.contents.calibration = self.store.inherited_calibration(&self.parent);
        let child = self.contents.child(self.parent, made_by);
        self.store.publish(lock, &child, self.encoder.as_ref())
    }
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit")
            .field("store", &self.store.root())
            .field("parent", &self.parent)
            .field("made_by", &self.made_by)
            .finish_non_exhaustive()
    }
}

/// The names of the first three models, and how many more there are.
fn shown(models: &[NewModel]) -> String {
    let names: Vec<&str> = models.iter().map(|new| &*new.model.name).take(3).collect();
    let names = names.join(" ");
    match models.len().saturating_sub(3) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
