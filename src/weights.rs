//! Memory-mapped safetensors: views checked for name, shape and dtype.
//!
//! The `unsafe` blocks of the mapping are here. Sharded checkpoints are opened through their
//! `*.safetensors.index.json`. This crate replaces files by rename and never edits them, so a
//! mapping does not change. If another program truncates a mapped file in place, reading past its
//! new end ends the process with a bus error. So serving copies the weights when it opens, and
//! [`Weights::check_unchanged`] is called before a mapping is read again.

mod tensors;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use crate::error::{Error, Result, bail, error};
use crate::files;
use crate::huge::HugeSlice;

pub(crate) use tensors::{ANY, Tensors};

#[cfg(target_endian = "big")]
compile_error!("safetensors are little-endian and are read in place: this target is big-endian");

/// Largest `*.index.json` that is read.
const INDEX_LIMIT: u64 = 64 << 20;

/// Element types that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

#[derive(Clone)]
struct TensorEntry {
    shard: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

/// The bytes of a shard.
enum Bytes {
    Memory(Vec<u8>),
    /// With the file, and its metadata when it was mapped.
    Mapped(Mmap, File, Metadata),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(map, ..) => map,
        }
    }
}

/// Compares length and time: a file that was changed in place differs in at least one.
fn same_version(a: &Metadata, b: &Metadata) -> bool {
    a.len() == b.len() && a.modified().ok() == b.modified().ok()
}

/// One checkpoint: a `.safetensors` file, or the shards that an index names.
pub(crate) struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, TensorEntry>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `path`: a `.safetensors` file or a `.safetensors.index.json`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut weights = Self::empty(path);
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            weights.add_sharded(path)?;
        } else {
            weights.add_shard(path)?;
        }
        Ok(weights)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            shards: Vec::new(),
            entries: BTreeMap::new(),
        }
    }

    /// The checkpoint in `bytes`, which were read from `path`.
    pub(crate) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let mut weights = Self::empty(path);
        weights.add(path, Bytes::Memory(bytes))?;
        Ok(weights)
    }

    fn add_sharded(&mut self, path: &Path) -> Result<()> {
        let index: ShardIndex = files::read_json(path, INDEX_LIMIT)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            if Path::new(shard)
                .file_name()
                .is_none_or(|name| name != shard.as_str())
            {
                bail!(
                    Format,
                    "{}: shard {shard:?} is not a plain file name",
                    path.display()
                );
            }
            self.add_shard(&folder.join(shard))?;
        }
        for (tensor, shard) in &index.weight_map {
            let found = self
                .entries
                .get(tensor)
                .map(|entry| &self.shards[entry.shard].path);
            if found.is_none_or(|found| *found != folder.join(shard)) {
                bail!(
                    Format,
                    "{}: {tensor}: expected in {shard}, found {}",
                    path.display(),
                    found.map_or("nowhere".into(), |found| found.display().to_string())
                );
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let (file, _) = files::open_file(path)?;
        let data = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        #[expect(unsafe_code, reason = "mapping is this module's job")]
        // SAFETY: the file is mapped read-only. Files of this crate are replaced by rename and
        // never edited in place, and hosts are told so (docs/limits.md), so the bytes behind the
        // mapping do not change while it lives.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        self.add(path, Bytes::Mapped(map, file, data))
    }

    fn add(&mut self, path: &Path, content: Bytes) -> Result<()> {
        let (header, metadata) = SafeTensors::read_metadata(&content)
            .map_err(|e| error!(Format, "{}: not a safetensors file: {e}", path.display()))?;
        let data = header + 8;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            let entry = TensorEntry {
                shard,
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                bail!(
                    Format,
                    "{}: {name}: already in another shard",
                    path.display()
                );
            }
        }
        self.shards.push(Shard {
            path: path.to_owned(),
            bytes: content,
        });
        Ok(())
    }

    /// Errors: a file was changed in place since it was mapped. Reading it would give the changed
    /// bytes or, past its end, a bus error.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        for Shard { path, bytes } in &self.shards {
            if let Bytes::Mapped(_, file, before) = bytes {
                let data = file.metadata().map_err(|e| Error::io(path, "read", e))?;
                if !same_version(&data, before) {
                    bail!(
                        Mismatch,
                        "{}: was changed in place since it was opened: expected files to be replaced \
                         by rename; open it again",
                        path.display()
                    );
                }
            }
        }
        Ok(())
    }

    /// File name, bytes and content of every mapped file, for digests.
    pub(crate) fn mapped_files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards
            .iter()
            .map(|shard| (shard.path.as_path(), &shard.bytes[..]))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of `name`; `None` without such a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| &entry.shape[..])
    }

    /// Releases the memory of the mapped files. Later reads load from the files again.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        for shard in &self.shards {
            if let Bytes::Mapped(map, ..) = &shard.bytes {
                #[expect(unsafe_code, reason = "mapping is this module's job")]
                // SAFETY: the mapping is read-only, so no page differs from the file's, and a page
                // that is dropped is read from the file again when it is touched.
                let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
                if let Err(e) = released {
                    log::debug!("{}: {e}", shard.path.display());
                }
            }
        }
    }

    /// `name` as a checked view.
    ///
    /// Errors: no such tensor, another shape, an element type other than f32, f16 or bf16.
    pub(crate) fn view(&self, name: &str, shape: &[usize]) -> Result<View<'_>> {
        let file = self.path.display();
        let Some(entry) = self.entries.get(name) else {
            bail!(
                Mismatch,
                "{file}: {name}: expected {shape:?}, found no such tensor"
            );
        };
        let dtype = match entry.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => bail!(
                Unsupported,
                "{file}: {name}: expected {shape:?} of F32, F16 or BF16, found {:?} of {other}",
                entry.shape
            ),
        };
        if entry.shape != shape {
            bail!(
                Mismatch,
                "{file}: {name}: expected {shape:?}, found {:?} of {dtype:?}",
                entry.shape
            );
        }
        let bytes = &self.shards[entry.shard].bytes[entry.bytes.clone()];
        let columns = shape.last().copied().unwrap_or(1);
        Ok(View {
            dtype,
            columns,
            bytes,
        })
    }

    /// A copy of the table `name` [rows, columns], to be read while it serves.
    pub(crate) fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Table> {
        let View { dtype, bytes, .. } = self.view(name, &[rows, columns])?;
        Ok(Table {
            dtype,
            bytes: HugeSlice::copy_of(bytes),
            columns,
        })
    }
}

