//! Some prompts through all layers: on one thread, or on several that share heads and outputs.
//!
//! A layer has four steps: attention by heads, the map behind it by outputs, the first map of the
//! feed-forward part by groups of outputs, the second by outputs. Between two steps the parts of a
//! chunk hand over what they made. What is short, the norms and the rounding of rows, each part does
//! again for itself.

use std::cell::Cell;
use std::ops::Range;

use super::{Batch, Dims, LowBert, LowLayer, LowNorm, Out, WordReader};
use crate::device::cpu::Cpu;
use crate::device::cpu::low::attention::{HeadRoom, Shape, attend};
use crate::device::cpu::low::wide::{Block, Wide};
use crate::device::cpu::low::{GROUP, Job, Linear, Numbers, PANEL, Rows, multiply};
use crate::ops::pool::Pooling;

/// Sixteens of a group of inputs.
const GROUP_WIDTH: usize = GROUP / 16;

/// Sixteens of a panel.
const PANEL_WIDTH: usize = PANEL / 16;

/// One chunk of a batch.
pub(super) struct Chunk<'c> {
    pub(super) model: &'c LowBert,
    pub(super) words: &'c WordReader<'c>,
    pub(super) batch: Batch<'c>,
    pub(super) out: Out<'c>,
}

/// What is kept of a chunk between steps and chunks; room grows and stays.
#[derive(Default)]
struct ChunkRoom {
    parts: Vec<ChunkPart>,
    /// What each part made in the step before: heads or outputs of a map.
    made: Vec<Vec<Block>>,
    /// Groups that each part made in the step before.
    groups: Vec<Rows>,
}

/// What one part of a chunk has: all of the activations, and its share of what is being made.
#[derive(Default)]
struct ChunkPart {
    /// [rows][H / 16]
    x: Vec<Block>,
    /// Inputs of a map of H or of the heads.
    a: Rows,
    /// Inputs of the feed-forward part's second map, its own groups; with all others.
    own_groups: Rows,
    all_groups: Rows,
    /// Query, key and value of a head.
    head: Vec<Block>,
    /// A group of one tile, or a row of all heads.
    line: Vec<Block>,
    making: Vec<Block>,
    attention: HeadRoom,
}

thread_local! {
    static ROOM: Cell<ChunkRoom> = Cell::default();
}

/// A quarter of a layer, or the end.
#[derive(Clone, Copy)]
enum ChunkStep<'s> {
    /// The end of the layer before, or the embeddings if there is none; then attention by heads.
    Heads(&'s LowLayer, Option<&'s LowLayer>),
    /// The map behind attention, by outputs.
    Mix(&'s LowLayer),
    /// Attention's norm; then the feed-forward part's first map, by groups of outputs.
    Inner(&'s LowLayer),
    /// The feed-forward part's second map, by outputs.
    Outer(&'s LowLayer),
    /// The end of a layer.
    End(&'s LowLayer),
}

/// What all parts read in a step, and which of `parts` this one is.
#[derive(Clone, Copy)]
struct PartView<'v> {
    model: &'v LowBert,
    words: &'v WordReader<'v>,
    batch: Batch<'v>,
    made: &'v [Vec<Block>],
    groups: &'v [Rows],
    number: usize,
    parts: usize,
}

/// A step of one part.
struct PartStep<'s> {
    view: PartView<'s>,
    step: ChunkStep<'s>,
    part: &'s mut ChunkPart,
}

/// Rows of a matrix that become the mean, or the first, of each prompt's.
struct PoolRows<'p> {
    model: &'p LowBert,
    pooling: Pooling,
    offsets: &'p [u32],
    x: &'p [Block],
    /// Every `stride` elements a row of H.
    out: &'p mut [f32],
    stride: usize,
}

impl LowBert {
    /// Most parts that a chunk can have.
    pub(crate) fn most_parts(&self) -> usize {
        let of_layer = |layer: &LowLayer| {
            let outputs = layer.output.panels().min(layer.attention_output.panels());
            outputs.min(layer.output.groups())
        };
        let of_layers = self.layers.iter().map(of_layer);
        of_layers.fold(self.shape.heads, usize::min)
    }
}

