//! Some prompts through all layers: on one thread, or on several that share heads and outputs.
//!
//! A layer has four steps: attention by heads, the map behind it by outputs, the first map of the
//! feed-forward part by groups of outputs, the second by outputs. After each step the parts of a
//! chunk wait for each other, and then read what all have made. What is short, the norms and the
//! rounding of rows, each part does again for itself.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Batch, Dims, LowBert, LowLayer, LowNorm, Out};
use crate::device::cpu::Cpu;
use crate::device::cpu::barrier::Attendance;
use crate::device::cpu::low::attention::{HeadRoom, Shape, attend};
use crate::device::cpu::low::wide::{Block, Wide};
use crate::device::cpu::low::{GROUP, Job, Linear, Numbers, PANEL, Rows, multiply};
use crate::ops::pool::Pooling;
use crate::weights::View;

/// Sixteens of a group of inputs.
const GROUP_WIDTH: usize = GROUP / 16;

/// Sixteens of a panel.
const PANEL_WIDTH: usize = PANEL / 16;

/// One chunk of a batch.
pub(super) struct Chunk<'c> {
    pub(super) model: &'c LowBert,
    pub(super) words: View<'c>,
    pub(super) batch: Batch<'c>,
    pub(super) out: Out<'c>,
}

/// What is kept from one chunk to the next; room grows and stays.
#[derive(Default)]
struct ChunkRoom {
    parts: Vec<ChunkPart>,
    handed: Vec<Handed>,
}

/// What one part makes for all. Only that part writes, in other steps than those in which others
/// read, so that no lock is ever waited for.
#[derive(Default)]
struct Handed {
    /// Heads, or outputs of a map. The parts read what was made in the step before while they make
    /// the next, so there are two.
    blocks: [RwLock<Vec<Block>>; 2],
    /// The part's groups of the feed-forward part's inner activations.
    groups: RwLock<Rows>,
}

/// What one part of a chunk has for itself.
#[derive(Default)]
struct ChunkPart {
    /// All activations: [rows][H / 16]
    x: Vec<Block>,
    /// Inputs of a map of H or of the heads.
    a: Rows,
    /// Inputs of the feed-forward part's second map.
    groups: Rows,
    /// Query, key and value of a head.
    head: Vec<Block>,
    /// A group of one tile, or the rows of all heads.
    lines: Vec<Block>,
    attention: HeadRoom,
}

thread_local! {
    static ROOM: Cell<ChunkRoom> = Cell::default();
}

/// The part `number` of `parts`, and what it shares with the others.
#[derive(Clone, Copy)]
struct PartView<'p> {
    model: &'p LowBert,
    words: View<'p>,
    batch: Batch<'p>,
    handed: &'p [Handed],
    number: usize,
    parts: usize,
}

/// A part through all layers; `out`: of the first.
struct PartRun<'r, 'o> {
    view: PartView<'r>,
    part: &'r mut ChunkPart,
    out: Option<Out<'o>>,
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
        room.handed.resize_with(most, Handed::default);
        let mut out = Some(self.out);
        let mut run_in = |parts: usize| {
            let view = PartView {
                model: self.model,
                words: self.words,
                batch: self.batch,
                handed: &room.handed[..parts],
                number: 0,
                parts,
            };
            let parts = room.parts[..parts].iter_mut().enumerate();
            let mut runs: Vec<PartRun<'_, '_>> = parts
                .map(|(number, part)| PartRun {
                    view: PartView { number, ..view },
                    part,
                    out: if number == 0 { out.take() } else { None },
                })
                .collect();
            let run = |run: &mut PartRun<'_, '_>, attendance: &mut Attendance<'_>| {
                self.model.kernel.run((run, attendance));
            };
            let done = cpu.abreast(&mut runs, run);
            out = runs.swap_remove(0).out;
            done
        };
        // A part that other work keeps from its core is not waited for.
        if !run_in(parts) {
            run_in(1);
        }
        ROOM.set(room);
    }
}

