//! The memory of a generation: sums over the prompts that it was learned with.
//!
//! A prompt's vector q is made of the means over its tokens of some layers' outputs, as unit
//! vectors in steps of 1/64 (`encoder/seen.rs`). The memory keeps, all as integers:
//!
//! - for each model the number of its prompts and the sum of their q;
//! - for all prompts together the sum of q q^T;
//! - for each domain and word the number of prompts with that word;
//! - the digest of each prompt with its model.
//!
//! Integer sums do not depend on the order of experiences, and a prompt that is added and removed
//! again leaves no trace. `solve.rs` turns the sums into the served form (`served.rs`).

mod packing;
pub(crate) mod served;
mod solve;
mod words;

use safetensors::Dtype;

use self::packing::{pack, unpack};
pub use self::served::{Parts, Strengths};
pub(crate) use self::solve::PriorMean;
pub(crate) use self::solve::{Solved, Solving, solve};
pub(crate) use self::words::{WORDS, Words, entries};
use crate::device::cpu::dense::{self, DenseView, Region};
use crate::device::cpu::gemm::{self, Finish};
use crate::device::cpu::{Cpu, RowsMut};
use crate::encoder::seen::{STEPS, Seen};
use crate::error::{Result, bail};
use crate::hub::{Domains, Hub, domain_key};
use crate::weights::{ANY, Tensors, to_safetensors};

/// Its name in a generation; the words are a part of their own, which serving reads as well.
pub(crate) const MEMORY: &str = "memory.safetensors";
const LAYERS: &str = "layers";
const COUNTS: &str = "prompt_counts";
const SUMS: &str = "prompt_sums";
const SQUARES: &str = "prompt_squares";
const DIGESTS: &str = "prompt_digests";
const OWNERS: &str = "prompt_models";

/// Prompts whose products are added in f32, exactly: STEPS^2 times as many is the first number that
/// f32 may round.
#[expect(clippy::cast_possible_truncation, reason = "4,096")]
const EXACT: usize = (1 << 24) / (STEPS * STEPS) as usize;

/// Largest width whose squares are kept: they take 4 bytes times its square.
const WIDEST: usize = 1 << 14;

/// The first 16 bytes of a prompt's SHA-256 (`text::query::query_digest`).
pub(crate) type PromptDigest = [u8; 16];

/// A prompt to be added or removed.
pub(crate) struct Prompt<'s> {
    pub(crate) model: u32,
    /// The model's domain.
    pub(crate) domain: u32,
    pub(crate) digest: PromptDigest,
    pub(crate) seen: &'s Seen,
}

/// The elements on and below the diagonal of a matrix [width, width], by rows.
fn lower<T>(matrix: &[T], width: usize) -> impl Iterator<Item = &T> {
    let rows = matrix.chunks_exact(width).enumerate();
    rows.flat_map(|(i, row)| &row[..=i])
}

#[expect(clippy::cast_possible_truncation, reason = "in range, and NaN is 0")]
fn nearest(value: f64) -> i64 {
    value.round_ties_even() as i64
}

