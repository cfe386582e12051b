//! Every op with inputs of a given shape: for the self-test a small ugly one, for benches an
//! encoder's own.

use std::sync::Arc;

use super::OpTest;
use crate::device::{Device, Pass, Plan, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::embed::Words;
use crate::ops::linear::Weight;
use crate::ops::pool::Pooling;
use crate::ops::reference::{self, noise, wide};
use crate::ops::score::Keys;
use crate::ops::top_k::Found;
use crate::ops::{
    Ops, attention, by_domain, embed, gelu, layer_norm, linear, log_sum_exp, normalize, pool,
    score, top_k,
};
use crate::weights::{Table, View};

/// Sizes of an encoder, a hub and a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) prompts: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) feed_forward: usize,
    pub(super) models: usize,
    pub(super) k: usize,
}

impl Shape {
    /// Nothing divides anything else more than it must.
    pub(super) const UGLY: Self = Self {
        tokens: 37,
        prompts: 3,
        hidden: 51,
        heads: 3,
        feed_forward: 130,
        models: 1100,
        k: 10,
    };

    pub(super) fn head_width(self) -> usize {
        self.hidden / self.heads
    }

    /// Prompts of about equal length.
    pub(super) fn offsets(self) -> Vec<u32> {
        (0..=self.prompts)
            .map(|b| to_u32(b * self.tokens / self.prompts))
            .collect()
    }
}