/// A tensor in the mapping, row-major.
#[derive(Clone, Copy)]
pub(crate) struct View<'w> {
    pub(crate) dtype: Dtype,
    pub(crate) columns: usize,
    bytes: &'w [u8],
}

impl<'w> View<'w> {
    /// A view of `values` as rows of `columns`.
    pub(crate) fn of_f32(values: &'w [f32], columns: usize) -> Self {
        View {
            dtype: Dtype::F32,
            columns,
            bytes: bytemuck::cast_slice(values),
        }
    }

    /// Little-endian f16 `bytes` as a table of `columns`.
    pub(crate) fn of_half(bytes: &'w [u8], columns: usize) -> Self {
        View {
            dtype: Dtype::F16,
            columns,
            bytes,
        }
    }

    /// All rows, little-endian elements.
    pub(crate) fn bytes(&self) -> &'w [u8] {
        self.bytes
    }

    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / (self.columns * self.dtype.bytes()).max(1)
    }

    /// Bytes of row `row`, little-endian elements.
    pub(crate) fn row_bytes(&self, row: usize) -> &'w [u8] {
        let stride = self.columns * self.dtype.bytes();
        &self.bytes[row * stride..][..stride]
    }

    /// Row `row` widened to f32 into `out`, which has one place for each column.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        widen(self.dtype, self.row_bytes(row), out);
    }

    /// All elements widened to f32.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.bytes()];
        widen(self.dtype, self.bytes, &mut values);
        values
    }
}

