//! The networks: configuration, parameters, activations, forward pass.

pub(crate) mod activations;
pub(crate) mod adapted;
pub(crate) mod bert;
mod deferred;
pub(crate) mod head;
pub(crate) mod lora;
pub(crate) mod low;
pub(crate) mod parameters;
pub(crate) mod training;

use serde::Deserialize;

use crate::error::{Result, bail, error};

/// A BERT-family encoder, read from a checkpoint's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) vocabulary: usize,
    /// H
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// F
    pub(crate) feed_forward: usize,
    /// Rows of the position table.
    pub(crate) positions: usize,
    /// Position of the first token: 0, or `pad_token_id + 1` in the RoBERTa line.
    pub(crate) first_position: usize,
    /// Rows of the token-type table; 0 where the checkpoint has none.
    pub(crate) types: usize,
    pub(crate) eps: f32,
}

/// The fields of `config.json` that decide the computation.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(default)]
    is_decoder: bool,
}

impl Raw {
    /// Errors: something that this crate does not compute.
    fn check_kinds(&self) -> Result<()> {
        if self.hidden_act != "gelu" {
            bail!(
                Unsupported,
                "hidden_act: expected \"gelu\" (with erf), found {:?}",
                self.hidden_act
            );
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => bail!(
                Unsupported,
                "position_embedding_type: expected \"absolute\", found {other:?}"
            ),
        }
        if self.is_decoder {
            bail!(Unsupported, "is_decoder: expected false, found true");
        }
        Ok(())
    }

    /// Errors: a size that no checkpoint has, or sizes that do not fit together.
    fn check_sizes(&self) -> Result<()> {
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            let most = match name {
                "num_hidden_layers" => MOST_LAYERS,
                _ => LARGEST,
            };
            if value == 0 || value > most {
                bail!(Format, "{name}: expected 1 to {most}, found {value}");
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            bail!(
                Format,
                "hidden_size: expected a multiple of num_attention_heads ({}), found {}",
                self.num_attention_heads,
                self.hidden_size
            );
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            bail!(
                Format,
                "layer_norm_eps: expected between 0 and 1, found {}",
                self.layer_norm_eps
            );
        }
        Ok(())
    }
}

/// Larger sizes are taken for damage.
const LARGEST: usize = 1 << 24;

/// More layers are taken for damage: memory is allocated for all before one is read.
const MOST_LAYERS: usize = 1024;

#[cfg(test)]
impl Config {
    /// Two layers of width 4.
    pub(crate) fn toy() -> Self {
        Self {
            vocabulary: 10,
            hidden: 4,
            layers: 2,
            heads: 2,
            feed_forward: 6,
            positions: 8,
            first_position: 0,
            types: 0,
            eps: 1e-12,
        }
    }
}

impl Config {
    /// Reads `config.json`.
    ///
    /// Errors: the field that this crate does not compute, by name.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(json).map_err(|e| error!(Format, "{e}"))?;
        let first_position = match raw.model_type.as_str() {
            "bert" => 0,
            "roberta" | "xlm-roberta" => match raw.pad_token_id.unwrap_or(1) {
                padding if padding < LARGEST => padding + 1,
                padding => bail!(
                    Format,
                    "pad_token_id: expected less than {LARGEST}, found {padding}"
                ),
            },
            other => bail!(
                Unsupported,
                "model_type: expected bert, roberta or xlm-roberta, found {other:?}"
            ),
        };
        raw.check_kinds()?;
        raw.check_sizes()?;
        if raw.max_position_embeddings <= first_position {
            bail!(
                Format,
                "max_position_embeddings: expected more than {first_position}, found {}",
                raw.max_position_embeddings
            );
        }
        Ok(Self {
            vocabulary: raw.vocab_size,
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            feed_forward: raw.intermediate_size,
            positions: raw.max_position_embeddings,
            first_position,
            types: raw.type_vocab_size.min(LARGEST),
            eps: raw.layer_norm_eps,
        })
    }

    /// Most tokens that the position table allows.
    pub(crate) fn max_tokens(&self) -> usize {
        self.positions - self.first_position
    }

    /// Elements of an attention head.
    pub(crate) fn head_width(&self) -> usize {
        self.hidden / self.heads
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    const MINILM: &str = r#"{"model_type":"bert","vocab_size":30522,"hidden_size":384,
        "num_hidden_layers":6,"num_attention_heads":12,"intermediate_size":1536,
        "max_position_embeddings":512,"type_vocab_size":2,"layer_norm_eps":1e-12,
        "hidden_act":"gelu","pad_token_id":0,"gradient_checkpointing":false}"#;

    #[test]
    fn positions_start_where_the_family_says() {
        let bert = Config::from_json(MINILM.as_bytes()).unwrap();
        assert_eq!(
            (bert.first_position, bert.max_tokens(), bert.head_width()),
            (0, 512, 32)
        );
        let roberta = MINILM
            .replace("\"bert\"", "\"xlm-roberta\"")
            .replace("\"pad_token_id\":0", "\"pad_token_id\":1")
            .replace("512", "514");
        let roberta = Config::from_json(roberta.as_bytes()).unwrap();
        assert_eq!((roberta.first_position, roberta.max_tokens()), (2, 512));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (from, to, kind, name) in [
            (
                "\"bert\"",
                "\"mpnet\"",
                ErrorKind::Unsupported,
                "model_type",
            ),
            (
                "\"gelu\"",
                "\"gelu_new\"",
                ErrorKind::Unsupported,
                "hidden_act",
            ),
            (
                "\"pad_token_id\":0",
                "\"position_embedding_type\":\"relative_key\"",
                ErrorKind::Unsupported,
                "position_embedding_type",
            ),
            (
                "\"pad_token_id\":0",
                "\"is_decoder\":true",
                ErrorKind::Unsupported,
                "is_decoder",
            ),
            ("384", "385", ErrorKind::Format, "hidden_size"),
            (
                "\"num_attention_heads\":12",
                "\"num_attention_heads\":0",
                ErrorKind::Format,
                "num_attention_heads",
            ),
            ("1e-12", "-1", ErrorKind::Format, "layer_norm_eps"),
            ("\"vocab_size\":30522,", "", ErrorKind::Format, "vocab_size"),
            ("30522", "-1", ErrorKind::Format, "line"),
            ("30522", "99999999999", ErrorKind::Format, "vocab_size"),
            (
                "\"num_hidden_layers\":6",
                "\"num_hidden_layers\":1025",
                ErrorKind::Format,
                "num_hidden_layers",
            ),
            (
                "\"model_type\":\"bert\",",
                "\"model_type\":\"roberta\",\"pad_token_id\":18446744073709551615,",
                ErrorKind::Format,
                "pad_token_id",
            ),
        ] {
            let error = Config::from_json(MINILM.replace(from, to).as_bytes())
                .err()
                .unwrap();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