impl Handed {
    fn made(&self, turn: usize) -> RwLockReadGuard<'_, Vec<Block>> {
        self.blocks[turn]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn making(&self, turn: usize) -> RwLockWriteGuard<'_, Vec<Block>> {
        self.blocks[turn]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn made_groups(&self) -> RwLockReadGuard<'_, Rows> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn making_groups(&self) -> RwLockWriteGuard<'_, Rows> {
        self.groups.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for (&mut PartRun<'_, '_>, &mut Attendance<'_>) {
    type Output = ();

    /// Leaves off where the job is given up.
    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let (PartRun { view, part, out }, attendance) = self;
        let layers = &view.model.layers;
        view.embed(w, part);
        for (number, layer) in layers.iter().enumerate() {
            // Of the two in which blocks are handed over, the one that the others no longer read.
            let turn = number % 2;
            view.heads(w, layer, part, turn);
            if !attendance.wait() {
                return;
            }
            view.mix(w, layer, part, turn);
            if !attendance.wait() {
                return;
            }
            let map = (&layer.attention_output, &layer.attention_norm);
            view.settle(w, map, part, 1 - turn);
            view.inner(w, layer, part);
            if !attendance.wait() {
                return;
            }
            view.outer(w, layer, part, turn);
            if !attendance.wait() {
                return;
            }
            view.settle(w, (&layer.output, &layer.output_norm), part, turn);
            if let Some(out) = out {
                view.model.mean(w, number, view.batch.offsets, &part.x, out);
            }
        }
        if let Some(out) = out {
            let rows = (view.model.pooling, view.batch.offsets);
            let stride = view.model.shape.elements;
            view.model.pool(w, rows, &part.x, out.pooled, stride);
        }
    }
}

impl PartView<'_> {
    /// The part `number` of `parts` of `all`.
    fn share_of(&self, number: usize, all: usize) -> Range<usize> {
        all * number / self.parts..all * (number + 1) / self.parts
    }

    /// This part's of `all`.
    fn share(&self, all: usize) -> Range<usize> {
        self.share_of(self.number, all)
    }

