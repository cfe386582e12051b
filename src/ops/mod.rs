//! Ops: one file each, with the host side of its shader, the CPU twin and the tests.

pub(crate) mod adamw;
pub(crate) mod anchor;
pub(crate) mod attention;
#[cfg(any(test, feature = "cli"))]
pub(crate) mod case;
pub(crate) mod contrastive;
mod contrastive_all;
pub(crate) mod distill;
pub(crate) mod dropout;
pub(crate) mod embed;
pub(crate) mod finish;
pub(crate) mod gelu;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod linear_matrix;
pub(crate) mod linear_skinny;
pub(crate) mod linear_tiled;
pub(crate) mod low_rank;
pub(crate) mod matmul;
pub(crate) mod normalize;
#[cfg(any(test, feature = "cli"))]
pub(crate) mod peak;
pub(crate) mod pool;
#[cfg(any(test, feature = "cli"))]
pub(crate) mod reference;
pub(crate) mod score;
pub(crate) mod square;
#[cfg(test)]
pub(crate) mod testing;

use crate::device::{Device, DeviceVariant, Kernel};
use crate::error::Result;
use linear::{Kind, Map};
use pool::Pooling;

/// The score of a model that may not be returned; no finite cosine is near it.
pub(crate) const LOWEST: f32 = -3.0e38;

/// All ops; their kernels are compiled for one device.
pub(crate) struct Ops {
    pub(crate) adamw: adamw::AdamW,
    pub(crate) anchor: anchor::Anchor,
    pub(crate) attention: attention::Attention,
    pub(crate) contrastive: contrastive::Contrastive,
    pub(crate) distill: distill::Distill,
    pub(crate) dropout: dropout::Dropout,
    pub(crate) embed: embed::Embed,
    pub(crate) finish: finish::Finish,
    pub(crate) gelu: gelu::Gelu,
    pub(crate) layer_norm: layer_norm::LayerNorm,
    pub(crate) linear: linear::Linear,
    pub(crate) low_rank: low_rank::LowRank,
    pub(crate) matmul: matmul::Matmul,
    pub(crate) normalize: normalize::Normalize,
    pub(crate) pool: pool::Pool,
    pub(crate) score: score::Score,
    pub(crate) square: square::Square,
}

impl Ops {
    /// `head_width`: elements of one attention head.
    pub(crate) fn new(device: &Device, head_width: usize, variant: DeviceVariant) -> Result<Self> {
        Ok(Self {
            adamw: adamw::AdamW::new(),
            anchor: anchor::Anchor::new(),
            attention: attention::Attention::new(device, head_width)?,
            contrastive: contrastive::Contrastive::new(),
            distill: distill::Distill::new(),
            dropout: dropout::Dropout::new(),
            embed: embed::Embed::new(),
            finish: finish::Finish::new(device),
            gelu: gelu::Gelu::new(),
            layer_norm: layer_norm::LayerNorm::new(),
            linear: linear::Linear::new(device, variant),
            low_rank: low_rank::LowRank::new(),
            matmul: matmul::Matmul::new(),
            normalize: normalize::Normalize::new(),
            pool: pool::Pool::new(),
            score: score::Score::new(),
            square: square::Square::new(),
        })
    }

    /// Compiles the kernels of a first route side by side: that of a short prompt. Every other kernel
    /// is compiled when a pass first dispatches it, side by side with what else that pass lacks.
    pub(crate) fn compile(&self, device: &Device, shape: EncoderShape) -> Result<()> {
        let kernels = self.of_a_first_route(shape);
        device.compile(&kernels.iter().collect::<Vec<_>>())
    }

    /// Whether a GPU applies the norms of an encoder of these widths where they are read.
    pub(crate) fn defers(&self, hidden: usize, feed_forward: usize) -> bool {
        let widths = maps(hidden, feed_forward).map(|Map(_, inputs, outputs)| (inputs, outputs));
        pool::Pool::norms(hidden) && self.linear.defers(&widths)
    }

    /// The kernels that the route of a short prompt may dispatch, for most hubs; `serve/index.rs`
    /// compiles those that a hub needs beside them.
    fn of_a_first_route(&self, shape: EncoderShape) -> Vec<Kernel> {
        let EncoderShape {
            hidden,
            feed_forward,
            pooling,
        } = shape;
        let shared = [
            &self.attention.forward,
            &self.embed.forward,
            &self.finish.whole,
            &self.score.few,
        ];
        let mut kernels: Vec<Kernel> = shared.into_iter().cloned().collect();
        // The head, and the memory's projection of several layers.
        let mut products = vec![Map(Kind::Bare, hidden, hidden)];
        let of_layers = maps(hidden, feed_forward);
        if self.defers(hidden, feed_forward) {
            products.extend(of_layers);
            kernels.push(self.pool.of_norms(hidden, pooling));
        } else {
            let bare = |Map(_, inputs, outputs)| Map(Kind::Bare, inputs, outputs);
            products.extend(of_layers.map(bare));
            let norms = [
                &self.layer_norm.forward,
                &self.layer_norm.forward_branch,
                &self.normalize.forward,
            ];
            kernels.extend(norms.into_iter().cloned());
            // A memory takes means of layers, whatever a prompt's vector is.
            kernels.push(self.pool.mean.clone());
            if pooling == Pooling::Cls {
                kernels.push(self.pool.first.clone());
            }
        }
        kernels.extend(self.linear.for_few_rows(&products));
        kernels
    }
}

/// Widths that decide which kernels an encoder takes.
#[derive(Clone, Copy)]
pub(crate) struct EncoderShape {
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) pooling: Pooling,
}

/// The products of a layer with these widths: kind, in and out.
fn maps(hidden: usize, feed_forward: usize) -> [Map; 4] {
    [
        Map(Kind::Normed, hidden, 3 * hidden),
        Map(Kind::Joined, hidden, hidden),
        Map(Kind::Normed, hidden, feed_forward),
        Map(Kind::Joined, feed_forward, hidden),
    ]
}
