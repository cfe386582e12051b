//! Settings by key: their list, a change of one, what they may be.

use serde_json::{Map, Value};

use super::{AdamwRows, AnchorRows, CandidateMode, Regulariser, Settings, Train};
use crate::error::{Result, bail, error};
use crate::generation::memory::check_strengths;

/// Keys of `docs/carve.md` that name variants of the method which are not implemented.
const UNSUPPORTED: [&str; 24] = [
    "accumulation",
    "anchor.first",
    "anchor.no_new",
    "anchor.reference",
    "baseline.head",
    "batch.coverage",
    "batch.domains",
    "card.text",
    "compat.reference",
    "coreset.seed",
    "errors",
    "fold_case",
    "grad.reset",
    "graph",
    "lm.smoothing",
    "lr.glitch",
    "phase1.mode",
    "replay.scope",
    "replay.store",
    "resume.weights",
    "score.precision",
    "soft.topup",
    "text.strip_markers",
    "w_lm",
];

/// Keys that are newer than the first settings that were written into manifests, benchmark results
/// and states of updates. A key with its value of [`Settings::base`] changes nothing and is not
/// written, so that ids and digests from before the key stay the same.
const LATER: [&str; 13] = [
    "train",
    "train.least",
    "memory",
    "memory.layers",
    "memory.rank",
    "memory.prior",
    "strength.learned",
    "strength.memory",
    "strength.words",
    "strength.newcomer",
    "lwf.alpha",
    "lwf.temperature",
    "lwf.rows",
];

impl Settings {
    /// Every key with its value, without the [`LATER`] ones that change nothing, in the order of
    /// the fields. Ids and digests are made of these.
    pub(crate) fn written(&self) -> Map<String, Value> {
        let without = Self::base().map();
        let mut map = self.map();
        map.retain(|key, value| !LATER.contains(&key.as_str()) || without.get(key) != Some(value));
        map
    }

    /// Every key with its value, in the order of the fields.
    pub fn pairs(&self) -> Vec<(String, Value)> {
        self.map().into_iter().collect()
    }

