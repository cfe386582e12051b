//! Tensors: row-major f32 or u32 on a device, with room for more rows than they have now.

use crate::device::{Device, gpu};
use crate::error::Result;

/// A [rows, columns] tensor.
pub(crate) struct Tensor {
    label: &'static str,
    rows: usize,
    columns: usize,
    capacity: usize,
    storage: Storage,
}

pub(super) enum Storage {
    F32(Vec<f32>),
    U32(Vec<u32>),
    Gpu(gpu::Buffer),
    /// On a GPU, of what a pass uploads and kernels only read; `None` before the first upload.
    Input(Option<gpu::Uploaded>),
}

/// The number types of a tensor.
pub(super) trait Element: bytemuck::NoUninit {
    fn stored(values: Vec<Self>) -> Storage;
}

impl Element for f32 {
    fn stored(values: Vec<Self>) -> Storage {
        Storage::F32(values)
    }
}

impl Element for u32 {
    fn stored(values: Vec<Self>) -> Storage {
        Storage::U32(values)
    }
}

impl Storage {
    fn filled<T: Element>(device: &Device, label: &str, values: &[T]) -> Result<Self> {
        match device {
            Device::Cpu(_) => Ok(T::stored(values.to_vec())),
            Device::Gpu(gpu) => Ok(Self::Gpu(
                gpu.buffer_with(label, bytemuck::cast_slice(values))?,
            )),
        }
    }
}

/// A tensor to be made.
#[derive(Clone, Copy)]
pub(crate) struct NewTensor {
    label: &'static str,
    rows: usize,
    columns: usize,
    ids: bool,
}

impl NewTensor {
    /// Room for `rows` of `columns` numbers.
    pub(crate) fn numbers(label: &'static str, rows: usize, columns: usize) -> Self {
        Self {
            label,
            rows,
            columns,
            ids: false,
        }
    }

    /// Room for `rows` of `columns` ids.
    pub(crate) fn ids(label: &'static str, rows: usize, columns: usize) -> Self {
        Self {
            ids: true,
            ..Self::numbers(label, rows, columns)
        }
    }

    fn size(self) -> usize {
        self.rows * self.columns * 4
    }
}

/// A matrix inside a tensor: some columns of it, or one parameter of a flat buffer.
#[derive(Clone, Copy)]
pub(crate) struct Part<'t> {
    pub(crate) tensor: &'t Tensor,
    /// Where the matrix begins and how far its rows are apart.
    pub(crate) place: Place,
}

/// As [`Part`], to be written.
pub(crate) struct PartMut<'t> {
    pub(crate) tensor: &'t mut Tensor,
    pub(crate) place: Place,
}

/// A row-major [rows, columns] matrix among the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// First element.
    pub(crate) offset: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Place {
    /// Consecutive rows that begin at element `offset`.
    pub(crate) fn flat(offset: usize, rows: usize, columns: usize) -> Self {
        Self {
            offset,
            stride: columns,
            rows,
            columns,
        }
    }

    /// Elements up to the end of the last row.
    pub(crate) fn end(self) -> usize {
        match self.rows {
            0 => self.offset,
            rows => self.offset + (rows - 1) * self.stride + self.columns,
        }
    }

    /// Asserts the shape, naming op, matrix, expected and found.
    pub(crate) fn expect(self, op: &str, name: &str, rows: usize, columns: usize) {
        assert!(
            self.rows == rows && self.columns == columns,
            "{op}: {name}: expected [{rows}, {columns}], found [{}, {}]",
            self.rows,
            self.columns
        );
    }
}

impl<'t> Part<'t> {
    /// The elements from the first on; row `r` begins at `r * stride`.
    pub(crate) fn f32(self) -> &'t [f32] {
        &self.tensor.f32()[self.place.offset..self.place.end()]
    }
}

impl PartMut<'_> {
    /// As [`Part::f32`], to be written.
    pub(crate) fn f32_mut(&mut self) -> &mut [f32] {
        let (offset, end) = (self.place.offset, self.place.end());
        &mut self.tensor.f32_mut()[offset..end]
    }
}

