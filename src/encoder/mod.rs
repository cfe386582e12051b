//! An encoder on a device: texts to pooled vectors.

mod bundle;
mod import;
pub(crate) mod seen;

use std::borrow::Borrow;
use std::path::Path;
use std::sync::Arc;

pub(crate) use bundle::{Digest, read_manifest};
pub use import::{ImportOptions, Imported, import_encoder};

use crate::device::cpu::Cpu;
use crate::device::{Device, Opened, Plan, Plans, Sizes};
use crate::error::{Error, Result, bail, caught};
use crate::model::Config;
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::lora::Factors;
use crate::model::parameters::Parameters;
use crate::ops::Ops;
use crate::options::Options;
use crate::text::batch::PackedBatch;
use crate::text::tokenizer::{Tokenizer, Tokens};
use crate::weights::Weights;
use bundle::{Bundle, Manifest};

#[cfg(test)]
thread_local! {
    /// Prompts and cards that this thread gave to an encoder; steps of learning pack their own.
    pub(crate) static ENCODED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A text encoder, opened from a bundle: texts in, pooled vectors out.
///
/// `Send + Sync`; share one in an `Arc`. A [`crate::Router`] holds its own.
///
/// ```
/// use hubrouter::{Encoder, Options};
///
/// let encoder = Encoder::open("weights/all-MiniLM-L6-v2", &Options::default().device("cpu"))?;
/// let vectors = encoder.embed(&["Translate this letter into Spanish."]);
/// assert!(vectors[0].as_ref().is_ok_and(|vector| vector.len() == 384));
/// # Ok::<(), hubrouter::Error>(())
/// ```
pub struct Encoder {
    host: Arc<Cpu>,
    device: Device,
    ops: Ops,
    bert: Bert,
    tokenizer: Tokenizer,
    manifest: Manifest,
    weights: Arc<Weights>,
    revision: String,
    reason: String,
    degraded: Option<String>,
    plans: Plans<Activations>,
}

/// Every stage of one text's way through the encoder, to compare with another implementation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trace {
    /// Token ids, special ones included.
    pub ids: Vec<u32>,
    /// True when the text was cut at the encoder's limit.
    pub truncated: bool,
    /// The embeddings' output, then each layer's: [tokens, width], row-major.
    pub layers: Vec<Vec<f32>>,
    /// The pooled vector, not normalised: `[width]`.
    pub pooled: Vec<f32>,
}

impl Encoder {
    /// Opens the bundle in `folder` on the device that `options` names.
    ///
    /// Errors: a file of the bundle is missing, malformed or not what its manifest says; the
    /// device cannot be opened and there is no fallback.
    pub fn open(folder: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let host = Arc::new(Cpu::open(options.threads)?);
        Self::open_on(folder.as_ref(), host, options)
    }

    pub(crate) fn open_on(folder: &Path, host: Arc<Cpu>, options: &Options) -> Result<Self> {
        caught("opening the encoder", || {
            Self::open_in(folder, host, options)
        })
    }

    fn open_in(folder: &Path, host: Arc<Cpu>, options: &Options) -> Result<Self> {
        // A driver's start takes as long as checking the bundle.
        let (bundle, opened) = host.join(
            || Bundle::open(folder, &host, options.max_tokens),
            || Device::open(&options.device, &host),
        );
        let bundle = bundle?;
        let place = |opened: Opened| {
            let (ops, bert) = Self::place(&bundle, &opened.device, &host)?;
            Ok((opened, ops, bert))
        };
        let (opened, ops, bert) = match opened.and_then(place) {
            Err(error) if options.steps_down(&error) => place(Opened::stepped_down(&host, &error))?,
            placed => placed?,
        };
        Ok(Self::assemble(bundle, opened, host, ops, bert))
    }