/// Calls `f` with `values` as a table of `columns`, `halved` to f16 if that has room for them all.
pub(crate) fn with_table<T>(
    values: &[f32],
    columns: usize,
    halved: bool,
    f: impl FnOnce(View<'_>) -> T,
) -> T {
    match halved.then(|| halves(values)).flatten() {
        Some(bytes) => f(View::of_half(&bytes, columns)),
        None => f(View::of_f32(values, columns)),
    }
}

/// `values` in f16, little-endian; `None` if one is too large for it.
fn halves(values: &[f32]) -> Option<Vec<u8>> {
    let half = |value: &f32| {
        let half = half::f16::from_f32(*value);
        half.is_finite().then(|| half.to_le_bytes())
    };
    let halves: Option<Vec<[u8; 2]>> = values.iter().map(half).collect();
    halves.map(|halves| halves.concat())
}

/// Widens little-endian elements to f32; every dtype here fits exactly.
fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Dtype::F16 => {
            // Through an aligned block, so that `half` converts eight at a time.
            let mut block = [f16::ZERO; 64];
            for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                for (half, bytes) in block.iter_mut().zip(bytes.chunks_exact(2)) {
                    *half = f16::from_le_bytes([bytes[0], bytes[1]]);
                }
                block[..out.len()].convert_to_f32_slice(out);
            }
        }
        Dtype::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
    }
}

/// A table that is read row by row, in its checkpoint's element type.
pub(crate) struct Table {
    dtype: Dtype,
    bytes: HugeSlice<u8>,
    pub(crate) columns: usize,
}

impl Table {
    /// `values` as rows of `columns`.
    #[cfg(any(test, feature = "cli"))]
    pub(crate) fn of_f32(values: &[f32], columns: usize) -> Self {
        Self {
            dtype: Dtype::F32,
            bytes: HugeSlice::copy_of(bytemuck::cast_slice(values)),
            columns,
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            dtype: self.dtype,
            columns: self.columns,
            bytes: &self.bytes,
        }
    }
}

/// A safetensors file of these tensors: name, element type, shape, bytes. `what`: the file's name
/// in errors.
pub(crate) fn to_safetensors<N: AsRef<str>, B: AsRef<[u8]>>(
    what: &str,
    tensors: &[(N, safetensors::Dtype, Vec<usize>, B)],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let name = name.as_ref();
        TensorView::new(*dtype, shape.clone(), bytes.as_ref())
            .map(|view| (name, view))
            .map_err(|e| error!(Format, "{name}: cannot be written: {e}"))
    });
    safetensors::serialize(views.collect::<Result<Vec<_>>>()?, metadata)
        .map_err(|e| error!(Format, "{what} cannot be written: {e}"))
}