impl Tensor {
    /// Room for `rows` of `columns`. In tests it holds NaN, so that a forgotten write shows.
    pub(super) fn scratch(
        device: &Device,
        label: &'static str,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let first = if cfg!(test) { f32::NAN } else { 0.0 };
        let storage = match device {
            Device::Cpu(_) => Storage::F32(vec![first; rows * columns]),
            Device::Gpu(_) if cfg!(test) => {
                Storage::filled(device, label, &vec![first; rows * columns])?
            }
            Device::Gpu(gpu) => Storage::Gpu(gpu.buffer(label, rows * columns * 4)?),
        };
        Ok(Self::new(label, rows, columns, storage))
    }

    /// What a pass uploads and kernels only read.
    pub(super) fn input(device: &Device, wanted: NewTensor) -> Self {
        let NewTensor {
            label,
            rows,
            columns,
            ids,
        } = wanted;
        let count = rows * columns;
        let storage = match device {
            Device::Gpu(_) => Storage::Input(None),
            Device::Cpu(_) if ids => Storage::U32(vec![0; count]),
            Device::Cpu(_) => Storage::F32(vec![0.0; count]),
        };
        Self::new(label, rows, columns, storage)
    }

    /// Tensors that lie beside each other on a GPU, so that one copy brings them back.
    pub(super) fn beside<const N: usize>(
        device: &Device,
        wanted: [NewTensor; N],
    ) -> Result<[Self; N]> {
        let mut tensors = Vec::with_capacity(N);
        match device {
            Device::Gpu(gpu) => {
                let first = if cfg!(test) { f32::NAN } else { 0.0 };
                let buffers = gpu.results(&wanted.map(NewTensor::size), first)?;
                for (
                    NewTensor {
                        label,
                        rows,
                        columns,
                        ..
                    },
                    buffer,
                ) in wanted.into_iter().zip(buffers)
                {
                    tensors.push(Self::new(label, rows, columns, Storage::Gpu(buffer)));
                }
            }
            Device::Cpu(_) => {
                for NewTensor {
                    label,
                    rows,
                    columns,
                    ids,
                } in wanted
                {
                    tensors.push(match ids {
                        true => Self::ids(device, label, rows, columns)?,
                        false => Self::scratch(device, label, rows, columns)?,
                    });
                }
            }
        }
        match tensors.try_into() {
            Ok(tensors) => Ok(tensors),
            Err(_) => unreachable!("as many as were wanted"),
        }
    }

