//! The engine at the start of an experience: parameters, rows of new models, anchors, priors.

use std::sync::Arc;

use super::Learner;
use super::prepare::{Task, Update};
use crate::error::Result;
use crate::generation::{Contents, NewModel, rows::card_row};
use crate::hub::domain_key;
use crate::learn::draws::{Draws, Stream};
use crate::learn::engine::{Engine, Layout, Shape};
use crate::learn::rows;
use crate::learn::settings::{CandidateMode, InitProfile, InitRows, Settings};
use crate::model::lora::{Adapter, Factors, Lora};

impl Learner {
    /// The engine with parameters as they are at the start of the experience.
    pub(super) fn engine(&self, update: &Update) -> Result<Engine> {
        let Update {
            contents,
            encoder,
            task,
            new_models,
            cards,
            ..
        } = update;
        let settings = &self.settings;
        let inputs = encoder.width();
        let number = task.experience.into();
        let anew = number == 1 && settings.init_profile == InitProfile::Random;
        let width = match settings.width {
            Some(width) if anew => width,
            _ if anew => inputs,
            _ => contents.manifest.width,
        };
        settings.check_width(width, inputs)?;
        let factors = match contents.factors(encoder.config())? {
            Some(factors) => factors,
            None => {
                let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 0]);
                let adapter = Adapter::new(&settings.lora(), encoder.config());
                Factors::fresh(adapter, || draws.float())
            }
        };
        let models = task.hub.len();
        let layout = Layout::new(factors.adapter, width, inputs, models);
        let mut values = factors.values;
        let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 1]);
        if anew {
            values.extend(rows::xavier(width, inputs, &mut draws));
            values.extend(rows::xavier(models, width, &mut draws));
        } else {
            values.extend(&contents.projection);
            values.extend(&contents.embeddings);
            values.extend(rows::xavier(new_models.len(), width, &mut draws));
        }
        let shape = Shape {
            examples: settings.batch,
            candidates: (settings.candidates == CandidateMode::Sampled)
                .then(|| settings.candidates_k.min(models)),
            targets: 1 + settings.soft_k,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        let tau = settings.tau as f32;
        let mut engine = Engine::new(Arc::clone(encoder), layout, shape, &values, tau)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        engine.set_dropout(settings.lora_dropout as f32);
        if !anew && !new_models.is_empty() {
            self.new_rows(&mut engine, &mut values, contents, new_models, cards)?;
        }
        if number > 1 {
            engine.anchor_to(&contents.embeddings, &contents.projection)?;
            engine.set_priors(&self.priors(task, contents.hub.len()))?;
        }
        Ok(engine)
    }

    /// The shift of each model's logits; the first `old` models are those of the parent.
    fn priors(&self, task: &Task, old: usize) -> Vec<f32> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        let absent = self.settings.prior_old as f32;
        let mut priors = vec![absent; old];
        priors.resize(task.hub.len(), 0.0);
        for row in task.rows.iter().filter(|row| !row.replay) {
            priors[row.gold as usize] = 0.0;
        }
        priors
    }

    /// Gives the rows of new models, which are random, what `init.rows` says.
    fn new_rows(
        &self,
        engine: &mut Engine,
        values: &mut [f32],
        contents: &Contents,
        new_models: &[NewModel],
        cards: &Option<Vec<f32>>,
    ) -> Result<()> {
        let (width, old) = (contents.manifest.width, contents.hub.len());
        let e = engine.layout().e.offset;
        let domains: Vec<String> = contents
            .hub
            .iter()
            .map(|(_, m)| domain_key(&m.domain))
            .collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let of_domain = |model: &NewModel| {
            let domain = domain_key(&model.model.domain);
            rows::domain_row(&contents.embeddings, width, &domains, &domain)
        };
        let new: Vec<Vec<f32>> = match self.settings.rows() {
            InitRows::Domain => new_models.iter().map(of_domain).collect(),
            InitRows::Card => {
                let cards = engine.card_vectors(new_models)?;
                let cards = new_models.iter().zip(&cards);
                let row = |(model, vectors): (&NewModel, &Vec<Vec<f32>>)| {
                    card_row(model, &contents.projection, vectors, width)
                };
                cards.map(row).collect::<Result<_>>()?
            }
            InitRows::CardMix => {
                let h = contents.manifest.encoder.width;
                let vectors = cards.iter().flat_map(|cards| cards.chunks_exact(h));
                let vectors: Vec<&[f32]> = vectors.collect();
                let (known, added) = vectors.split_at(old);
                let row = |(model, card): (&NewModel, &&[f32])| {
                    let cosine = |of: &&[f32]| card.iter().zip(*of).map(|(a, b)| a * b).sum();
                    let cosines: Vec<f32> = known.iter().map(cosine).collect();
                    rows::mixed_row(&contents.embeddings, width, &cosines, rows::MIXED)
                        .unwrap_or_else(|| of_domain(model))
                };
                new_models.iter().zip(added).map(row).collect()
            }
            _ => return Ok(()),
        };
        for (i, row) in new.iter().enumerate() {
            values[e + (old + i) * width..][..width].copy_from_slice(row);
        }
        engine.set(values)
    }
}

impl Settings {
    /// The adapter that they ask for; without targets where none is trained.
    fn lora(&self) -> Lora {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        Lora {
            r: self.lora_r,
            alpha: self.lora_alpha as f32,
            targets: if self.lora_train {
                self.lora_targets.clone()
            } else {
                Vec::new()
            },
        }
    }
}