impl Chunk<'_> {
    /// Encodes the chunk in `parts` parts, side by side.
    pub(super) fn run(self, cpu: &Cpu, parts: usize) {
        let mut room = ROOM.take();
        let most = parts.max(room.parts.len());
        room.parts.resize_with(most, ChunkPart::default);
        room.made.resize_with(most, Vec::new);
        room.groups.resize_with(most, Rows::default);
        self.layers(cpu, parts, &mut room);
        ROOM.set(room);
    }

    fn layers(mut self, cpu: &Cpu, parts: usize, room: &mut ChunkRoom) {
        let model = self.model;
        let mut norm = None;
        for (number, layer) in model.layers.iter().enumerate() {
            self.step(cpu, parts, ChunkStep::Heads(layer, norm), room);
            if number > 0 {
                self.mean(number - 1, room);
            }
            room.hand_over();
            self.step(cpu, parts, ChunkStep::Mix(layer), room);
            room.hand_over();
            self.step(cpu, parts, ChunkStep::Inner(layer), room);
            room.hand_over_groups();
            self.step(cpu, parts, ChunkStep::Outer(layer), room);
            room.hand_over();
            norm = Some(layer);
        }
        if let Some(layer) = norm {
            let view = self.view(&room.made, &room.groups, parts);
            model.kernel.run(PartStep {
                view,
                step: ChunkStep::End(layer),
                part: &mut room.parts[0],
            });
            self.mean(model.layers.len() - 1, room);
        }
        model.kernel.run(PoolRows {
            model,
            pooling: model.pooling,
            offsets: self.batch.offsets,
            x: &room.parts[0].x,
            out: self.out.pooled,
            stride: model.shape.elements,
        });
    }

    /// All parts of `step`.
    fn step(&self, cpu: &Cpu, parts: usize, step: ChunkStep<'_>, room: &mut ChunkRoom) {
        let view = self.view(&room.made, &room.groups, parts);
        let one = |number: usize, part: &mut [ChunkPart]| {
            for part in part {
                let view = PartView { number, ..view };
                self.model.kernel.run(PartStep { view, step, part });
            }
        };
        match parts {
            1 => one(0, &mut room.parts[..1]),
            _ => cpu.each(&mut room.parts[..parts], 1, usize::MAX / parts, one),
        }
    }

    /// What the first of `parts` sees.
    fn view<'v>(
        &'v self,
        made: &'v [Vec<Block>],
        groups: &'v [Rows],
        parts: usize,
    ) -> PartView<'v> {
        PartView {
            model: self.model,
            words: self.words,
            batch: self.batch,
            made: &made[..parts],
            groups: &groups[..parts],
            number: 0,
            parts,
        }
    }

    /// The mean of the layer `number`'s output, if it is asked for.
    fn mean(&mut self, number: usize, room: &ChunkRoom) {
        let elements = self.model.shape.elements;
        let (which, means) = &mut self.out.means;
        if let Some(place) = which.iter().position(|which| *which == number) {
            self.model.kernel.run(PoolRows {
                model: self.model,
                pooling: Pooling::Mean,
                offsets: self.batch.offsets,
                x: &room.parts[0].x,
                out: &mut means[place * elements..],
                stride: which.len() * elements,
            });
        }
    }
}

impl ChunkRoom {
    /// Makes what the parts made readable by all.
    fn hand_over(&mut self) {
        for (made, part) in self.made.iter_mut().zip(&mut self.parts) {
            std::mem::swap(made, &mut part.making);
        }
    }

    /// As [`ChunkRoom::hand_over`], for groups.
    fn hand_over_groups(&mut self) {
        for (groups, part) in self.groups.iter_mut().zip(&mut self.parts) {
            std::mem::swap(groups, &mut part.own_groups);
        }
    }
}

impl Job for PartStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let Self { view, step, part } = self;
        match step {
            ChunkStep::Heads(layer, before) => {
                match before {
                    Some(before) => view.end(w, before, part),
                    None => view.embed(w, part),
                }
                view.heads(w, layer, part);
            }
            ChunkStep::Mix(layer) => view.mix(w, layer, part),
            ChunkStep::Inner(layer) => {
                view.settle(w, &layer.attention_output, &layer.attention_norm, part);
                view.inner(w, layer, part);
            }
            ChunkStep::Outer(layer) => view.outer(w, layer, part),
            ChunkStep::End(layer) => view.end(w, layer, part),
        }
    }
}

