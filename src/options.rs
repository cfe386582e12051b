//! What a host decides when it opens a router or an encoder.

use serde::{Deserialize, Serialize};

use crate::device::DeviceChoice;
use crate::error::Error;

/// Version of the JSON form of [`Options`].
const SCHEMA_VERSION: u32 = 1;

fn schema_version() -> u32 {
    SCHEMA_VERSION
}

/// How to open a [`crate::Router`] or an [`crate::Encoder`].
///
/// ```
/// let options: hubrouter::Options = serde_json::from_str(r#"{"device": "cpu", "threads": 2}"#)?;
/// assert_eq!(options.threads, Some(2));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Options {
    /// Version of this form; 1.
    #[serde(default = "schema_version")]
    pub schema_version: u32,
    /// Which device computes.
    pub device: DeviceChoice,
    /// Threads of the CPU's pool; none: as many as the machine has, at most 4. With 1 everything
    /// runs on the calling thread and calls run side by side; with more they take turns, and each has
    /// the whole pool. A call from a worker of the host's own rayon pool runs on that worker alone.
    pub threads: Option<usize>,
    /// Step down to the CPU when the device cannot be opened or is lost, visibly, instead of
    /// failing.
    pub fallback: bool,
    /// The folder of the encoder bundle; none: where the store says, beside the store, or inside.
    pub encoder: Option<std::path::PathBuf>,
    /// More folders to look for the encoder in, behind those of the store: the first that holds the
    /// bundle whose hash the generation names is taken.
    pub look_in: Vec<std::path::PathBuf>,
    /// Tokens of a text, special ones included; longer texts are cut. None: as many as the bundle
    /// says. More are refused than the encoder has positions for.
    pub max_tokens: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            device: DeviceChoice::Auto,
            threads: None,
            fallback: false,
            encoder: None,
            look_in: Vec::new(),
            max_tokens: None,
        }
    }
}

impl Options {
    /// Whether the CPU is to take the place of a device that failed with `error`; if so, the log says
    /// it.
    pub(crate) fn steps_down(&self, error: &Error) -> bool {
        let steps_down = self.fallback && error.kind().is_device();
        if steps_down {
            log::warn!("{error}; stepping down to the CPU");
        }
        steps_down
    }

    /// The options with another device.
    pub fn device(mut self, choice: impl Into<DeviceChoice>) -> Self {
        self.device = choice.into();
        self
    }

    /// The options with this many threads.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The options with or without a step down to the CPU.
    pub fn fallback(mut self, fallback: bool) -> Self {
        self.fallback = fallback;
        self
    }

    /// The options with this encoder bundle.
    pub fn encoder(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.encoder = Some(folder.into());
        self
    }

    /// The options with one more folder to look for the encoder in.
    pub fn look_in(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.look_in.push(folder.into());
        self
    }

    /// The options with this limit on the tokens of a text.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }
}
