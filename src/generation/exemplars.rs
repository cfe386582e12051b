//! Exemplar centroids of a hub: for each model the mean of the unit vectors, by the frozen encoder, of
//! the prompts that it was learned with.
//!
//! Nothing that is learned later changes them: an old model's centroid moves only with new prompts
//! of its own. They are of prompts as vectors are: a model with one prompt has that prompt's vector.
//! Beside each: how many prompts, of all models, came with its own.

use safetensors::{Dtype, SafeTensors};

use crate::error::{Result, bail, error};
use crate::ops::normalize::unit;
use crate::weights::{View, half_bytes, to_safetensors};

/// Its name in a generation.
pub(crate) const EXEMPLARS: &str = "exemplars.safetensors";
const MEANS: &str = "prompt_means";
const COUNTS: &str = "prompt_counts";
const BROUGHT: &str = "experience_prompts";

/// Means and counts of each model's prompt vectors, and how many prompts came with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exemplars {
    width: usize,
    /// [M, H]
    means: Vec<f32>,
    /// [M]
    counts: Vec<u32>,
    /// Prompts, of all models, of the largest experience that brought some of each; 0: none did. [M]
    brought: Vec<u32>,
}

impl Exemplars {
    /// Of a hub whose models have none.
    pub(crate) fn none(models: usize, width: usize) -> Self {
        Self {
            width,
            means: vec![0.0; models * width],
            counts: vec![0; models],
            brought: vec![0; models],
        }
    }

    /// Of a hub that has grown to `models`: new ones have none.
    pub(crate) fn grow(&mut self, models: usize) {
        self.means.resize(models * self.width, 0.0);
        self.counts.resize(models, 0);
        self.brought.resize(models, 0);
    }

