//! Two runs, stage by stage: of the encoder and of the router. `learning_compare.rs` has learning.

use super::bounds::{BoundOf, ParityBound, bound};
use super::bundle::ParityRun;
use super::comparison::StageComparison;
use super::form::NumericMode;
use super::report::{ErrorMeasure, VerifyReport};
use super::tensors::{ParityTensor, ParityTensors, ParityValues};
use crate::error::{Result, bail};
use crate::ops::LOWEST;
use crate::weights::ANY;

/// Two runs with the numbers that they computed in; `expected` is the bundle.
pub(super) struct Sides<'s> {
    pub(super) found: &'s ParityRun,
    pub(super) expected: &'s ParityRun,
}

impl Sides<'_> {
    /// Compares everything that both have, and adds it to `report`.
    ///
    /// Errors: a tensor of one of them is missing or has another shape than its manifest implies.
    pub(super) fn compare(&self, report: &mut VerifyReport) -> Result<()> {
        self.tokenizers(report);
        self.prompts()?;
        match (&self.found.forward, &self.expected.forward) {
            (Some(found), Some(expected)) => self.forward(found, expected, report)?,
            _ => report.not_compared.push("forward: not in both".into()),
        }
        match (&self.found.router, &self.expected.router) {
            (Some(found), Some(expected)) => self.router(found, expected, report)?,
            (None, None) => {}
            _ => report.not_compared.push("router: not in both".into()),
        }
        super::learning_compare::compare(self, report)
    }

    fn modes(&self) -> [NumericMode; 2] {
        [
            self.expected.manifest.made_by.mode,
            self.found.manifest.made_by.mode,
        ]
    }

    fn tokenizers(&self, report: &mut VerifyReport) {
        let mut own = StageComparison::exact("tokenizer", "a hash is equal or not");
        let of = |run: &ParityRun| run.manifest.encoder.tokenizer_sha256.clone();
        let place = "SHA-256 of tokenizer.json";
        own.equal(0, place, &of(self.found), &of(self.expected));
        report.stages.extend(own.finish());
    }

    /// Errors: the two have other prompts.
    fn prompts(&self) -> Result<()> {
        let [found, expected] = [self.found, self.expected].map(|run| &run.manifest.prompts);
        if found != expected {
            let at = found.iter().zip(expected).position(|(a, b)| a != b);
            bail!(
                Mismatch,
                "prompts: expected the same in both, found {} and {}, the first other one at {}",
                expected.len(),
                found.len(),
                at.unwrap_or(found.len().min(expected.len()))
            );
        }
        Ok(())
    }

    fn forward(
        &self,
        found: &ParityTensors,
        expected: &ParityTensors,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let form = &self.expected.manifest.encoder;
        let (layers, width) = (form.layers, form.hidden);
        let [bundle, own] = self.modes();
        let mut tokens = StageComparison::exact("tokens", "token ids are equal or not");
        let of_layers =
            |layer| StageComparison::of_layer(layer, bound(BoundOf::Layer, bundle, own));
        let mut by_layer: Vec<StageComparison> = (0..=layers).map(of_layers).collect();
        let mut pooled = StageComparison::new(
            "pooled",
            ErrorMeasure::Elements,
            bound(BoundOf::Layer, bundle, own),
        );
        for i in 0..self.expected.manifest.prompts.len() {
            let ids = |run: &ParityTensors| run.ids(&format!("{i}.ids"), &[ANY]);
            same_ids(&mut tokens, i, &ids(found)?, &ids(expected)?);
            let name = format!("{i}.pooled");
            let place = |at: usize| format!("prompt {i}, element {at}");
            let [own, other] = [found.f32(&name, &[width])?, expected.f32(&name, &[width])?];
            pooled.elements(i, place, own, other);
            let (rows_name, name) = (format!("{i}.rows"), format!("{i}.layers"));
            let [Some(own), Some(other)] = [found.get(&name), expected.get(&name)] else {
                continue;
            };
            let rows = expected.ids(&rows_name, &[ANY])?;
            if found.ids(&rows_name, &[ANY])? != rows {
                bail!(
                    Mismatch,
                    "{rows_name}: expected the same in both, found others"
                );
            }
            let shape = [layers + 1, rows.len(), width];
            let layer = rows.len() * width;
            let [own, other] = [
                of_shape(&name, own, &shape)?,
                of_shape(&name, other, &shape)?,
            ];
            for (at, comparison) in by_layer.iter_mut().enumerate() {
                let place = |at: usize| {
                    format!(
                        "prompt {i}, token {}, element {}",
                        rows[at / width],
                        at % width
                    )
                };
                let range = at * layer..(at + 1) * layer;
                comparison.elements(i, place, &own[range.clone()], &other[range]);
            }
        }
        let before = report.stages.len();
        report.stages.extend(tokens.finish());
        report
            .stages
            .extend(by_layer.into_iter().filter_map(StageComparison::finish));
        if report.stages.len() <= before + 1 {
            let why = "layers: one side computes in int8 or bf16, which keeps no layer's output";
            report.not_compared.push(why.into());
        }
        report.stages.extend(pooled.finish());
        if let Some(padded) = self
            .expected
            .manifest
            .forward
            .as_ref()
            .and_then(|f| f.padded.as_ref())
        {
            report.not_compared.push(format!(
                "padding: prompts are never padded here; the bundle's own vectors move by up to \
                 {:.1e} in a padded batch",
                padded.max_abs
            ));
        }
        Ok(())
    }

    pub(super) fn router(
        &self,
        found: &ParityTensors,
        expected: &ParityTensors,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let mode = |run: &ParityRun| run.manifest.router.as_ref().map(|router| router.mode);
        let [bundle, own] = self.modes();
        let bundle = mode(self.expected).unwrap_or(bundle);
        let own = mode(self.found).unwrap_or(own);
        let count = self.expected.manifest.prompts.len();
        let stages: [(&str, BoundOf, &[&str], &str); 4] = [
            ("query", BoundOf::Query, &["queries"], "element"),
            ("memory.place", BoundOf::Place, &["places"], "direction"),
            ("words", BoundOf::Score, &["words"], "domain"),
            (
                "scores",
                BoundOf::Score,
                &["learned", "memory", "scores"],
                "model",
            ),
        ];
        for (stage, of, names, unit) in stages {
            let mut own =
                StageComparison::new(stage, ErrorMeasure::Elements, bound(of, bundle, own));
            for name in names {
                let [Some(found), Some(expected)] = [found.get(name), expected.get(name)] else {
                    continue;
                };
                let columns = expected.shape.get(1).copied().unwrap_or(0);
                let shape = [count, columns];
                let found = of_shape(name, found, &shape)?;
                let expected = of_shape(name, expected, &shape)?;
                for i in 0..count {
                    let range = i * columns..(i + 1) * columns;
                    let place = |at: usize| format!("prompt {i}, {name}, {unit} {at}");
                    let expected = &expected[range.clone()];
                    let found = eligible(&found[range], expected);
                    own.elements(i, place, &found, expected);
                }
            }
            match own.finish() {
                Some(stage) => report.stages.push(stage),
                None => report.not_compared.push(format!("{stage}: not in both")),
            }
        }
        self.top(found, expected, bound(BoundOf::Score, bundle, own), report)
    }

    /// The best models. Two that stand within the bound of each other may change places.
    fn top(
        &self,
        found: &ParityTensors,
        expected: &ParityTensors,
        bound: ParityBound,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let count = self.expected.manifest.prompts.len();
        let top = |run: &ParityTensors| -> Result<(Vec<u32>, Vec<f32>)> {
            let ids = run.ids("top.ids", &[count, ANY])?;
            let scores = run.f32("top.scores", &[count, ids.len() / count.max(1)])?;
            Ok((ids, scores.to_vec()))
        };
        let ((own, _), (ids, scores)) = (top(found)?, top(expected)?);
        let k = ids.len() / count.max(1);
        if own.len() != ids.len() {
            bail!(
                Mismatch,
                "top.ids: expected {k} models of each prompt, found {}",
                own.len() / count.max(1)
            );
        }
        let why = format!(
            "the same order, but for models that stand within {:e} of each other; {}",
            2.0 * bound.limit,
            bound.why
        );
        let mut stage = StageComparison::exact("top", &why);
        let (mut first, mut shared) = (0, 0);
        for i in 0..count {
            let [own, ids] = [&own, &ids].map(|all| &all[i * k..(i + 1) * k]);
            let scores = &scores[i * k..(i + 1) * k];
            first += usize::from(own.first() == ids.first());
            shared += own.iter().filter(|id| ids.contains(id)).count();
            for (place, (own, id)) in own.iter().zip(ids).enumerate() {
                let score = f64::from(scores[place]);
                // A model behind the last has at most its score.
                let other = ids.iter().position(|id| id == own).unwrap_or(k - 1);
                let apart = (score - f64::from(scores[other])).abs();
                let tied = apart <= 2.0 * bound.limit * (1.0 + score.abs());
                let own = if tied { id } else { own };
                stage.equal(i, &format!("prompt {i}, place {}", place + 1), own, id);
            }
        }
        report.top1_agreement = Some(first as f64 / count.max(1) as f64);
        report.topk_agreement = Some(shared as f64 / (count * k).max(1) as f64);
        report.stages.extend(stage.finish());
        Ok(())
    }
}

