//! An encoder on a device: it turns texts into pooled vectors.

mod bundle;
mod export;
mod import;
mod low;
pub(crate) mod seen;

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub(crate) use bundle::read_manifest;
pub(crate) use export::ExportedWeights;
pub use import::{ImportOptions, Imported, import_encoder};

use crate::device::cpu::Cpu;
use crate::device::{Device, DeviceVariant, HeldPlan, Opened, Plan, Plans, Read, Running, Sizes};
use crate::error::{Error, Result, bail, caught};
use crate::model::Config;
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::lora::Factors;
use crate::model::parameters::Parameters;
use crate::ops::embed::WordRows;
#[cfg(feature = "cli")]
use crate::ops::pool::Pooling;
use crate::ops::{EncoderShape, Ops};
use crate::options::Options;
use crate::text::batch::PackedBatch;
use crate::text::tokenizer::{Cut, Tokens};
use crate::weights::Weights;
use bundle::Bundle;

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
    bundle: Arc<Bundle>,
    /// [V, H], shared by all networks of this encoder.
    words: Arc<WordRows>,
    /// The network as the bundle has it. Read when it is needed first: a router whose generation
    /// has an adapter never needs it.
    bert: OnceLock<Arc<Bert>>,
    reason: String,
    degraded: Option<String>,
    /// Most tokens of a batch that [`Encoder::on_cpu`] computes sooner; 0: none.
    cpu_tokens: usize,
    /// The same bundle on the CPU.
    on_cpu: OnceLock<Arc<Encoder>>,
    plans: Plans<Activations>,
}

/// A batch whose vectors are under way.
struct StartedEmbedding {
    held: HeldPlan<Activations>,
    running: Running,
    pooled: Read,
}

