//! The features of a prompt that one pass of the encoder gives.

use crate::device::{Plan, Plans, Sizes};
use crate::encoder::{Encoder, sizes};
use crate::error::{Result, bail};
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::text::tokenizer::Tokens;

/// Quantisation steps between 0 and 1 of an element of a unit vector.
pub(crate) const STEPS: i64 = 64;

/// The features of a prompt: all that learning and routing need of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// The pooled vector, [H].
    pub(crate) pooled: Vec<f32>,
    /// [L H]: the mean over its tokens of each remembered layer's output, as a unit vector in steps
    /// from -[`STEPS`] to [`STEPS`].
    pub(crate) layers: Vec<i16>,
    /// Hashes of its words (`text::words`).
    pub(crate) words: Vec<u32>,
}

/// The layers that are remembered by default: the upper two thirds of `count`. If their vector
/// would have more than 2,304 elements, fewer of them, evenly spread.
pub(crate) fn usual_layers(count: usize, hidden: usize) -> Vec<usize> {
    let upper = count - count / 3;
    let most = (2304 / hidden.max(1)).clamp(1, upper);
    let places = (1..=most).map(|place| count - upper + place * upper / most - 1);
    places.collect()
}

/// The features of `prompts`. `bert`: the encoder's network, or another of its shape.
///
/// Errors: a vector is not finite; the device failed.
pub(crate) fn look(
    encoder: &Encoder,
    bert: &Bert,
    layers: &[usize],
    prompts: &[&Tokens],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Seen>> {
    let device = encoder.device();
    let mut all = Vec::with_capacity(prompts.len());
    let width = layers.len() * encoder.width();
    let plans = Plans::new();
    let make = |room: Sizes| {
        let a = Activations::new(device, encoder.ops(), encoder.config(), room, layers)?;
        let reads = 4 * room.prompts * (width + encoder.width());
        Plan::new(device, a, Activations::upload_bytes(room), reads)
    };
    let start = |chunk: &[&Tokens]| {
        let batch = encoder.pack(chunk);
        let mut held = plans.hold(sizes(&batch), make)?;
        let started = device.start(&mut held.plan, |pass, a| {
            a.upload(pass, &batch);
            bert.forward(encoder.ops(), pass, a, None, None);
            let means = a.layers.as_ref().map(|layers| pass.read(&layers.units));
            (pass.read(&a.pooled), means)
        })?;
        Ok((held, started))
    };
    encoder.each_batch(prompts, usize::MAX, start, |chunk, started| {
        let (mut held, ((pooled, means), running)) = started?;
        let outputs = device.finish(&mut held.plan, running)?;
        plans.give_back(held);
        let pooled = outputs.f32(pooled).chunks_exact(encoder.width());
        let means = means.map_or(&[][..], |means| outputs.f32(means));
        let means = means.chunks_exact(width.max(1));
        for ((pooled, means), tokens) in pooled.zip(means).zip(chunk) {
            if let Some(value) = pooled.iter().chain(means).find(|value| !value.is_finite()) {
                bail!(
                    Numeric,
                    "the encoder's vector: expected finite numbers, found {value}: its weights are not good"
                );
            }
            all.push(Seen {
                pooled: pooled.to_vec(),
                layers: means.iter().map(|value| steps(*value)).collect(),
                words: tokens.words.clone(),
            });
        }
        progress(all.len());
        Ok(())
    })?;
    Ok(all)
}

/// The nearest step to an element of a unit vector.
fn steps(value: f32) -> i16 {
    #[expect(clippy::cast_possible_truncation, reason = "at most STEPS")]
    let steps = (value.clamp(-1.0, 1.0) * STEPS as f32).round_ties_even() as i16;
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_two_thirds_are_remembered() {
        assert_eq!(usual_layers(6, 384), [2, 3, 4, 5]);
        assert_eq!(usual_layers(12, 384), [4, 5, 7, 8, 9, 11]);
        assert_eq!(usual_layers(12, 768), [5, 8, 11]);
        assert_eq!(usual_layers(2, 32), [0, 1]);
        assert_eq!(usual_layers(1, 32), [0]);
        assert_eq!(usual_layers(24, 4096), [23]);
    }

    #[test]
    fn elements_are_rounded_to_steps() {
        assert_eq!(
            [1.0, -1.0, 0.0, 0.02, -0.024].map(steps),
            [64, -64, 0, 1, -2]
        );
        assert_eq!([1.001, -1.001].map(steps), [64, -64]);
    }
}