    fn map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // A struct of numbers, words and lists of words.
            _ => Map::new(),
        }
    }

    /// Changes one value; `value` as in JSON, words without quotes, lists with commas.
    ///
    /// Errors: there is no such key; it is not supported; the value is of another kind. Values that
    /// contradict each other are found by [`Settings::validate`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if UNSUPPORTED.contains(&key) {
            bail!(Unsupported, "{key}: not supported; docs/carve.md says why");
        }
        let mut map = self.map();
        let Some(place) = map.get_mut(key) else {
            let known: Vec<&String> = map.keys().collect();
            bail!(
                InvalidRequest,
                "{key:?}: expected one of {}",
                known
                    .into_iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        };
        let word = |text: &str| Value::String(text.trim().to_owned());
        *place = match serde_json::from_str::<Value>(value) {
            Ok(value) => value,
            Err(_) if place.is_array() => value.split(',').map(word).collect(),
            Err(_) => word(value),
        };
        *self = serde_json::from_value(Value::Object(map))
            .map_err(|e| error!(InvalidRequest, "{key}: {e}"))?;
        Ok(())
    }

    /// Checks each value, and whether they go together.
    ///
    /// Errors name the key, the expected values and the one found.
    pub fn validate(&self) -> Result<()> {
        self.check_counts()?;
        self.check_ranges()?;
        check_strengths(&self.strengths())?;
        let touched = self.adamw_rows == AdamwRows::Touched;
        let layers = &self.memory_layers;
        for (wrong, message) in [
            (
                self.train == Train::Never && !self.memory,
                "train = never: expected memory = true, or nothing is learned at all".to_owned(),
            ),
            (
                layers.contains(&0) || !layers.is_sorted_by(|a, b| a < b),
                format!("memory.layers: expected numbers from 1, ascending, found {layers:?}"),
            ),
            (
                self.lora_train && self.lora_targets.is_empty(),
                "lora.targets: expected at least one, or lora.train = false".to_owned(),
            ),
            // Anchors would pull rows that no step moves.
            (
                touched && self.anchor_rows != AnchorRows::Touched,
                "adamw.rows = touched: expected anchor.rows = touched, found all_old".to_owned(),
            ),
            (
                touched && self.regulariser == Regulariser::Ewc,
                "adamw.rows = touched: expected regulariser = anchors, found ewc".to_owned(),
            ),
            (
                touched && self.lwf_alpha > 0.0,
                format!(
                    "adamw.rows = touched: expected lwf.alpha = 0, found {}",
                    self.lwf_alpha
                ),
            ),
        ] {
            if wrong {
                bail!(InvalidRequest, "{message}");
            }
        }
        for (at, target) in self.lora_targets.iter().enumerate() {
            if self.lora_targets[..at].contains(target) {
                bail!(InvalidRequest, "lora.targets: {target:?} is there twice");
            }
        }
        self.check_candidates()
    }

    /// Checks counts. The upper bounds limit what is allocated before anything is learned.
    fn check_counts(&self) -> Result<()> {
        const MANY: usize = usize::MAX;
        for (key, value, least, most) in [
            ("width", self.width.unwrap_or(1), 1, 1 << 16),
            ("memory.rank", self.memory_rank, 1, 1 << 14),
            ("lora.r", self.lora_r, 1, 1 << 12),
            ("candidates.k", self.candidates_k, 1, MANY),
            (
                "candidates.max_domains",
                self.candidates_max_domains,
                1,
                MANY,
            ),
            ("mining.every", self.mining_every, 1, MANY),
            ("mining.pool", self.mining_pool, 1, MANY),
            ("mining.kept", self.mining_kept, 1, MANY),
            ("soft.k", self.soft_k, 0, 1 << 16),
            ("replay.per_model", self.replay_per_model, 1, MANY),
            ("batch", self.batch, 1, 1 << 16),
            ("accumulate", self.accumulate, 1, MANY),
            ("epochs", self.epochs, 1, MANY),
        ] {
            if value < least {
                bail!(
                    InvalidRequest,
                    "{key}: expected at least {least}, found {value}"
                );
            }
            if value > most {
                bail!(
                    InvalidRequest,
                    "{key}: expected at most {most}, found {value}"
                );
            }
        }
        Ok(())
    }

    /// Checks numbers that are used in f32. Within the bounds no product of them leaves f32 at
    /// once.
    fn check_ranges(&self) -> Result<()> {
        for (key, value, least, most) in [
            ("tau", self.tau, 1e-4, 1e4),
            ("lora.alpha", self.lora_alpha, 1e-6, 1e6),
            // 1 would leave nothing to scale up.
            ("lora.dropout", self.lora_dropout, 0.0, 0.999),
            ("soft.eps", self.soft_eps, 0.0, 1.0),
            ("prior.old", self.prior_old, -1e3, 1e3),
            ("replay.ratio", self.replay_ratio, 0.0, 1.0),
            ("replay.weight", self.replay_weight, 0.0, 1e6),
            ("anchor.embedding", self.anchor_embedding, 0.0, 1e12),
            ("anchor.projection", self.anchor_projection, 0.0, 1e12),
            ("ewc.lambda", self.ewc_lambda, 0.0, 1e12),
            ("ewc.decay", self.ewc_decay, 0.0, 1.0),
            ("lwf.alpha", self.lwf_alpha, 0.0, 1e6),
            ("lwf.temperature", self.lwf_temperature, 1e-3, 1e4),
            ("phase_split", self.phase_split, 0.0, 1.0),
            ("lr.lora", self.lr_lora, 0.0, 1e3),
            ("lr.w", self.lr_w, 0.0, 1e3),
            ("lr.e", self.lr_e, 0.0, 1e3),
            ("lr.phase1.w", self.lr_phase1_w, 0.0, 1e3),
            ("lr.phase1.e", self.lr_phase1_e, 0.0, 1e3),
            ("weight_decay", self.weight_decay, 0.0, 1e3),
            ("clip", self.clip, 1e-6, 1e12),
        ] {
            if !(least..=most).contains(&value) {
                let [least, most, value] = [least, most, value].map(short);
                bail!(
                    InvalidRequest,
                    "{key}: expected a number from {least} to {most}, found {value}"
                );
            }
        }
        Ok(())
    }

    /// carve.md section 4.1
    fn check_candidates(&self) -> Result<()> {
        let (k, parts) = (
            self.candidates_k,
            [
                self.candidates_hard,
                self.candidates_semantic,
                self.candidates_far,
            ],
        );
        let sum = parts
            .iter()
            .fold(1usize, |sum, part| sum.saturating_add(*part));
        if self.candidates == CandidateMode::Sampled && sum > k.saturating_add(k / 2) {
            bail!(
                InvalidRequest,
                "candidates: expected hard + semantic + far + 1 to be at most 1.5 candidates.k = \
                 {}, found {} + {} + {} + 1",
                1.5 * k as f64,
                parts[0],
                parts[1],
                parts[2]
            );
        }
        Ok(())
    }
}

