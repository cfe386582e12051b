//! One error type for the whole crate: a kind to branch on, a text to read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

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

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, coarse enough for a host to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
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
    /// The request has no answer, such as an empty prompt.
    InvalidRequest,
    /// Every model of the hub is retired, or a policy lets none answer.
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
    /// The input is well-formed, and this crate does not support it.
    Unsupported,
    /// The request's deadline passed before it was computed, and its policy has no fallback.
    Deadline,
    /// As many calls wait as the queue has places: try again later, or elsewhere.
    Overloaded,
    /// Code of this crate or of a dependency panicked: a bug. The call has no answer; other calls
    /// are not affected.
    Panic,
}

impl ErrorKind {
    /// True for errors that a step down to the CPU avoids: [`ErrorKind::NoAdapter`],
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
/// The text names the file, tensor, op or field, the expected value and the found one. The JSON
/// form is `{"kind": "format", "message": "..."}`.
#[derive(Clone, serde::Serialize)]
#[serde(transparent)]
pub struct Error(Box<Inner>);

#[derive(Clone, serde::Serialize)]
struct Inner {
    kind: ErrorKind,
    message: String,
    #[serde(skip)]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: legible(message.into()),
            source: None,
        }))
    }

    /// The kind of the error, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The kind of the [`std::io::Error`] behind this error, if there is one: `NotFound`,
    /// `StorageFull`, `PermissionDenied`, ... The whole of it, with the system's error number, is
    /// [`source`](std::error::Error::source).
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        let source = self.0.source.as_deref()?;
        let io = source.downcast_ref::<std::io::Error>()?;
        Some(io.kind())
    }

    /// The same error with its cause. The text should contain the cause's text already.
    pub(crate) fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(cause));
        self
    }

    /// True if a file, or a folder on the way to it, does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        matches!(self.io_kind(), Some(NotFound | NotADirectory))
    }

    /// True if a file is damaged or missing, so that reading it again would fail again. False if
    /// the process has no file handle left, no memory or no permission.
    pub(crate) fn is_damage(&self) -> bool {
        use ErrorKind::{Format, Mismatch, Numeric, Unsupported};
        self.is_missing() || matches!(self.kind(), Format | Mismatch | Numeric | Unsupported)
    }

    pub(crate) fn io(path: &Path, doing: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let advice = match source.kind() {
            StorageFull | QuotaExceeded => "; free some space there and try again",
            FileTooLarge => "; raise the limit on the size of files and try again",
            _ => "",
        };
        let path = path.display();
        let text = format!("{path}: cannot {doing}: {source}{advice}");
        Self::new(ErrorKind::Io, text).because(source)
    }

    /// The same error with `place` (a file, an op) in front of its text.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = legible(format!("{place}: {self}"));
        self
    }

    /// The same error with its consequence appended to the text.
    pub(crate) fn but(mut self, so: impl fmt::Display) -> Self {
        self.0.message = legible(format!("{self}; {so}"));
        self
    }
}

/// Most bytes of an error's text, since it may quote a file.
const LONGEST: usize = 4096;

/// `text` for logs and terminals: control characters are escaped, the middle of a long text is cut.
fn legible(text: String) -> String {
    let unfit = |c: char| c.is_control() && c != '\n';
    let spelled = match text.chars().any(unfit) {
        true => text.chars().fold(String::new(), |mut all, c| {
            match unfit(c) {
                true => all.extend(c.escape_default()),
                false => all.push(c),
            }
            all
        }),
        false => text,
    };
    if spelled.len() <= LONGEST {
        return spelled;
    }
    let mut places = spelled.char_indices().map(|(at, _)| at);
    let begin = places.find(|at| *at >= LONGEST / 2).unwrap_or(0);
    let end = places.find(|at| spelled.len() - at <= LONGEST / 2);
    format!(
        "{} ... {}",
        &spelled[..begin],
        &spelled[end.unwrap_or(begin)..]
    )
}

/// Runs `job`; a panic inside becomes an error that names `what`.
///
/// The panic's message is in the error. The host's panic hook also prints it to stderr. A host
/// built with `panic = "abort"` ends there.
pub(crate) fn caught<R>(what: &str, job: impl FnOnce() -> Result<R>) -> Result<R> {
    // Unwinding drops the values that the job held. Shared values are behind locks that allow for
    // it.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            bail!(
                Panic,
                "{what} panicked: {}",
                text.unwrap_or("without a word")
            )
        }
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

impl std::error::Error for Error {
    /// The error of the file system, or of the parser of JSON or safetensors.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.0.source.as_deref()?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_says_where_and_why() {
        let n = 3;
        for (job, want) in [
            ((|_| panic!("a word")) as fn(i32) -> Result<()>, "a word"),
            (|n| panic!("{n} words"), "3 words"),
            (|_| std::panic::panic_any(7), "without a word"),
        ] {
            let error = caught("the tokenizer", || job(n)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panic);
            let text = error.to_string();
            assert!(
                text.starts_with("the tokenizer panicked: ") && text.ends_with(want),
                "{text}"
            );
        }
        assert_eq!(caught("nothing", || Ok(5)).unwrap(), 5);
    }

    #[test]
    fn texts_are_legible_and_bounded() {
        let error = error!(Format, "a\u{1b}[2Jb\r\n\0{}", "é".repeat(100_000));
        let text = error.at("file\u{7}").to_string();
        assert!(
            text.starts_with("file\\u{7}: a\\u{1b}[2Jb\\r\n\\u{0}é"),
            "{}",
            &text[..60]
        );
        assert!(
            text.len() < 4200 && text.contains("é ... é"),
            "{}",
            text.len()
        );
        assert_eq!(error!(Io, "plain\nwords").to_string(), "plain\nwords");
    }

    #[test]
    fn the_cause_is_kept() {
        use std::error::Error as _;
        let full = std::io::Error::from_raw_os_error(28);
        let error = Error::io(Path::new("a"), "write", full).at("b").but("c");
        let cause = error.clone().source().unwrap().to_string();
        assert!(error.to_string().contains(&cause), "{error}");
        let cause = error.source().unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(cause.unwrap().raw_os_error(), Some(28));
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull));
        let missing = Error::io(Path::new("a"), "open", std::io::ErrorKind::NotFound.into());
        assert!(missing.is_missing());
        assert!(error!(Format, "torn").source().is_none());
    }

    #[test]
    fn passing_errors_are_no_damage() {
        let path = Path::new("a");
        let of = |kind: std::io::ErrorKind| Error::io(path, "open", kind.into());
        assert!(
            of(std::io::ErrorKind::NotFound)
                .at("b")
                .but("c")
                .is_damage()
        );
        for passing in [
            std::io::ErrorKind::PermissionDenied,
            std::io::ErrorKind::OutOfMemory,
            std::io::ErrorKind::Interrupted,
        ] {
            assert!(!of(passing).is_damage(), "{passing}");
        }
        assert!(!Error::io(path, "open", std::io::Error::from_raw_os_error(24)).is_damage());
        assert!(error!(Format, "torn").is_damage());
        let json = serde_json::to_string(&error!(NoCandidate, "none")).unwrap();
        assert_eq!(json, r#"{"kind":"no_candidate","message":"none"}"#);
    }
}
