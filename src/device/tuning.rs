//! Which kernel is the faster one on a GPU, as it was measured there: a file beside the user's
//! cache, for each adapter and driver. Without one the built-in choice serves.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::CpuShare;
use crate::device::adapter::AdapterReport;
use crate::error::{Result, bail};
use crate::files;

/// Largest file that is read.
const MOST: u64 = 1 << 16;

const SCHEMA_VERSION: u32 = 3;

/// What a GPU was measured to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tuning {
    /// Version of this form; 3.
    schema_version: u32,
    adapter: String,
    driver: String,
    /// Most rows for which the kernel for few rows is taken.
    few_rows: usize,
    /// Fewest rows for which matrix units are taken; `None`: for none.
    matrix_rows: Option<usize>,
    /// What the CPU beside it computes sooner; `None`: not measured.
    cpu: Option<CpuShare>,
}

/// Rows up to which the weights' bytes take the time on a card of 132 cores, by a model of it:
/// those of a few prompts. No card has been measured.
const FEW: usize = 128;

impl Tuning {
    /// Of the adapter of `report`.
    pub(crate) fn of(report: &AdapterReport, few_rows: usize, matrix_rows: Option<usize>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            adapter: report.name.clone(),
            driver: report.driver.clone(),
            few_rows,
            matrix_rows,
            cpu: None,
        }
    }

    /// With what the CPU computes sooner.
    #[cfg(feature = "cli")]
    pub(crate) fn beside(self, cpu: Option<CpuShare>) -> Self {
        Self { cpu, ..self }
    }

    pub(crate) fn few_rows(&self) -> usize {
        self.few_rows
    }

    pub(crate) fn matrix_rows(&self) -> Option<usize> {
        self.matrix_rows
    }

    pub(crate) fn cpu(&self) -> Option<CpuShare> {
        self.cpu
    }

    /// What `folder` keeps of the adapter of `report`; `None` where nothing was measured.
    ///
    /// Errors: the file is damaged, or of another adapter.
    #[cfg(feature = "cli")]
    pub(crate) fn kept(folder: &Path, report: &AdapterReport) -> Result<Option<Self>> {
        read(&file(folder, report), report)
    }

    /// What `folder` keeps of the adapter, or else the built-in choice. A file that is damaged is
    /// left alone, with a warning.
    pub(crate) fn look(folder: Option<&Path>, report: &AdapterReport) -> Self {
        let built_in = || Self::of(report, FEW, None);
        let Some(file) = folder.map(|folder| file(folder, report)) else {
            return built_in();
        };
        match read(&file, report) {
            Ok(Some(tuning)) => tuning,
            Ok(None) => built_in(),
            Err(error) => {
                log::warn!("the built-in choice of kernels is taken: {error}");
                built_in()
            }
        }
    }

    /// Keeps it in `folder`; with the file's path.
    #[cfg(feature = "cli")]
    pub(crate) fn keep(&self, folder: &Path, report: &AdapterReport) -> Result<PathBuf> {
        let file = file(folder, report);
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        files::make_folder(folder)?;
        files::replace(&file, &json)?;
        Ok(file)
    }
}

/// The file of the adapter and driver of `report`.
fn file(folder: &Path, report: &AdapterReport) -> PathBuf {
    let own = [&*report.backend, &report.name, &report.driver].join("\n");
    let digest = files::sha256(own.as_bytes());
    folder.join(format!("{}.tuning.json", &digest[..16]))
}

/// `None` without a file.
///
/// Errors: it is no file of ours, or of another adapter.
fn read(file: &Path, report: &AdapterReport) -> Result<Option<Tuning>> {
    if !file.exists() {
        return Ok(None);
    }
    let bytes = files::read_bytes(file, MOST)?;
    let tuning: Tuning = match serde_json::from_slice(&bytes) {
        Ok(tuning) => tuning,
        Err(e) => bail!(
            Format,
            "{}: expected what `hubrouter doctor --tune` writes: {e}",
            file.display()
        ),
    };
    let wanted = Tuning {
        cpu: tuning.cpu,
        ..Tuning::of(report, tuning.few_rows, tuning.matrix_rows)
    };
    if tuning != wanted {
        bail!(
            Mismatch,
            "{}: expected version {SCHEMA_VERSION} for {} ({}), found version {} for {} ({})",
            file.display(),
            wanted.adapter,
            wanted.driver,
            tuning.schema_version,
            tuning.adapter,
            tuning.driver
        );
    }
    Ok(Some(tuning))
}

#[cfg(all(test, feature = "gpu", feature = "cli"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::adapter::LimitsReport;
    use crate::error::ErrorKind;
    use crate::testing::Folder;

    fn report(driver: &str) -> AdapterReport {
        AdapterReport {
            name: "A card".into(),
            kind: "discrete GPU",
            hardware: true,
            backend: "Vulkan".into(),
            driver: driver.into(),
            limits: LimitsReport {
                max_storage_buffer_binding_size: 0,
                max_buffer_size: 0,
                max_storage_buffers_per_shader_stage: 0,
                max_compute_invocations_per_workgroup: 0,
                max_compute_workgroup_storage_size: 0,
                max_compute_workgroups_per_dimension: 0,
                subgroup_size: [32, 32],
            },
            features: Vec::new(),
        }
    }

    #[test]
    fn a_measurement_serves_its_adapter_and_driver_alone() {
        let folder = Folder::new("tuning");
        let (old, new) = (report("1.0"), report("2.0"));
        assert_eq!(Tuning::look(None, &old).few_rows(), FEW);
        assert_eq!(Tuning::look(Some(&folder), &old).few_rows(), FEW);
        let share = CpuShare {
            threads: 4,
            tokens: 32,
        };
        let tuning = Tuning::of(&old, 48, None);
        tuning.keep(&folder, &old).unwrap();
        assert_eq!(Tuning::look(Some(&folder), &old).cpu(), None);
        let path = tuning.beside(Some(share)).keep(&folder, &old).unwrap();
        let found = Tuning::look(Some(&folder), &old);
        assert_eq!((found.few_rows(), found.cpu()), (48, Some(share)));
        assert_eq!(Tuning::look(Some(&folder), &new).few_rows(), FEW);
        // Of another driver, under this one's name; then damaged.
        let good = std::fs::read(&path).unwrap();
        std::fs::write(file(&folder, &new), &good).unwrap();
        let kind = |report| read(&file(&folder, report), report).unwrap_err().kind();
        assert_eq!(kind(&new), ErrorKind::Mismatch);
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert_eq!(kind(&old), ErrorKind::Format);
        assert_eq!(Tuning::look(Some(&folder), &old).few_rows(), FEW);
    }
}
