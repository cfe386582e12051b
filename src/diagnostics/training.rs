//! The kernels of an update at an encoder's shapes, to be timed; their values are tested with the ops.

use std::sync::Arc;

use super::cases::{Case, Shape};
use crate::device::{Device, Pass, Place, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::adamw::{self, Clip, Listed, Segment, Step};
use crate::ops::anchor::{Form, Pull};
use crate::ops::attention::query_tiles;
use crate::ops::contrastive::{Candidates, Inverse, LossAndGradients, Room, Targets, invert};
use crate::ops::distill::{Across, Slopes, UnitRows};
use crate::ops::linear::Weight;
use crate::ops::matmul::Product;
use crate::ops::pool::Pooling;
use crate::ops::reference::noise;
use crate::ops::{Ops, attention, gelu, layer_norm, linear, pool};
use crate::weights::View;

/// Rank of the adapters.
const R: usize = 16;

/// Candidates of an example.
const K: usize = 64;

struct Builder<'b> {
    device: &'b Device,
    ops: &'b Arc<Ops>,
    shape: Shape,
}

/// Every kernel that only learning runs, at `shape`.
pub(super) fn all(device: &Device, ops: &Arc<Ops>, shape: Shape) -> Result<Vec<Case>> {
    let (h, f, t) = (shape.hidden, shape.feed_forward, shape.tokens);
    let build = Builder { device, ops, shape };
    Ok(vec![
        build.linear("qkv", h, 3 * h)?,
        build.linear("attention output", h, h)?,
        build.linear("intermediate", h, f)?,
        build.linear("output", f, h)?,
        build.product(Way::Nt, "down", t, h, R)?,
        build.product(Way::Nn, "up", t, R, h)?,
        build.product(Way::Tn, "dA", R, t, h)?,
        build.attention()?,
        build.layer_norm()?,
        build.gelu()?,
        build.pool()?,
        build.contrastive(false)?,
        build.contrastive(true)?,
        build.slopes()?,
        build.unit_rows()?,
        build.anchor(false)?,
        build.anchor(true)?,
        build.adamw(false)?,
        build.adamw(true)?,
    ])
}

/// Which factor stands transposed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Nn,
    Nt,
    Tn,
}