/// Calls the op, which writes the tensor.
type Run = Box<dyn FnMut(&mut Pass<'_>, &mut Tensor) + Send>;

/// One op, ready to run.
pub(super) struct Case {
    pub(super) op: &'static str,
    /// Which of the op's uses.
    pub(super) label: String,
    /// Arithmetic of one run, a multiply-add as two.
    pub(super) flops: f64,
    /// Bytes that one run must read and write at least.
    pub(super) bytes: f64,
    /// Bound against f64.
    bound: f64,
    y: Tensor,
    run: Run,
    want: Box<dyn Fn() -> Vec<f64> + Send>,
}

/// Bound of an f32 op against f64, over 1 + |want|.
const BOUND: f64 = 1e-5;

impl Case {
    /// A case for benches alone, without a reference.
    pub(super) fn timed(
        op: &'static str,
        label: String,
        flops: f64,
        bytes: f64,
        y: Tensor,
        run: impl FnMut(&mut Pass<'_>, &mut Tensor) + Send + 'static,
    ) -> Self {
        Self {
            op,
            label: format!("{op} {label}"),
            flops,
            bytes,
            bound: BOUND,
            y,
            run: Box::new(run),
            want: Box::new(Vec::new),
        }
    }

    pub(super) fn run(&mut self, pass: &mut Pass<'_>) {
        (self.run)(pass, &mut self.y);
    }

    pub(super) fn test(&mut self, device: &Device) -> Result<OpTest> {
        let mut plan = Plan::new(device, (), 1 << 16, 1 << 20)?;
        let (run, y) = (&mut self.run, &mut self.y);
        let (read, outcome) = device.run(&mut plan, |pass, ()| {
            run(pass, y);
            pass.read(y)
        })?;
        let (got, want) = (outcome.f32(read), (self.want)());
        let error = got
            .iter()
            .zip(&want)
            .map(|(got, want)| (f64::from(*got) - want).abs());
        Ok(OpTest {
            op: self.op,
            device: device.name().to_owned(),
            max_abs_error: error.fold(0.0, f64::max),
            bound: self.bound,
            ok: reference::worst(got, &want) < self.bound,
        })
    }
}

/// Every op of a route at `shape`.
pub(super) fn all(device: &Device, ops: &Arc<Ops>, shape: Shape) -> Result<Vec<Case>> {
    let (h, f) = (shape.hidden, shape.feed_forward);
    let build = Builder { device, ops, shape };
    Ok(vec![
        build.embed()?,
        build.layer_norm()?,
        build.linear("qkv", h, 3 * h, shape.tokens)?,
        build.attention()?,
        build.linear("attention output", h, h, shape.tokens)?,
        build.linear("intermediate", h, f, shape.tokens)?,
        build.gelu()?,
        build.linear("output", f, h, shape.tokens)?,
        build.pool()?,
        build.linear("projection", h, h, shape.prompts)?,
        build.normalize()?,
        build.score()?,
        build.by_domain()?,
        build.log_sum_exp()?,
        build.top_k()?,
        build.peak()?,
    ])
}

/// A case whose output is `y` of `n` elements, at so many operations and bytes an element.
#[expect(clippy::too_many_arguments, reason = "what a case is made of")]
pub(super) fn case(
    op: &'static str,
    label: &str,
    flops: f64,
    bytes: f64,
    n: usize,
    y: Tensor,
    mut run: impl FnMut(&mut Pass<'_>, &mut Tensor) + Send + 'static,
    want: impl Fn() -> Vec<f64> + Send + 'static,
) -> Case {
    Case {
        op,
        label: if label.is_empty() {
            op.to_owned()
        } else {
            format!("{op} {label}")
        },
        flops: flops * n as f64,
        bytes: bytes * n as f64,
        bound: BOUND,
        y,
        run: Box::new(move |pass, y| run(pass, y)),
        want: Box::new(want),
    }
}

struct Builder<'b> {
    device: &'b Device,
    ops: &'b Arc<Ops>,
    shape: Shape,
}

impl Builder<'_> {
    fn embed(&self) -> Result<Case> {
        let Shape { tokens, hidden, .. } = self.shape;
        let (rows, place_rows) = (noise(500 * hidden, 1), noise(64 * hidden, 2));
        let ids: Vec<u32> = (0..tokens).map(|t| to_u32(t * 17 % 500)).collect();
        let positions: Vec<u32> = (0..tokens).map(|t| to_u32(t % 64)).collect();
        let words = Words::new(self.device, Table::of_f32(&rows, hidden))?;
        let places = self.device.upload("places", hidden, &place_rows)?;
        let id_tensor = self.device.upload_ids("ids", 1, &ids)?;
        let position_tensor = self.device.upload_ids("positions", 1, &positions)?;
        let x = self.device.scratch("x", tokens, hidden)?;
        let ops = Arc::clone(self.ops);
        Ok(case(
            "embed",
            "",
            1.0,
            12.0,
            tokens * hidden,
            x,
            move |pass, x| {
                let (ids, positions) = (&id_tensor, &position_tensor);
                ops.embed.forward(
                    pass,
                    embed::Forward {
                        ids,
                        positions,
                        words: &words,
                        places: &places,
                        x,
                    },
                );
            },
            move || reference::embed(&ids, &positions, &wide(&rows), &wide(&place_rows), hidden),
        ))
    }

    fn layer_norm(&self) -> Result<Case> {
        let Shape { tokens, hidden, .. } = self.shape;
        let (input, added) = (noise(tokens * hidden, 3), noise(tokens * hidden, 4));
        let (scale, shift) = (noise(hidden, 5), noise(hidden, 6));
        let x = self.device.upload("x", hidden, &input)?;
        let branch = self.device.upload("branch", hidden, &added)?;
        let gamma = self.device.upload("gamma", hidden, &scale)?;
        let beta = self.device.upload("beta", hidden, &shift)?;
        let y = self.device.scratch("y", tokens, hidden)?;
        let ops = Arc::clone(self.ops);
        Ok(case(
            "layer_norm",
            "",
            9.0,
            12.0,
            tokens * hidden,
            y,
            move |pass, y| {
                let branch = Some(&branch);
                ops.layer_norm.forward(
                    pass,
                    layer_norm::Forward {
                        x: &x,
                        branch,
                        gamma: &gamma,
                        beta: &beta,
                        eps: 1e-12,
                        y,
                    },
                );
            },
            move || {
                let sum: Vec<f64> = input
                    .iter()
                    .zip(&added)
                    .map(|(x, b)| f64::from(*x) + f64::from(*b))
                    .collect();
                reference::layer_norm(&sum, &wide(&scale), &wide(&shift), 1e-12)
            },
        ))
    }

    fn linear(&self, label: &str, inputs: usize, outputs: usize, rows: usize) -> Result<Case> {
        let (input, weights, shift) = (
            noise(rows * inputs, 7),
            noise(outputs * inputs, 8),
            noise(outputs, 9),
        );
        let w = Weight::new(
            self.device,
            &[("w", View::of_f32(&weights, inputs))],
            &shift,
        )?;
        let x = self.device.upload("x", inputs, &input)?;
        let y = self.device.scratch("y", rows, outputs)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, y: &mut _| {
            ops.linear
                .forward(pass, linear::Forward { x: &x, w: &w, y })
        };
        let want = move || reference::linear(&wide(&input), &wide(&weights), &wide(&shift));
        let label = format!("{label} {rows}x{inputs} . {outputs}x{inputs}");
        let mut case = case(
            "linear",
            &label,
            2.0 * inputs as f64,
            4.0,
            rows * outputs,
            y,
            run,
            want,
        );
        case.bytes += 4.0 * (inputs * outputs + rows * inputs) as f64;
        Ok(case)
    }

    fn attention(&self) -> Result<Case> {
        let Shape { tokens, hidden, .. } = self.shape;
        let width = self.shape.head_width();
        let offsets = self.shape.offsets();
        let input = noise(tokens * 3 * hidden, 10);
        let qkv = self.device.upload("qkv", 3 * hidden, &input)?;
        let rows = self.device.upload_ids("offsets", 1, &offsets)?;
        let list = attention::query_tiles(&offsets);
        let tiles = self.device.upload_ids("tiles", 2, &list)?;
        let y = self.device.scratch("y", tokens, hidden)?;
        let ops = Arc::clone(self.ops);
        let mut case = case(
            "attention",
            "",
            0.0,
            16.0,
            tokens * hidden,
            y,
            move |pass, y| {
                ops.attention.forward(
                    pass,
                    attention::Forward {
                        qkv: &qkv,
                        offsets: &rows,
                        tiles: &tiles,
                        y,
                    },
                );
            },
            {
                let offsets = offsets.clone();
                move || reference::attention(&wide(&input), &offsets, hidden, width)
            },
        );
        case.flops = offsets
            .windows(2)
            .map(|pair| 4.0 * f64::from(pair[1] - pair[0]).powi(2) * hidden as f64)
            .sum();
        Ok(case)
    }

    fn gelu(&self) -> Result<Case> {
        let Shape {
            tokens,
            feed_forward,
            ..
        } = self.shape;
        let input: Vec<f32> = noise(tokens * feed_forward, 11)
            .iter()
            .map(|x| x * 4.0)
            .collect();
        let x = self.device.upload("x", feed_forward, &input)?;
        let y = self.device.scratch("y", tokens, feed_forward)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, y: &mut _| {
            ops.gelu.forward(pass, gelu::Forward { x: &x, y })
        };
        Ok(case(
            "gelu",
            "",
            27.0,
            8.0,
            tokens * feed_forward,
            y,
            run,
            move || reference::gelu(&wide(&input)),
        ))
    }

    fn pool(&self) -> Result<Case> {
        let Shape {
            tokens,
            prompts,
            hidden,
            ..
        } = self.shape;
        let offsets = self.shape.offsets();
        let input = noise(tokens * hidden, 12);
        let x = self.device.upload("x", hidden, &input)?;
        let rows = self.device.upload_ids("offsets", 1, &offsets)?;
        let h = self.device.scratch("h", prompts, hidden)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, h: &mut Tensor| {
            let whole = h.place();
            ops.pool.forward(
                pass,
                pool::Forward {
                    pooling: Pooling::Mean,
                    x: &x,
                    offsets: &rows,
                    h: h.part_mut(whole),
                },
            );
        };
        let want = move || reference::pool(Pooling::Mean, &wide(&input), &offsets, hidden);
        let each = tokens as f64 / prompts as f64;
        Ok(case(
            "pool",
            "",
            each,
            4.0 + 4.0 * each,
            prompts * hidden,
            h,
            run,
            want,
        ))
    }

    fn normalize(&self) -> Result<Case> {
        let Shape {
            prompts, hidden, ..
        } = self.shape;
        let input = noise(prompts * hidden, 13);
        let z = self.device.upload("z", hidden, &input)?;
        let u = self.device.scratch("u", prompts, hidden)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, u: &mut _| {
            ops.normalize.forward(pass, normalize::Forward { z: &z, u })
        };
        Ok(case(
            "normalize",
            "",
            3.0,
            8.0,
            prompts * hidden,
            u,
            run,
            move || reference::normalize(&wide(&input), hidden),
        ))
    }

    fn score(&self) -> Result<Case> {
        let Shape {
            prompts,
            hidden,
            models,
            ..
        } = self.shape;
        let (queries, rows) = (noise(prompts * hidden, 14), noise(models * hidden, 15));
        let offsets = reference::offsets(models);
        let keys = Keys::new(self.device, View::of_f32(&rows, hidden), &offsets)?;
        let u = self.device.upload("u", hidden, &queries)?;
        let s = self.device.scratch("s", prompts, models)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, s: &mut _| {
            ops.score.forward(
                pass,
                score::Forward {
                    u: &u,
                    keys: &keys,
                    scale: 2.0,
                    s,
                },
            );
        };
        let want =
            move || reference::score(&wide(&queries), &wide(&rows), hidden, &wide(&offsets), 0.5);
        let label = format!("{prompts} of {models}x{hidden}");
        let mut case = case(
            "score",
            &label,
            2.0 * hidden as f64,
            4.0,
            prompts * models,
            s,
            run,
            want,
        );
        case.bytes += 4.0 * (models * hidden) as f64;
        Ok(case)
    }

    fn by_domain(&self) -> Result<Case> {
        const DOMAINS: usize = 58;
        let Shape {
            prompts, models, ..
        } = self.shape;
        let (scores, of_domains) = (noise(prompts * models, 23), noise(prompts * DOMAINS, 24));
        let own: Vec<u32> = (0..models).map(|m| to_u32(m * 7 % DOMAINS)).collect();
        let s = self.device.upload("s", models, &scores)?;
        let domains = self.device.upload("domains", DOMAINS, &of_domains)?;
        let own_tensor = self.device.upload_ids("own", 1, &own)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, s: &mut _| {
            let f = by_domain::Forward {
                domains: &domains,
                own: &own_tensor,
                strength: 0.5,
                s,
            };
            ops.by_domain.forward(pass, f);
        };
        let want = move || {
            let (s, domains) = (wide(&scores), wide(&of_domains));
            reference::by_domain(&s, &domains, &own, DOMAINS, 0.5)
        };
        Ok(case(
            "by_domain",
            "",
            2.0,
            12.0,
            prompts * models,
            s,
            run,
            want,
        ))
    }

    fn log_sum_exp(&self) -> Result<Case> {
        const GROUPS: usize = 58;
        let Shape {
            prompts, models, ..
        } = self.shape;
        let scores: Vec<f32> = noise(prompts * models, 16)
            .iter()
            .map(|s| s * 12.5)
            .collect();
        let members: Vec<u32> = (0..to_u32(models)).collect();
        let offsets: Vec<u32> = (0..=GROUPS).map(|g| to_u32(g * models / GROUPS)).collect();
        let s = self.device.upload("s", models, &scores)?;
        let member_tensor = self.device.upload_ids("members", 1, &members)?;
        let offset_tensor = self.device.upload_ids("offsets", 1, &offsets)?;
        let out = self.device.scratch("out", prompts, GROUPS)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, out: &mut _| {
            let (members, offsets) = (&member_tensor, &offset_tensor);
            ops.log_sum_exp.forward(
                pass,
                log_sum_exp::Forward {
                    s: &s,
                    members,
                    offsets,
                    out,
                },
            );
        };
        let want = move || reference::log_sum_exp(&wide(&scores), models, &members, &offsets);
        let each = models as f64 / GROUPS as f64;
        Ok(case(
            "log_sum_exp",
            "",
            12.0 * each,
            8.0 * each,
            prompts * GROUPS,
            out,
            run,
            want,
        ))
    }

    fn top_k(&self) -> Result<Case> {
        let Shape {
            prompts, models, k, ..
        } = self.shape;
        let scores = noise(prompts * models, 17);
        let s = self.device.upload("s", models, &scores)?;
        let mut found = Found::new(self.device, prompts, models)?;
        let mut ids = self.device.ids("ids", prompts * k, 1)?;
        let best = self.device.scratch("scores", prompts * k, 1)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, best: &mut _| {
            let (found, ids) = (&mut found, &mut ids);
            ops.top_k.forward(
                pass,
                top_k::Forward {
                    s: &s,
                    k,
                    found,
                    scores: best,
                    ids,
                },
            );
        };
        let each = models as f64 / k as f64;
        let label = format!("{k} of {models}");
        Ok(case(
            "top_k",
            &label,
            each,
            4.0 * each,
            prompts * k,
            best,
            run,
            move || wide(&reference::top_k(&scores, models, k).1),
        ))
    }

    fn peak(&self) -> Result<Case> {
        let n = self.shape.tokens * self.shape.hidden;
        let input = noise(n, 18);
        let source = self.device.upload("x", 1, &input)?;
        let y = self.device.scratch("y", n, 1)?;
        let ops = Arc::clone(self.ops);
        let run = move |pass: &mut Pass<'_>, y: &mut _| ops.peak.copy(pass, &source, y);
        Ok(case("peak", "copy", 0.0, 8.0, n, y, run, move || {
            wide(&input)
        }))
    }
}
