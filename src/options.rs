//! The options of a router or an encoder.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::device::{CpuLevel, DeviceChoice, DeviceVariant};
use crate::error::{Error, error};
use crate::files;

/// Version of the JSON form of [`Options`].
const SCHEMA_VERSION: u32 = 1;

fn schema_version() -> u32 {
    SCHEMA_VERSION
}

/// Errors: a version that this crate does not know.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    files::check_version(found).map_err(serde::de::Error::custom)?;
    Ok(found)
}

/// The numbers that a router computes a prompt's vector in. Learning is always in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// `int8` where a generation's record says that its answers stay near those in f32, and the CPU
    /// has a kernel for it; else `bf16` on a CPU with AMX; else `f32`.
    #[default]
    Auto,
    /// Products in f32, on every device.
    F32,
    /// Products of bf16, the upper half of f32, with sums in f32, on a CPU with AMX or AVX-512 BF16.
    /// The vector of a prompt has the same bits alone and in any batch, and others on another CPU.
    Bf16,
    /// Products of bytes, with exact sums, on a CPU with AMX, AVX-512 VNNI, AVX-VNNI or Arm's dot
    /// products. The vector of a prompt has the same bits on all of them, alone and in any batch.
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [Self::Auto, Self::F32, Self::Bf16, Self::Int8];
        let named = all.into_iter().find(|known| known.to_string() == text);
        named.ok_or_else(|| {
            error!(
                InvalidRequest,
                "precision: expected auto, f32, bf16 or int8, found {text:?}"
            )
        })
    }
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
    /// Version of this form; 1. Another one is refused when the options are read from JSON.
    #[serde(default = "schema_version", deserialize_with = "known_version")]
    pub schema_version: u32,
    /// The device that computes.
    pub device: DeviceChoice,
    /// Threads that a call computes with: its own, and helpers. `None`: as many as the machine has,
    /// at most 4. With 1 every call runs on its own thread, and calls run side by side. With more,
    /// calls take turns, and each has all helpers.
    pub threads: Option<usize>,
    /// If the device cannot be opened or is lost, continue on the CPU instead of failing. Every
    /// decision then says so in `degraded`.
    pub fallback: bool,
    /// The folder of the encoder bundle. `None`: the folder of the encoder's name inside the store,
    /// or else next to it.
    pub encoder: Option<std::path::PathBuf>,
    /// More folders to look for the encoder in, after those of the store. The first bundle with the
    /// hash that the generation names is used.
    pub look_in: Vec<std::path::PathBuf>,
    /// Most tokens of a text, special ones included; longer texts are cut. `None`: the bundle's own
    /// limit. At most the encoder's number of positions.
    pub max_tokens: Option<usize>,
    /// The numbers that a router computes a prompt's vector in.
    pub precision: Precision,
    /// The instructions that the CPU's kernels use. One that this machine lacks is an error.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu: CpuLevel,
    /// The kernels that a GPU computes products by.
    #[serde(skip_serializing_if = "is_default")]
    pub device_variant: DeviceVariant,
    /// Bytes of decisions that a router keeps, to give one again for the same prompt; 0: none.
    #[serde(skip_serializing_if = "is_default")]
    pub cache_bytes: usize,
    /// Most calls that wait to be computed; one more is refused with
    /// [`crate::ErrorKind::Overloaded`]. `None`: any number, and calls are not queued.
    #[serde(skip_serializing_if = "is_default")]
    pub queue: Option<usize>,
    /// How a router keeps the models of conversations.
    #[serde(skip_serializing_if = "is_default")]
    pub sessions: SessionOptions,
    /// Microseconds that a call waits at most for the batch that computes when it comes, to be
    /// computed together with the calls that come meanwhile; 0: each call is computed by itself. On
    /// the CPU as many batches compute at once as a call has threads, where calls meet.
    /// `None`: 500 on a hardware GPU, where a batch costs little more than a prompt, else 0.
    #[serde(skip_serializing_if = "is_default")]
    pub gather_us: Option<u64>,
    /// A folder for what was compiled for this machine's GPU: a driver that can keep kernels opens
    /// sooner the next time. `None`: nothing is kept.
    #[serde(skip_serializing_if = "is_default")]
    pub cache_folder: Option<std::path::PathBuf>,
}

/// How a router keeps the models of conversations, for requests with a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Bytes of sessions that are kept, some 200 each; beyond it the least used are forgotten.
    pub bytes: usize,
    /// Seconds without a request after which a session is forgotten.
    pub idle_seconds: u64,
    /// Points of score, or of utility if a policy trades, by which the best model of a request must
    /// be ahead to replace the conversation's own. A point is a factor e of probability.
    pub margin: f32,
}

impl Default for SessionOptions {
    /// 16 MiB, an hour, 2 points.
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            idle_seconds: 3600,
            margin: 2.0,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
            precision: Precision::Auto,
            cpu: CpuLevel::Auto,
            device_variant: DeviceVariant::Auto,
            cache_bytes: 0,
            queue: None,
            sessions: SessionOptions::default(),
            gather_us: None,
            cache_folder: None,
        }
    }
}

impl Options {
    /// True if the CPU replaces a device that failed with `error`; the log then warns of it.
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

    /// The options with or without the fallback to the CPU.
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

    /// The options with this precision.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The options with these instructions for the CPU's kernels.
    pub fn cpu(mut self, level: CpuLevel) -> Self {
        self.cpu = level;
        self
    }

    /// The options with these kernels for a GPU's products.
    pub fn device_variant(mut self, variant: DeviceVariant) -> Self {
        self.device_variant = variant;
        self
    }

    /// The options with a cache of decisions of this many bytes.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// The options with a queue of this many places in front of the computing.
    pub fn queue(mut self, places: usize) -> Self {
        self.queue = Some(places);
        self
    }

    /// The options with these for sessions.
    pub fn sessions(mut self, sessions: SessionOptions) -> Self {
        self.sessions = sessions;
        self
    }

    /// The options with calls that wait at most so many microseconds to share a batch.
    pub fn gather_us(mut self, microseconds: u64) -> Self {
        self.gather_us = Some(microseconds);
        self
    }

    /// The options with this folder for what was compiled for a GPU.
    pub fn cache_folder(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.cache_folder = Some(folder.into());
        self
    }

    /// The options with this limit on the tokens of a text.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_another_version_are_refused() {
        let parsed = |version: u32| {
            let json = format!(r#"{{"schema_version": {version}, "device": "cpu"}}"#);
            serde_json::from_str::<Options>(&json).map_err(|e| e.to_string())
        };
        assert_eq!(parsed(1), Ok(Options::default().device("cpu")));
        let want = "schema_version: expected 1, found 2";
        assert!(parsed(2).is_err_and(|error| error.contains(want)));
    }

    #[test]
    fn what_is_off_is_not_written() -> serde_json::Result<()> {
        let json = serde_json::to_string(&Options::default())?;
        let off = ["cache", "queue", "sessions", "cpu", "gather"].map(|key| json.contains(key));
        assert_eq!(off, [false; 5], "{json}");
        let set = r#"{"cpu": "avx2", "cache_bytes": 9, "queue": 0, "sessions": {"margin": 1.5}}"#;
        let options: Options = serde_json::from_str(set)?;
        let back = serde_json::from_str(&serde_json::to_string(&options)?)?;
        assert_eq!(options, back);
        assert_eq!(options.cpu, CpuLevel::Avx2);
        assert_eq!(
            (options.queue, options.sessions.idle_seconds),
            (Some(0), 3600)
        );
        Ok(())
    }
}
