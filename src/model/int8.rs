//! The forward pass of a BERT-family encoder with maps of bytes, for serving on the CPU.
//!
//! Whole prompts go through all layers in chunks of at most [`CHUNK`] tokens, each on one thread:
//! the output of a layer stays in that core's cache, and no thread waits for another. Attention,
//! norms, GELU and sums of residuals are f32.

use std::cell::Cell;

use crate::device::Pass;
use crate::device::cpu::Cpu;
use crate::device::cpu::int8::attention::{self, Shape, attend};
use crate::device::cpu::int8::wide::{Block, Wide};
use crate::device::cpu::int8::{
    Arena, ByteKernel, GROUP, Job, Linear, PANEL, Rows, blocks, multiply, sixteens,
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

/// Most tokens of a chunk of several prompts. Weights are read for each chunk, and its activations
/// have to stay in the cache: 128 to 192 tokens were fastest.
const CHUNK: usize = 192;

/// Fewest tokens for which a second thread is worth a second reading of the weights.
const WORTH: usize = 48;

/// A network whose maps are bytes.
pub(crate) struct Int8 {
    kernel: ByteKernel,
    shape: Dims,
    pooling: Pooling,
    arena: Arena,
    /// Position rows with the row of token type 0 added: [P][H / 16].
    places: Vec<Block>,
    embedding_norm: ByteNorm,
    layers: Vec<ByteLayer>,
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

struct ByteLayer {
    /// For each head its query, key and value; scores are powers of 2.
    qkv: Linear,
    /// Its inputs are heads, each filled up to sixteens.
    attention_output: Linear,
    attention_norm: ByteNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: ByteNorm,
}

struct ByteNorm {
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

/// What is kept of a chunk between steps; room grows and stays.
#[derive(Default)]
struct ChunkRoom {
    x: Vec<Block>,
    /// Inputs of a map of H or of a layer's attention.
    a: Rows,
    /// Inputs of the feed-forward part's second map.
    wide: Rows,
    head: Vec<Block>,
    context: Vec<Block>,
    /// A group of the feed-forward part, of one tile.
    group: Vec<Block>,
    attention: attention::HeadRoom,
}

thread_local! {
    static ROOM: Cell<ChunkRoom> = Cell::default();
}

/// Writes the row of a token.
type WordReader<'w> = dyn Fn(u32, &mut [f32]) + Sync + 'w;

impl Int8 {
    /// Packs `weights`; `factors`: an adapter that is added to them.
    ///
    /// Errors: a tensor is missing, has another shape or dtype, or is not finite.
    pub(crate) fn new(
        cpu: &Cpu,
        kernel: ByteKernel,
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
        let lines = Linear::size(h, qkv)
            + Linear::size(context, h)
            + Linear::size(h, f)
            + Linear::size(f, h);
        let mut arena = Arena::new(lines * config.layers)?;
        let norm = |name: &str| -> Result<ByteNorm> {
            Ok(ByteNorm {
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
            layers.push(ByteLayer {
                qkv: pack_heads(cpu, &mut arena, config, shape, &heads)?,
                attention_output: map(Target::AttentionOutput)?
                    .pack_from_heads(cpu, &mut arena, config, shape)?,
                attention_norm: norm(&at("attention.output.LayerNorm"))?,
                intermediate: map(Target::Intermediate)?.pack(cpu, &mut arena)?,
                output: map(Target::Output)?.pack(cpu, &mut arena)?,
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
        let (Pass::Cpu(cpu), WordRows::Cpu(table)) = (&mut *pass, words) else {
            unreachable!("int8: a network of bytes is the CPU's");
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
        let read = |id: u32, row: &mut [f32]| view.read_row(id as usize, row);
        self.forward(cpu.cpu, &read, batch, out);
        if let Some(layers) = &mut a.layers {
            layers.finish(ops, pass);
        }
    }

    /// Encodes `batch`; to be called inside [`Cpu::run`].
    fn forward(&self, cpu: &Cpu, words: &WordReader<'_>, batch: Batch<'_>, out: Out<'_>) {
        let tokens = batch.tokens();
        let chunks = tokens.div_ceil(CHUNK);
        // As much for one thread as for another, as long as there is enough.
        let threads = cpu.threads().min(tokens / WORTH).max(1);
        self.split(cpu, words, batch, out, chunks.next_multiple_of(threads));
    }

    /// Encodes `batch` in about `chunks` chunks, side by side.
    fn split(
        &self,
        cpu: &Cpu,
        words: &WordReader<'_>,
        batch: Batch<'_>,
        out: Out<'_>,
        chunks: usize,
    ) {
        let prompts = batch.offsets.len() - 1;
        if chunks < 2 || prompts < 2 {
            return self.chunk(words, batch, out);
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

    /// Encodes `batch` on this thread.
    fn chunk(&self, words: &WordReader<'_>, batch: Batch<'_>, out: Out<'_>) {
        let mut room = ROOM.take();
        self.kernel.run(Chunk {
            model: self,
            words,
            batch,
            out,
            room: &mut room,
        });
        ROOM.set(room);
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

    fn pack(&self, cpu: &Cpu, arena: &mut Arena) -> Result<Linear> {
        let inputs = self.weights.columns;
        Linear::pack(cpu, arena, inputs, self.bias.len(), |output, row| {
            self.read(cpu, output, &mut row[..inputs])?;
            Ok((self.bias[output], 1.0))
        })
    }

    /// With inputs that are heads, each filled up to sixteens.
    fn pack_from_heads(
        &self,
        cpu: &Cpu,
        arena: &mut Arena,
        config: &Config,
        shape: Dims,
    ) -> Result<Linear> {
        let (h, width, padded) = (config.hidden, config.head_width(), shape.head * 16);
        Linear::pack(cpu, arena, config.heads * padded, h, |output, row| {
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
fn pack_heads(
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
    Linear::pack(cpu, arena, h, config.heads * of_head, |output, row| {
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

/// One chunk of a batch.
struct Chunk<'c> {
    model: &'c Int8,
    words: &'c WordReader<'c>,
    batch: Batch<'c>,
    out: Out<'c>,
    room: &'c mut ChunkRoom,
}

impl Job for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(mut self, w: W) {
        let model = self.model;
        let Dims {
            elements,
            hidden,
            heads,
            head,
            ..
        } = model.shape;
        let rows = self.batch.tokens();
        let room = &mut *self.room;
        room.x.resize(rows * hidden, [0.0; 16]);
        room.head
            .resize(rows * model.shape.head_panels * PANEL / 16, [0.0; 16]);
        room.context.resize(rows * heads * head, [0.0; 16]);
        let first = self.batch.offsets[0] as usize;
        room.a.reset(rows, elements.div_ceil(64), W::TALL);
        for (r, x) in room.x.chunks_exact_mut(hidden).enumerate() {
            let (id, position) = (self.batch.ids[first + r], self.batch.positions[first + r]);
            let place = &model.places[position as usize * hidden..][..hidden];
            // Behind the last element zeros stay zeros; another network may have left something.
            x[hidden - 1] = [0.0; 16];
            (self.words)(id, &mut bytemuck::cast_slice_mut(x)[..elements]);
            for (x, place) in x.iter_mut().zip(place) {
                *x = w.store(w.add(w.load(x), w.load(place)));
            }
            model.norm(w, &model.embedding_norm, x);
            for (group, values) in x.chunks(GROUP / 16).enumerate() {
                room.a.put(w, r, group, values);
            }
        }
        for (number, layer) in model.layers.iter().enumerate() {
            model.layer(w, layer, self.batch.offsets, room);
            let (which, means) = &mut self.out.means;
            if let Some(place) = which.iter().position(|which| *which == number) {
                let all = which.len() * elements;
                let means = means
                    .chunks_exact_mut(all)
                    .map(|of| &mut of[place * elements..][..elements]);
                model.pool(w, Pooling::Mean, self.batch.offsets, &room.x, means);
            }
        }
        let pooled = self.out.pooled.chunks_exact_mut(elements);
        model.pool(w, model.pooling, self.batch.offsets, &room.x, pooled);
    }
}

impl Int8 {
    /// `room.x` and `room.a`, its bytes, become the layer's output.
    #[inline(always)]
    fn layer<W: Wide>(&self, w: W, layer: &ByteLayer, offsets: &[u32], room: &mut ChunkRoom) {
        self.attention(w, layer, offsets, room);
        self.feed_forward(w, layer, room);
    }

    /// `room.x` and `room.a` after attention, its residual and its norm.
    #[inline(always)]
    fn attention<W: Wide>(&self, w: W, layer: &ByteLayer, offsets: &[u32], room: &mut ChunkRoom) {
        let Dims {
            hidden,
            heads,
            head,
            head_panels,
            ..
        } = self.shape;
        let lines = self.arena.lines();
        let first = offsets[0] as usize;
        let ChunkRoom {
            x,
            a,
            head: of_head,
            context,
            attention,
            ..
        } = room;
        let rows = x.len() / hidden;
        let stride = head_panels * PANEL / 16;
        for number in 0..heads {
            let panels = number * head_panels..(number + 1) * head_panels;
            let column = panels.start * PANEL;
            multiply(
                w,
                a,
                0..a.tiles(),
                (&layer.qkv, lines),
                panels,
                #[inline(always)]
                |r, c, y| {
                    of_head[r * stride + (c - column) / 16] = w.store(y);
                },
            );
            for pair in offsets.windows(2) {
                let (from, to) = (pair[0] as usize - first, pair[1] as usize - first);
                let shape = Shape {
                    stride,
                    width: head,
                    y_stride: heads * head,
                };
                let rows = &of_head[from * stride..to * stride];
                let y = &mut context[from * heads * head + number * head..];
                attend(w, rows, shape, attention, y);
            }
        }
        let per_group = GROUP / 16;
        a.reset(rows, layer.attention_output.blocks(), W::TALL);
        for (r, context) in context.chunks_exact(heads * head).enumerate() {
            for (group, values) in context.chunks(per_group).enumerate() {
                a.put(w, r, group, values);
            }
        }
        self.add_map(w, a, &layer.attention_output, x);
        self.norm_rows(w, &layer.attention_norm, x, a);
    }

    /// `room.x` and `room.a` after the two maps behind attention, their residual and their norm.
    #[inline(always)]
    fn feed_forward<W: Wide>(&self, w: W, layer: &ByteLayer, room: &mut ChunkRoom) {
        let (hidden, lines) = (self.shape.hidden, self.arena.lines());
        let ChunkRoom {
            x, a, wide, group, ..
        } = room;
        let (rows, per_group) = (x.len() / hidden, GROUP / 16);
        wide.reset(rows, layer.output.blocks(), W::TALL);
        let map = (&layer.intermediate, lines);
        for number in 0..layer.output.groups() {
            let each = GROUP / PANEL;
            let panels = number * each..map.0.panels().min((number + 1) * each);
            let column = panels.start * PANEL;
            let width = panels.len() * PANEL / 16;
            for tile in 0..a.tiles() {
                let (first, count, _) = a.tile(tile);
                group.resize(count.max(W::TALL) * per_group, [0.0; 16]);
                multiply(
                    w,
                    a,
                    tile..tile + 1,
                    map,
                    panels.clone(),
                    #[inline(always)]
                    |r, c, y| {
                        group[(r - first) * per_group + (c - column) / 16] = w.store(w.gelu(y));
                    },
                );
                for r in 0..count {
                    wide.put(w, first + r, number, &group[r * per_group..][..width]);
                }
            }
        }
        self.add_map(w, wide, &layer.output, x);
        self.norm_rows(w, &layer.output_norm, x, a);
    }

    /// Adds the outputs of `map` to the rows `x`, which may end before them.
    #[inline(always)]
    fn add_map<W: Wide>(&self, w: W, inputs: &Rows, map: &Linear, x: &mut [Block]) {
        let hidden = self.shape.hidden;
        multiply(
            w,
            inputs,
            0..inputs.tiles(),
            (map, self.arena.lines()),
            0..map.panels(),
            #[inline(always)]
            |r, c, y| {
                if let Some(x) = x[r * hidden..][..hidden].get_mut(c / 16) {
                    *x = w.store(w.add(w.load(x), y));
                }
            },
        );
    }

    /// The norm of every row of `x`, and its bytes.
    #[inline(always)]
    fn norm_rows<W: Wide>(&self, w: W, norm: &ByteNorm, x: &mut [Block], a: &mut Rows) {
        let hidden = self.shape.hidden;
        a.reset(x.len() / hidden, self.shape.elements.div_ceil(64), W::TALL);
        for (r, x) in x.chunks_exact_mut(hidden).enumerate() {
            self.norm(w, norm, x);
            for (group, values) in x.chunks(GROUP / 16).enumerate() {
                a.put(w, r, group, values);
            }
        }
    }

    /// (x - mean) / sqrt(variance + eps) gamma + beta
    #[inline(always)]
    fn norm<W: Wide>(&self, w: W, norm: &ByteNorm, x: &mut [Block]) {
        let n = self.shape.elements as f32;
        let mut sums = [w.splat(0.0); 4];
        for x in x.chunks(4) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = w.add(*sum, w.load(x));
            }
        }
        let mean = w.splat(all(w, sums) / n);
        let mut squares = [w.splat(0.0); 4];
        let last = x.len() - 1;
        for (i, x) in x.iter_mut().enumerate() {
            let mut from_mean = w.sub(w.load(x), mean);
            if i == last {
                from_mean = w.mul(from_mean, w.load(&self.mask));
            }
            squares[i % 4] = w.mul_add(from_mean, from_mean, squares[i % 4]);
            *x = w.store(from_mean);
        }
        let scale = w.splat(1.0 / (all(w, squares) / n + self.shape.eps).sqrt());
        let factors = norm.gamma.iter().zip(&norm.beta);
        for (x, (gamma, beta)) in x.iter_mut().zip(factors) {
            let unit = w.mul(w.load(x), scale);
            *x = w.store(w.mul_add(unit, w.load(gamma), w.load(beta)));
        }
    }

    /// A row of each prompt's rows.
    #[inline(always)]
    fn pool<'y, W: Wide>(
        &self,
        w: W,
        pooling: Pooling,
        offsets: &[u32],
        x: &[Block],
        out: impl Iterator<Item = &'y mut [f32]>,
    ) {
        let hidden = self.shape.hidden;
        let first = offsets[0] as usize;
        for (pair, out) in offsets.windows(2).zip(out) {
            let (from, to) = (pair[0] as usize - first, pair[1] as usize - first);
            let rows = match pooling {
                Pooling::Mean => &x[from * hidden..to * hidden],
                Pooling::Cls => &x[from * hidden..(from + 1) * hidden],
            };
            let share = w.splat(1.0 / (rows.len() / hidden) as f32);
            for (part, out) in out.chunks_mut(16).enumerate() {
                let mut sum = w.splat(0.0);
                for row in rows.chunks_exact(hidden) {
                    sum = w.add(sum, w.load(&row[part]));
                }
                out.copy_from_slice(&w.store(w.mul(sum, share))[..out.len()]);
            }
        }
    }
}

#[inline(always)]
fn all<W: Wide>(w: W, [a, b, c, d]: [W::F; 4]) -> f32 {
    w.total(w.add(w.add(a, b), w.add(c, d)))
}