/// A number in few letters.
fn short(number: f64) -> String {
    match number.abs() {
        0.0 | 1e-3..1e4 => number.to_string(),
        _ => format!("{number:e}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::lora::Target;

    fn refused(key: &str, value: &str) -> String {
        let mut settings = Settings::base();
        let result = settings.set(key, value).and_then(|()| settings.validate());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        error.to_string()
    }

    #[test]
    fn every_key_can_be_set_to_what_it_is() {
        let paper = Settings::paper();
        let mut settings = Settings::base();
        for (key, value) in paper.pairs() {
            let text = match &value {
                Value::String(word) => word.clone(),
                other => other.to_string(),
            };
            settings.set(&key, &text).unwrap();
        }
        assert_eq!(settings, paper);
    }

    #[test]
    fn values_come_as_words_numbers_and_lists() {
        let mut settings = Settings::base();
        for (key, value) in [
            ("lora.targets", "query, value"),
            ("lora.train", "false"),
            ("candidates", "all"),
            ("anchor.rows", "all_old"),
            ("init.rows", "domain"),
            ("anchor.embedding", "0"),
            ("lr.e", "1e-4"),
            ("width", "128"),
            ("replay.strategy", "none"),
        ] {
            settings.set(key, value).unwrap();
        }
        use Target::{Query, Value};
        assert_eq!(settings.lora_targets, [Query, Value]);
        assert_eq!(settings.candidates, CandidateMode::All);
        assert_eq!((settings.anchor_embedding, settings.lr_e), (0.0, 1e-4));
        assert_eq!(settings.width, Some(128));
        settings.set("width", "null").unwrap();
        assert_eq!(settings.width, None);
        settings.validate().unwrap();
    }

    #[test]
    fn errors_say_what_was_expected() {
        let error = refused("lr.v", "1");
        assert!(error.contains("lr.w, lr.e, lr.phase1.w"), "{error}");
        let error = refused("batching", "random");
        assert!(
            error.contains("batching: unknown variant `random`, expected `shuffled` or `domain`"),
            "{error}"
        );
        let error = refused("batch", "many");
        assert!(
            error.contains("batch: invalid type: string \"many\", expected usize"),
            "{error}"
        );
        for (key, value, expected) in [
            ("batch", "-1", "expected usize"),
            ("batch", "0", "at least 1"),
            ("replay.ratio", "1.5", "from 0 to 1"),
            (
                "tau",
                "0",
                "tau: expected a number from 1e-4 to 1e4, found 0",
            ),
            ("tau", "1e39", "from 1e-4 to 1e4, found 1e39"),
            ("lr.w", "-1", "from 0 to 1000, found -1"),
            ("lr.e", "1e18", "from 0 to 1000, found 1e18"),
            ("weight_decay", "1e25", "from 0 to 1000, found 1e25"),
            ("prior.old", "-2000", "from -1000 to 1000, found -2000"),
            ("lwf.alpha", "-0.5", "from 0 to 1e6, found -0.5"),
            ("lwf.temperature", "0", "from 0.001 to 1e4, found 0"),
            ("lwf.rows", "new", "expected `old_gold` or `all`"),
            ("lora.dropout", "1", "from 0 to 0.999"),
            ("lora.dropout", "-0.1", "from 0 to 0.999"),
            ("lora.targets", "[]", "at least one"),
            ("lora.targets", "query,query", "twice"),
            ("adamw.rows", "touched", "expected anchor.rows = touched"),
            (
                "candidates.semantic",
                "71",
                "at most 1.5 candidates.k = 96, found 15 + 71 + 10 + 1",
            ),
        ] {
            let error = refused(key, value);
            assert!(error.contains(expected), "{error}");
        }
        let mut settings = Settings::base();
        let error = settings.set("grad.reset", "true").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with("grad.reset: "), "{error}");
        assert_eq!(settings, Settings::base());
        settings.tau = f64::NAN;
        assert!(settings.validate().is_err());
        let mut settings = Settings {
            adamw_rows: AdamwRows::Touched,
            anchor_rows: AnchorRows::Touched,
            ..Settings::base()
        };
        settings.validate().unwrap();
        settings.regulariser = Regulariser::Ewc;
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains("expected regulariser = anchors"), "{error}");
        settings.regulariser = Regulariser::Anchors;
        settings.lwf_alpha = 0.5;
        let error = settings.validate().unwrap_err().to_string();
        assert!(
            error.ends_with("expected lwf.alpha = 0, found 0.5"),
            "{error}"
        );
        let mut settings = Settings::base();
        settings.prior_old = f64::NEG_INFINITY;
        let error = settings.validate().unwrap_err().to_string();
        let want = "prior.old: expected a number from -1000 to 1000, found -inf";
        assert_eq!(error, want);
    }

    /// The bundled generation has none of those that change nothing.
    #[test]
    fn later_keys_that_change_nothing_are_not_written() {
        let store = std::path::Path::new("weights/cmrbench");
        let current = std::fs::read_to_string(store.join("current")).unwrap();
        let path = store.join(current.trim()).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let noted = manifest["learned"]["settings"].as_object().unwrap();
        let mut settings = Settings::base();
        for (key, value) in noted {
            settings.set(key, value.as_str().unwrap()).unwrap();
        }
        let written = |settings: &Settings| -> std::collections::BTreeMap<String, Value> {
            let pairs = settings.written().into_iter();
            pairs
                .map(|(key, value)| (key, Value::String(value.to_string())))
                .collect()
        };
        let found = written(&settings);
        assert!(
            found
                .iter()
                .eq(noted.iter().collect::<std::collections::BTreeMap<_, _>>())
        );
        for (key, value) in [
            ("lwf.alpha", "0.5"),
            ("lwf.temperature", "3"),
            ("lwf.rows", "all"),
        ] {
            let mut other = settings.clone();
            other.set(key, value).unwrap();
            let mut changed = written(&other);
            assert!(changed.remove(key).is_some());
            assert_eq!(changed, found);
            // Whoever asks for all of them gets all of them.
            assert!(settings.pairs().iter().any(|(known, _)| known == key));
        }
        // The order of the rest is the fields'.
        let all = settings.pairs().into_iter().map(|(key, _)| key);
        let kept = settings.written();
        let rest = all.filter(|key| kept.contains_key(key));
        assert!(rest.eq(kept.keys().cloned()));
    }

    #[test]
    fn unsupported_keys_are_no_fields() {
        let map = Settings::base().map();
        assert!(UNSUPPORTED.iter().all(|key| !map.contains_key(*key)));
    }

    #[test]
    fn room_is_made_for_so_much() {
        for (key, most) in [
            ("lora.r", 4096u64),
            ("batch", 65536),
            ("soft.k", 65536),
            ("width", 65536),
        ] {
            let mut settings = Settings::base();
            settings.set(key, &most.to_string()).unwrap();
            settings.validate().unwrap();
            settings.set(key, &(most + 1).to_string()).unwrap();
            let error = settings.validate().unwrap_err().to_string();
            let want = format!("{key}: expected at most {most}, found {}", most + 1);
            assert_eq!(error, want);
        }
    }

    /// 1.5 K itself is allowed.
    #[test]
    fn candidate_counts() {
        let mut settings = Settings::base();
        settings.candidates_semantic = 70;
        settings.validate().unwrap();
        settings.candidates_semantic = 71;
        settings.candidates = CandidateMode::All;
        settings.validate().unwrap();
    }
}