/// Compares token ids; the first that differs is named.
fn same_ids(stage: &mut StageComparison, index: usize, found: &[u32], expected: &[u32]) {
    for (at, expected) in expected.iter().enumerate() {
        let place = format!("prompt {index}, token {at}");
        match found.get(at) {
            Some(found) => stage.equal(index, &place, found, expected),
            None => stage.part(
                index,
                format!("{place}: expected {expected}, found no more"),
            ),
        }
    }
    if found.len() > expected.len() {
        let text = format!(
            "prompt {index}: {} tokens more",
            found.len() - expected.len()
        );
        stage.part(index, text);
    }
}

/// `found`, where a retired model, which is never scored here, has the other's number.
fn eligible(found: &[f32], expected: &[f32]) -> Vec<f32> {
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(found, expected)| match *found <= LOWEST {
            true => *expected,
            false => *found,
        })
        .collect()
}

/// The numbers of the tensor `name`.
///
/// Errors: it has another shape, or no numbers of f32.
fn of_shape<'t>(name: &str, tensor: &'t ParityTensor, shape: &[usize]) -> Result<&'t [f32]> {
    match &tensor.values {
        ParityValues::F32(values) if tensor.shape == shape => Ok(values),
        _ => bail!(
            Mismatch,
            "{name}: expected {shape:?} f32, found {:?}",
            tensor.shape
        ),
    }
}
