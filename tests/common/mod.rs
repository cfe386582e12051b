//! What the integration tests share: places, devices, comparison.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test crate uses its part"
)]
#![allow(clippy::unwrap_used, reason = "tests")]

#[cfg(feature = "cli")]
pub mod command;
#[path = "../../src/testing.rs"]
mod testing;
pub mod toy;
#[cfg(all(feature = "cli", unix))]
pub mod transcript;

use std::path::{Path, PathBuf};

use hubrouter::{Options, Precision};
pub(crate) use testing::Folder;

/// The source tree.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The zero-shot generation that the bundled one grew from.
const FIRST: &str = "g0001-81f83b2c92b0";

pub fn bundle() -> PathBuf {
    Path::new(ROOT).join("weights/all-MiniLM-L6-v2")
}

pub fn store() -> PathBuf {
    Path::new(ROOT).join("weights/cmrbench")
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures").join(name)
}

/// The adapter that GPU tests run on; missing, they fail. `HUBROUTER_TEST_ADAPTER` names another.
#[cfg(feature = "gpu")]
pub fn adapter() -> String {
    std::env::var("HUBROUTER_TEST_ADAPTER").unwrap_or_else(|_| "llvmpipe".into())
}

/// The CPU in f32: what tests compare must not depend on the CPU's having VNNI.
pub fn cpu(threads: usize) -> Options {
    let options = Options::default().device("cpu").threads(threads);
    options.precision(Precision::F32)
}

#[cfg(feature = "gpu")]
pub fn gpu() -> Options {
    Options::default().device(adapter().as_str())
}

/// The CPU and, with the feature `gpu`, the adapter.
pub fn devices() -> Vec<Options> {
    Vec::from([
        cpu(2),
        #[cfg(feature = "gpu")]
        gpu(),
    ])
}

/// The zero-shot generation that the bundled one grew from, copied, with its encoder beside it: to
/// be changed or harmed.
pub fn copied_store(folder: &Folder) -> PathBuf {
    let target = folder.join("cmrbench");
    std::fs::create_dir(&target).unwrap();
    copy(&fixture("zero-shot").join(FIRST), &target.join(FIRST));
    std::fs::write(target.join("current"), format!("{FIRST}\n")).unwrap();
    let encoder = folder.join("all-MiniLM-L6-v2");
    std::fs::create_dir_all(&encoder).unwrap();
    for entry in std::fs::read_dir(bundle()).unwrap() {
        let path = entry.unwrap().path();
        let link = encoder.join(path.file_name().unwrap());
        if std::fs::hard_link(&path, &link).is_err() {
            std::fs::copy(&path, &link).unwrap();
        }
    }
    target
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The largest `|got - want| / (1 + |want|)`; NaN counts as infinite.
pub fn worst(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let errors = got.iter().zip(want).map(|(got, want)| {
        let want = f64::from(*want);
        (f64::from(*got) - want).abs() / (1.0 + want.abs())
    });
    errors.fold(0.0, |worst, error| {
        if error.is_nan() {
            f64::INFINITY
        } else {
            error.max(worst)
        }
    })
}