/// Little-endian bytes of the nearest halves.
pub(crate) fn half_bytes(values: &[f32]) -> Vec<u8> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    bytemuck::cast_slice(&halves).to_vec()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::testing::Folder;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn serialized(name: &str, dtype: safetensors::Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        safetensors::serialize([(name, view)], None).unwrap()
    }

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn every_dtype_widens_exactly() {
        let folder = Folder::new("weights");
        let values = [1.0f32, -0.5, 65504.0, 6.0e-8, 0.0, -2.0];
        let half: Vec<u8> = values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect();
        let brain: Vec<u8> = values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect();
        for (name, dtype, data) in [
            ("f32", safetensors::Dtype::F32, f32_bytes(&values)),
            ("f16", safetensors::Dtype::F16, half),
            ("bf16", safetensors::Dtype::BF16, brain),
        ] {
            let path = folder.write(name, serialized("w", dtype, &[2, 3], &data));
            let weights = Weights::open(&path).unwrap();
            let view = weights.view("w", &[2, 3]).unwrap();
            let want: Vec<f32> = values
                .iter()
                .map(|v| match name {
                    "f16" => f16::from_f32(*v).to_f32(),
                    "bf16" => bf16::from_f32(*v).to_f32(),
                    _ => *v,
                })
                .collect();
            assert_eq!(view.to_f32(), want);
            let mut row = [0.0; 3];
            weights
                .table("w", 2, 3)
                .unwrap()
                .view()
                .read_row(1, &mut row);
            assert_eq!(row, want[3..]);
        }
    }

    #[test]
    fn errors_name_the_tensor_and_both_shapes() {
        let folder = Folder::new("weights");
        let bytes = serialized("w", safetensors::Dtype::F32, &[2], &f32_bytes(&[1.0, 2.0]));
        let weights = Weights::open(&folder.write("shapes", bytes)).unwrap();
        let error = weights.view("w", &[3]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(
            error
                .to_string()
                .contains("w: expected [3], found [2] of F32"),
            "{error}"
        );
        assert!(
            weights
                .view("v", &[2])
                .err()
                .unwrap()
                .to_string()
                .contains("no such tensor")
        );

        let bytes = serialized("w", safetensors::Dtype::I64, &[1], &[0; 8]);
        let weights = Weights::open(&folder.write("i64", bytes)).unwrap();
        assert_eq!(
            weights.view("w", &[1]).err().unwrap().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn malformed_files_are_refused_by_name() {
        let folder = Folder::new("weights");
        let good = serialized("w", safetensors::Dtype::F32, &[2], &f32_bytes(&[1.0, 2.0]));
        let header = |json: &str, data: usize| {
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend(json.as_bytes());
            bytes.extend(vec![0; data]);
            bytes
        };
        let cases = [
            ("empty", vec![]),
            ("short", good[..4].to_vec()),
            ("header-past-the-end", u64::MAX.to_le_bytes().to_vec()),
            ("header-only", good[..good.len() - 8].to_vec()),
            ("truncated-data", good[..good.len() - 1].to_vec()),
            ("trailing-data", [good.clone(), vec![0]].concat()),
            ("not-json", header("nonsense", 0)),
            (
                "not-utf8",
                [3u64.to_le_bytes().to_vec(), vec![0xff, 0xfe, 0xfd]].concat(),
            ),
            (
                "shape-and-bytes-differ",
                header(
                    r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                    8,
                ),
            ),
            (
                "offsets-past-the-end",
                header(
                    r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
                    8,
                ),
            ),
            (
                "offsets-overlap",
                header(
                    r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                    12,
                ),
            ),
            (
                "size-overflows",
                header(
                    r#"{"w":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,8]}}"#,
                    8,
                ),
            ),
            (
                "unknown-dtype",
                header(
                    r#"{"w":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}}"#,
                    8,
                ),
            ),
        ];
        for (name, bytes) in cases {
            let error = Weights::open(&folder.write(name, bytes)).err();
            let error = error.unwrap_or_else(|| panic!("{name} was accepted"));
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(
            Weights::open(Path::new("missing")).err().unwrap().kind(),
            ErrorKind::Io
        );
    }

    #[test]
    fn shards_are_found_through_their_index() {
        let folder = Folder::new("weights");
        let one = serialized("a", safetensors::Dtype::F32, &[1], &f32_bytes(&[1.0]));
        let two = serialized("b", safetensors::Dtype::F32, &[1], &f32_bytes(&[2.0]));
        folder.write("shard-1.safetensors", one);
        folder.write("shard-2.safetensors", two);
        let index = |map: &str| folder.write("index.json", format!(r#"{{"weight_map":{map}}}"#));
        let path = index(r#"{"a":"shard-1.safetensors","b":"shard-2.safetensors"}"#);
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.view("b", &[1]).unwrap().to_f32(), [2.0]);
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);

        for (map, want) in [
            (
                r#"{"a":"shard-1.safetensors","c":"shard-2.safetensors"}"#,
                "c: expected in",
            ),
            (
                r#"{"a":"shard-2.safetensors","b":"shard-1.safetensors"}"#,
                "a: expected in",
            ),
            (r#"{"a":"../shard-1.safetensors"}"#, "plain file name"),
            (r#"{"a":"shard-9.safetensors"}"#, "shard-9"),
        ] {
            let error = Weights::open(&index(map)).err().unwrap();
            assert!(error.to_string().contains(want), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(flips in prop::collection::vec((0usize..200, any::<u8>()), 1..4)) {
            let folder = Folder::new("weights");
            let values = [1.0f32; 6];
            let mut bytes = serialized("w", safetensors::Dtype::F32, &[2, 3], &f32_bytes(&values));
            let len = bytes.len();
            for (place, value) in flips {
                bytes[place % len] = value;
            }
            if let Ok(weights) = Weights::open(&folder.write("flipped", bytes)) {
                for (name, entry) in &weights.entries {
                    if let Ok(view) = weights.view(name, &entry.shape) {
                        view.to_f32();
                    }
                }
            }
        }
    }
}