/// The result of every stage of the encoder for one text, to compare with another implementation.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
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
    /// Errors: a file of the bundle is missing, malformed or not the one that its manifest names;
    /// the device cannot be opened and `options` allow no fallback.
    pub fn open(folder: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
        Self::open_on(folder.as_ref(), host, options)
    }

    pub(crate) fn open_on(folder: &Path, host: Arc<Cpu>, options: &Options) -> Result<Self> {
        caught("opening the encoder", || {
            Self::open_in(folder, host, options, |encoder| encoder.bert().map(drop))
        })
    }

    /// As [`Encoder::open_on`]; the network's weights are read when they are needed first.
    pub(crate) fn open_lazily(folder: &Path, host: Arc<Cpu>, options: &Options) -> Result<Self> {
        caught("opening the encoder", || {
            Self::open_in(folder, host, options, |_| Ok(()))
        })
    }

    /// `ready`: a further check of the opened encoder; if the device fails it, the CPU is tried.
    fn open_in(
        folder: &Path,
        host: Arc<Cpu>,
        options: &Options,
        ready: impl Fn(&Self) -> Result<()>,
    ) -> Result<Self> {
        // A driver's start takes as long as checking the bundle.
        let (bundle, opened) = host.join(
            || Bundle::open(folder, &host, options.max_tokens),
            || {
                let cache = options.cache_folder.as_deref();
                Device::open(&options.device, &host, cache, options.device_variant)
            },
        );
        let bundle = Arc::new(bundle?);
        let place = |opened: Opened| {
            let encoder = Self::place(&bundle, opened, &host, options.device_variant)?;
            ready(&encoder)?;
            Ok(encoder)
        };
        let encoder = match opened.and_then(place) {
            Err(error) if options.steps_down(&error) => place(Opened::stepped_down(&host, &error))?,
            placed => placed?,
        };
        log::info!(
            "encoder {} on {}: {}",
            encoder.name(),
            encoder.device_name(),
            encoder.reason
        );
        Ok(encoder)
    }

    /// Compiles what a route dispatches and brings the rows of tokens to the device.
    fn place(
        bundle: &Arc<Bundle>,
        opened: Opened,
        host: &Arc<Cpu>,
        variant: DeviceVariant,
    ) -> Result<Self> {
        let (device, config) = (&opened.device, &bundle.config);
        let ops = Ops::new(device, config.head_width(), variant)?;
        let shape = EncoderShape {
            hidden: config.hidden,
            feed_forward: config.feed_forward,
            pooling: bundle.manifest.pooling,
        };
        let (compiled, words) = host.join(
            || ops.compile(device, shape),
            || Parameters::words(device, &bundle.weights, config),
        );
        bundle.weights.release();
        compiled?;
        Ok(Self {
            host: Arc::clone(host),
            ops,
            words: words?,
            bert: OnceLock::new(),
            bundle: Arc::clone(bundle),
            device: opened.device,
            reason: opened.reason,
            degraded: opened.degraded,
            cpu_tokens: opened.cpu_tokens,
            on_cpu: OnceLock::new(),
            plans: Plans::new(),
        })
    }

    /// Most tokens of a batch that [`Encoder::on_cpu`] computes sooner; 0: none.
    pub(crate) fn cpu_tokens(&self) -> usize {
        self.cpu_tokens
    }

    /// As on a GPU that was measured to be slower up to so many tokens.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn leave_to_cpu(&mut self, tokens: usize) {
        self.cpu_tokens = tokens;
    }

    /// The same bundle on the CPU, beside this one's GPU; opened once.
    pub(crate) fn on_cpu(&self) -> Result<Arc<Self>> {
        if let Some(encoder) = self.on_cpu.get() {
            return Ok(Arc::clone(encoder));
        }
        let opened = Opened::beside_gpu(&self.host);
        let encoder = Self::place(&self.bundle, opened, &self.host, DeviceVariant::Auto)?;
        Ok(Arc::clone(self.on_cpu.get_or_init(|| Arc::new(encoder))))
    }

    /// One pooled vector `[width]` for each prompt, not normalised; a bad text spoils only itself.
    pub fn embed(&self, prompts: &[&str]) -> Vec<Result<Vec<f32>>> {
        self.embed_after(None, &self.bundle.manifest.query_prefix, prompts)
    }

    /// As [`Encoder::embed`], by another network of this encoder: one with an adapter.
    pub(crate) fn embed_by(&self, bert: &Bert, prompts: &[&str]) -> Vec<Result<Vec<f32>>> {
        self.embed_after(Some(bert), &self.bundle.manifest.query_prefix, prompts)
    }

    /// As [`Encoder::embed`] for model cards, before which some checkpoints expect another text.
    pub fn embed_documents(&self, documents: &[&str]) -> Vec<Result<Vec<f32>>> {
        self.embed_after(None, &self.bundle.manifest.document_prefix, documents)
    }

    /// As [`Encoder::embed_documents`], by another network of this encoder: one with an adapter.
    pub(crate) fn embed_documents_by(
        &self,
        bert: &Bert,
        documents: &[&str],
    ) -> Vec<Result<Vec<f32>>> {
        self.embed_after(Some(bert), &self.bundle.manifest.document_prefix, documents)
    }

    /// `bert`: None for the encoder's own network.
    fn embed_after(
        &self,
        bert: Option<&Bert>,
        prefix: &str,
        texts: &[&str],
    ) -> Vec<Result<Vec<f32>>> {
        let embed = || {
            self.check_process()?;
            Ok(self.embed_each(self.or_own(bert)?, prefix, texts))
        };
        let failed = |error: Error| texts.iter().map(|_| Err(error.clone())).collect();
        caught("the encoder", embed).unwrap_or_else(failed)
    }

    fn embed_each(&self, bert: &Bert, prefix: &str, texts: &[&str]) -> Vec<Result<Vec<f32>>> {
        for_each_good(self.tokenize(prefix, texts), |good| {
            let start = |batch: &[Tokens]| self.start_embedding(bert, batch);
            let finish = |started| {
                let rows = self.finish_embedding(started)?;
                Ok(rows.chunks_exact(self.width()).map(finite).collect())
            };
            self.for_each_batch(&good, usize::MAX, start, finish)
        })
    }

    /// Pooled vectors [B, H] of one batch by `bert`.
    #[cfg(any(feature = "cli", all(test, feature = "gpu")))]
    pub(crate) fn embed_batch<T: Borrow<Tokens>>(
        &self,
        bert: &Bert,
        batch: &[T],
    ) -> Result<Vec<f32>> {
        self.finish_embedding(self.start_embedding(bert, batch)?)
    }

    fn start_embedding<T: Borrow<Tokens>>(
        &self,
        bert: &Bert,
        batch: &[T],
    ) -> Result<StartedEmbedding> {
        let batch = self.pack(batch);
        let mut held = self.plans.hold(sizes(&batch), |sizes| self.plan(sizes))?;
        let (pooled, running) = self.device.start(&mut held.plan, |pass, a| {
            a.upload(pass, &batch);
            bert.forward(&self.ops, pass, a, None, None);
            pass.read(&a.pooled)
        })?;
        Ok(StartedEmbedding {
            held,
            running,
            pooled,
        })
    }

    fn finish_embedding(&self, started: StartedEmbedding) -> Result<Vec<f32>> {
        let StartedEmbedding {
            mut held,
            running,
            pooled,
        } = started;
        let outputs = self.device.finish(&mut held.plan, running)?;
        self.plans.give_back(held);
        Ok(outputs.f32(pooled).to_vec())
    }

    /// The result of every stage for `text`.
    #[doc(hidden)]
    pub fn trace(&self, text: &str) -> Result<Trace> {
        self.check_process()?;
        caught("the encoder", || {
            let prefix = &self.bundle.manifest.query_prefix;
            self.trace_tokens(self.bundle.tokenizer.encode(prefix, text)?)
        })
    }

    /// As [`Encoder::trace`], of a text whose tokens are known.
    pub(crate) fn trace_tokens(&self, tokens: Tokens) -> Result<Trace> {
        let (batch, bert) = (self.pack(&[&tokens]), self.bert()?);
        let sizes = sizes(&batch);
        // Not from the shared plans: a trace brings more back than they have room for.
        let room = 4 * self.width() * (sizes.tokens * (self.config().layers + 1) + sizes.prompts);
        let a = Activations::new(&self.device, &self.ops, self.config(), sizes, &[])?;
        let mut plan = Plan::new(&self.device, a, Activations::upload_bytes(sizes), room)?;
        let ((layers, pooled), outputs) = self.device.run(&mut plan, |pass, a| {
            let mut layers = Vec::new();
            a.upload(pass, &batch);
            bert.forward(&self.ops, pass, a, None, Some(&mut layers));
            (layers, pass.read(&a.pooled))
        })?;
        Ok(Trace {
            ids: tokens.ids,
            truncated: tokens.truncated,
            layers: layers
                .into_iter()
                .map(|read| outputs.f32(read).to_vec())
                .collect(),
            pooled: outputs.f32(pooled).to_vec(),
        })
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan<Activations>> {
        let a = Activations::new(&self.device, &self.ops, self.config(), sizes, &[])?;
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
        self.tokenize(&self.bundle.manifest.query_prefix, prompts)
    }

    /// As [`Encoder::tokenize_prompts`]; each prompt says what of it is cut.
    pub(crate) fn tokenize_cut(&self, prompts: &[(&str, Cut)]) -> Vec<Result<Tokens>> {
        let (tokenizer, prefix) = (&self.bundle.tokenizer, &self.bundle.manifest.query_prefix);
        self.tokenize_each(prompts, |(text, cut)| {
            tokenizer.encode_cut(prefix, text, *cut)
        })
    }

    pub(crate) fn tokenize_documents(&self, documents: &[&str]) -> Vec<Result<Tokens>> {
        self.tokenize(&self.bundle.manifest.document_prefix, documents)
    }

    /// Tokens of `texts`, side by side.
    fn tokenize(&self, prefix: &str, texts: &[&str]) -> Vec<Result<Tokens>> {
        self.tokenize_each(texts, |text| self.bundle.tokenizer.encode(prefix, text))
    }

    fn tokenize_each<T: Sync>(
        &self,
        texts: &[T],
        one: impl Fn(&T) -> Result<Tokens> + Sync,
    ) -> Vec<Result<Tokens>> {
        if let [text] = texts {
            return vec![one(text)];
        }
        // Tokenizing costs about as much as 20,000 multiply-adds.
        let all = || self.host.map(texts.len(), 20_000, |i| one(&texts[i]));
        self.host.run(all)
    }

    /// `prompts` cut into batches that the device takes at once: by tokens, and at most
    /// `most_prompts`.
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

    /// Answers to each batch of `prompts`, one for each prompt, or its error as the answer of each;
    /// `start` and `finish` as in [`Encoder::each_batch`].
    pub(crate) fn for_each_batch<'t, T: Borrow<Tokens>, S, R>(
        &self,
        prompts: &'t [T],
        most_prompts: usize,
        start: impl FnMut(&'t [T]) -> Result<S>,
        mut finish: impl FnMut(S) -> Result<Vec<Result<R>>>,
    ) -> Vec<Result<R>> {
        let mut answers = Vec::with_capacity(prompts.len());
        let done = self.each_batch(prompts, most_prompts, start, |batch, started| {
            match started.and_then(&mut finish) {
                Ok(own) => answers.extend(own),
                Err(error) => answers.extend(batch.iter().map(|_| Err(error.clone()))),
            }
            Ok(())
        });
        if let Err(error) = done {
            unreachable!("an error is the answer of its batch: {error}");
        }
        answers
    }

    /// Runs `start` and then `finish` on each batch of `prompts`. On a GPU the next batch is started
    /// before one is waited for, so that the device does not wait for the host.
    ///
    /// Errors: that of the first `finish` that has one; later batches are not started.
    pub(crate) fn each_batch<'t, T: Borrow<Tokens>, S>(
        &self,
        prompts: &'t [T],
        most_prompts: usize,
        mut start: impl FnMut(&'t [T]) -> Result<S>,
        mut finish: impl FnMut(&'t [T], Result<S>) -> Result<()>,
    ) -> Result<()> {
        let ahead = matches!(self.device, Device::Gpu(_));
        let mut running = None;
        for batch in self.batches(prompts, most_prompts) {
            let started = start(batch);
            let before = running.replace((batch, started));
            if let Some((batch, started)) = if ahead { before } else { running.take() } {
                finish(batch, started)?;
            }
        }
        match running {
            Some((batch, started)) => finish(batch, started),
            None => Ok(()),
        }
    }

    pub(crate) fn pack<T: Borrow<Tokens>>(&self, batch: &[T]) -> PackedBatch {
        #[cfg(test)]
        ENCODED.with(|count| count.set(count.get() + batch.len()));
        let prompts = batch.iter().map(|tokens| tokens.borrow().ids.as_slice());
        PackedBatch::new(prompts, self.config().first_position)
    }

    /// Errors: this is a forked child, where the parent's threads and GPU do not exist.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.host
            .check_process(matches!(self.device, Device::Gpu(_)))
    }

    /// Share of the tokens, special ones left out, that are the tokenizer's unknown token, 0 to 1.
    pub(crate) fn unknown_share(&self, tokens: &Tokens) -> f32 {
        let own = tokens.ids.len() - self.bundle.tokenizer.added();
        tokens.unknown as f32 / own.max(1) as f32
    }

    /// Elements of a vector.
    pub fn width(&self) -> usize {
        self.config().hidden
    }

    /// Tokens of a text, special ones included; longer texts are cut.
    pub fn max_tokens(&self) -> usize {
        self.bundle.tokenizer.max_tokens()
    }

    /// The bundle's name.
    pub fn name(&self) -> &str {
        &self.bundle.manifest.name
    }

    /// SHA-256 of the bundle's manifest, which holds the hashes of all its files.
    pub fn revision(&self) -> &str {
        &self.bundle.revision
    }

    /// SHA-256 of the tokenizer's file.
    pub fn tokenizer_revision(&self) -> &str {
        self.bundle
            .manifest
            .files
            .get(bundle::TOKENIZER)
            .map_or("", |digest| &digest.sha256)
    }

    /// The device that computes: `cpu`, or an adapter's name.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// Why this device was chosen.
    pub fn device_reason(&self) -> &str {
        &self.reason
    }

    /// Why the CPU computes instead of the device asked for, if it does.
    pub fn degraded(&self) -> Option<&str> {
        self.degraded.as_deref()
    }

    /// Records why this encoder replaces another one.
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

    /// The network as the bundle has it.
    pub(crate) fn bert(&self) -> Result<&Arc<Bert>> {
        if let Some(bert) = self.bert.get() {
            return Ok(bert);
        }
        let bert = self.network(Parameters::open)?;
        Ok(self.bert.get_or_init(|| Arc::new(bert)))
    }

    /// `bert`, or else the network as the bundle has it.
    pub(crate) fn or_own<'b>(&'b self, bert: Option<&'b Bert>) -> Result<&'b Bert> {
        match bert {
            Some(bert) => Ok(bert),
            None => Ok(self.bert()?),
        }
    }

    /// The network with trained factors added to its weights, for this encoder's device.
    pub(crate) fn merged(&self, factors: &Factors) -> Result<Bert> {
        self.network(|device, weights, config, words| {
            Parameters::open_merged(device, weights, config, words, factors)
        })
    }

    /// [V, H]
    pub(crate) fn words(&self) -> &WordRows {
        &self.words
    }

    /// The network with weights that gradients go back through.
    pub(crate) fn for_learning(&self) -> Result<Bert> {
        self.network(Parameters::open_for_learning)
    }

    fn network(
        &self,
        open: impl FnOnce(&Device, &Weights, &Config, &Arc<WordRows>) -> Result<Parameters> + Send,
    ) -> Result<Bert> {
        let Bundle {
            weights, config, ..
        } = &*self.bundle;
        weights.check_unchanged()?;
        let open = || open(&self.device, weights, config, &self.words);
        let parameters = self.host.run(open);
        weights.release();
        Ok(Bert {
            config: config.clone(),
            parameters: parameters?,
            pooling: self.bundle.manifest.pooling,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.bundle.config
    }

    /// How a text's vector is made of its tokens' vectors.
    #[cfg(feature = "cli")]
    pub(crate) fn pooling(&self) -> Pooling {
        self.bundle.manifest.pooling
    }

    /// The weights as the bundle has them.
    #[cfg(feature = "cli")]
    pub(crate) fn weights(&self) -> &Weights {
        &self.bundle.weights
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("name", &self.name())
            .field("revision", &self.revision())
            .field("device", &self.device_name())
            .finish_non_exhaustive()
    }
}

/// Runs `all` on the good items together: its answers in these items' places, and the others'
/// errors in theirs.
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