    /// What this part makes for all.
    fn own(&self) -> &Handed {
        &self.handed[self.number]
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
            self.words
                .read_row(id as usize, &mut bytemuck::cast_slice_mut(x)[..elements]);
            for (x, place) in x.iter_mut().zip(place) {
                *x = w.store(w.add(w.load(x), w.load(place)));
            }
        }
        model.norm_rows(w, &model.embedding_norm, part);
    }

    /// Makes for each row this part's heads, from the rounded rows of `x`.
    #[inline(always)]
    fn heads<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart, turn: usize) {
        let Dims {
            heads,
            head,
            head_panels,
            ..
        } = self.model.shape;
        let ChunkPart {
            a,
            head: of_head,
            attention,
            ..
        } = part;
        let mut making = self.own().making(turn);
        let (offsets, rows) = (self.batch.offsets, self.batch.tokens());
        let (own, first) = (self.share(heads), offsets[0] as usize);
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

    /// This part's outputs of the map of all heads, which were made in `turn`.
    #[inline(always)]
    fn mix<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart, turn: usize) {
        let Dims { heads, head, .. } = self.model.shape;
        let (rows, width) = (self.batch.tokens(), heads * head);
        let ChunkPart { x, a, lines, .. } = part;
        let alone;
        let made: &[Block] = if self.parts == 1 {
            alone = self.own().made(turn);
            &alone
        } else {
            lines.resize((rows * width).max(lines.len()), [0.0; 16]);
            for (number, handed) in self.handed.iter().enumerate() {
                let own = self.share_of(number, heads);
                let (from, count) = (own.start * head, own.len() * head);
                let made = handed.made(turn);
                for (line, made) in lines.chunks_exact_mut(width).zip(made.chunks_exact(count)) {
                    line[from..][..count].copy_from_slice(made);
                }
            }
            lines
        };
        a.reset::<W>(rows, layer.attention_output.blocks());
        for (r, row) in made[..rows * width].chunks_exact(width).enumerate() {
            a.put_row(w, r, row);
        }
        self.add_or_make(w, a, &layer.attention_output, x, 1 - turn);
    }

    /// This part's groups of the feed-forward part's inner activations.
    #[inline(always)]
    fn inner<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart) {
        let ChunkPart { a, lines: line, .. } = part;
        let (map, lines) = (&layer.intermediate, self.model.arena.lines());
        let mut own_groups = self.own().making_groups();
        own_groups.reset::<W>(self.batch.tokens(), layer.output.blocks());
        for number in self.share(layer.output.groups()) {
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
    fn outer<W: Wide>(&self, w: W, layer: &LowLayer, part: &mut ChunkPart, turn: usize) {
        let ChunkPart { x, groups, .. } = part;
        let map = &layer.output;
        let alone;
        let a = if self.parts == 1 {
            alone = self.own().made_groups();
            &*alone
        } else {
            groups.reset::<W>(self.batch.tokens(), map.blocks());
            for (number, handed) in self.handed.iter().enumerate() {
                groups.take(&handed.made_groups(), self.share_of(number, map.groups()));
            }
            groups
        };
        self.add_or_make(w, a, map, x, turn);
    }

    /// Adds the outputs of `map` to `x`, or, of several parts, makes this part's in `turn`.
    #[inline(always)]
    fn add_or_make<W: Wide>(&self, w: W, a: &Rows, map: &Linear, x: &mut [Block], turn: usize) {
        let (hidden, own) = (self.model.shape.hidden, self.share(map.panels()));
        let (alone, width) = (self.parts == 1, own.len() * PANEL_WIDTH);
        let mut making = self.own().making(turn);
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

    /// `x` and its rounded rows after `map`, whose outputs several parts made in `turn`, and its
    /// norm.
    #[inline(always)]
    fn settle<W: Wide>(
        &self,
        w: W,
        (map, norm): (&Linear, &LowNorm),
        part: &mut ChunkPart,
        turn: usize,
    ) {
        let hidden = self.model.shape.hidden;
        if self.parts > 1 {
            for (number, handed) in self.handed.iter().enumerate() {
                let own = self.share_of(number, map.panels());
                let (first, width) = (own.start * PANEL_WIDTH, own.len() * PANEL_WIDTH);
                let (made, rows) = (handed.made(turn), part.x.chunks_exact_mut(hidden));
                for (x, made) in rows.zip(made.chunks_exact(width)) {
                    for (i, y) in made.iter().enumerate() {
                        add(w, x, first + i, w.load(y));
                    }
                }
            }
        }
        self.model.norm_rows(w, norm, part);
    }
}

impl LowBert {
    /// The mean of the layer `number`'s output `x`, if it is asked for.
    #[inline(always)]
    fn mean<W: Wide>(&self, w: W, number: usize, offsets: &[u32], x: &[Block], out: &mut Out<'_>) {
        let elements = self.shape.elements;
        let (which, means) = &mut out.means;
        if let Some(place) = which.iter().position(|which| *which == number) {
            let stride = which.len() * elements;
            self.pool(
                w,
                (Pooling::Mean, offsets),
                x,
                &mut means[place * elements..],
                stride,
            );
        }
    }

    /// The mean, or the first, of each prompt's rows of `x`: every `stride` elements of `out` a row
    /// of H.
    #[inline(always)]
    fn pool<W: Wide>(
        &self,
        w: W,
        (pooling, offsets): (Pooling, &[u32]),
        x: &[Block],
        out: &mut [f32],
        stride: usize,
    ) {
        let Dims {
            elements, hidden, ..
        } = self.shape;
        let first = offsets[0] as usize;
        for (pair, out) in offsets.windows(2).zip(out.chunks_mut(stride)) {
            let (from, to) = (pair[0] as usize - first, pair[1] as usize - first);
            let rows = match pooling {
                Pooling::Mean => &x[from * hidden..to * hidden],
                Pooling::Cls => &x[from * hidden..(from + 1) * hidden],
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

    /// The norm of every row of `part.x`, and its rounded rows.
    #[inline(always)]
    fn norm_rows<W: Wide>(&self, w: W, norm: &LowNorm, part: &mut ChunkPart) {
        let ChunkPart { x, a, .. } = part;
        let hidden = self.shape.hidden;
        a.reset::<W>(x.len() / hidden, W::Numbers::blocks(self.shape.elements));
        for (r, x) in x.chunks_exact_mut(hidden).enumerate() {
            self.norm(w, norm, x);
            a.put_row(w, r, x);
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
