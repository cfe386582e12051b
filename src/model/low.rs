//! The forward pass of a BERT-family encoder with maps of low precision, int8 or bf16, for serving
//! on the CPU.
//!
//! Whole prompts go through all layers in chunks of at most [`CHUNK`] tokens, each on one thread:
//! the output of a layer stays in that core's cache, and no thread waits for another. A few short
//! prompts, or a single one, are a chunk that all threads share. Attention, norms, GELU and sums of
//! residuals are f32.

mod chunk;

use crate::device::Pass;
use crate::device::cpu::Cpu;
use crate::device::cpu::low::wide::Block;
use crate::device::cpu::low::{
    Arena, Bf16, Int8, Linear, LowFormat, LowKernel, Numbers, PANEL, blocks, sixteens,
};
use crate::error::Result;
use crate::model::Config;
use crate::model::activations::{Activations, Layers};
use crate::model::lora::{Delta, Factors, Target};
use crate::model::parameters::{finite, not_finite};
use crate::ops::Ops;
use crate::ops::embed::WordRows;
use crate::ops::pool::Pooling;
use crate::weights::{View, Weights};
use chunk::Chunk;

/// Most tokens of a chunk of several prompts. Weights are read for each chunk, and its activations
/// have to stay in the cache: 128 to 192 tokens were fastest.
const CHUNK: usize = 192;

/// Fewest tokens for which a second thread is worth a second reading of the weights.
const WORTH: usize = 48;

/// A network whose maps have low precision.
pub(crate) struct LowBert {
    kernel: LowKernel,
    shape: Dims,
    pooling: Pooling,
    arena: Arena,
    /// Position rows with the row of token type 0 added: [P][H / 16].
    places: Vec<Block>,
    embedding_norm: LowNorm,
    layers: Vec<LowLayer>,
    /// 1 for each element of a row's last sixteen, 0 behind the last element.
    mask: Block,
}

/// Sizes in sixteens, but where it is said.
#[derive(Clone, Copy)]
struct Dims {
    /// H, elements.
    elements: usize,
    hidden: usize,
    heads: usize,
    /// An attention head.
    head: usize,
    /// Panels of the query, key and value of one head.
    head_panels: usize,
    eps: f32,
}

struct LowLayer {
    /// For each head its query, key and value; scores are powers of 2.
    qkv: Linear,
    /// Its inputs are heads, each filled up to sixteens.
    attention_output: Linear,
    attention_norm: LowNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LowNorm,
}

struct LowNorm {
    gamma: Vec<Block>,
    beta: Vec<Block>,
}

/// Tokens of prompts, as in a [`crate::text::batch::PackedBatch`].
#[derive(Clone, Copy)]
struct Batch<'b> {
    ids: &'b [u32],
    positions: &'b [u32],
    /// [B + 1]
    offsets: &'b [u32],
}

/// What is made of a batch.
struct Out<'o> {
    /// [B, H]
    pooled: &'o mut [f32],
    /// Layers, and the means over tokens of their outputs: [B, layers, H].
    means: (&'o [usize], &'o mut [f32]),
}

impl LowBert {
    /// Packs `weights` for `kernel`; `factors`: an adapter that is added to them.
    ///
    /// Errors: a tensor is missing, has another shape or dtype, or is not finite.
    pub(crate) fn new(
        cpu: &Cpu,
        kernel: LowKernel,
        config: &Config,
        pooling: Pooling,
        weights: &Weights,
        factors: Option<&Factors>,
    ) -> Result<Self> {
        match kernel.format() {
            LowFormat::Int8 => Self::pack::<Int8>(cpu, kernel, config, pooling, weights, factors),
            LowFormat::Bf16 => Self::pack::<Bf16>(cpu, kernel, config, pooling, weights, factors),
        }
    }

