//! The child's contents.

use std::sync::Arc;
use std::time::Instant;

use super::memory;
use super::remember::KeptPrompts;
use super::train::LearnedWeights;
use super::update::Update;
use crate::error::Result;
use crate::generation::{ADAPTER, Contents, Learned};
use crate::learn::method::ewc::FISHER;
use crate::num::to_f32;

impl Update<'_> {
    /// The child, of what was trained and what is kept of prompts. Without `weights` it takes over
    /// the parent's W, E and other parts.
    ///
    /// Errors: W or a row of E has no direction; the memory cannot be solved.
    pub(super) fn assemble(
        &mut self,
        weights: Option<LearnedWeights>,
        kept: &mut KeptPrompts,
    ) -> Result<Contents> {
        let child = match weights {
            Some(weights) => self.trained_child(weights)?,
            None => self.untrained_child(&kept.new_rows),
        };
        let made_by = format!("learn {}", self.config.recipe);
        let mut child = child.child(self.config.parent.clone(), made_by);
        child.manifest.learned = Some(self.provenance());
        let parts = std::mem::take(&mut kept.parts).into_iter();
        let parts = parts.map(|(name, bytes)| (name.to_owned(), bytes));
        child.parts.extend(parts);
        child.check_rows()?;
        self.publish_memory(&mut child)?;
        Ok(child)
    }

    fn trained_child(&self, weights: LearnedWeights) -> Result<Contents> {
        let factors = weights.factors();
        let LearnedWeights {
            theta: mut projection,
            layout,
            fisher,
        } = weights;
        let embeddings = projection.split_off(layout.e.offset);
        projection.drain(..layout.w.offset);
        let mut child = Contents {
            manifest: self.parent.manifest.clone(),
            hub: Arc::clone(&self.task.hub),
            projection,
            embeddings,
            parts: Default::default(),
            agreement: None,
            calibration: None,
        };
        child.manifest.width = layout.w.rows;
        child.manifest.tau = to_f32(self.config.settings.tau);
        child.manifest.adapter = None;
        if let Some(factors) = factors {
            child.manifest.adapter = Some(layout.adapter.lora);
            child.parts.insert(ADAPTER.to_owned(), factors.write()?);
        }
        let fisher = fisher.map(|bytes| (FISHER.to_owned(), bytes));
        child.parts.extend(fisher);
        Ok(child)
    }

    /// Moves the parent's W, E and parts into the child.
    fn untrained_child(&mut self, new_rows: &[f32]) -> Contents {
        let parent = &mut self.parent;
        let mut child = Contents {
            manifest: parent.manifest.clone(),
            hub: Arc::clone(&self.task.hub),
            projection: std::mem::take(&mut parent.projection),
            embeddings: std::mem::take(&mut parent.embeddings),
            parts: std::mem::take(&mut parent.parts),
            agreement: None,
            calibration: None,
        };
        child.embeddings.extend(new_rows);
        child
    }

    /// The manifest's record of this update.
    fn provenance(&self) -> Learned {
        let written = self.config.settings.written().into_iter();
        let before = self.parent.manifest.learned.as_ref();
        Learned {
            experience: self.task.experience,
            recipe: self.config.recipe.clone(),
            settings: written
                .map(|(key, value)| (key, value.to_string()))
                .collect(),
            examples_sha256: self.task.digest.clone(),
            device: self.encoder.device_name().to_owned(),
            trained: self.trains || before.is_some_and(|learned| learned.trained),
        }
    }

    /// Adds the parts that are made of the memory.
    fn publish_memory(&self, child: &mut Contents) -> Result<()> {
        let (Some(memory), Some(cards)) = (&self.memory, &self.cards) else {
            return Ok(());
        };
        let (cpu, hub) = (self.encoder.host(), &self.task.hub);
        let (settings, began) = (&self.config.settings, Instant::now());
        memory::publish(memory, settings, cpu, hub, cards, &mut child.parts)?;
        log::debug!("the memory was solved in {:?}", began.elapsed());
        Ok(())
    }
}
