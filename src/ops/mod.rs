//! Ops: one file each, with the host side of its shader, the CPU twin and the tests.

pub(crate) mod adamw;
pub(crate) mod anchor;
pub(crate) mod attention;
pub(crate) mod by_domain;
pub(crate) mod case;
pub(crate) mod contrastive;
pub(crate) mod distill;
pub(crate) mod dropout;
pub(crate) mod embed;
pub(crate) mod gelu;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod log_sum_exp;
pub(crate) mod matmul;
pub(crate) mod normalize;
pub(crate) mod peak;
pub(crate) mod pool;
pub(crate) mod reference;
pub(crate) mod score;
pub(crate) mod square;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod top_k;

use crate::device::Device;
use crate::error::Result;

/// The score of a model that may not be returned; no finite cosine is near it.
pub(crate) const LOWEST: f32 = -3.0e38;

/// All ops, compiled for one device.
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
            adamw: adamw::AdamW::new(device)?,
            anchor: anchor::Anchor::new(device)?,
            attention: attention::Attention::new(device, head_width)?,
            contrastive: contrastive::Contrastive::new(device)?,
            by_domain: by_domain::ByDomain::new(device)?,
            distill: distill::Distill::new(device)?,
            dropout: dropout::Dropout::new(device)?,
            embed: embed::Embed::new(device)?,
            gelu: gelu::Gelu::new(device)?,
            layer_norm: layer_norm::LayerNorm::new(device)?,
            linear: linear::Linear::new(device)?,
            log_sum_exp: log_sum_exp::LogSumExp::new(device)?,
            matmul: matmul::Matmul::new(device)?,
            normalize: normalize::Normalize::new(device)?,
            pool: pool::Pool::new(device)?,
            score: score::Score::new(device)?,
            square: square::Square::new(device)?,
            top_k: top_k::TopK::new(device)?,
        })
    }
}
