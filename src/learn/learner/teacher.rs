//! Learning without forgetting: the parent's scores of the rows that are distilled, taken once
//! before the first step (carve.md section 12.5).

use super::update::Update;
use super::{Status, Watch};
use crate::error::Result;
use crate::learn::data::rows::{PromptRow, RowInput};
use crate::learn::engine::{Distilled, Engine};
use crate::learn::settings::{LwfRows, Settings};
use crate::num::to_f32;
use crate::text::tokenizer::Tokens;

/// The parent's scores of all its models.
#[derive(Default)]
pub(super) struct Teacher {
    /// Where a row's scores are; `None`: it is not distilled.
    places: Vec<Option<usize>>,
    /// [distilled rows, M_old]
    scores: Vec<f32>,
    models: usize,
    alpha: f32,
}

impl Update<'_> {
    /// The parent's scores to distil; without any where nothing is distilled.
    pub(super) fn teacher(&self, engine: &mut Engine, watch: Watch<'_>) -> Result<Teacher> {
        let settings = &self.config.settings;
        if settings.lwf_alpha == 0.0 || self.task.experience == 1 {
            return Ok(Teacher::default());
        }
        let parent = (self.parent.hub.len(), self.parent.manifest.tau);
        let mut say = |done, total| {
            watch(&Status::of("teacher", done, total));
        };
        Teacher::new(engine, &self.task.rows, parent, settings, &mut say)
    }
}

impl Teacher {
    /// Of `engine` as it is, which must be the parent but for new rows of E; items can be distilled
    /// from then on. `models`, `tau`: the parent's.
    ///
    /// `progress`: called with the number of prompts done and of all.
    fn new(
        engine: &mut Engine,
        rows: &[PromptRow],
        (models, tau): (usize, f32),
        settings: &Settings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let mut chosen = Vec::new();
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let distilled = settings.lwf_rows == LwfRows::All || (row.gold as usize) < models;
            places.push(distilled.then_some(chosen.len()));
            chosen.extend(distilled.then_some(row));
        }
        if chosen.is_empty() {
            log::info!("the parent knows no row's gold: nothing is distilled");
            return Ok(Self::default());
        }
        engine.set_distill(models, to_f32(settings.lwf_temperature));
        let tokens: Vec<&Tokens> = chosen.iter().filter_map(|row| row.tokens()).collect();
        let vectors = engine.features(&tokens, &mut |done| progress(done, tokens.len()))?;
        let mut vectors = vectors.chunks_exact((vectors.len() / tokens.len().max(1)).max(1));
        let pooled: Vec<&[f32]> = chosen
            .iter()
            .map(|row| match &row.input {
                RowInput::Tokens(_) => vectors.next().unwrap_or_default(),
                RowInput::Pooled(vector) => &vector[..],
            })
            .collect();
        Ok(Self {
            places,
            scores: engine.teacher_scores(&pooled, tau)?,
            models,
            alpha: to_f32(settings.lwf_alpha),
        })
    }

    /// The scores of the rows of a micro-batch, one of `window` in a step. The loss is the mean
    /// over the distilled rows of a micro-batch, and then over the window, as the routing loss is.
    pub(super) fn distilled(&self, rows: &[usize], window: usize) -> Vec<Option<Distilled<'_>>> {
        let place = |row: &usize| self.places.get(*row).copied().flatten();
        let count = rows.iter().filter_map(place).count();
        let distilled = |place: usize| Distilled {
            scores: &self.scores[place * self.models..(place + 1) * self.models],
            share: self.alpha / (count * window) as f32,
        };
        rows.iter().map(|row| place(row).map(distilled)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_in_their_micro_batch() {
        let teacher = Teacher {
            places: vec![Some(0), None, Some(1), None, Some(2)],
            scores: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            models: 2,
            alpha: 3.0,
        };
        let of = |rows: &[usize], window| -> Vec<Option<(Vec<f32>, f32)>> {
            let distilled = teacher.distilled(rows, window).into_iter();
            distilled
                .map(|row| row.map(|row| (row.scores.to_vec(), row.share)))
                .collect()
        };
        assert_eq!(
            of(&[4, 1, 0], 1),
            [
                Some((vec![5.0, 6.0], 1.5)),
                None,
                Some((vec![1.0, 2.0], 1.5))
            ]
        );
        // Alone in one of two micro-batches; and in one of which nothing is distilled.
        assert_eq!(of(&[3, 2], 2), [None, Some((vec![3.0, 4.0], 1.5))]);
        assert_eq!(of(&[1, 3], 2), [None, None]);
        // Without a teacher.
        let nobody = Teacher::default();
        assert!(nobody.distilled(&[0, 7], 1).iter().all(Option::is_none));
    }
}
