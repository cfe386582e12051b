//! The sizes at which the ops' cases run: small ugly ones for the self-test, an encoder's own for
//! benches.

use crate::device::Device;
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::Case;
use crate::ops::contrastive::cases::LossSize;
use crate::ops::low_rank::cases::LayerSize;
use crate::ops::matmul::Transposed;
use crate::ops::matmul::cases::ProductSize;
use crate::ops::{
    adamw, anchor, attention, contrastive, distill, dropout, embed, finish, gelu, layer_norm,
    linear, low_rank, matmul, normalize, peak, pool, score, square,
};

/// Sizes of an encoder, its adapters, a hub and a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct CaseScale {
    pub(super) tokens: usize,
    pub(super) prompts: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) feed_forward: usize,
    pub(super) models: usize,
    pub(super) domains: usize,
    /// Models of an answer.
    pub(super) k: usize,
    /// Candidates of an example.
    pub(super) candidates: usize,
    /// Rank of the adapters.
    pub(super) rank: usize,
    /// Elements before the matrices of flat buffers.
    pub(super) before: usize,
}

impl CaseScale {
    /// Nothing divides anything else more than it must.
    pub(super) const UGLY: Self = Self {
        tokens: 37,
        prompts: 3,
        hidden: 51,
        heads: 3,
        feed_forward: 130,
        models: 1102,
        domains: 58,
        k: 10,
        candidates: 33,
        rank: 7,
        before: 5,
    };

    /// Of all-MiniLM-L6-v2.
    pub(super) fn of_minilm(tokens: usize, prompts: usize, models: usize) -> Self {
        Self {
            tokens,
            prompts,
            hidden: 384,
            heads: 12,
            feed_forward: 1536,
            models,
            domains: 58,
            k: 10,
            candidates: 64,
            rank: 16,
            before: 0,
        }
    }
}

/// Every op of a route and of an update at `scale`.
pub(super) fn all(device: &Device, scale: CaseScale) -> Result<Vec<Case>> {
    let CaseScale {
        tokens: t,
        prompts: b,
        hidden: h,
        feed_forward: f,
        models: m,
        rank: r,
        before,
        ..
    } = scale;
    let offsets: Vec<u32> = (0..=b).map(|prompt| to_u32(prompt * t / b)).collect();
    let maps = [
        ("qkv", t, h, 3 * h),
        ("attention output", t, h, h),
        ("intermediate", t, h, f),
        ("output", t, f, h),
        ("projection", b, h, h),
    ];
    let product = |label, turned, shape| ProductSize {
        label,
        shape,
        turned,
        gap: (before, before),
        add: false,
    };
    let products = [
        product("down, transposed b", Transposed::B, [t, h, r]),
        product("up", Transposed::Neither, [t, r, h]),
        product("dA, transposed a", Transposed::A, [r, t, h]),
    ];
    let losses = LossSize {
        examples: b,
        models: m,
        width: h,
        candidates: scale.candidates,
        before,
    };
    // In fours: other layers are products.
    let layer = LayerSize {
        tokens: t,
        hidden: h / 4 * 4,
        wide: f / 4 * 4,
        rank: r,
        some: false,
    };
    // Factors of one layer's maps, and W.
    let ahead = before + r * (10 * h + 2 * f) + h * h;
    let groups = [
        embed::cases::all(device, &[(t, h)])?,
        layer_norm::cases::all(device, &[(t, h, 0.0)])?,
        linear::cases::all(device, &maps)?,
        matmul::cases::all(device, &products)?,
        low_rank::cases::all(device, &[layer])?,
        attention::cases::all(device, &[(&offsets, scale.heads, h / scale.heads)])?,
        gelu::cases::all(device, &[(t, f)])?,
        dropout::cases::all(device, &[(t, h)])?,
        pool::cases::all(device, &[(&offsets, h)])?,
        normalize::cases::all(device, &[(b, h, 0), (m, h, before)])?,
        score::cases::all(device, &[(b, m, [h, h])])?,
        finish::cases::all(device, &[(b, m, scale.domains, scale.k)])?,
        contrastive::cases::all(device, &[losses])?,
        distill::cases::all(device, &[(b, m)])?,
        anchor::cases::all(device, &[(m, h, before)])?,
        square::cases::all(device, &[ahead])?,
        adamw::cases::all(device, &[(ahead, m, h)])?,
        peak::cases::all(device, &[t * h])?,
    ];
    Ok(groups.into_iter().flatten().collect())
}