impl Builder<'_> {
    fn noise(&self, label: &'static str, rows: usize, columns: usize) -> Result<Tensor> {
        let seed = label.bytes().map(u64::from).sum();
        self.device
            .upload(label, columns, &noise(rows * columns, seed))
    }

    /// Candidates of each prompt, in all of the hub.
    fn lists(&self) -> Vec<u32> {
        let models = self.shape.models;
        let list = |b: usize| (0..K).map(move |k| to_u32((b * 997 + k * (models / K)) % models));
        (0..self.shape.prompts).flat_map(list).collect()
    }

    fn linear(&self, label: &str, inputs: usize, outputs: usize) -> Result<Case> {
        let tokens = self.shape.tokens;
        let weights = noise(outputs * inputs, 8);
        let parts = [("w", View::of_f32(&weights, inputs))];
        let w = Weight::for_learning(self.device, &parts, &vec![0.0; outputs])?;
        let dy = self.noise("dy", tokens, outputs)?;
        let dx = self.device.scratch("dx", tokens, inputs)?;
        let ops = Arc::clone(self.ops);
        let n = (tokens * outputs) as f64;
        Ok(Case::timed(
            "linear",
            format!("backward {label} {tokens}x{outputs} . {outputs}x{inputs}"),
            2.0 * inputs as f64 * n,
            4.0 * (n + (inputs * (outputs + tokens)) as f64),
            dx,
            move |pass, dx| {
                ops.linear
                    .backward(pass, linear::Backward { dy: &dy, w: &w, dx })
            },
        ))
    }

    /// [rows, inner] . [inner, columns]
    fn product(
        &self,
        way: Way,
        label: &str,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> Result<Case> {
        let turned = |turn: bool, rows, columns| {
            if turn {
                (columns, rows)
            } else {
                (rows, columns)
            }
        };
        let (a_rows, a_columns) = turned(matches!(way, Way::Tn), rows, inner);
        let (b_rows, b_columns) = turned(matches!(way, Way::Nt), inner, columns);
        let a = self.noise("a", a_rows, a_columns)?;
        let b = self.noise("b", b_rows, b_columns)?;
        let y = self.device.scratch("y", rows, columns)?;
        let ops = Arc::clone(self.ops);
        Ok(Case::timed(
            "matmul",
            format!("{way:?} {label} {rows}x{inner} . {inner}x{columns}"),
            2.0 * (rows * inner * columns) as f64,
            4.0 * (rows * inner + inner * columns + rows * columns) as f64,
            y,
            move |pass, y| {
                let place = y.place();
                let product = Product {
                    a: a.part(a.place()),
                    b: b.part(b.place()),
                    scale: 1.0,
                    y: y.part_mut(place),
                    add: false,
                };
                match way {
                    Way::Nn => ops.matmul.nn(pass, product),
                    Way::Nt => ops.matmul.nt(pass, product),
                    Way::Tn => ops.matmul.tn(pass, product),
                }
            },
        ))
    }

    fn attention(&self) -> Result<Case> {
        let Shape {
            tokens,
            hidden,
            heads,
            ..
        } = self.shape;
        let offsets = self.shape.offsets();
        let pairs = offsets
            .windows(2)
            .map(|pair| f64::from(pair[1] - pair[0]).powi(2));
        let flops = 10.0 * hidden as f64 * pairs.sum::<f64>();
        let qkv = self.noise("qkv", tokens, 3 * hidden)?;
        let dy = self.noise("dy", tokens, hidden)?;
        let tiles = self.device.upload_ids("tiles", 2, &query_tiles(&offsets))?;
        let offsets = self.device.upload_ids("offsets", 1, &offsets)?;
        let mut statistics = self.device.scratch("statistics", tokens, 3 * heads)?;
        let dqkv = self.device.scratch("dqkv", tokens, 3 * hidden)?;
        let ops = Arc::clone(self.ops);
        Ok(Case::timed(
            "attention",
            "backward".into(),
            flops,
            28.0 * (tokens * hidden) as f64,
            dqkv,
            move |pass, dqkv| {
                ops.attention.backward(
                    pass,
                    attention::Backward {
                        qkv: &qkv,
                        offsets: &offsets,
                        tiles: &tiles,
                        dy: &dy,
                        statistics: &mut statistics,
                        dqkv,
                    },
                );
            },
        ))
    }

    fn layer_norm(&self) -> Result<Case> {
        let Shape { tokens, hidden, .. } = self.shape;
        let (x, branch) = (
            self.noise("x", tokens, hidden)?,
            self.noise("branch", tokens, hidden)?,
        );
        let (gamma, dy) = (
            self.noise("gamma", 1, hidden)?,
            self.noise("dy", tokens, hidden)?,
        );
        let dx = self.device.scratch("dx", tokens, hidden)?;
        let ops = Arc::clone(self.ops);
        let n = (tokens * hidden) as f64;
        Ok(Case::timed(
            "layer_norm",
            "backward".into(),
            16.0 * n,
            16.0 * n,
            dx,
            move |pass, dx| {
                ops.layer_norm.backward(
                    pass,
                    layer_norm::Backward {
                        x: &x,
                        branch: Some(&branch),
                        gamma: &gamma,
                        eps: 1e-12,
                        dy: &dy,
                        dx,
                    },
                );
            },
        ))
    }

    fn gelu(&self) -> Result<Case> {
        let Shape {
            tokens,
            feed_forward,
            ..
        } = self.shape;
        let x = self.noise("x", tokens, feed_forward)?;
        let dy = self.noise("dy", tokens, feed_forward)?;
        let dx = self.device.scratch("dx", tokens, feed_forward)?;
        let ops = Arc::clone(self.ops);
        let n = (tokens * feed_forward) as f64;
        Ok(Case::timed(
            "gelu",
            "backward".into(),
            45.0 * n,
            12.0 * n,
            dx,
            move |pass, dx| {
                ops.gelu
                    .backward(pass, gelu::Backward { x: &x, dy: &dy, dx })
            },
        ))
    }

    fn pool(&self) -> Result<Case> {
        let Shape {
            tokens,
            prompts,
            hidden,
            ..
        } = self.shape;
        let dh = self.noise("dh", prompts, hidden)?;
        let offsets = self
            .device
            .upload_ids("offsets", 1, &self.shape.offsets())?;
        let dx = self.device.scratch("dx", tokens, hidden)?;
        let ops = Arc::clone(self.ops);
        let n = (tokens * hidden) as f64;
        Ok(Case::timed(
            "pool",
            "backward".into(),
            n,
            4.0 * n,
            dx,
            move |pass, dx| {
                ops.pool.backward(
                    pass,
                    pool::Backward {
                        pooling: Pooling::Mean,
                        dh: &dh,
                        offsets: &offsets,
                        dx,
                    },
                );
            },
        ))
    }

    fn contrastive(&self, sampled: bool) -> Result<Case> {
        let Shape {
            prompts,
            hidden,
            models,
            ..
        } = self.shape;
        let lists = self.lists();
        let golds: Vec<u32> = lists.iter().step_by(K).copied().collect();
        let inverted = invert(&lists);
        let columns = if sampled { K } else { models };
        let rows = if sampled { inverted.rows.len() } else { models };
        let (z, e) = (
            self.noise("z", prompts, hidden)?,
            self.noise("e", models, hidden)?,
        );
        let zeros = vec![0.0; models * hidden];
        let mut grad = self.device.upload("grad", hidden, &zeros)?;
        let ids = self.device.upload_ids("ids", 1, &golds)?;
        let ones = self.device.upload("ones", 1, &vec![1.0; prompts])?;
        let priors = self.device.upload("priors", 1, &vec![0.0; models])?;
        let mut losses = self.device.scratch("losses", prompts, 1)?;
        let mut room = match sampled {
            true => Room::sampled(self.device, prompts, K, hidden)?,
            false => Room::all(self.device, prompts, models, hidden)?,
        };
        let candidates = self.device.upload_ids("candidates", K, &lists)?;
        let mut inverse = Inverse::new(self.device, prompts, K)?;
        let mut told = false;
        let dz = self.device.scratch("dz", prompts, hidden)?;
        let ops = Arc::clone(self.ops);
        Ok(Case::timed(
            "contrastive",
            format!("{columns} of {models}x{hidden} for {prompts}"),
            6.0 * (prompts * columns * hidden) as f64,
            12.0 * (rows * hidden) as f64,
            dz,
            move |pass, dz| {
                if sampled && !told {
                    inverse.upload(pass, &inverted);
                    told = true;
                }
                let place = grad.place();
                let (ids, inverse) = (&ids, &inverse);
                ops.contrastive.loss_and_gradients(
                    pass,
                    LossAndGradients {
                        z: &z,
                        rows: e.part(place),
                        tau: 0.08,
                        priors: &priors,
                        candidates: match sampled {
                            true => Candidates::Sampled {
                                ids: &candidates,
                                inverse,
                            },
                            false => Candidates::All,
                        },
                        targets: Targets {
                            ids,
                            mass: &ones,
                            weights: &ones,
                        },
                        room: &mut room,
                        losses: &mut losses,
                        dz,
                        d_rows: grad.part_mut(place),
                    },
                );
            },
        ))
    }

    fn slopes(&self) -> Result<Case> {
        let Shape {
            prompts, models, ..
        } = self.shape;
        let (teacher, scores) = (
            self.noise("teacher", prompts, models)?,
            self.noise("scores", prompts, models)?,
        );
        let weights = self.device.upload("weights", 1, &vec![1.0; prompts])?;
        let mut losses = self.device.scratch("losses", prompts, 1)?;
        let (ops, n) = (Arc::clone(self.ops), (prompts * models) as f64);
        Ok(Case::timed(
            "distill",
            format!("slopes {prompts}x{models}"),
            20.0 * n,
            12.0 * n,
            scores,
            move |pass, scores| {
                ops.distill.slopes(
                    pass,
                    Slopes {
                        teacher: &teacher,
                        weights: &weights,
                        temperature: 2.0,
                        scores,
                        losses: &mut losses,
                    },
                );
            },
        ))
    }

    /// There and back.
    fn unit_rows(&self) -> Result<Case> {
        let Shape { hidden, models, .. } = self.shape;
        let e = self.noise("e", models, hidden)?;
        let g = self.noise("g", models, hidden)?;
        let mut unit = self.device.scratch("unit", models, hidden)?;
        let zeros = vec![0.0; models * hidden];
        let grad = self.device.upload("grad", hidden, &zeros)?;
        let (ops, n) = (Arc::clone(self.ops), (models * hidden) as f64);
        Ok(Case::timed(
            "distill",
            format!("unit rows and across {models}x{hidden}"),
            11.0 * n,
            28.0 * n,
            grad,
            move |pass, grad| {
                let (x, place) = (e.part(e.place()), e.place());
                let to = &mut unit;
                ops.distill.unit_rows(pass, UnitRows { x, unit: to });
                ops.distill.across(
                    pass,
                    Across {
                        x,
                        unit: &unit,
                        g: &g,
                        grad: grad.part_mut(place),
                    },
                );
            },
        ))
    }

    /// Rows of E that the prompts' candidates are, where some are `listed`, or all.
    fn rows(&self, listed: bool) -> Vec<u32> {
        match listed {
            true => invert(&self.lists()).rows,
            false => (0..to_u32(self.shape.models)).collect(),
        }
    }

    fn anchor(&self, listed: bool) -> Result<Case> {
        let Shape { hidden, models, .. } = self.shape;
        let rows = self.rows(listed);
        let (count, n) = (rows.len(), (rows.len() * hidden) as f64);
        let e = self.noise("e", models, hidden)?;
        let reference = self.noise("reference", models, hidden)?;
        let ids = self.device.upload_ids("ids", 1, &rows)?;
        let mut losses = self.device.scratch("losses", models, 1)?;
        let grad = self
            .device
            .upload("grad", hidden, &vec![0.0; models * hidden])?;
        let ops = Arc::clone(self.ops);
        Ok(Case::timed(
            "anchor",
            format!("{count} of {models}x{hidden}"),
            17.0 * n,
            16.0 * n,
            grad,
            move |pass, grad| {
                let place = grad.place();
                ops.anchor.pull(
                    pass,
                    Pull {
                        form: Form::Normalized,
                        rows: e.part(place),
                        reference: &reference,
                        touched: listed.then_some(&ids),
                        strength: 1.0,
                        grad: grad.part_mut(place),
                        losses: &mut losses,
                    },
                );
            },
        ))
    }

    /// Adapters of one layer's maps, W, and E, or some of its rows.
    fn adamw(&self, listed: bool) -> Result<Case> {
        let Shape {
            hidden,
            feed_forward,
            models,
            ..
        } = self.shape;
        let adapters = R * (10 * hidden + 2 * feed_forward);
        let matrix = Place::flat(adapters + hidden * hidden, models, hidden);
        let all = matrix.end();
        let rows = self.rows(listed);
        let moved = (matrix.offset + rows.len() * hidden) as f64;
        let theta = self.noise("theta", 1, all)?;
        let mut grad = self.noise("grad", 1, all)?;
        let zeros = vec![0.0; all];
        let mut m = self.device.upload("m", all, &zeros)?;
        let mut v = self.device.upload("v", all, &zeros)?;
        let ids = self.device.upload_ids("ids", 1, &rows)?;
        let mut room = adamw::Room::new(self.device)?;
        let segment = |range| Segment {
            range,
            rate: 1e-3,
            decay: 1e-3,
            count: 1,
        };
        let segments = [
            segment(0..adapters),
            segment(adapters..matrix.offset),
            segment(matrix.offset..all),
        ];
        let ops = Arc::clone(self.ops);
        Ok(Case::timed(
            "adamw",
            format!("{} of {models} rows", rows.len()),
            15.0 * moved,
            32.0 * moved,
            theta,
            move |pass: &mut Pass<'_>, theta| {
                ops.adamw.step(
                    pass,
                    Step {
                        theta,
                        grad: &mut grad,
                        m: &mut m,
                        v: &mut v,
                        segments: &segments,
                        listed: listed.then_some(Listed { matrix, ids: &ids }),
                        clip: Some(Clip {
                            range: 0..adapters,
                            limit: 1.0,
                        }),
                        room: &mut room,
                    },
                );
            },
        ))
    }
}