impl PartView<'_> {
    /// The part `number` of `parts` of `all`.
    fn share_of(&self, number: usize, all: usize) -> Range<usize> {
        all * number / self.parts..all * (number + 1) / self.parts
    }

    /// This part's of `all`.
    fn own(&self, all: usize) -> Range<usize> {
        self.share_of(self.number, all)
    }

    /// `x`, the embeddings of the tokens after their norm, and its rounded rows.
    #[inline(always)]
    fn embed<W: Wide>(&self, w: W, part: &mut ChunkPart) {
        let (model, rows) = (self.model, self.batch.tokens());
        let Dims {
            elements, hidden, ..
        } = model.shape;
        let first = self.batch.offsets[0] as usize;
        part.x.resize(rows * hidden, [0.0; 16]);
        for (r, x) in part.x.chunks_exact_mut(hidden).enumerate() {
            let (id, position) = (self.batch.ids[first + r], self.batch.positions[first + r]);
            let place = &model.places[position as usize * hidden..][..hidden];
            // Behind the last element zeros stay zeros; another network may have left something.
            x[hidden - 1] = [0.0; 16];
            (self.words)(id, &mut bytemuck::cast_slice_mut(x)[..elements]);
            for (x, place) in x.iter_mut().zip(place) {
                *x = w.store(w.add(w.load(x), w.load(place)));
            }
        }
        model.norm_rows(w, &model.embedding_norm, part);
    }

    /// `making`: for each row this part's heads, from the rounded rows of `x`.
    #[inline(always)]
    fn heads<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        let Dims {
            heads,
            head,
            head_panels,
            ..
        } = self.model.shape;
        let ChunkPart {
            a,
            head: of_head,
            making,
            attention,
            ..
        } = part;
        let (offsets, rows) = (self.batch.offsets, self.batch.tokens());
        let (own, first) = (self.own(heads), offsets[0] as usize);
        let (stride, y_stride) = (head_panels * PANEL_WIDTH, own.len() * head);
        of_head.resize(rows * stride, [0.0; 16]);
        making.resize(rows * y_stride, [0.0; 16]);
        for (place, number) in own.enumerate() {
            let panels = number * head_panels..(number + 1) * head_panels;
            let column = panels.start * PANEL;
            self.product(
                w,
                a,
                &layer.qkv,
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
                    y_stride,
                };
                let rows = &of_head[from * stride..to * stride];
                attend(
                    w,
                    rows,
                    shape,
                    attention,
                    &mut making[from * y_stride + place * head..],
                );
            }
        }
    }

    /// This part's outputs of the map of all heads.
    #[inline(always)]
    fn mix<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        let Dims { heads, head, .. } = self.model.shape;
        let (rows, width) = (self.batch.tokens(), heads * head);
        part.a.reset::<W>(rows, layer.attention_output.blocks());
        part.line.resize(width.max(part.line.len()), [0.0; 16]);
        for r in 0..rows {
            let row = if self.parts == 1 {
                &self.made[0][r * width..]
            } else {
                for (number, made) in self.made.iter().enumerate() {
                    let own = self.share_of(number, heads);
                    let (from, count) = (own.start * head, own.len() * head);
                    part.line[from..][..count].copy_from_slice(&made[r * count..][..count]);
                }
                &part.line
            };
            for (group, values) in row[..width].chunks(GROUP_WIDTH).enumerate() {
                part.a.put(w, r, group, values);
            }
        }
        let ChunkPart { x, a, making, .. } = part;
        self.add_or_make(w, a, &layer.attention_output, x, making);
    }

    /// This part's groups of the feed-forward part's inner activations.
    #[inline(always)]
    fn inner<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        let ChunkPart {
            a,
            own_groups,
            line,
            ..
        } = part;
        let (map, lines) = (&layer.intermediate, self.model.arena.lines());
        own_groups.reset::<W>(self.batch.tokens(), layer.output.blocks());
        for number in self.own(layer.output.groups()) {
            let each = GROUP / PANEL;
            let panels = number * each..map.panels().min((number + 1) * each);
            let column = panels.start * PANEL;
            let width = panels.len() * PANEL_WIDTH;
            for tile in 0..a.tiles() {
                let (first, count, _) = a.tile(tile);
                line.resize(
                    (count.max(W::TALL) * GROUP_WIDTH).max(line.len()),
                    [0.0; 16],
                );
                multiply(
                    w,
                    a,
                    tile..tile + 1,
                    (map, lines),
                    panels.clone(),
                    #[inline(always)]
                    |r, c, y| {
                        let place = (r - first) * GROUP_WIDTH + (c - column) / 16;
                        line[place] = w.store(w.gelu(y));
                    },
                );
                for r in 0..count {
                    let values = &line[r * GROUP_WIDTH..][..width];
                    own_groups.put(w, first + r, number, values);
                }
            }
        }
    }

    /// This part's outputs of the map of all groups.
    #[inline(always)]
    fn outer<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        let ChunkPart {
            x,
            all_groups,
            making,
            ..
        } = part;
        let map = &layer.output;
        let mut a = &self.groups[0];
        if self.parts > 1 {
            all_groups.reset::<W>(self.batch.tokens(), map.blocks());
            for (number, groups) in self.groups.iter().enumerate() {
                all_groups.take(groups, self.share_of(number, map.groups()));
            }
            a = all_groups;
        }
        self.add_or_make(w, a, map, x, making);
    }

    /// Adds the outputs of `map` to `x`, or, of several parts, makes this part's.
    #[inline(always)]
    fn add_or_make<W: Wide>(
        &self,
        w: W,
        a: &Rows,
        map: &Linear,
        x: &mut [Block],
        making: &mut Vec<Block>,
    ) {
        let (hidden, own) = (self.model.shape.hidden, self.own(map.panels()));
        let (alone, width) = (self.parts == 1, own.len() * PANEL_WIDTH);
        if !alone {
            making.resize(self.batch.tokens() * width, [0.0; 16]);
        }
        let column = own.start * PANEL;
        self.product(
            w,
            a,
            map,
            own,
            #[inline(always)]
            |r, c, y| {
                if alone {
                    add(w, &mut x[r * hidden..][..hidden], c / 16, y);
                } else {
                    making[r * width + (c - column) / 16] = w.store(y);
                }
            },
        );
    }

    /// The outputs `panels` of `map` for all rows.
    #[inline(always)]
    fn product<W: Wide>(
        &self,
        w: W,
        a: &Rows,
        map: &Linear,
        panels: Range<usize>,
        sink: impl FnMut(usize, usize, W::F),
    ) {
        let lines = self.model.arena.lines();
        multiply(w, a, 0..a.tiles(), (map, lines), panels, sink);
    }

    /// `x` and its rounded rows after a layer.
    #[inline(always)]
    fn end<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        self.settle(w, &layer.output, &layer.output_norm, part);
    }

    /// `x` and its rounded rows after `map`, whose outputs several parts made, and its norm.
    #[inline(always)]
    fn settle<W: Wide>(&self, w: W, map: &Linear, norm: &LowNorm, part: &mut ChunkPart) {
        let hidden = self.model.shape.hidden;
        if self.parts > 1 {
            for (number, made) in self.made.iter().enumerate() {
                let own = self.share_of(number, map.panels());
                let width = own.len() * PANEL_WIDTH;
                let first = own.start * PANEL_WIDTH;
                for (x, made) in part
                    .x
                    .chunks_exact_mut(hidden)
                    .zip(made.chunks_exact(width))
                {
                    for (i, y) in made.iter().enumerate() {
                        add(w, x, first + i, w.load(y));
                    }
                }
            }
        }
        self.model.norm_rows(w, norm, part);
    }
}

