//! The engine at the start of an update: parameters, rows of new models, anchors, priors.

use std::sync::Arc;

use super::update::Update;
use crate::error::Result;
use crate::generation::{NewModel, rows::card_row};
use crate::hub::domain_key;
use crate::learn::engine::{Capacity, Engine};
use crate::learn::method::draws::{Draws, Stream};
use crate::learn::method::init;
use crate::learn::method::layout::ParameterLayout;
use crate::learn::settings::{CandidateMode, InitProfile, InitRows, Settings};
use crate::model::lora::{Adapter, Factors, Lora};
use crate::num::to_f32;

impl Update<'_> {
    /// The engine with parameters as they are before the first step.
    pub(super) fn engine(&self) -> Result<Engine> {
        let (parent, encoder, settings) = (&self.parent, &self.encoder, &self.config.settings);
        let number = self.task.experience;
        let anew = number == 1 && settings.init_profile == InitProfile::Random;
        let (layout, mut values) = self.initial(anew)?;
        let capacity = Capacity {
            examples: settings.batch,
            candidates: (settings.candidates == CandidateMode::Sampled)
                .then(|| settings.candidates_k.min(layout.e.rows)),
            targets: 1 + settings.soft_k,
        };
        let tau = to_f32(settings.tau);
        let mut engine = Engine::new(Arc::clone(encoder), layout, capacity, &values, tau)?;
        engine.set_dropout(to_f32(settings.lora_dropout));
        if !anew && !self.new_models.is_empty() {
            self.new_rows(&mut engine, &mut values)?;
        }
        if number > 1 {
            engine.anchor_to(&parent.embeddings, &parent.projection)?;
            engine.set_priors(&self.priors())?;
        }
        Ok(engine)
    }

    /// Initial parameters, in the order of their layout; rows of new models are random. `anew`: W
    /// and all rows of E are random too.
    fn initial(&self, anew: bool) -> Result<(ParameterLayout, Vec<f32>)> {
        let (parent, config) = (&self.parent, self.encoder.config());
        let settings = &self.config.settings;
        let inputs = self.encoder.width();
        let number = self.task.experience.into();
        let width = match settings.width {
            Some(width) if anew => width,
            _ if anew => inputs,
            _ => parent.manifest.width,
        };
        settings.check_width(width, inputs)?;
        let factors = match parent.factors(config)? {
            Some(factors) => factors,
            None => {
                let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 0]);
                let adapter = Adapter::new(&settings.lora(), config);
                Factors::fresh(adapter, || draws.float())
            }
        };
        let models = self.task.hub.len();
        let layout = ParameterLayout::new(factors.adapter, width, inputs, models);
        let mut values = factors.values;
        values.reserve_exact(layout.len() - values.len());
        let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 1]);
        if anew {
            values.extend(init::xavier(width, inputs, &mut draws));
            values.extend(init::xavier(models, width, &mut draws));
        } else {
            values.extend(&parent.projection);
            values.extend(&parent.embeddings);
            values.extend(init::xavier(self.new_models.len(), width, &mut draws));
        }
        Ok((layout, values))
    }

    /// The shift of each model's logits (`prior.old`).
    fn priors(&self) -> Vec<f32> {
        let absent = to_f32(self.config.settings.prior_old);
        let mut priors = vec![absent; self.parent.hub.len()];
        priors.resize(self.task.hub.len(), 0.0);
        for row in self.task.rows.iter().filter(|row| !row.replay) {
            priors[row.gold as usize] = 0.0;
        }
        priors
    }

    /// Replaces the random rows of new models as `init.rows` says.
    fn new_rows(&self, engine: &mut Engine, values: &mut [f32]) -> Result<()> {
        let (parent, new_models) = (&self.parent, &self.new_models);
        let width = parent.manifest.width;
        let domains = parent.hub.iter().map(|(_, m)| domain_key(&m.domain));
        let domains: Vec<String> = domains.collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let of_domain = |model: &NewModel| {
            let domain = domain_key(&model.model.domain);
            init::domain_row(&parent.embeddings, width, &domains, &domain)
        };
        let new: Vec<Vec<f32>> = match self.config.settings.rows() {
            InitRows::Domain => new_models.iter().map(of_domain).collect(),
            InitRows::Card => {
                let cards = engine.card_vectors(new_models)?;
                let row = |(model, vectors): (&NewModel, &Vec<Vec<f32>>)| {
                    card_row(model, &parent.projection, vectors, width)
                };
                new_models
                    .iter()
                    .zip(&cards)
                    .map(row)
                    .collect::<Result<_>>()?
            }
            InitRows::CardMix => self.mixed_rows(of_domain),
            _ => return Ok(()),
        };
        let rows = engine.layout().e.offset + parent.hub.len() * width;
        for (row, new) in values[rows..].chunks_exact_mut(width).zip(&new) {
            row.copy_from_slice(new);
        }
        engine.set(values)
    }

    /// Rows mixed from those of old models with similar cards; `otherwise`: where none is similar.
    fn mixed_rows(&self, otherwise: impl Fn(&NewModel) -> Vec<f32>) -> Vec<Vec<f32>> {
        let manifest = &self.parent.manifest;
        let inputs = manifest.encoder.width;
        let vectors = self.cards.iter().flat_map(|c| c.chunks_exact(inputs));
        let vectors: Vec<&[f32]> = vectors.collect();
        let (known, added) = vectors.split_at(self.parent.hub.len());
        let row = |(model, card): (&NewModel, &&[f32])| {
            let cosine = |of: &&[f32]| card.iter().zip(*of).map(|(a, b)| a * b).sum();
            let cosines: Vec<f32> = known.iter().map(cosine).collect();
            let rows = &self.parent.embeddings;
            init::mixed_row(rows, manifest.width, &cosines, init::MIXED)
                .unwrap_or_else(|| otherwise(model))
        };
        self.new_models.iter().zip(added).map(row).collect()
    }
}

impl Settings {
    /// The adapter to train; without targets if none is trained.
    fn lora(&self) -> Lora {
        Lora {
            r: self.lora_r,
            alpha: to_f32(self.lora_alpha),
            targets: if self.lora_train {
                self.lora_targets.clone()
            } else {
                Vec::new()
            },
        }
    }
}
