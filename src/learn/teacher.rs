//! Learning without forgetting: what the parent says of the rows that are distilled, taken once
//! before anything is learned (carve.md section 12.5).

use crate::error::Result;
use crate::learn::engine::{Engine, Taught};
use crate::learn::experience::{Row, RowInput};
use crate::learn::settings::{LwfRows, Settings};
use crate::text::tokenizer::Tokens;

/// The parent's scores of all its models.
#[derive(Default)]
pub(crate) struct Teacher {
    /// Where a row's scores are; none: it is not distilled.
    places: Vec<Option<usize>>,
    /// [distilled rows, M_old]
    scores: Vec<f32>,
    models: usize,
    alpha: f32,
}

impl Teacher {
    /// Of `engine` as it is, which must be the parent but for new rows of E. `models`, `tau`: the
    /// parent's. The engine can be taught from then on.
    ///
    /// `progress`: called with prompts done and of how many.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an f32 is what is asked for"
    )]
    pub(crate) fn new(
        engine: &mut Engine,
        rows: &[Row],
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
            log::info!("no row has a gold that the parent knows: nothing is distilled");
            return Ok(Self::default());
        }
        engine.teach(models, settings.lwf_temperature as f32);
        let tokens: Vec<&Tokens> = chosen.iter().filter_map(|row| row.tokens()).collect();
        let vectors = engine.features(&tokens, &mut |done| progress(done, tokens.len()))?;
        let mut vectors = vectors.chunks_exact((vectors.len() / tokens.len().max(1)).max(1));
        let pooled: Vec<&[f32]> = chosen
            .iter()
            .map(|row| match &row.input {
                RowInput::Tokens(_) => vectors.next().unwrap_or_default(),
                RowInput::Pooled(vector) => vector,
            })
            .collect();
        Ok(Self {
            places,
            scores: engine.teacher_scores(&pooled, tau)?,
            models,
            alpha: settings.lwf_alpha as f32,
        })
    }

    /// What is said of the rows of a micro-batch, one of `window` in a step. Its term is the mean over
    /// those of its rows that are distilled, the step's the mean over the window, as for the
    /// routing loss.
    pub(crate) fn taught(&self, rows: &[usize], window: usize) -> Vec<Option<Taught<'_>>> {
        let place = |row: &usize| self.places.get(*row).copied().flatten();
        let count = rows.iter().filter_map(place).count();
        let taught = |place: usize| Taught {
            scores: &self.scores[place * self.models..(place + 1) * self.models],
            share: self.alpha / (count * window) as f32,
        };
        rows.iter().map(|row| place(row).map(taught)).collect()
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
            let taught = teacher.taught(rows, window).into_iter();
            taught
                .map(|taught| taught.map(|taught| (taught.scores.to_vec(), taught.share)))
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
        assert!(nobody.taught(&[0, 7], 1).iter().all(Option::is_none));
    }
}
