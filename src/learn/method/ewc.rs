//! Elastic weight consolidation: the parameters that earlier experiences ended with, and how much
//! each of them mattered there (carve.md section 7). A generation keeps both in
//! `fisher.safetensors`.

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail, error};
use crate::files;
use crate::learn::method::layout::ParameterLayout;
use crate::learn::settings::{EwcMode, Settings};
use crate::num::to_f32;
use crate::weights::{Tensors, to_safetensors};

/// Experiences that are kept apart, at most: each costs a dispatch in every step.
const MOST_SNAPSHOTS: usize = 512;

/// The file's name in a generation.
pub(crate) const FISHER: &str = "fisher.safetensors";
const KIND: &str = "hubrouter-fisher";

/// Key of the file's metadata.
const META: &str = "hubrouter";

/// Rows of a batch whose mean gradient is squared.
pub(crate) const BATCH: usize = 4;

/// The snapshots that EWC pulls to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ewc {
    /// Experiences after which Fisher weights were taken.
    pub(crate) count: u32,
    /// One that sums all up, or one of each experience, oldest first.
    pub(crate) snapshots: Vec<FisherSnapshot>,
}

/// Consecutive parameters of the flat buffer with their Fisher weights. Rows of E that were added
/// later lie after their end, and EWC does not pull them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FisherSnapshot {
    /// Where they begin: at the adapters' factors, or at W.
    pub(crate) first: usize,
    /// theta*
    pub(crate) theta: Vec<f32>,
    /// F
    pub(crate) fisher: Vec<f32>,
}

/// The file's metadata. A later update goes by its own settings; `lambda`, `mode` and `decay` say
/// what those of the last one were.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FisherMeta {
    schema_version: u32,
    kind: String,
    lambda: f64,
    mode: EwcMode,
    decay: f64,
    count: u32,
    held: usize,
}

impl FisherSnapshot {
    /// The part from `first` on.
    pub(crate) fn from(&self, first: usize) -> Self {
        let skip = first.saturating_sub(self.first);
        Self {
            first: self.first + skip,
            theta: self.theta[skip..].to_vec(),
            fisher: self.fisher[skip..].to_vec(),
        }
    }

    fn end(&self) -> usize {
        self.first + self.theta.len()
    }

    /// Its parts: names, first elements and shapes. `models`: rows of E.
    fn parts(
        &self,
        layout: &ParameterLayout,
        models: usize,
    ) -> Vec<(&'static str, usize, [usize; 2])> {
        let (w, e) = (layout.w, layout.e);
        let mut parts = vec![
            ("prompt_projection", w.offset, [w.rows, w.columns]),
            ("model_embeddings", e.offset, [models, e.columns]),
        ];
        if self.first < w.offset {
            parts.insert(0, ("adapter", self.first, [1, w.offset - self.first]));
        }
        parts
    }
}

impl Ewc {
    /// Adds the snapshot of the last update. `online`: earlier weights decay into the new ones, and
    /// only the new parameters stay. `separate`: it is one more.
    pub(crate) fn with(mut self, mut new: FisherSnapshot, settings: &Settings) -> Self {
        self.count = self.count.saturating_add(1);
        if settings.ewc_mode == EwcMode::Online {
            let decay = to_f32(settings.ewc_decay);
            for old in self.snapshots.drain(..) {
                // Rows of E, or adapters, that the old ones do not have take the new weights.
                for n in new.first.max(old.first)..new.end().min(old.end()) {
                    new.fisher[n - new.first] += decay * old.fisher[n - old.first];
                }
            }
        }
        self.snapshots.push(new);
        self
    }

    /// The bytes of the file.
    pub(crate) fn write(&self, layout: &ParameterLayout, settings: &Settings) -> Result<Vec<u8>> {
        let meta = FisherMeta {
            schema_version: 1,
            kind: KIND.to_owned(),
            lambda: settings.ewc_lambda,
            mode: settings.ewc_mode,
            decay: settings.ewc_decay,
            count: self.count,
            held: self.snapshots.len(),
        };
        let text = serde_json::to_string(&meta)
            .map_err(|e| error!(Format, "{FISHER}: cannot be written: {e}"))?;
        let mut tensors = Vec::new();
        for (k, snapshot) in self.snapshots.iter().enumerate() {
            let models = (snapshot.end() - layout.e.offset) / layout.e.columns;
            for (part, first, [rows, columns]) in snapshot.parts(layout, models) {
                let range = first - snapshot.first..first - snapshot.first + rows * columns;
                for (kind, values) in [("fisher", &snapshot.fisher), ("theta", &snapshot.theta)] {
                    let name = format!("{k}.{part}.{kind}");
                    let values = &values[range.clone()];
                    if !values.iter().all(|value| value.is_finite()) {
                        bail!(Numeric, "{name}: expected finite numbers");
                    }
                    let bytes: &[u8] = bytemuck::cast_slice(values);
                    let shape = vec![rows, columns];
                    tensors.push((name, safetensors::Dtype::F32, shape, bytes));
                }
            }
        }
        to_safetensors(FISHER, &tensors, Some([(META.to_owned(), text)].into()))
    }

