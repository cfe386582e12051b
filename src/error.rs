//! One error type for the whole crate: a kind to branch on, a text to read.

use std::fmt;
use std::path::Path;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough for a host to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system refused: missing, unreadable, unwritable, full.
    Io,
    /// A file or a line is not of the form it claims to be.
    Format,
    /// Parts that are each well-formed do not belong together: hashes, shapes, dimensions.
    Mismatch,
    /// The tokenizer could not be built or refused a text.
    Tokenizer,
    /// The caller asked for something that has no answer, such as an empty prompt.
    InvalidRequest,
    /// Every model of the hub is retired.
    NoCandidate,
    /// No adapter fits the asked-for device.
    NoAdapter,
    /// An adapter's limits are too small for this encoder or hub.
    Limits,
    /// The device refused for another reason.
    Device,
    /// The device went away while it was in use.
    DeviceLost,
    /// The device has no memory left.
    OutOfMemory,
    /// A weight or a score is not finite.
    Numeric,
    /// A rule of the store or the registry forbids it.
    Refused,
    /// Understood, and not supported.
    Unsupported,
}

impl ErrorKind {
    /// True for what a step down to the CPU cures: [`ErrorKind::NoAdapter`],
    /// [`ErrorKind::Limits`], [`ErrorKind::Device`], [`ErrorKind::DeviceLost`] and
    /// [`ErrorKind::OutOfMemory`].
    pub fn is_device(self) -> bool {
        matches!(
            self,
            Self::NoAdapter | Self::Limits | Self::Device | Self::DeviceLost | Self::OutOfMemory
        )
    }
}

/// An error: [`Error::kind`] for programs, `Display` for people.
///
/// The text names the file, tensor, op or field, what was expected and what was found.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { kind, message }))
    }

    /// What went wrong, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub(crate) fn io(path: &Path, doing: &str, source: &std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let advice = match source.kind() {
            StorageFull | QuotaExceeded => "; free some space there and try again",
            FileTooLarge => "; raise the limit on the size of files and try again",
            _ => "",
        };
        Self::new(
            ErrorKind::Io,
            format!("{}: cannot {doing}: {source}{advice}", path.display()),
        )
    }

    /// The same error with `place` (a file, an op) in front of its text.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self::new(self.kind(), format!("{place}: {self}"))
    }

    /// The same error with what follows from it behind its text.
    pub(crate) fn but(self, so: impl fmt::Display) -> Self {
        Self::new(self.kind(), format!("{self}; {so}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {}

/// `bail!(Format, "text {x}")`: return an error of that kind.
macro_rules! bail {
    ($kind:ident, $($text:tt)+) => {
        return Err($crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($text)+)))
    };
}
pub(crate) use bail;

/// `error!(Format, "text {x}")`: an error of that kind.
macro_rules! error {
    ($kind:ident, $($text:tt)+) => {
        $crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($text)+))
    };
}
pub(crate) use error;