impl Job for PoolRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let Dims {
            elements, hidden, ..
        } = self.model.shape;
        let first = self.offsets[0] as usize;
        let out = self.out.chunks_mut(self.stride);
        for (pair, out) in self.offsets.windows(2).zip(out) {
            let (from, to) = (pair[0] as usize - first, pair[1] as usize - first);
            let rows = match self.pooling {
                Pooling::Mean => &self.x[from * hidden..to * hidden],
                Pooling::Cls => &self.x[from * hidden..(from + 1) * hidden],
            };
            let share = w.splat(1.0 / (rows.len() / hidden) as f32);
            for (part, out) in out[..elements].chunks_mut(16).enumerate() {
                let mut sum = w.splat(0.0);
                for row in rows.chunks_exact(hidden) {
                    sum = w.add(sum, w.load(&row[part]));
                }
                out.copy_from_slice(&w.store(w.mul(sum, share))[..out.len()]);
            }
        }
    }
}

impl LowBert {
    /// The norm of every row of `part.x`, and its rounded rows.
    #[inline(always)]
    fn norm_rows<W: Wide>(&self, w: W, norm: &LowNorm, part: &mut ChunkPart) {
        let ChunkPart { x, a, .. } = part;
        let hidden = self.shape.hidden;
        a.reset::<W>(x.len() / hidden, W::Numbers::blocks(self.shape.elements));
        for (r, x) in x.chunks_exact_mut(hidden).enumerate() {
            self.norm(w, norm, x);
            for (group, values) in x.chunks(GROUP_WIDTH).enumerate() {
                a.put(w, r, group, values);
            }
        }
    }

    /// (x - mean) / sqrt(variance + eps) gamma + beta
    #[inline(always)]
    fn norm<W: Wide>(&self, w: W, norm: &LowNorm, x: &mut [Block]) {
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
}

/// Adds an output to a row, which may end before it; `column` in sixteens.
#[inline(always)]
fn add<W: Wide>(w: W, x: &mut [Block], column: usize, y: W::F) {
    if let Some(x) = x.get_mut(column) {
        *x = w.store(w.add(w.load(x), y));
    }
}

#[inline(always)]
fn all<W: Wide>(w: W, [a, b, c, d]: [W::F; 4]) -> f32 {
    w.total(w.add(w.add(a, b), w.add(c, d)))
}