    /// Reads the file's bytes, of a generation of `models` models.
    ///
    /// Errors: it is malformed; a tensor is missing, has another shape, is not finite, or weighs
    /// less than nothing.
    pub(crate) fn read(bytes: &[u8], layout: &ParameterLayout, models: usize) -> Result<Self> {
        let (file, meta) = open(bytes)?;
        let mut snapshots = Vec::new();
        if meta.held > MOST_SNAPSHOTS {
            bail!(
                Limits,
                "held: expected at most {MOST_SNAPSHOTS} experiences kept apart, found {}: \
                 continue with ewc.mode = online",
                meta.held
            );
        }
        for k in 0..meta.held {
            snapshots.push(read_snapshot(&file, k, layout, models)?);
        }
        Ok(Self {
            count: meta.count,
            snapshots,
        })
    }
}

/// The file's tensors and metadata.
fn open(bytes: &[u8]) -> Result<(Tensors<'_>, FisherMeta)> {
    let file = Tensors::parse(bytes)?;
    let text = file.note(META)?.as_bytes();
    let meta = files::parse_form(META.as_ref(), text, KIND)?;
    Ok((file, meta))
}

/// Errors: `bytes` are no file of Fisher weights. Shapes are checked by the next update.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    open(bytes).map(drop)
}

