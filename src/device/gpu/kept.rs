//! Compiled kernels between two processes: a file beside the user's cache, for each adapter and
//! driver.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Result, bail};
use crate::files;

/// The first bytes of a file; behind them the SHA-256 of the rest in hex, a newline, and the data.
const MAGIC: &[u8] = b"hubrouter pipelines 1\n";

/// Bytes of the digest and its newline.
const DIGEST: usize = 65;

/// Largest file that is read.
const MOST: u64 = 64 << 20;

pub(super) struct KeptPipelines {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// Digest of what the file holds.
    written: Mutex<String>,
}

impl KeptPipelines {
    /// Those in `folder` for `adapter`; `None` where its backend keeps none.
    ///
    /// A file that is missing, damaged or of another driver counts as empty: it is replaced.
    pub(super) fn open(
        device: &wgpu::Device,
        adapter: &wgpu::Adapter,
        folder: &Path,
    ) -> Option<Self> {
        let info = adapter.get_info();
        let key = wgpu::util::pipeline_cache_key(&info)?;
        let driver = [&*info.name, &*info.driver, &*info.driver_info].join("\n");
        let driver = files::sha256(driver.as_bytes());
        let file = folder.join(format!("{key}_{}.pipelines", &driver[..16]));
        let data = match read(&file) {
            Ok(data) => data,
            Err(error) => {
                log::warn!("kernels are compiled anew: {error}");
                None
            }
        };
        let written = data.as_deref().map(files::sha256).unwrap_or_default();
        let cache = created(device, data.as_deref());
        Some(Self {
            cache,
            file,
            written: Mutex::new(written),
        })
    }

    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the file, if there is more to keep than it has.
    pub(super) fn keep(&self) {
        let Some(data) = self.cache.get_data() else {
            return;
        };
        let digest = files::sha256(&data);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == digest {
            return;
        }
        let bytes = [MAGIC, digest.as_bytes(), b"\n", &data].concat();
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let kept = files::make_folder(folder).and_then(|()| files::replace(&self.file, &bytes));
        match kept {
            Ok(()) => log::debug!("{}: {} bytes", self.file.display(), bytes.len()),
            Err(error) => log::warn!("compiled kernels are not kept: {error}"),
        }
        // A folder that cannot be written is not tried again.
        *written = digest;
    }
}

/// The data that `file` keeps; `None` without a file.
///
/// Errors: it is not one of ours, or damaged.
fn read(file: &Path) -> Result<Option<Vec<u8>>> {
    if !file.exists() {
        return Ok(None);
    }
    let bytes = files::read_bytes(file, MOST)?;
    let parts = bytes.strip_prefix(MAGIC);
    let parts = parts.and_then(|rest| rest.split_at_checked(DIGEST));
    let Some((digest, data)) = parts else {
        bail!(
            Format,
            "{}: expected a file that hubrouter wrote, found {} other bytes",
            file.display(),
            bytes.len()
        );
    };
    let found = files::sha256(data);
    if digest.strip_suffix(b"\n") != Some(found.as_bytes()) {
        bail!(
            Mismatch,
            "{}: expected the SHA-256 that it begins with, found {found}",
            file.display()
        );
    }
    Ok(Some(data.to_vec()))
}

#[expect(unsafe_code, reason = "what a driver wrote is handed to a driver")]
fn created(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor {
        label: Some("kept pipelines"),
        data,
        // Of another version of the driver: an empty one.
        fallback: true,
    };
    // SAFETY: `data` has the SHA-256 that `KeptPipelines::keep` computed of what `get_data` gave,
    // and comes from a file whose name has the adapter's key and the digest of its driver.
    unsafe { device.create_pipeline_cache(&descriptor) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::gpu::{Gpu, Kernel, Shader, adapters};
    use crate::error::ErrorKind;
    use crate::ops::testing::adapter_name;
    use crate::testing::Folder;

    static SHADER: Shader = Shader {
        name: "kept",
        source: "
            @group(0) @binding(0) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1)
            fn forward() { y[0] = 1.0; }",
    };

    #[test]
    fn only_whole_files_of_ours_are_read() {
        let folder = Folder::new("pipelines");
        let file = folder.join("a.pipelines");
        assert_eq!(read(&file).unwrap(), None);
        let data = b"what a driver wrote";
        let good = [MAGIC, files::sha256(data).as_bytes(), b"\n", data].concat();
        std::fs::write(&file, &good).unwrap();
        assert_eq!(read(&file).unwrap().unwrap(), data);
        let error = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            read(&file).unwrap_err().kind()
        };
        assert_eq!(error(&good[1..]), ErrorKind::Format);
        assert_eq!(error(&good[..50]), ErrorKind::Format);
        assert_eq!(error(&good[..good.len() - 1]), ErrorKind::Mismatch);
        assert_eq!(error(&[&good[..], b" "].concat()), ErrorKind::Mismatch);
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(error(&flipped), ErrorKind::Mismatch);
    }

    #[test]
    fn a_driver_that_can_keeps_its_kernels_and_a_damaged_file_is_replaced() {
        let own = Folder::new("kept");
        let folder = own.join("made");
        let name = adapter_name().to_lowercase();
        let all = adapters();
        let found = all.iter().find(|adapter| {
            let report = adapter.report();
            let text = format!("{} {}", report.name, report.driver);
            text.to_lowercase().contains(&name)
        });
        let host = Arc::new(Cpu::open(Some(1)).unwrap());
        let compile = || {
            let gpu = Gpu::open(
                found.unwrap(),
                &host,
                Some(&folder),
                crate::DeviceVariant::Auto,
            )
            .unwrap();
            let kernel = Kernel::new(&SHADER, "forward", &[]);
            gpu.compile(&[&kernel]).unwrap();
            gpu.kept.is_some()
        };
        if !compile() {
            return assert!(!folder.exists());
        }
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        let [Ok(file)] = files.as_slice() else {
            panic!("{files:?}");
        };
        let whole = std::fs::read(file.path()).unwrap();
        assert!(read(&file.path()).unwrap().is_some());
        std::fs::write(file.path(), &whole[..whole.len() - 1]).unwrap();
        assert!(compile());
        assert!(read(&file.path()).unwrap().is_some());
    }
}
