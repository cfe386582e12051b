//! Opens generations of a store for a router: their encoder, device and precision.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::DeviceChoice;
use crate::device::cpu::Cpu;
use crate::device::cpu::low::LowFormat;
use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::generation::{Contents, EncoderPin, GenerationId, Manifest};
use crate::generation::{confidence, precision};
use crate::options::Options;
use crate::serve::Serving;
use crate::serve::gate::Choice;
use crate::store::{Store, find_encoder};

/// Opens generations of a store, and shares their encoder where it is the same.
pub(super) struct GenerationSource<'s> {
    store: &'s Store,
    options: &'s Options,
    pub(super) host: Arc<Cpu>,
    open: Mutex<Option<Arc<Encoder>>>,
}

impl<'s> GenerationSource<'s> {
    pub(super) fn new(
        store: &'s Store,
        options: &'s Options,
        encoder: Option<Arc<Encoder>>,
    ) -> Result<Self> {
        let host = match &encoder {
            Some(encoder) => Arc::clone(encoder.host()),
            None => Arc::new(Cpu::open_at(options.threads, options.cpu)?),
        };
        Ok(Self {
            store,
            options,
            host,
            open: Mutex::new(encoder),
        })
    }

    /// The current generation or, when it is damaged, one made before it.
    pub(super) fn current(&self) -> Result<Serving> {
        let open = |id, contents: Contents, note| self.serving(id, &contents, note);
        let read = |id: &GenerationId| {
            let folder = self.store.folder(id);
            self.reading(&folder, || Contents::read(&folder))
        };
        self.store.open_current(read, open)
    }

    /// The generation `id`.
    pub(super) fn of(&self, id: &GenerationId) -> Result<Serving> {
        let read = || self.store.contents(id);
        let contents = self.reading(&self.store.folder(id), read)?;
        self.serving(id.clone(), &contents, None)?
    }

    /// Calls `read`, which reads the generation in `folder`, and opens the generation's encoder
    /// meanwhile. An error of the encoder is reported when it is needed.
    fn reading(
        &self,
        folder: &Path,
        read: impl FnOnce() -> Result<Contents> + Send,
    ) -> Result<Contents> {
        let open = || Manifest::read(folder).and_then(|manifest| self.encoder(&manifest.encoder));
        let (contents, _) = self.host.join(read, open);
        contents
    }

    /// The encoder of `pin`: the one that is open, if it is that.
    fn encoder(&self, pin: &EncoderPin) -> Result<Arc<Encoder>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = open.as_ref().filter(|e| e.revision() == pin.sha256) {
            return Ok(Arc::clone(encoder));
        }
        let host = Arc::clone(&self.host);
        let folder = find_encoder(self.store.root(), pin, self.options)?;
        let encoder = Arc::new(Encoder::open_lazily(&folder, host, self.options)?);
        *open = Some(Arc::clone(&encoder));
        Ok(encoder)
    }

    /// The generation on the encoder's device or, with fallback, on the CPU.
    ///
    /// The inner error means that the generation is damaged or does not fit its encoder.
    fn serving(
        &self,
        id: GenerationId,
        contents: &Contents,
        passed_over: Option<String>,
    ) -> Result<Result<Serving>> {
        let encoder = self.encoder(&contents.manifest.encoder)?;
        let note = passed_over.clone();
        match self.opened(id.clone(), contents, encoder, note) {
            Err(error) if self.options.steps_down(&error) => {
                Ok(self.on_cpu(id, contents, passed_over, &error))
            }
            Err(error) if error.kind().is_device() => Err(error),
            other => Ok(other),
        }
    }

    /// The generation on the CPU, in place of a device that failed with `error`.
    pub(super) fn on_cpu(
        &self,
        id: GenerationId,
        contents: &Contents,
        passed_over: Option<String>,
        error: &Error,
    ) -> Result<Serving> {
        let options = self.options.clone().device(DeviceChoice::Cpu);
        let (pin, host) = (&contents.manifest.encoder, Arc::clone(&self.host));
        let folder = find_encoder(self.store.root(), pin, &options)?;
        let mut encoder = Encoder::open_lazily(&folder, host, &options)?;
        encoder.degrade(error);
        self.opened(id, contents, Arc::new(encoder), passed_over)
    }

    /// The generation on the device of `encoder`, in the numbers of the options.
    fn opened(
        &self,
        id: GenerationId,
        contents: &Contents,
        encoder: Arc<Encoder>,
        passed_over: Option<String>,
    ) -> Result<Serving> {
        let folder = self.store.folder(&id);
        let record = || precision::read(&folder, &id, encoder.revision());
        let choice = Choice::new(self.options.precision, &encoder, record)?;
        let open = |kernel| {
            let (id, encoder) = (id.clone(), Arc::clone(&encoder));
            Serving::with_kernel(id, contents, encoder, passed_over.clone(), kernel)
        };
        let serving = open(choice.kernel)?;
        let serving = match &choice.vector_sha256 {
            Some(want) if serving.vector_sha256()? != *want => {
                let reason = "this machine computes other bits in int8 than those recorded";
                log::warn!("int8 is not taken: {reason}");
                let (bf16, _) = encoder.host().low_kernel(LowFormat::Bf16);
                let choice = Choice::without_int8(bf16, reason);
                open(choice.kernel)?.because(choice.reason)
            }
            _ => serving.because(choice.reason),
        };
        let serving = match confidence::read(&folder, &id, encoder.revision()) {
            Ok(Some(calibration)) => serving.calibrated(calibration),
            Ok(None) => serving,
            Err(error) => {
                log::warn!("decisions have no confidence: {error}");
                serving
            }
        };
        let most = encoder.cpu_tokens();
        if most == 0 {
            return Ok(serving);
        }
        let twin = || Serving::new(id, contents, encoder.on_cpu()?, passed_over);
        Ok(match twin() {
            Ok(cpu) => serving.beside(cpu.because("as the GPU beside it"), most),
            Err(error) => {
                log::warn!("the GPU computes all batches: {error}");
                serving
            }
        })
    }
}