    pub(super) fn ids(
        device: &Device,
        label: &'static str,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let storage = match device {
            Device::Cpu(_) => Storage::U32(vec![0; rows * columns]),
            Device::Gpu(gpu) => Storage::Gpu(gpu.buffer(label, rows * columns * 4)?),
        };
        Ok(Self::new(label, rows, columns, storage))
    }

    /// A tensor that holds `values`, rows of `columns`.
    pub(super) fn upload<T: Element>(
        device: &Device,
        label: &'static str,
        columns: usize,
        values: &[T],
    ) -> Result<Self> {
        let rows = values.len() / columns.max(1);
        assert_eq!(
            values.len(),
            rows * columns,
            "{label}: values are not rows of {columns}"
        );
        let storage = Storage::filled(device, label, values)?;
        Ok(Self::new(label, rows, columns, storage))
    }

    fn new(label: &'static str, rows: usize, columns: usize, storage: Storage) -> Self {
        Self {
            label,
            rows,
            columns,
            capacity: rows,
            storage,
        }
    }

    pub(crate) fn label(&self) -> &'static str {
        self.label
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows that it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements in use.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Gives the tensor `rows` rows, at most as many as it was made for.
    pub(crate) fn resize(&mut self, rows: usize) {
        assert!(
            rows <= self.capacity,
            "{}: room for {} rows, {rows} wanted",
            self.label,
            self.capacity
        );
        self.rows = rows;
    }

    /// The same elements as rows of `columns`.
    pub(crate) fn regroup(&mut self, columns: usize) {
        assert!(
            self.len().is_multiple_of(columns),
            "{}: [{}, {}] in rows of {columns}",
            self.label,
            self.rows,
            self.columns
        );
        self.rows = self.len() / columns;
        self.capacity = self.capacity * self.columns / columns;
        self.columns = columns;
    }

    /// The elements in use.
    ///
    /// # Panics
    /// On a GPU's tensor and on ids: a bug in an op.
    pub(crate) fn f32(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(values) => &values[..self.rows * self.columns],
            _ => panic!("{}: not f32 on the CPU", self.label),
        }
    }

    /// As [`Tensor::f32`], to be written.
    pub(crate) fn f32_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::F32(values) => &mut values[..self.rows * self.columns],
            _ => panic!("{}: not f32 on the CPU", self.label),
        }
    }

    /// As [`Tensor::f32`], for ids.
    pub(crate) fn u32(&self) -> &[u32] {
        match &self.storage {
            Storage::U32(values) => &values[..self.rows * self.columns],
            _ => panic!("{}: not u32 on the CPU", self.label),
        }
    }

    /// As [`Tensor::u32`], to be written.
    pub(crate) fn u32_mut(&mut self) -> &mut [u32] {
        match &mut self.storage {
            Storage::U32(values) => &mut values[..self.rows * self.columns],
            _ => panic!("{}: not u32 on the CPU", self.label),
        }
    }

    /// The matrix at `place`.
    pub(crate) fn part(&self, place: Place) -> Part<'_> {
        self.inside(place);
        Part {
            tensor: self,
            place,
        }
    }

    /// As [`Tensor::part`], to be written.
    pub(crate) fn part_mut(&mut self, place: Place) -> PartMut<'_> {
        self.inside(place);
        PartMut {
            tensor: self,
            place,
        }
    }

    /// Where all of this tensor's rows are.
    pub(crate) fn place(&self) -> Place {
        Place::flat(0, self.rows, self.columns)
    }

    /// Where columns `first..first + count` of every row are.
    pub(crate) fn columns_at(&self, first: usize, count: usize) -> Place {
        Place {
            offset: first,
            stride: self.columns,
            rows: self.rows,
            columns: count,
        }
    }

    fn inside(&self, place: Place) {
        assert!(
            place.columns <= place.stride && place.end() <= self.len(),
            "{}: {place:?} is not inside {} elements",
            self.label,
            self.len()
        );
    }

    /// The buffer of a GPU's tensor, in the pass of this number.
    ///
    /// # Panics
    /// When the tensor is an input and that pass has not uploaded it: a bug of the caller.
    #[cfg(feature = "gpu")]
    pub(super) fn buffer(&self, pass: u64) -> &gpu::Buffer {
        match &self.storage {
            Storage::Gpu(buffer) => buffer,
            Storage::Input(Some(uploaded)) if uploaded.is_of(pass) => uploaded.buffer(),
            Storage::Input(_) => panic!("{}: not uploaded in this pass", self.label),
            _ => panic!("{}: not on the GPU", self.label),
        }
    }

    /// The place of an input of a GPU.
    #[cfg(feature = "gpu")]
    pub(super) fn input_mut(&mut self) -> Option<&mut Option<gpu::Uploaded>> {
        match &mut self.storage {
            Storage::Input(uploaded) => Some(uploaded),
            _ => None,
        }
    }

    /// Whether kernels may only read it.
    #[cfg(feature = "gpu")]
    pub(super) fn is_input(&self) -> bool {
        matches!(self.storage, Storage::Input(_))
    }

    /// Bytes of as many rows as there is room for.
    #[cfg(feature = "gpu")]
    pub(super) fn room(&self) -> usize {
        self.capacity * self.columns * 4
    }

    pub(super) fn holds_ids(&self) -> bool {
        matches!(self.storage, Storage::U32(_))
    }

    /// Asserts the shape, naming op, tensor, expected and found.
    pub(crate) fn expect(&self, op: &str, name: &str, rows: usize, columns: usize) {
        assert!(
            self.rows == rows && self.columns == columns,
            "{op}: {name} ({}): expected [{rows}, {columns}], found [{}, {}]",
            self.label,
            self.rows,
            self.columns
        );
    }
}