    /// Adds the prompts of an experience, each with its model and its vector [H], of any length but
    /// zero.
    pub(crate) fn learn<'v>(&mut self, prompts: impl ExactSizeIterator<Item = (u32, &'v [f32])>) {
        let brought = u32::try_from(prompts.len()).unwrap_or(u32::MAX);
        for (model, vector) in prompts {
            self.add(model, vector);
            let most = &mut self.brought[model as usize];
            *most = brought.max(*most);
        }
    }

    fn add(&mut self, model: u32, vector: &[f32]) {
        let mut vector = vector.to_vec();
        unit(&mut vector);
        let model = model as usize;
        self.counts[model] = self.counts[model].saturating_add(1);
        let share = 1.0 / self.counts[model] as f32;
        let mean = &mut self.means[model * self.width..][..self.width];
        for (mean, x) in mean.iter_mut().zip(&vector) {
            *mean += share * (x - *mean);
        }
    }

    /// Forgets the prompts of `model`.
    pub(crate) fn clear(&mut self, model: u32) {
        let model = model as usize;
        self.counts[model] = 0;
        self.means[model * self.width..][..self.width].fill(0.0);
    }

    /// The mean of each model's prompts, [M, H], with how many they were.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&[f32], u32)> {
        let means = self.means.chunks_exact(self.width.max(1));
        means.zip(self.counts.iter().copied())
    }

    /// b of `hub::hybrid`, [M].
    pub(crate) fn balance(&self) -> Vec<f32> {
        let brought = || {
            let models = self.brought.iter().zip(&self.counts);
            models.map(|(brought, count)| (*brought > 0 && *count > 0).then(|| f64::from(*brought)))
        };
        let (sum, models) = brought()
            .flatten()
            .fold((0.0, 0.0), |(sum, models), brought| {
                (sum + brought, models + 1.0)
            });
        let of = |brought: f64| (sum / models / brought).ln().clamp(-1.0, 1.0);
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        brought()
            .map(|brought| brought.map_or(0.0, of) as f32)
            .collect()
    }

    /// The bytes of the part.
    pub(crate) fn write(&self) -> Result<Vec<u8>> {
        let (models, width) = (self.counts.len(), self.width);
        let bytes = |numbers: &[u32]| bytemuck::cast_slice(numbers).to_vec();
        let tensors = [
            (
                MEANS,
                Dtype::F16,
                vec![models, width],
                half_bytes(&self.means),
            ),
            (COUNTS, Dtype::U32, vec![models], bytes(&self.counts)),
            (BROUGHT, Dtype::U32, vec![models], bytes(&self.brought)),
        ];
        to_safetensors(EXEMPLARS, &tensors, None)
    }

    /// Reads the part of a generation with `models` models and an encoder of `width`.
    ///
    /// Errors: it is malformed or of another hub.
    pub(crate) fn read(bytes: &[u8], models: usize, width: usize) -> Result<Self> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|e| error!(Format, "not safetensors: {e}"))?;
        let tensor = |name: &str, dtype: Dtype, shape: &[usize]| {
            let found = file
                .tensor(name)
                .map_err(|e| error!(Mismatch, "{name}: {e}"))?;
            if found.shape() != shape || found.dtype() != dtype {
                bail!(
                    Mismatch,
                    "{name}: expected {shape:?} {dtype:?}, found {:?} {:?}",
                    found.shape(),
                    found.dtype()
                );
            }
            Ok(found.data().to_vec())
        };
        let means = tensor(MEANS, Dtype::F16, &[models, width])?;
        let means = View::of_half(&means, width).to_f32();
        let numbers = |name: &str| -> Result<Vec<u32>> {
            let bytes = tensor(name, Dtype::U32, &[models])?;
            Ok(bytemuck::pod_collect_to_vec(&bytes))
        };
        let counts = numbers(COUNTS)?;
        let brought = match file.tensor(BROUGHT) {
            Ok(_) => numbers(BROUGHT)?,
            // Generations of before it was kept: as if all had come at once.
            Err(_) => {
                let all = counts
                    .iter()
                    .fold(0u32, |sum, count| sum.saturating_add(*count));
                vec![all; models]
            }
        };
        if let Some(at) = means.iter().position(|value| !value.is_finite()) {
            bail!(
                Numeric,
                "{MEANS}: element {at}: expected a finite number, found {}",
                means[at]
            );
        }
        Ok(Self {
            width,
            means,
            counts,
            brought,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    fn two() -> Exemplars {
        let mut exemplars = Exemplars::none(2, 2);
        exemplars.learn([(1, &[3.0, 0.0][..]), (1, &[0.0, 5.0])].into_iter());
        exemplars
    }

    #[test]
    fn a_mean_is_of_unit_vectors_and_an_old_one_stays() {
        let mut exemplars = two();
        exemplars.grow(3);
        exemplars.learn([(2, &[0.0, -2.0][..])].into_iter());
        let each: Vec<_> = exemplars.each().map(|(m, n)| (m.to_vec(), n)).collect();
        assert_eq!(each[0], (vec![0.0, 0.0], 0));
        assert_eq!(each[1], (vec![0.5, 0.5], 2));
        assert_eq!(each[2], (vec![0.0, -1.0], 1));
        exemplars.clear(1);
        assert_eq!(exemplars.each().nth(1).unwrap(), (&[0.0, 0.0][..], 0));
        assert_eq!(exemplars.balance(), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_balance_lifts_what_came_with_few() {
        let mut exemplars = Exemplars::none(4, 1);
        let many = |model: u32, count: usize| vec![(model, &[1.0f32][..]); count].into_iter();
        exemplars.learn(many(0, 30));
        exemplars.learn(many(1, 10));
        // Their mean is 20.
        let want = [(2.0f32 / 3.0).ln(), 2.0f32.ln(), 0.0, 0.0];
        let close =
            |found: &[f32], want: &[f32]| found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        let found = exemplars.balance();
        assert!(close(&found, &want), "{found:?}");
        // It is at most a factor of e: here the mean is 104. A prompt that comes later by itself does
        // not lift a model that came with many.
        exemplars.learn(many(0, 300));
        exemplars.learn(many(2, 2));
        exemplars.learn(many(0, 1));
        let want = [-1.0, 1.0, 1.0, 0.0];
        let found = exemplars.balance();
        assert!(close(&found, &want), "{found:?}");
    }

    #[test]
    fn a_part_of_before_the_balance_has_none() {
        let exemplars = two();
        let means = (MEANS, Dtype::F16, vec![2, 2], half_bytes(&exemplars.means));
        let counts: Vec<u8> = bytemuck::cast_slice(&exemplars.counts).to_vec();
        let counts = (COUNTS, Dtype::U32, vec![2], counts);
        let bytes = to_safetensors(EXEMPLARS, &[means, counts], None).unwrap();
        let mut found = Exemplars::read(&bytes, 2, 2).unwrap();
        assert_eq!(found.means, exemplars.means);
        assert_eq!(found.balance(), [0.0, 0.0]);
        // What comes to it is weighed against all of its prompts, which are two.
        found.grow(3);
        found.learn(vec![(2, &[1.0, 0.0][..]); 4].into_iter());
        let want = [0.0, 1.5f32.ln(), 0.75f32.ln()];
        let found = found.balance();
        assert!(
            found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?}"
        );
    }

    #[test]
    fn the_part_comes_back() {
        let exemplars = two();
        let bytes = exemplars.write().unwrap();
        assert_eq!(Exemplars::read(&bytes, 2, 2).unwrap(), exemplars);
        let refused = |bytes: &[u8], models: usize, kind: ErrorKind, want: &str| {
            let error = Exemplars::read(bytes, models, 2).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), kind);
        };
        let want = "prompt_means: expected [3, 2] F16, found [2, 2] F16";
        refused(&bytes, 3, ErrorKind::Mismatch, want);
        refused(&bytes[1..], 2, ErrorKind::Format, "not safetensors");
    }
}