    /// Packs for a kernel of `N`.
    fn pack<N: Numbers>(
        cpu: &Cpu,
        kernel: LowKernel,
        config: &Config,
        pooling: Pooling,
        weights: &Weights,
        factors: Option<&Factors>,
    ) -> Result<Self> {
        let read = |name: &str, shape: &[usize]| finite(weights, name, shape);
        let (h, f) = (config.hidden, config.feed_forward);
        let head = sixteens(config.head_width());
        let shape = Dims {
            elements: h,
            hidden: sixteens(h),
            heads: config.heads,
            head,
            head_panels: (3 * head * 16).div_ceil(PANEL),
            eps: config.eps,
        };
        let heads = config.heads;
        let (qkv, context) = (heads * shape.head_panels * PANEL, heads * head * 16);
        let lines = Linear::size::<N>(h, qkv)
            + Linear::size::<N>(context, h)
            + Linear::size::<N>(h, f)
            + Linear::size::<N>(f, h);
        let mut arena = Arena::new(lines * config.layers);
        let norm = |name: &str| -> Result<LowNorm> {
            Ok(LowNorm {
                gamma: blocks(&read(&format!("{name}.weight"), &[h])?),
                beta: blocks(&read(&format!("{name}.bias"), &[h])?),
            })
        };
        let mut places = read(
            "embeddings.position_embeddings.weight",
            &[config.positions, h],
        )?;
        if config.types > 0 {
            let name = "embeddings.token_type_embeddings.weight";
            let types = read(name, &[config.types, h])?;
            for row in places.chunks_exact_mut(h) {
                for (place, value) in row.iter_mut().zip(&types[..h]) {
                    *place += value;
                }
            }
        }
        let embedding_norm = norm("embeddings.LayerNorm")?;
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let at = |name: &str| format!("encoder.layer.{layer}.{name}");
            let map = |target| CheckpointMap::new(weights, factors, config, layer, target);
            let heads = [map(Target::Query)?, map(Target::Key)?, map(Target::Value)?];
            layers.push(LowLayer {
                qkv: pack_heads::<N>(cpu, &mut arena, config, shape, &heads)?,
                attention_output: map(Target::AttentionOutput)?
                    .pack_from_heads::<N>(cpu, &mut arena, config, shape)?,
                attention_norm: norm(&at("attention.output.LayerNorm"))?,
                intermediate: map(Target::Intermediate)?.pack::<N>(cpu, &mut arena)?,
                output: map(Target::Output)?.pack::<N>(cpu, &mut arena)?,
                output_norm: norm(&at("output.LayerNorm"))?,
            });
        }
        let mut mask = [1.0; 16];
        mask[h - 16 * (shape.hidden - 1)..].fill(0.0);
        Ok(Self {
            kernel,
            shape,
            pooling,
            arena,
            places: places.chunks_exact(h).flat_map(blocks).collect(),
            embedding_norm,
            layers,
            mask,
        })
    }

    /// As [`crate::model::bert::Bert::forward`]: encodes the batch that `a` holds into `a.pooled`
    /// and, if it is `Some`, `a.layers`. `words`: of a device that is the CPU.
    pub(crate) fn encode(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        words: &WordRows,
        a: &mut Activations,
    ) {
        self.encode_in(None, ops, pass, words, a);
    }

    /// As [`LowBert::encode`], all prompts as one chunk of `parts` parts if that is `Some`.
    pub(crate) fn encode_in(
        &self,
        parts: Option<usize>,
        ops: &Ops,
        pass: &mut Pass<'_>,
        words: &WordRows,
        a: &mut Activations,
    ) {
        let (Pass::Cpu(cpu), WordRows::Cpu(table)) = (&mut *pass, words) else {
            unreachable!("a network of low precision is the CPU's");
        };
        let view = table.view();
        let batch = Batch {
            ids: a.ids.u32(),
            positions: a.positions.u32(),
            offsets: a.offsets.u32(),
        };
        let out = Out {
            pooled: a.pooled.f32_mut(),
            means: a
                .layers
                .as_mut()
                .map_or_else(Default::default, Layers::means_mut),
        };
        match parts {
            Some(parts) => self.chunk(cpu.cpu, view, batch, out, parts),
            None => self.forward(cpu.cpu, view, batch, out),
        }
        if let Some(layers) = &mut a.layers {
            layers.finish(ops, pass);
        }
    }

    /// The numbers of its maps.
    pub(crate) fn format(&self) -> LowFormat {
        self.kernel.format()
    }

    /// Encodes `batch`; to be called inside [`Cpu::run`].
    fn forward(&self, cpu: &Cpu, words: View<'_>, batch: Batch<'_>, out: Out<'_>) {
        let (tokens, prompts) = (batch.tokens(), batch.offsets.len() - 1);
        let threads = cpu.lockstep_threads();
        // Threads that have prompts of their own.
        let apart = cpu.reachable().min(tokens / WORTH).min(prompts).max(1);
        if apart == 1 && threads > 1 {
            let parts = threads.min(self.most_parts());
            return self.chunk(cpu, words, batch, out, parts);
        }
        // As much for one thread as for another, as long as there is enough.
        let chunks = tokens.div_ceil(CHUNK).next_multiple_of(apart);
        self.split(cpu, words, batch, out, chunks);
    }

    /// Encodes `batch` in about `chunks` chunks, side by side.
    fn split(&self, cpu: &Cpu, words: View<'_>, batch: Batch<'_>, out: Out<'_>, chunks: usize) {
        let prompts = batch.offsets.len() - 1;
        if chunks < 2 || prompts < 2 {
            return self.chunk(cpu, words, batch, out, 1);
        }
        let before = chunks / 2;
        let first = batch.offsets[0] as usize;
        let goal = first + batch.tokens() * before / chunks;
        // The boundary between two prompts that is nearest.
        let far = |offset: u32| (offset as usize).abs_diff(goal);
        let boundaries = 1..prompts;
        let middle = boundaries
            .min_by_key(|i| far(batch.offsets[*i]))
            .unwrap_or(1);
        let (left, right) = batch.split(middle);
        let (for_left, for_right) = out.split(middle, prompts);
        cpu.join(
            || self.split(cpu, words, left, for_left, before),
            || self.split(cpu, words, right, for_right, chunks - before),
        );
    }

    /// Encodes `batch` in `parts` parts, side by side.
    fn chunk(&self, cpu: &Cpu, words: View<'_>, batch: Batch<'_>, out: Out<'_>, parts: usize) {
        let chunk = Chunk {
            model: self,
            words,
            batch,
            out,
        };
        chunk.run(cpu, parts);
    }
}