    /// Compiles the ops and brings the weights to `device`.
    fn place(bundle: &Bundle, device: &Device, host: &Cpu) -> Result<(Ops, Bert)> {
        let config = bundle.config.clone();
        let place = || -> Result<(Ops, Bert)> {
            let ops = Ops::new(device, config.head_width())?;
            let parameters = Parameters::open(device, &bundle.weights, &config);
            bundle.weights.release();
            let parameters = parameters?;
            Ok((
                ops,
                Bert {
                    config,
                    parameters,
                    pooling: bundle.manifest.pooling,
                },
            ))
        };
        host.run(place)
    }

    fn assemble(bundle: Bundle, opened: Opened, host: Arc<Cpu>, ops: Ops, bert: Bert) -> Self {
        log::info!(
            "encoder {} on {}: {}",
            bundle.manifest.name,
            opened.device.name(),
            opened.reason
        );
        Self {
            host,
            device: opened.device,
            ops,
            bert,
            tokenizer: bundle.tokenizer,
            manifest: bundle.manifest,
            weights: bundle.weights,
            revision: bundle.revision,
            reason: opened.reason,
            degraded: opened.degraded,
            plans: Plans::new(),
        }
    }

    /// One pooled vector `[width]` for each prompt, not normalised; a bad text spoils only itself.
    pub fn embed(&self, prompts: &[&str]) -> Vec<Result<Vec<f32>>> {
        self.embed_after(&self.bert, &self.manifest.query_prefix, prompts)
    }

    /// As [`Encoder::embed`] for model cards, which some checkpoints want introduced otherwise.
    pub fn embed_documents(&self, documents: &[&str]) -> Vec<Result<Vec<f32>>> {
        self.embed_documents_by(&self.bert, documents)
    }

    /// As [`Encoder::embed_documents`], by another network of this encoder: one with an adapter.
    pub(crate) fn embed_documents_by(
        &self,
        bert: &Bert,
        documents: &[&str],
    ) -> Vec<Result<Vec<f32>>> {
        self.embed_after(bert, &self.manifest.document_prefix, documents)
    }

    fn embed_after(&self, bert: &Bert, prefix: &str, texts: &[&str]) -> Vec<Result<Vec<f32>>> {
        let embed = || {
            self.check_process()?;
            Ok(self.embed_each(bert, prefix, texts))
        };
        let failed = |error: Error| texts.iter().map(|_| Err(error.clone())).collect();
        caught("the encoder", embed).unwrap_or_else(failed)
    }

    fn embed_each(&self, bert: &Bert, prefix: &str, texts: &[&str]) -> Vec<Result<Vec<f32>>> {
        for_each_good(self.tokenize(prefix, texts), |good| {
            let batch = |batch: &[Tokens]| {
                let rows = self.embed_batch(bert, batch)?;
                Ok(rows.chunks_exact(self.width()).map(finite).collect())
            };
            self.for_each_batch(&good, usize::MAX, batch)
        })
    }

    fn embed_batch(&self, bert: &Bert, batch: &[Tokens]) -> Result<Vec<f32>> {
        let batch = self.pack(batch);
        self.plans.with(
            sizes(&batch),
            |sizes| self.plan(sizes),
            |plan| {
                let (read, outcome) = self.device.run(plan, |pass, a| {
                    a.upload(pass, &batch);
                    bert.forward(&self.ops, pass, a, None);
                    pass.read(&a.pooled)
                })?;
                Ok(outcome.f32(read).to_vec())
            },
        )
    }

    /// Every stage of `text`'s way, read back.
    pub fn trace(&self, text: &str) -> Result<Trace> {
        self.check_process()?;
        caught("the encoder", || self.traced(text))
    }

