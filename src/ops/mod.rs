//! Ops: one file each, with the host side of its shader, the CPU twin and the tests.

pub(crate) mod adamw;
pub(crate) mod anchor;
pub(crate) mod attention;
pub(crate) mod by_domain;
#[cfg(any(test, feature = "cli"))]
pub(crate) mod case;
pub(crate) mod contrastive;
mod contrastive_all;
pub(crate) mod distill;
pub(crate) mod dropout;
pub(crate) mod embed;
pub(crate) mod gelu;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod log_sum_exp;
pub(crate) mod low_rank;
pub(crate) mod mask;
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
pub(crate) mod top_k;

use crate::device::cpu::Cpu;
use crate::device::{Device, Kernel};
use crate::error::Result;

/// The score of a model that may not be returned; no finite cosine is near it.
pub(crate) const LOWEST: f32 = -3.0e38;

/// All ops; their kernels are compiled for one device.
pub(crate) struct Ops {
    pub(crate) adamw: adamw::AdamW,
    pub(crate) anchor: anchor::Anchor,
    pub(crate) attention: attention::Attention,
    pub(crate) contrastive: contrastive::Contrastive,
    pub(crate) by_domain: by_domain::ByDomain,
    pub(crate) distill: distill::Distill,
    pub(crate) dropout: dropout::Dropout,
    pub(crate) embed: embed::Embed,
    pub(crate) gelu: gelu::Gelu,
    pub(crate) layer_norm: layer_norm::LayerNorm,
    pub(crate) linear: linear::Linear,
    pub(crate) log_sum_exp: log_sum_exp::LogSumExp,
    pub(crate) low_rank: low_rank::LowRank,
    pub(crate) mask: mask::Mask,
    pub(crate) matmul: matmul::Matmul,
    pub(crate) normalize: normalize::Normalize,
    pub(crate) pool: pool::Pool,
    pub(crate) score: score::Score,
    pub(crate) square: square::Square,
    pub(crate) top_k: top_k::TopK,
}

impl Ops {
    /// `head_width`: elements of one attention head.
    pub(crate) fn new(device: &Device, head_width: usize) -> Result<Self> {
        Ok(Self {
            adamw: adamw::AdamW::new(),
            anchor: anchor::Anchor::new(),
            attention: attention::Attention::new(device, head_width)?,
            contrastive: contrastive::Contrastive::new(),
            by_domain: by_domain::ByDomain::new(),
            distill: distill::Distill::new(),
            dropout: dropout::Dropout::new(),
            embed: embed::Embed::new(),
            gelu: gelu::Gelu::new(),
            layer_norm: layer_norm::LayerNorm::new(),
            linear: linear::Linear::new(),
            log_sum_exp: log_sum_exp::LogSumExp::new(),
            low_rank: low_rank::LowRank::new(),
            mask: mask::Mask::new(),
            matmul: matmul::Matmul::new(),
            normalize: normalize::Normalize::new(),
            pool: pool::Pool::new(),
            score: score::Score::new(),
            square: square::Square::new(),
            top_k: top_k::TopK::new(),
        })
    }

    /// Compiles the kernels of a route side by side. Every other kernel is compiled when an update
    /// first dispatches it.
    pub(crate) fn compile(&self, device: &Device, host: &Cpu) -> Result<()> {
        device.compile(host, &self.of_a_route())
    }

    /// Compiles the kernel that a route within a policy dispatches beside those.
    pub(crate) fn compile_mask(&self, device: &Device, host: &Cpu) -> Result<()> {
        device.compile(host, &[&self.mask.forward])
    }

    /// The kernels that a route without a policy may dispatch, for any encoder and any hub.
    fn of_a_route(&self) -> [&Kernel; 17] {
        [
            &self.attention.forward,
            &self.by_domain.forward,
            &self.embed.forward,
            &self.layer_norm.forward,
            &self.layer_norm.forward_branch,
            &self.linear.wide,
            &self.linear.narrow,
            &self.linear.wide_gelu,
            &self.linear.narrow_gelu,
            &self.log_sum_exp.forward,
            &self.normalize.forward,
            &self.pool.mean,
            &self.pool.first,
            &self.score.forward,
            &self.score.forward_add,
            &self.top_k.chunks,
            &self.top_k.merge,
        ]
    }
}