fn read_snapshot(
    file: &Tensors<'_>,
    k: usize,
    layout: &ParameterLayout,
    models: usize,
) -> Result<FisherSnapshot> {
    let rows = format!("{k}.model_embeddings.fisher");
    let Some(shape) = file.shape(&rows) else {
        bail!(
            Mismatch,
            "{rows}: expected a tensor with a row for each model, found none"
        );
    };
    let found = shape.first().copied().unwrap_or(0);
    let mut snapshot = FisherSnapshot {
        first: match file.shape(&format!("{k}.adapter.fisher")) {
            Some(_) => 0,
            None => layout.w.offset,
        },
        theta: Vec::new(),
        fisher: Vec::new(),
    };
    // Never more rows than the generation has: those are of another one.
    for (part, _, shape) in snapshot.parts(layout, found.min(models)) {
        let name = |kind: &str| format!("{k}.{part}.{kind}");
        let fisher = file.f32(&name("fisher"), &shape)?;
        if let Some(at) = fisher.iter().position(|f| *f < 0.0) {
            bail!(
                Numeric,
                "{}: element {at}: expected a number that is not negative, found {}",
                name("fisher"),
                fisher[at]
            );
        }
        snapshot.fisher.extend(fisher);
        snapshot.theta.extend(file.f32(&name("theta"), &shape)?);
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::Config;
    use crate::model::lora::{Adapter, Lora, Target};
    use crate::ops::testing::{assert_close, noise};

    fn snapshot(first: usize, theta: &[f32], fisher: &[f32]) -> FisherSnapshot {
        FisherSnapshot {
            first,
            theta: theta.to_vec(),
            fisher: fisher.to_vec(),
        }
    }

    fn settings(mode: EwcMode) -> Settings {
        Settings {
            ewc_mode: mode,
            ..Settings::base()
        }
    }

    /// carve.md V17
    #[test]
    fn fisher_is_kept_online_or_separate_v17() {
        let old = Ewc::default().with(
            snapshot(0, &[1.0, 2.0], &[0.5, 2.0]),
            &settings(EwcMode::Online),
        );
        let new = snapshot(0, &[3.0, 4.0], &[1.0, 0.1]);
        let both = old.clone().with(new.clone(), &settings(EwcMode::Online));
        assert_eq!((both.count, both.snapshots.len()), (2, 1));
        assert_close("V17 online", &both.snapshots[0].fisher, &[1.45, 1.9], 1e-6);
        assert_eq!(both.snapshots[0].theta, [3.0, 4.0], "the current ones");
        let apart = old.clone().with(new.clone(), &settings(EwcMode::Separate));
        assert_eq!(apart.snapshots, [old.snapshots[0].clone(), new.clone()]);
        // All that were kept apart decay into one.
        let one = apart.with(new, &settings(EwcMode::Online));
        assert_eq!((one.count, one.snapshots.len()), (3, 1));
        assert_close("V17", &one.snapshots[0].fisher, &[2.35, 1.99], 1e-6);
    }

    /// New rows of E, and adapters that were not held, take the new weights.
    #[test]
    fn what_the_old_weights_do_not_cover_takes_the_new_ones() {
        let online = settings(EwcMode::Online);
        let old = Ewc::default().with(snapshot(2, &[0.0; 2], &[10.0; 2]), &online);
        let new = snapshot(0, &[0.0; 6], &[1.0; 6]);
        let both = old.with(new, &online);
        assert_eq!(both.snapshots[0].fisher, [1.0, 1.0, 10.0, 10.0, 1.0, 1.0]);
        // And the other way round: adapters are let go.
        let less = both.with(snapshot(2, &[0.0; 4], &[1.0; 4]), &online);
        assert_eq!(less.snapshots[0].fisher, [10.0, 10.0, 1.9, 1.9]);
    }

    fn layout() -> ParameterLayout {
        let config = Config {
            layers: 1,
            ..Config::toy()
        };
        let lora = Lora {
            r: 1,
            alpha: 1.0,
            targets: vec![Target::Query],
        };
        ParameterLayout::new(Adapter::new(&lora, &config), 3, 4, 5)
    }

    #[test]
    fn the_file_keeps_everything() {
        let layout = layout();
        assert_eq!((layout.adapter.len, layout.e.offset), (8, 20));
        let squares = |n: usize| -> Vec<f32> { noise(n, 1).iter().map(|f| f * f).collect() };
        let both = Ewc {
            count: 7,
            snapshots: vec![
                snapshot(8, &noise(12 + 3 * 2, 2), &squares(12 + 3 * 2)),
                snapshot(0, &noise(20 + 3 * 5, 3), &squares(20 + 3 * 5)),
            ],
        };
        let settings = settings(EwcMode::Separate);
        let bytes = both.write(&layout, &settings).unwrap();
        assert_eq!(Ewc::read(&bytes, &layout, 5).unwrap(), both);
        let file = Tensors::parse(&bytes).unwrap();
        let meta = file.note(META).unwrap();
        for part in [
            "\"lambda\":10000.0",
            "separate",
            "\"decay\":0.9",
            "\"count\":7",
        ] {
            assert!(meta.contains(part), "{meta}");
        }
    }

    #[test]
    fn damage_is_named() {
        let layout = layout();
        let good = snapshot(0, &[0.5; 35], &[0.25; 35]);
        let whole = |snapshot: FisherSnapshot| Ewc {
            count: 1,
            snapshots: vec![snapshot],
        };
        let settings = settings(EwcMode::Online);
        let bytes = whole(good.clone()).write(&layout, &settings).unwrap();
        Ewc::read(&bytes, &layout, 5).unwrap();
        let refused = |bytes: &[u8], models: usize, kind: ErrorKind, want: &str| {
            let error = Ewc::read(bytes, &layout, models).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), kind, "{error}");
        };
        let cut = &bytes[..bytes.len() - 1];
        refused(cut, 5, ErrorKind::Format, "not safetensors");
        refused(b"", 5, ErrorKind::Format, "not safetensors");
        // Of a generation with more models.
        let want = "0.model_embeddings.fisher: expected [4, 3] f32, found [5, 3]";
        refused(&bytes, 4, ErrorKind::Mismatch, want);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let replaced = |from: &str, to: &str| {
            assert!(text.contains(from) && from.len() == to.len());
            let at = bytes
                .windows(from.len())
                .position(|part| part == from.as_bytes());
            let mut bytes = bytes.clone();
            bytes[at.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        let other = replaced("hubrouter-fisher", "hubrouter-finish");
        refused(&other, 5, ErrorKind::Format, "kind: expected");
        let later = replaced("schema_version\\\":1", "schema_version\\\":2");
        refused(&later, 5, ErrorKind::Unsupported, "schema_version");
        let renamed = replaced("0.model_embeddings.theta", "0.model_embeddings.thema");
        refused(&renamed, 5, ErrorKind::Mismatch, "0.model_embeddings.theta");
        let more = replaced("\\\"held\\\":1", "\\\"held\\\":2");
        refused(&more, 5, ErrorKind::Mismatch, "1.model_embeddings.fisher");
        let mut below = good.clone();
        below.fisher[3] = -1.0;
        let bytes = whole(below).write(&layout, &settings).unwrap();
        refused(
            &bytes,
            5,
            ErrorKind::Numeric,
            "0.adapter.fisher: element 3: expected",
        );
        let mut nan = good;
        nan.theta[34] = f32::NAN;
        let error = whole(nan).write(&layout, &settings).unwrap_err();
        assert!(
            error.to_string().contains("0.model_embeddings.theta"),
            "{error}"
        );
    }
}