    fn traced(&self, text: &str) -> Result<Trace> {
        let tokens = self.tokenizer.encode(&self.manifest.query_prefix, text)?;
        let batch = self.pack(&[&tokens]);
        let sizes = sizes(&batch);
        // Not from the shared plans: a trace brings more back than they have room for.
        let room =
            4 * self.width() * (sizes.tokens * (self.bert.config.layers + 1) + sizes.prompts);
        let a = Activations::new(&self.device, &self.bert.config, sizes)?;
        let mut plan = Plan::new(&self.device, a, Activations::upload_bytes(sizes), room)?;
        let ((layers, pooled), outcome) = self.device.run(&mut plan, |pass, a| {
            let mut layers = Vec::new();
            a.upload(pass, &batch);
            self.bert.forward(&self.ops, pass, a, Some(&mut layers));
            (layers, pass.read(&a.pooled))
        })?;
        Ok(Trace {
            ids: tokens.ids,
            truncated: tokens.truncated,
            layers: layers
                .into_iter()
                .map(|read| outcome.f32(read).to_vec())
                .collect(),
            pooled: outcome.f32(pooled).to_vec(),
        })
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan<Activations>> {
        let a = Activations::new(&self.device, &self.bert.config, sizes)?;
        let reads = 4 * self.width() * sizes.prompts;
        Plan::new(&self.device, a, Activations::upload_bytes(sizes), reads)
    }

    /// The tokens of each prompt, special ones included, cut at [`Encoder::max_tokens`].
    pub fn token_ids(&self, prompts: &[&str]) -> Vec<Result<Vec<u32>>> {
        if let Err(error) = self.check_process() {
            return prompts.iter().map(|_| Err(error.clone())).collect();
        }
        self.tokenize_prompts(prompts)
            .into_iter()
            .map(|tokens| tokens.map(|tokens| tokens.ids))
            .collect()
    }

    pub(crate) fn tokenize_prompts(&self, prompts: &[&str]) -> Vec<Result<Tokens>> {
        self.tokenize(&self.manifest.query_prefix, prompts)
    }

    pub(crate) fn tokenize_documents(&self, documents: &[&str]) -> Vec<Result<Tokens>> {
        self.tokenize(&self.manifest.document_prefix, documents)
    }

    /// Tokens of `texts`, side by side.
    fn tokenize(&self, prefix: &str, texts: &[&str]) -> Vec<Result<Tokens>> {
        let one = |text: &str| self.tokenizer.encode(prefix, text);
        if let [text] = texts {
            return vec![one(text)];
        }
        let mut tokens: Vec<Option<Result<Tokens>>> = texts.iter().map(|_| None).collect();
        // Tokenizing costs about as much as 20,000 multiply-adds.
        self.host.run(|| {
            self.host.rows(&mut tokens, 1, 20_000, |first, block| {
                for (i, place) in block.iter_mut().enumerate() {
                    *place = Some(one(texts[first + i]));
                }
            });
        });
        tokens.into_iter().flatten().collect()
    }

    /// `prompts` cut into batches that the device takes at once: by tokens, and at most `most_prompts`.
    pub(crate) fn batches<'t, T: Borrow<Tokens>>(
        &self,
        prompts: &'t [T],
        most_prompts: usize,
    ) -> Vec<&'t [T]> {
        let most_tokens = match self.device {
            Device::Cpu(_) => 1024,
            Device::Gpu(_) => 4096,
        };
        let mut batches = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for (i, prompt) in prompts.iter().enumerate() {
            let own = prompt.borrow().ids.len();
            if i > start && (tokens + own > most_tokens || i - start == most_prompts) {
                batches.push(&prompts[start..i]);
                (start, tokens) = (i, 0);
            }
            tokens += own;
        }
        if start < prompts.len() {
            batches.push(&prompts[start..]);
        }
        batches
    }

    /// Runs `run` on each batch of `prompts`: its answers, one for each prompt, or its error as the
    /// answer of each.
    pub(crate) fn for_each_batch<R>(
        &self,
        prompts: &[Tokens],
        most_prompts: usize,
        run: impl Fn(&[Tokens]) -> Result<Vec<Result<R>>>,
    ) -> Vec<Result<R>> {
        let mut answers = Vec::with_capacity(prompts.len());
        for batch in self.batches(prompts, most_prompts) {
            match run(batch) {
                Ok(own) => answers.extend(own),
                Err(error) => answers.extend(batch.iter().map(|_| Err(error.clone()))),
            }
        }
        answers
    }

    pub(crate) fn pack<T: Borrow<Tokens>>(&self, batch: &[T]) -> PackedBatch {
        #[cfg(test)]
        ENCODED.with(|count| count.set(count.get() + batch.len()));
        let prompts = batch.iter().map(|tokens| tokens.borrow().ids.as_slice());
        PackedBatch::new(prompts, self.bert.config.first_position)
    }

    /// Errors: this is a forked child, and what computes stayed in its parent.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.host
            .check_process(matches!(self.device, Device::Gpu(_)))
    }

    /// Share of the tokens, special ones left out, that stand for text which the tokenizer does not
    /// know, 0 to 1.
    pub(crate) fn unknown_share(&self, tokens: &Tokens) -> f32 {
        let own = tokens.ids.len() - self.tokenizer.added();
        tokens.unknown as f32 / own.max(1) as f32
    }

    /// Elements of a vector.
    pub fn width(&self) -> usize {
        self.bert.config.hidden
    }

    /// Tokens of a text, special ones included; longer texts are cut.
    pub fn max_tokens(&self) -> usize {
        self.tokenizer.max_tokens()
    }

    /// The bundle's name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// SHA-256 of the bundle's manifest, which holds the hashes of all its files.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// SHA-256 of the tokenizer's file.
    pub fn tokenizer_revision(&self) -> &str {
        self.manifest
            .files
            .get(bundle::TOKENIZER)
            .map_or("", |digest| &digest.sha256)
    }

    /// What computes: `cpu`, or an adapter's name.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// Why this device computes.
    pub fn device_reason(&self) -> &str {
        &self.reason
    }

    /// Why the encoder stepped down to the CPU, if it did.
    pub fn degraded(&self) -> Option<&str> {
        self.degraded.as_deref()
    }

    /// Notes why this encoder computes instead of another one.
    pub(crate) fn degrade(&mut self, error: &Error) {
        self.degraded = Some(error.to_string());
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn host(&self) -> &Arc<Cpu> {
        &self.host
    }

    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    pub(crate) fn bert(&self) -> &Bert {
        &self.bert
    }

    /// The network with trained factors added to its weights, for this encoder's device.
    pub(crate) fn merged(&self, factors: &Factors) -> Result<Bert> {
        let (weights, config) = (&self.weights, &self.bert.config);
        let own = &self.bert.parameters;
        self.network(|| own.open_merged(&self.device, weights, config, factors))
    }

    /// The network with weights that gradients go back through.
    pub(crate) fn for_learning(&self) -> Result<Bert> {
        let (weights, config) = (&self.weights, &self.bert.config);
        let own = &self.bert.parameters;
        self.network(|| own.open_for_learning(&self.device, weights, config))
    }

    fn network(&self, open: impl FnOnce() -> Result<Parameters> + Send) -> Result<Bert> {
        self.weights.check_unchanged()?;
        let parameters = self.host.run(open);
        self.weights.release();
        Ok(Bert {
            config: self.bert.config.clone(),
            parameters: parameters?,
            pooling: self.bert.pooling,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.bert.config
    }
}

/// Runs `all` on the good items together: its answers in these items' places, and the others' errors in
/// theirs.
pub(crate) fn for_each_good<T, R>(
    items: Vec<Result<T>>,
    all: impl FnOnce(Vec<T>) -> Vec<Result<R>>,
) -> Vec<Result<R>> {
    let mut good = Vec::with_capacity(items.len());
    let errors: Vec<Option<Error>> = items
        .into_iter()
        .map(|item| item.map(|item| good.push(item)).err())
        .collect();
    let mut answers = all(good).into_iter();
    let answer = |error: Option<Error>| match error {
        Some(error) => Some(Err(error)),
        None => answers.next(),
    };
    errors.into_iter().filter_map(answer).collect()
}

fn finite(vector: &[f32]) -> Result<Vec<f32>> {
    if let Some(value) = vector.iter().find(|value| !value.is_finite()) {
        bail!(
            Numeric,
            "the encoder's vector: expected finite numbers, found {value}: its weights are not good"
        );
    }
    Ok(vector.to_vec())
}

pub(crate) fn sizes(batch: &PackedBatch) -> Sizes {
    Sizes {
        tokens: batch.tokens(),
        prompts: batch.prompts(),
    }
}