impl Batch<'_> {
    fn tokens(&self) -> usize {
        let last = self.offsets.last().map_or(0, |last| *last as usize);
        last - self.offsets[0] as usize
    }

    /// The prompts before `middle`, and the others.
    fn split(self, middle: usize) -> (Self, Self) {
        let offsets = self.offsets;
        (
            Self {
                offsets: &offsets[..=middle],
                ..self
            },
            Self {
                offsets: &offsets[middle..],
                ..self
            },
        )
    }
}

impl<'o> Out<'o> {
    fn split(self, middle: usize, prompts: usize) -> (Self, Self) {
        let width = self.pooled.len() / prompts;
        let (before, after) = self.pooled.split_at_mut(middle * width);
        let (which, means) = self.means;
        let (mean, mean_after) = means.split_at_mut(middle * which.len() * width);
        (
            Self {
                pooled: before,
                means: (which, mean),
            },
            Self {
                pooled: after,
                means: (which, mean_after),
            },
        )
    }
}

/// A map of a checkpoint with its adapter.
struct CheckpointMap<'w> {
    /// Its weights' name.
    name: String,
    /// [out, in]
    weights: View<'w>,
    delta: Option<Delta<'w>>,
    bias: Vec<f32>,
}

impl<'w> CheckpointMap<'w> {
    fn new(
        weights: &'w Weights,
        factors: Option<&'w Factors>,
        config: &Config,
        layer: usize,
        target: Target,
    ) -> Result<Self> {
        let (inputs, outputs) = target.shape(config);
        let path = format!("encoder.layer.{layer}.{}", target.path());
        let name = format!("{path}.weight");
        Ok(Self {
            weights: weights.view(&name, &[outputs, inputs])?,
            name,
            delta: factors.and_then(|factors| factors.delta(layer, target)),
            bias: finite(weights, &format!("{path}.bias"), &[outputs])?,
        })
    }

    /// Writes the weights of `output`.
    fn read(&self, cpu: &Cpu, output: usize, row: &mut [f32]) -> Result<()> {
        self.weights.read_row(output, row);
        if !cpu.simd(|| all_finite(row)) {
            return Err(not_finite(&self.name));
        }
        if let Some(delta) = &self.delta {
            cpu.simd(|| delta.add_to(output, row));
        }
        Ok(())
    }

    fn pack<N: Numbers>(&self, cpu: &Cpu, arena: &mut Arena) -> Result<Linear> {
        let inputs = self.weights.columns;
        Linear::pack::<N>(cpu, arena, inputs, self.bias.len(), |output, row| {
            self.read(cpu, output, &mut row[..inputs])?;
            Ok((self.bias[output], 1.0))
        })
    }

    /// With inputs that are heads, each filled up to sixteens.
    fn pack_from_heads<N: Numbers>(
        &self,
        cpu: &Cpu,
        arena: &mut Arena,
        config: &Config,
        shape: Dims,
    ) -> Result<Linear> {
        let (h, width, padded) = (config.hidden, config.head_width(), shape.head * 16);
        Linear::pack::<N>(cpu, arena, config.heads * padded, h, |output, row| {
            self.read(cpu, output, &mut row[..h])?;
            for head in (0..config.heads).rev() {
                row.copy_within(head * width..(head + 1) * width, head * padded);
                row[head * padded..][width..padded].fill(0.0);
            }
            Ok((self.bias[output], 1.0))
        })
    }
}

/// `maps`, query, key and value, head by head.
fn pack_heads<N: Numbers>(
    cpu: &Cpu,
    arena: &mut Arena,
    config: &Config,
    shape: Dims,
    maps: &[CheckpointMap<'_>; 3],
) -> Result<Linear> {
    let (h, width) = (config.hidden, config.head_width());
    let (padded, of_head) = (shape.head * 16, shape.head_panels * PANEL);
    // Scores become powers of 2, and are divided by the root of the head's width.
    let scores = std::f32::consts::LOG2_E / (width as f32).sqrt();
    Linear::pack::<N>(cpu, arena, h, config.heads * of_head, |output, row| {
        let (head, place) = (output / of_head, output % of_head);
        let (which, element) = (place / padded, place % padded);
        if which > 2 || element >= width {
            return Ok((0.0, 1.0));
        }
        let output = head * width + element;
        maps[which].read(cpu, output, &mut row[..h])?;
        let factor = if which == 0 { scores } else { 1.0 };
        Ok((maps[which].bias[output], factor))
    })
}

#[inline(always)]
fn all_finite(row: &[f32]) -> bool {
    let size = |value: &f32| value.to_bits() & !(1 << 31);
    row.iter().map(size).fold(0, u32::max) < f32::INFINITY.to_bits()
}
