//! Prompts through a generation: queries, the memory's places, words, all scores, the best models.

use super::tensors::ParityTensors;
use crate::error::Result;
use crate::ops::LOWEST;
use crate::serve::Serving;
use crate::text::tokenizer::Tokens;

/// The tensors of `prompts` by `serving`; a retired model's scores are [`LOWEST`].
///
/// Errors: the device failed; a score is not finite.
pub(super) fn run(serving: &Serving, prompts: &[Tokens], top: usize) -> Result<ParityTensors> {
    let (models, top) = (serving.hub.len(), top.min(serving.hub.active()));
    let mut rows = RankedRows::default();
    let prompts: Vec<&Tokens> = prompts.iter().collect();
    for batch in serving
        .encoder
        .batches(&prompts, serving.index.most_prompts())
    {
        rows.queries.extend(serving.queries(batch)?);
        // More than the kernels rank, so that all scores come back.
        let all = serving.rank(batch, models)?.rankings;
        let best = serving.rank(batch, top)?.rankings;
        for (all, best) in all.into_iter().zip(best) {
            rows.add(serving, all);
            for (id, score) in best.best {
                rows.ids.push(id);
                rows.best.push(score);
            }
        }
    }
    let (count, mut made) = (prompts.len(), ParityTensors::default());
    let width = rows.queries.first().map_or(0, Vec::len);
    made.put_f32("queries", &[count, width], rows.queries.concat());
    let mut put = |name: &str, values: Vec<f32>| {
        let columns = values.len() / count.max(1);
        made.put_f32(name, &[count, columns], values);
    };
    put("learned", rows.learned);
    put("scores", rows.scores);
    put("top.scores", rows.best);
    if serving.index.recall().is_some() {
        put("places", rows.places);
        put("memory", rows.memory);
        put("words", rows.words);
    }
    made.put_ids(
        "top.ids",
        &[count, rows.ids.len() / count.max(1)],
        &rows.ids,
    );
    Ok(made)
}

/// Rows of all prompts, one after the other.
#[derive(Default)]
struct RankedRows {
    queries: Vec<Vec<f32>>,
    learned: Vec<f32>,
    places: Vec<f32>,
    memory: Vec<f32>,
    words: Vec<f32>,
    scores: Vec<f32>,
    ids: Vec<u32>,
    best: Vec<f32>,
}

impl RankedRows {
    /// `all`: the ranking of every model.
    fn add(&mut self, serving: &Serving, all: crate::serve::index::Ranking) {
        let models = serving.hub.len();
        let mut own = vec![[LOWEST; 3]; models];
        let mut words = vec![LOWEST; serving.index.domains().len()];
        for (place, (id, score)) in all.best.iter().enumerate() {
            let parts = all.parts.get(place);
            let learned = parts.map_or(*score, |parts| parts.learned);
            let memory = parts.map_or(0.0, |parts| parts.memory);
            own[*id as usize] = [learned, memory, *score];
            if let Some(parts) = parts {
                words[serving.index.domain_of(*id)] = parts.words;
            }
        }
        self.learned.extend(own.iter().map(|own| own[0]));
        self.memory.extend(own.iter().map(|own| own[1]));
        self.scores.extend(own.iter().map(|own| own[2]));
        self.words.extend(words);
        self.places
            .extend(all.place.map(|place| place.y).unwrap_or_default());
    }
}
