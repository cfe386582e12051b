//! Retrieval-augmented routing: the router reads the nearest card behind every prompt (carve.md
//! section 12.8), in the manner of Patil et al., "Gorilla: Large Language Model Connected with
//! Massive APIs" (2023), without a generator.
//!
//! The card is that of the hybrid row (`retrieval.rs`), whose vectors are shared: 0.7 times the
//! frozen encoder's cosine and 0.3 times BM25, over the card rows known at the step. Training and
//! routing see the same text, cut at [`MAX_TOKENS`]: the prompt stands in front, so it is the card
//! that is cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::retrieval::{CardScorer, Retrieval};
use super::trained::{self, Recipe};
use super::{Common, Method, Named, Progressed, StepReport, Watching};
use crate::cmrbench::registry::LastStep;
use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::{Control, Settings};
use crate::options::Options;
use crate::route::Router;
use crate::store::Store;

/// Separates a prompt from its card.
const REFERENCE: &str = "\n<Reference API>: ";

/// Tokens of a prompt with its card; fewer where the encoder has no positions for so many.
const MAX_TOKENS: usize = 256;

/// Prompts between two reports of progress while cards are looked up.
const STRIDE: usize = 64;

/// The parts that later experiences update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RarUpdate {
    /// The index, and the rows of new models by card; only the first experience is learned.
    Frozen,
    /// Everything: the plain step on each experience.
    Each,
}

impl RarUpdate {
    fn learns(self, step: usize) -> bool {
        self == Self::Each || step == 1
    }

    /// The settings of `step`, where it learns.
    pub(super) fn settings(
        self,
        common: &Common<'_>,
        seed: u64,
        step: usize,
    ) -> Result<Option<Settings>> {
        if !self.learns(step) {
            return Ok(None);
        }
        Recipe::plain("0").settings(common, seed, step).map(Some)
    }

    /// Rows that pass through the encoder in `step`, as [`super::MethodInfo::work`] counts them.
    pub(super) fn work(self, common: &Common<'_>, step: usize) -> f64 {
        let experience = &common.data.experiences[step - 1];
        if self.learns(step) {
            (LONGER * common.epochs[step - 1] * experience.train.len()) as f64
        } else {
            experience.cards.len() as f64
        }
    }
}

/// The time of a prompt with its card as a multiple of that of the prompt, about.
pub(super) const LONGER: usize = 8;

pub(super) struct Augmented<'c> {
    common: &'c Common<'c>,
    update: RarUpdate,
    seed: u64,
    /// The store of its generations.
    store: PathBuf,
    /// The cards of the step.
    index: Retrieval<'c>,
    /// The common options with the longer limit; `None` until the encoder's own limit is known.
    options: Option<Options>,
    router: Option<Router>,
}

impl<'c> Augmented<'c> {
    pub(super) fn new(common: &'c Common<'c>, update: RarUpdate, seed: u64, folder: &Path) -> Self {
        Self {
            common,
            update,
            seed,
            store: folder.join("store"),
            index: Retrieval::new(common, CardScorer::Hybrid),
            options: None,
            router: None,
        }
    }

    fn options(&mut self) -> Result<Options> {
        if let Some(options) = &self.options {
            return Ok(options.clone());
        }
        let positions = self.common.frozen.positions(self.common)?;
        let options = self.common.options.clone();
        let options = options.max_tokens(MAX_TOKENS.min(positions));
        self.options = Some(options.clone());
        Ok(options)
    }

    /// `prompts` with the nearest card behind each; `None`: the callback stopped it.
    fn augmented(&self, prompts: &[&str], watch: Watching<'_>) -> Result<Option<Vec<String>>> {
        let mut texts = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(STRIDE) {
            if watch("finding cards", 0.0) == Control::Stop {
                return Ok(None);
            }
            let cards = self.index.nearest(prompts)?;
            let pairs = prompts.iter().zip(cards);
            texts.extend(pairs.map(|(prompt, card)| format!("{prompt}{REFERENCE}{card}")));
        }
        Ok(Some(texts))
    }

    /// Learns the experience of `step`; `None`: the callback stopped it.
    fn train(
        &self,
        common: &Common<'_>,
        settings: Settings,
        step: usize,
        watch: Watching<'_>,
    ) -> Result<Option<StepReport>> {
        let mut experience = trained::experience(common.data, step - 1, step);
        let prompts: Vec<&str> = experience
            .examples
            .iter()
            .map(|example| example.prompt.as_str())
            .collect();
        let Some(texts) = self.augmented(&prompts, watch)? else {
            return Ok(None);
        };
        for (example, text) in experience.examples.iter_mut().zip(texts) {
            example.prompt = text;
        }
        trained::learn(common, &self.store, settings, &experience, watch)
    }

    /// Gives the models that are new at `step` rows by their cards.
    fn add(&self, encoder: &Arc<Encoder>, step: usize) -> Result<StepReport> {
        let data = self.common.data;
        let known = data.hub(step - 1).len();
        let new = &data.hub(step)[known..];
        let store = Store::open(&self.store)?;
        let id = match new {
            [] => store.current()?,
            new => store.add(encoder, new, &mut |_, _| {})?,
        };
        Ok(StepReport {
            state: id.to_string(),
            ..StepReport::nothing(encoder.device_name())
        })
    }
}

impl Method for Augmented<'_> {
    fn learn(&mut self, step: usize, watch: Watching<'_>) -> Result<Progressed> {
        self.router = None;
        let settings = self.update.settings(self.common, self.seed, step)?;
        let cards = self.index.learn(step, &mut |what, _| watch(what, 0.0))?;
        if cards == Progressed::Stopped {
            return Ok(Progressed::Stopped);
        }
        let options = self.options()?;
        let common = Common {
            options: &options,
            ..*self.common
        };
        let encoder = || Encoder::open(common.encoder, common.options).map(Arc::new);
        if step == 1 {
            trained::start(&encoder()?, &self.store, &common.data.hub(step))?;
        }
        let learned = match settings {
            Some(settings) => self.train(&common, settings, step, watch)?,
            None => Some(self.add(&encoder()?, step)?),
        };
        let Some(learned) = learned else {
            return Ok(Progressed::Stopped);
        };
        self.router = Some(trained::open(&common, &self.store)?);
        Ok(Progressed::Done(learned))
    }

    fn resume(&mut self, step: usize, state: &str) -> Result<()> {
        self.index.resume(step, "")?;
        let options = self.options()?;
        let common = Common {
            options: &options,
            ..*self.common
        };
        self.router = Some(trained::resume(&common, &self.store, state)?);
        Ok(())
    }

    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        let texts = self.augmented(prompts, &mut |_, _| Control::Continue)?;
        let texts = texts.unwrap_or_default();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        trained::rank(self.router.as_ref(), &texts)
    }

    fn kept(&self) -> Result<Option<LastStep>> {
        trained::kept(&self.store).map(Some)
    }
}