/// The keys of the hub's domains, by number.
pub(crate) fn domain_keys(hub: &Hub) -> Vec<String> {
    let names = Domains::new(hub).names;
    names.iter().map(|name| domain_key(name)).collect()
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Memory {
    /// Layers whose means are remembered, from 0.
    layers: Vec<usize>,
    /// H
    hidden: usize,
    /// Prompts of each model, [M].
    counts: Vec<u32>,
    /// The sum of each model's vectors, packed; empty without prompts. [M]
    sums: Vec<Vec<u8>>,
    /// The lower triangle of the sum of q q^T, by rows.
    squares: Vec<i64>,
    pub(crate) words: Words,
    /// The digest and model of every prompt, sorted.
    learned: Vec<(PromptDigest, u32)>,
}

impl Memory {
    /// An empty memory of `hub`.
    pub(crate) fn new(layers: Vec<usize>, hidden: usize, hub: &Hub) -> Result<Self> {
        let width = layers.len() * hidden;
        if width == 0 || width > WIDEST {
            bail!(
                InvalidRequest,
                "memory.layers: expected 1 to {} layers of {hidden}, found {}",
                WIDEST / hidden.max(1),
                layers.len()
            );
        }
        Ok(Self {
            layers,
            hidden,
            counts: vec![0; hub.len()],
            sums: vec![Vec::new(); hub.len()],
            squares: vec![0; width * (width + 1) / 2],
            words: Words::new(domain_keys(hub)),
            learned: Vec::new(),
        })
    }

    pub(crate) fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// L H: elements of a prompt's vector.
    pub(crate) fn width(&self) -> usize {
        self.layers.len() * self.hidden
    }

    /// Prompts of each model, [M].
    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Prompts in all.
    pub(crate) fn prompts(&self) -> usize {
        self.learned.len()
    }

    /// Extends the memory to a hub with more models; the new ones have no prompts.
    pub(crate) fn grow(&mut self, hub: &Hub) -> Result<()> {
        self.counts.resize(hub.len(), 0);
        self.sums.resize(hub.len(), Vec::new());
        self.words.renumber(domain_keys(hub))
    }

    /// The models that a prompt with this digest was learned for.
    pub(crate) fn owners(&self, digest: &PromptDigest) -> impl Iterator<Item = u32> {
        let first = self.learned.partition_point(|(other, _)| other < digest);
        let same = self.learned[first..].iter();
        same.take_while(move |(other, _)| other == digest)
            .map(|(_, model)| *model)
    }

    /// Adds prompts.
    pub(crate) fn add(&mut self, cpu: &Cpu, prompts: &[Prompt<'_>]) -> Result<()> {
        self.count(cpu, prompts, 1)?;
        self.learned
            .extend(prompts.iter().map(|p| (p.digest, p.model)));
        self.learned.sort_unstable();
        prompts
            .iter()
            .for_each(|p| self.words.add(p.domain, &p.seen.words));
        Ok(())
    }

    /// Removes prompts that were added.
    ///
    /// Errors: one was never added.
    pub(crate) fn subtract(&mut self, cpu: &Cpu, prompts: &[Prompt<'_>]) -> Result<()> {
        for prompt in prompts {
            let Ok(place) = self.learned.binary_search(&(prompt.digest, prompt.model)) else {
                bail!(
                    InvalidRequest,
                    "expected a prompt that was learned, found one that was not"
                );
            };
            self.learned.remove(place);
        }
        self.count(cpu, prompts, -1)?;
        prompts
            .iter()
            .for_each(|p| self.words.subtract(p.domain, &p.seen.words));
        Ok(())
    }

    fn count(&mut self, cpu: &Cpu, prompts: &[Prompt<'_>], sign: i64) -> Result<()> {
        for prompt in prompts {
            let model = prompt.model as usize;
            let count = i64::from(self.counts[model]) + sign;
            let mut sum = self.sum(model)?;
            for (sum, q) in sum.iter_mut().zip(&prompt.seen.layers) {
                *sum += sign * i64::from(*q);
            }
            self.counts[model] = u32::try_from(count).unwrap_or(0);
            self.sums[model].clear();
            // After training of the encoder, or on another device, the removed vector differs a
            // little from the added one.
            if self.counts[model] > 0 {
                let most = STEPS * count;
                let sum = sum.into_iter().map(|sum| sum.clamp(-most, most));
                pack(sum, &mut self.sums[model]);
            }
        }
        for some in prompts.chunks(EXACT) {
            self.add_squares(cpu, some, sign);
        }
        if sign < 0 {
            // The same difference: clamped, so that it does not look like damage and an empty
            // memory is all zero.
            let most = self.largest_square();
            let squares = self.squares.iter_mut();
            squares.for_each(|square| *square = (*square).clamp(-most, most));
        }
        Ok(())
    }

    fn add_squares(&mut self, cpu: &Cpu, prompts: &[Prompt<'_>], sign: i64) {
        let (n, width) = (prompts.len(), self.width());
        let mut columns = vec![0.0; width * n];
        for (i, prompt) in prompts.iter().enumerate() {
            for (j, q) in prompt.seen.layers.iter().enumerate() {
                columns[j * n + i] = f32::from(*q);
            }
        }
        let mut products = vec![0.0; width * width];
        cpu.run(|| {
            let rows = gemm::Matrix::of_rows(&columns, n);
            let products = RowsMut::whole(&mut products, width);
            gemm::product(cpu, rows, rows.transposed(), Finish::Set(1.0), products);
        });
        for (square, product) in self.squares.iter_mut().zip(lower(&products, width)) {
            #[expect(clippy::cast_possible_truncation, reason = "an integer below 2^24")]
            let product = *product as i64;
            *square += sign * product;
        }
    }

    /// Replaces every prompt's q by q T, with sums and squares rounded to integers; `map`: T [L H,
    /// L H]. The result approximates the sums of the moved vectors.
    pub(crate) fn transform(&mut self, cpu: &Cpu, map: &[f64]) -> Result<()> {
        let width = self.width();
        let map = DenseView::rows(map, width);
        let with_prompts: Vec<usize> = (0..self.counts.len())
            .filter(|model| self.counts[*model] > 0)
            .collect();
        // Squares within models and squares of their means. The sums are rounded before the second
        // part is made of them, or the part within models could become negative.
        let (mut within, mut between) = (self.square_rows(), vec![0.0; width * width]);
        for models in with_prompts.chunks(256) {
            let counts = models.iter().map(|model| self.counts[*model]);
            let counts: Vec<f64> = counts.map(f64::from).collect();
            let mut sums = Vec::with_capacity(models.len() * width);
            for model in models {
                sums.extend(self.sum(*model)?.into_iter().map(|sum| sum as f64));
            }
            let mut moved = vec![0.0; sums.len()];
            dense::add_product(
                cpu,
                1.0,
                DenseView::rows(&sums, width),
                map,
                Region::All,
                &mut moved,
            );
            for (row, count) in moved.chunks_exact_mut(width).zip(&counts) {
                // As long as sums of unit vectors are.
                let most = STEPS as f64 * count;
                row.iter_mut().for_each(|value| {
                    *value = value.clamp(-most, most).round_ties_even();
                });
            }
            for (model, row) in models.iter().zip(moved.chunks_exact(width)) {
                self.sums[*model].clear();
                pack(
                    row.iter().map(|value| nearest(*value)),
                    &mut self.sums[*model],
                );
            }
            for (sign, rows, squares) in [
                (-1.0, &mut sums, &mut within),
                (1.0, &mut moved, &mut between),
            ] {
                for (row, count) in rows.chunks_exact_mut(width).zip(&counts) {
                    row.iter_mut().for_each(|value| *value /= count.sqrt());
                }
                let rows = DenseView::rows(rows, width);
                dense::add_product(cpu, sign, rows.transposed(), rows, Region::Lower, squares);
            }
        }
        for i in 0..width {
            for j in 0..i {
                within[j * width + i] = within[i * width + j];
            }
        }
        // T^T (within) T
        let mut half = vec![0.0; width * width];
        dense::add_product(
            cpu,
            1.0,
            DenseView::rows(&within, width),
            map,
            Region::All,
            &mut half,
        );
        let half = DenseView::rows(&half, width);
        dense::add_product(
            cpu,
            1.0,
            map.transposed(),
            half,
            Region::Lower,
            &mut between,
        );
        let most = self.largest_square() as f64;
        self.squares = lower(&between, width)
            .map(|value| nearest(value.clamp(-most, most)))
            .collect();
        Ok(())
    }

    /// The lower triangle of the sum of q q^T, [L H, L H]; zero above.
    fn square_rows(&self) -> Vec<f64> {
        let width = self.width();
        let mut rows = vec![0.0; width * width];
        let mut squares = self.squares.iter();
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            for (value, square) in row[..=i].iter_mut().zip(&mut squares) {
                *value = *square as f64;
            }
        }
        rows
    }

    /// The largest magnitude that an element of the squares can have.
    fn largest_square(&self) -> i64 {
        STEPS * STEPS * self.learned.len() as i64
    }

    /// The sum of a model's vectors, [L H].
    pub(crate) fn sum(&self, model: usize) -> Result<Vec<i64>> {
        match self.counts[model] {
            0 => Ok(vec![0; self.width()]),
            _ => unpack(&mut &self.sums[model][..], self.width()),
        }
    }

    /// The bytes of the part; [`Memory::write_words`] gives those of the words.
    pub(crate) fn write(&self) -> Result<Vec<u8>> {
        let layers: Vec<u32> = self
            .layers
            .iter()
            .map(|layer| crate::num::to_u32(*layer))
            .collect();
        let sums = self.sums.concat();
        let mut squares = Vec::new();
        pack(self.squares.iter().copied(), &mut squares);
        let digests: Vec<u8> = self
            .learned
            .iter()
            .flat_map(|(digest, _)| *digest)
            .collect();
        let owners: Vec<u32> = self.learned.iter().map(|(_, model)| *model).collect();
        let n = owners.len();
        let tensors = [
            (
                LAYERS,
                Dtype::U32,
                vec![layers.len()],
                bytemuck::cast_slice(&layers),
            ),
            (
                COUNTS,
                Dtype::U32,
                vec![self.counts.len()],
                bytemuck::cast_slice(&self.counts),
            ),
            (SUMS, Dtype::U8, vec![sums.len()], &sums),
            (SQUARES, Dtype::U8, vec![squares.len()], &squares),
            (DIGESTS, Dtype::U8, vec![n, 16], &digests),
            (OWNERS, Dtype::U32, vec![n], bytemuck::cast_slice(&owners)),
        ];
        to_safetensors(MEMORY, &tensors, None)
    }

    pub(crate) fn write_words(&self) -> Result<Vec<u8>> {
        self.words.write()
    }

    /// Reads the memory of `hub` and an encoder of width `hidden`.
    ///
    /// Errors: a part is malformed, or belongs to another hub or encoder.
    pub(crate) fn read(bytes: &[u8], words: &[u8], hub: &Hub, hidden: usize) -> Result<Self> {
        let words = Words::read(words, domain_keys(hub)).map_err(|e| e.at(WORDS))?;
        Self::read_sums(bytes, words, hub, hidden).map_err(|e| e.at(MEMORY))
    }

    fn read_sums(bytes: &[u8], words: Words, hub: &Hub, hidden: usize) -> Result<Self> {
        let models = hub.len();
        let file = Tensors::parse(bytes)?;
        let layers = file.u32(LAYERS, &[ANY])?.into_iter();
        let layers = layers.map(|layer| layer as usize).collect();
        let mut memory = Self::new(layers, hidden, hub)?;
        if !memory.layers.is_sorted_by(|a, b| a < b) {
            bail!(
                Format,
                "{LAYERS}: expected them in order, found {:?}",
                memory.layers
            );
        }
        memory.words = words;
        memory.counts = file.u32(COUNTS, &[models])?;
        let width = memory.width();
        let mut rest = file.bytes(SUMS, Dtype::U8, &[ANY])?;
        for (model, count) in memory.counts.iter().enumerate() {
            if *count > 0 {
                let before = rest;
                let sum = unpack(&mut rest, width).map_err(|e| e.at(SUMS))?;
                let most = STEPS * i64::from(*count);
                if let Some(sum) = sum.iter().find(|sum| !(-most..=most).contains(*sum)) {
                    bail!(
                        Numeric,
                        "{SUMS}: model {model}: expected sums of {count} unit vectors, found {sum}"
                    );
                }
                memory.sums[model] = before[..before.len() - rest.len()].to_vec();
            }
        }
        let mut packed = file.bytes(SQUARES, Dtype::U8, &[ANY])?;
        memory.squares = unpack(&mut packed, memory.squares.len()).map_err(|e| e.at(SQUARES))?;
        if !rest.is_empty() || !packed.is_empty() {
            bail!(Format, "{SUMS}, {SQUARES}: expected an end, found more");
        }
        let owners = file.u32(OWNERS, &[ANY])?;
        let digests = file.bytes(DIGESTS, Dtype::U8, &[owners.len(), 16])?;
        let (digests, _) = digests.as_chunks::<16>();
        memory.learned = digests.iter().copied().zip(owners).collect();
        let mut counts = vec![0u32; models];
        for (_, model) in &memory.learned {
            match counts.get_mut(*model as usize) {
                Some(count) => *count += 1,
                None => bail!(
                    Mismatch,
                    "{OWNERS}: expected ids below {models}, found {model}"
                ),
            }
        }
        let most = memory.largest_square();
        let bounded = memory
            .squares
            .iter()
            .all(|square| (-most..=most).contains(square));
        if counts != memory.counts || !memory.learned.is_sorted() || !bounded {
            bail!(
                Mismatch,
                "{DIGESTS}: expected those of the counted prompts in order, found others"
            );
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::ErrorKind;
    use crate::hub::Model;
    use crate::ops::reference::noise;

    const HIDDEN: usize = 6;
    const WIDTH: usize = 2 * HIDDEN;

    fn cpu() -> Cpu {
        Cpu::open(Some(2)).unwrap()
    }

    /// Models with their domains.
    fn hub(models: &[(&str, &str)]) -> Hub {
        let models = models.iter().map(|(name, domain)| Model::new(name, domain));
        Hub::default().with(models).unwrap()
    }

    /// A prompt by its number: vector, words, digest, and who gets it.
    struct Asked {
        number: u64,
        model: &'static str,
        seen: Seen,
    }

    fn asked(number: u64, model: &'static str) -> Asked {
        let layers = noise(WIDTH, number);
        let layers = layers.iter().map(|x| (x * STEPS as f32) as i16).collect();
        let seen = Seen {
            pooled: Vec::new(),
            layers,
            words: vec![1, 2 + number as u32 % 3, 1000 + number as u32],
        };
        Asked {
            number,
            model,
            seen,
        }
    }

    fn prompts<'a>(hub: &Hub, all: &[&'a Asked]) -> Vec<Prompt<'a>> {
        let domains = Domains::new(hub);
        let prompt = |asked: &&'a Asked| {
            let model = hub.find(asked.model).unwrap().0;
            Prompt {
                model,
                domain: domains.of[model as usize],
                digest: [asked.number as u8; 16],
                seen: &asked.seen,
            }
        };
        all.iter().map(prompt).collect()
    }

    /// What a memory holds, by the models' names.
    #[derive(Debug, PartialEq)]
    struct Held {
        models: BTreeMap<String, (u32, Vec<i64>)>,
        squares: Vec<i64>,
        words: Vec<(u32, String, u32)>,
        learned: Vec<(PromptDigest, String)>,
    }

    fn held(memory: &Memory, hub: &Hub) -> Held {
        let name = |id: u32| hub.get(crate::hub::ModelId(id)).unwrap().name.to_string();
        let domains = domain_keys(hub);
        let words = memory.words.each();
        let mut words: Vec<_> = words
            .map(|(word, domain, count)| (word, domains[domain as usize].clone(), count))
            .collect();
        words.sort();
        let learned = memory.learned.iter();
        let mut learned: Vec<_> = learned.map(|(digest, id)| (*digest, name(*id))).collect();
        learned.sort();
        let models = (0..hub.len() as u32).map(|id| {
            let count = memory.counts[id as usize];
            (name(id), (count, memory.sum(id as usize).unwrap()))
        });
        Held {
            models: models.collect(),
            squares: memory.squares.clone(),
            words,
            learned,
        }
    }

    fn empty(hub: &Hub) -> Memory {
        Memory::new(vec![0, 3], HIDDEN, hub).unwrap()
    }

    const FIRST: [(&str, &str); 2] = [("a", "x"), ("b", "y")];

    /// Models that come with an experience, with their domains, and its prompts.
    type Experience = (Vec<(&'static str, &'static str)>, Vec<Asked>);

    fn experiences() -> Vec<Experience> {
        let of = |first: u64, models: &[&'static str]| {
            let cycle = models.iter().cycle();
            (first..first + 9)
                .zip(cycle)
                .map(|(n, m)| asked(n, m))
                .collect()
        };
        vec![
            (Vec::new(), of(0, &["a", "b"])),
            (vec![("c", "z"), ("d", "x")], of(10, &["c", "d", "a"])),
            (vec![("e", "w")], of(20, &["e", "b"])),
            (Vec::new(), of(30, &["b"])),
        ]
    }

    fn learned(order: &[usize], without: Option<u64>) -> (Memory, Hub) {
        let (cpu, all) = (cpu(), experiences());
        let mut hub = hub(&FIRST);
        let mut memory = empty(&hub);
        for place in order {
            let (models, asked) = &all[*place];
            hub = hub
                .with(models.iter().map(|(n, d)| Model::new(n, d)))
                .unwrap();
            memory.grow(&hub).unwrap();
            let some: Vec<&Asked> = asked
                .iter()
                .filter(|asked| Some(asked.number) != without)
                .collect();
            memory.add(&cpu, &prompts(&hub, &some)).unwrap();
        }
        (memory, hub)
    }

    #[test]
    fn the_order_of_experiences_leaves_no_trace() {
        let of = |order: &[usize]| {
            let (memory, hub) = learned(order, None);
            held(&memory, &hub)
        };
        let want = of(&[0, 1, 2, 3]);
        assert_eq!(want.models["a"].0 as usize, 5 + 3);
        for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]] {
            assert_eq!(of(&order), want, "{order:?}");
        }
        assert_ne!(of(&[0, 1, 2]), want);
    }

    #[test]
    fn a_prompt_that_is_taken_out_leaves_no_trace() {
        let order = [0, 1, 2, 3];
        let (mut memory, hub) = learned(&order, None);
        let all = experiences();
        let out = &all[1].1[4];
        let before = memory.clone();
        memory.subtract(&cpu(), &prompts(&hub, &[out])).unwrap();
        let (want, _) = learned(&order, Some(out.number));
        assert_eq!(memory, want);
        assert_eq!(memory.write().unwrap(), want.write().unwrap());
        assert_eq!(memory.write_words().unwrap(), want.write_words().unwrap());
        // Another one does.
        let mut other = before.clone();
        let another = &all[1].1[7];
        assert_eq!((another.model, out.model), ("d", "d"));
        other.subtract(&cpu(), &prompts(&hub, &[another])).unwrap();
        assert_ne!(other, want);
        // What was not learned, or not for this model, cannot be taken out.
        let wrong = Asked {
            model: "a",
            ..asked(out.number, "a")
        };
        for absent in [&asked(99, "a"), &wrong] {
            let mut same = before.clone();
            let error = same
                .subtract(&cpu(), &prompts(&hub, &[absent]))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
        // All of them: as it was made.
        let mut none = before;
        for asked in all.iter().flat_map(|(_, asked)| asked) {
            none.subtract(&cpu(), &prompts(&hub, &[asked])).unwrap();
        }
        let mut fresh = empty(&hub);
        fresh.grow(&hub).unwrap();
        assert_eq!(none, fresh);
    }

    /// More prompts than f32 adds exactly.
    #[test]
    fn many_prompts_are_added_exactly() {
        let hub = hub(&FIRST);
        let loud = Seen {
            pooled: Vec::new(),
            layers: vec![STEPS as i16; WIDTH],
            words: Vec::new(),
        };
        let many = EXACT + 3;
        let prompt = |_| Prompt {
            model: 0,
            domain: 0,
            digest: [0; 16],
            seen: &loud,
        };
        let mut memory = empty(&hub);
        memory
            .add(&cpu(), &(0..many).map(prompt).collect::<Vec<_>>())
            .unwrap();
        let want = STEPS * STEPS * many as i64;
        assert!(memory.squares.iter().all(|square| *square == want));
        assert_eq!(memory.sum(0).unwrap(), vec![STEPS * many as i64; WIDTH]);
        assert_eq!(memory.owners(&[0; 16]).count(), many);
        assert_eq!(memory.owners(&[1; 16]).count(), 0);
    }

    #[test]
    fn what_does_not_move_stays_and_what_moves_is_near() {
        let (mut memory, hub) = learned(&[0, 1, 2, 3], None);
        let cpu = cpu();
        let before = memory.clone();
        let mut map = vec![0.0; WIDTH * WIDTH];
        (0..WIDTH).for_each(|i| map[i * WIDTH + i] = 1.0);
        cpu.run(|| memory.transform(&cpu, &map)).unwrap();
        assert_eq!(memory, before);
        // Elements change places two by two, and half of them their sign.
        let mut map = vec![0.0; WIDTH * WIDTH];
        for i in 0..WIDTH {
            map[i * WIDTH + (i ^ 1)] = if i % 4 == 0 { -1.0 } else { 1.0 };
        }
        cpu.run(|| memory.transform(&cpu, &map)).unwrap();
        let mut moved = empty(&hub);
        let all = experiences();
        let all: Vec<Asked> = all.into_iter().flat_map(|(_, asked)| asked).collect();
        let all: Vec<Asked> = all
            .into_iter()
            .map(|mut asked| {
                let q = asked.seen.layers.clone();
                for (i, q) in q.iter().enumerate() {
                    asked.seen.layers[i ^ 1] = if i % 4 == 0 { -q } else { *q };
                }
                asked
            })
            .collect();
        moved
            .add(&cpu, &prompts(&hub, &all.iter().collect::<Vec<_>>()))
            .unwrap();
        assert_eq!(memory.sums, moved.sums);
        let apart = memory.squares.iter().zip(&moved.squares);
        assert!(apart.map(|(a, b)| (a - b).abs()).max().unwrap() <= 1);
        assert_eq!(memory.counts, moved.counts);
    }

    /// What moved with an encoder, or was seen on another device, is not what is taken out of it.
    #[test]
    fn roundings_leave_no_damage_behind() {
        let (mut memory, hub) = learned(&[0, 1, 2, 3], None);
        let all = experiences();
        let mut all: Vec<Asked> = all.into_iter().flat_map(|(_, asked)| asked).collect();
        for asked in &mut all {
            let layers = asked.seen.layers.iter_mut();
            layers.for_each(|q| *q = (*q + 9).min(STEPS as i16));
        }
        for asked in &all {
            memory.subtract(&cpu(), &prompts(&hub, &[asked])).unwrap();
            let [sums, words] = [memory.write().unwrap(), memory.write_words().unwrap()];
            assert_eq!(Memory::read(&sums, &words, &hub, HIDDEN).unwrap(), memory);
        }
        assert_eq!(memory, empty(&hub));
    }

    #[test]
    fn the_parts_keep_everything() {
        let (memory, hub) = learned(&[1, 0, 3, 2], None);
        let [sums, words] = [memory.write().unwrap(), memory.write_words().unwrap()];
        let read = |hub: &Hub, hidden: usize| Memory::read(&sums, &words, hub, hidden);
        assert_eq!(read(&hub, HIDDEN).unwrap(), memory);
        assert_eq!((memory.prompts(), memory.width()), (36, WIDTH));
        assert_eq!(memory.layers(), [0, 3]);
        // Of another hub or another encoder it is not.
        let more = hub.with([Model::new("late", "x")]).unwrap();
        let error = read(&more, HIDDEN).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.to_string().contains("prompt_counts"), "{error}");
        assert!(read(&self::hub(&FIRST), HIDDEN).is_err());
        assert!(read(&hub, HIDDEN + 1).is_err() && read(&hub, HIDDEN - 1).is_err());
        let none = Memory::new(Vec::new(), HIDDEN, &hub).unwrap_err();
        assert!(none.to_string().contains("memory.layers"), "{none}");
        assert!(Memory::new(vec![0, 1], WIDEST, &hub).is_err());
    }

    #[test]
    fn damage_is_refused() {
        let (memory, hub) = learned(&[0, 1, 2, 3], None);
        let words = memory.write_words().unwrap();
        let refused = |what: &str, harm: &dyn Fn(&mut Memory), want: &str| {
            let mut harmed = memory.clone();
            harm(&mut harmed);
            let bytes = harmed.write().unwrap();
            let error = Memory::read(&bytes, &words, &hub, HIDDEN).unwrap_err();
            assert!(error.is_damage(), "{what}: {error}");
            let error = error.to_string();
            assert!(
                error.contains(MEMORY) && error.contains(want),
                "{what}: {error}"
            );
        };
        let packed = |values: Vec<i64>| {
            let mut bytes = Vec::new();
            pack(values, &mut bytes);
            bytes
        };
        let count = i64::from(memory.counts[0]);
        refused(
            "a sum that is too large",
            &|m| {
                let mut sum = m.sum(0).unwrap();
                sum[3] = STEPS * count + 1;
                m.sums[0] = packed(sum);
            },
            "unit vectors, found",
        );
        refused(
            "a sum that is too short",
            &|m| {
                let last = m.sums.len() - 1;
                m.sums[last].pop();
            },
            "prompt_sums",
        );
        refused("more sums", &|m| m.sums[0].push(0), "expected");
        refused("a count more", &|m| m.counts[0] += 1, "prompt_digests");
        refused("a count less", &|m| m.counts[1] -= 1, "prompt_digests");
        refused(
            "counts that others have",
            &|m| m.counts.swap(0, 1),
            "prompt_digests",
        );
        refused(
            "a stranger's prompt",
            &|m| m.learned[5].1 = 5,
            "expected ids below 5, found 5",
        );
        refused(
            "a prompt less",
            &|m| m.learned.truncate(1),
            "prompt_digests",
        );
        refused("no order", &|m| m.learned.reverse(), "prompt_digests");
        let most = memory.largest_square();
        refused(
            "a large square",
            &|m| m.squares[7] = most + 1,
            "prompt_digests",
        );
        refused(
            "a small square",
            &|m| m.squares[7] = -most - 1,
            "prompt_digests",
        );
        refused(
            "a square less",
            &|m| m.squares.truncate(32),
            "prompt_squares",
        );
        refused(
            "more squares",
            &|m| m.squares.extend([0; 64]),
            "expected an end",
        );
        refused("layers in no order", &|m| m.layers.reverse(), "in order");
        refused("other layers", &|m| m.layers.push(4), "expected");
        // Bounds themselves are good.
        let mut good = memory.clone();
        good.squares[7] = most;
        let bytes = good.write().unwrap();
        assert_eq!(Memory::read(&bytes, &words, &hub, HIDDEN).unwrap(), good);
        for torn in [&bytes[..bytes.len() - 1], &bytes[..8], b"", b"{}"] {
            assert!(
                Memory::read(torn, &words, &hub, HIDDEN)
                    .unwrap_err()
                    .is_damage()
            );
        }
    }
}
