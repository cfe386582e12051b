//! The encoder in f64, straight from its bundle's weights: what a device is compared with where no
//! other implementation is at hand.

use crate::encoder::Encoder;
use crate::error::Result;
use crate::ops::reference::{attention, gelu, layer_norm, linear, pool, wide};
use crate::weights::Weights;

/// The embeddings' output and each layer's, [tokens, H], and the pooled vector.
pub(super) struct ExactTrace {
    pub(super) layers: Vec<Vec<f64>>,
    pub(super) pooled: Vec<f64>,
}

/// The forward pass of `ids`, which the encoder has rows and positions for.
///
/// Errors: a weight is missing or has another shape.
pub(super) fn trace(encoder: &Encoder, ids: &[u32]) -> Result<ExactTrace> {
    let (weights, config) = (encoder.weights(), encoder.config());
    weights.check_unchanged()?;
    let (h, f, eps) = (config.hidden, config.feed_forward, f64::from(config.eps));
    let network = ExactNetwork { weights, eps };
    let mut x = network.rows(
        "embeddings.word_embeddings.weight",
        config.vocabulary,
        h,
        ids,
    )?;
    let positions: Vec<u32> = (0..ids.len())
        .map(|i| crate::num::to_u32(i + config.first_position))
        .collect();
    let name = "embeddings.position_embeddings.weight";
    add(
        &mut x,
        &network.rows(name, config.positions, h, &positions)?,
    );
    if config.types > 0 {
        let name = "embeddings.token_type_embeddings.weight";
        add(
            &mut x,
            &network.rows(name, config.types, h, &vec![0; ids.len()])?,
        );
    }
    let mut x = network.norm("embeddings.LayerNorm", &x, h)?;
    let offsets = [0, crate::num::to_u32(ids.len())];
    let mut layers = vec![x.clone()];
    for layer in 0..config.layers {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        let part = |name: &str| network.map(&at(&format!("attention.self.{name}")), &x, h, h);
        let (query, key, value) = (part("query")?, part("key")?, part("value")?);
        let rows = query
            .chunks_exact(h)
            .zip(key.chunks_exact(h))
            .zip(value.chunks_exact(h));
        let qkv: Vec<f64> = rows.flat_map(|((q, k), v)| [q, k, v].concat()).collect();
        let seen = attention(&qkv, &offsets, h, config.head_width());
        let mut y = network.map(&at("attention.output.dense"), &seen, h, h)?;
        add(&mut y, &x);
        let middle = network.norm(&at("attention.output.LayerNorm"), &y, h)?;
        let wide = gelu(&network.map(&at("intermediate.dense"), &middle, h, f)?);
        let mut y = network.map(&at("output.dense"), &wide, f, h)?;
        add(&mut y, &middle);
        x = network.norm(&at("output.LayerNorm"), &y, h)?;
        layers.push(x.clone());
    }
    let pooled = pool(encoder.pooling(), &x, &offsets, h);
    weights.release();
    Ok(ExactTrace { layers, pooled })
}

struct ExactNetwork<'w> {
    weights: &'w Weights,
    eps: f64,
}

impl ExactNetwork<'_> {
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        Ok(wide(&self.weights.view(name, shape)?.to_f32()))
    }

    /// Rows `ids` of the table `name`.
    fn rows(&self, name: &str, rows: usize, columns: usize, ids: &[u32]) -> Result<Vec<f64>> {
        let table = self.weights.view(name, &[rows, columns])?;
        let mut row = vec![0.0; columns];
        let mut all = Vec::with_capacity(ids.len() * columns);
        for id in ids {
            table.read_row(*id as usize, &mut row);
            all.extend(wide(&row));
        }
        Ok(all)
    }

    /// The linear map `name` of `x` [T, inputs].
    fn map(&self, name: &str, x: &[f64], inputs: usize, outputs: usize) -> Result<Vec<f64>> {
        let w = self.numbers(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.numbers(&format!("{name}.bias"), &[outputs])?;
        Ok(linear(x, &w, &bias))
    }

    fn norm(&self, name: &str, x: &[f64], width: usize) -> Result<Vec<f64>> {
        let gamma = self.numbers(&format!("{name}.weight"), &[width])?;
        let beta = self.numbers(&format!("{name}.bias"), &[width])?;
        Ok(layer_norm(x, &gamma, &beta, self.eps))
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
