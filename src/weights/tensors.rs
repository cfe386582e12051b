//! The tensors of one safetensors file in memory, each checked when it is read.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::View;
use crate::error::{Result, bail, error};

/// In an expected shape: a dimension of any size.
pub(crate) const ANY: usize = usize::MAX;

/// A parsed safetensors file: one part of a generation.
pub(crate) struct Tensors<'b> {
    metadata: Metadata,
    /// Everything behind the header.
    data: &'b [u8],
}

impl<'b> Tensors<'b> {
    /// Errors: `bytes` are no whole safetensors file.
    pub(crate) fn parse(bytes: &'b [u8]) -> Result<Self> {
        let (header, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|e| error!(Format, "not safetensors: {e}").because(e))?;
        let data = &bytes[8 + header..];
        Ok(Self { metadata, data })
    }

    /// The value of `key` in the file's own metadata.
    ///
    /// Errors: there is none.
    pub(crate) fn note(&self, key: &str) -> Result<&str> {
        let notes = self.metadata.metadata().as_ref();
        match notes.and_then(|notes| notes.get(key)) {
            Some(text) => Ok(text),
            None => bail!(Format, "expected {key} in the file's metadata, found none"),
        }
    }

    /// Every tensor's name.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The shape of `name`, None without such a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| &info.shape[..])
    }

    /// The element type of `name`, None without such a tensor.
    #[cfg(feature = "cli")]
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.metadata.info(name).map(|info| info.dtype)
    }

    /// Bytes of `name`, which must have this type and shape; [`ANY`] matches every size.
    pub(crate) fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'b [u8]> {
        let wanted = || {
            let size = |size: &usize| match *size {
                ANY => "any".to_owned(),
                size => size.to_string(),
            };
            let sizes: Vec<String> = shape.iter().map(size).collect();
            format!("[{}] {}", sizes.join(", "), lower(dtype))
        };
        let Some(info) = self.metadata.info(name) else {
            bail!(
                Mismatch,
                "{name}: expected {}, found no such tensor",
                wanted()
            );
        };
        let TensorInfo {
            shape: found,
            data_offsets: (from, to),
            ..
        } = info;
        let mut sizes = found.iter().zip(shape);
        let fits = found.len() == shape.len() && sizes.all(|(is, want)| [*is, ANY].contains(want));
        if !fits || info.dtype != dtype {
            bail!(
                Mismatch,
                "{name}: expected {}, found {found:?} {}",
                wanted(),
                lower(info.dtype)
            );
        }
        Ok(&self.data[*from..*to])
    }

    /// The finite numbers of `name`.
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        finite(name, self.numbers(name, Dtype::F32, shape)?)
    }

    /// The finite numbers of `name`, as half-precision values for a table of `shape[1]` columns.
    pub(crate) fn f16(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<View<'b>> {
        let bytes = self.bytes(name, Dtype::F16, &[rows, columns])?;
        let view = View::of_half(bytes, columns);
        finite(name, view.to_f32())?;
        Ok(view)
    }

    /// The numbers of `name`.
    pub(crate) fn u32(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        self.numbers(name, Dtype::U32, shape)
    }

    /// Elements of any other type, as they are.
    pub(crate) fn numbers<T: bytemuck::AnyBitPattern>(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Vec<T>> {
        // A copy, since the bytes need not be aligned.
        let bytes = self.bytes(name, dtype, shape)?;
        Ok(bytes
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect())
    }
}

fn lower(dtype: Dtype) -> String {
    dtype.to_string().to_lowercase()
}

fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => bail!(
            Numeric,
            "{name}: element {at}: expected a finite number, found {}",
            values[at]
        ),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::weights::{half_bytes, to_safetensors};

    fn file() -> Vec<u8> {
        let floats: Vec<u8> = bytemuck::cast_slice(&[1.5f32, -2.0, f32::NAN]).to_vec();
        let tensors = [
            ("two", Dtype::F32, vec![2, 1], floats[..8].to_vec()),
            ("nan", Dtype::F32, vec![3], floats),
            ("half", Dtype::F16, vec![1, 2], half_bytes(&[0.5, 4.0])),
            ("ids", Dtype::U32, vec![2], vec![7, 0, 0, 0, 1, 1, 0, 0]),
        ];
        let notes = [("a".to_owned(), "b".to_owned())].into();
        to_safetensors("a test", &tensors, Some(notes)).unwrap()
    }

    #[test]
    fn tensors_are_read_by_name_type_and_shape() {
        let bytes = file();
        let file = Tensors::parse(&bytes).unwrap();
        assert_eq!(file.f32("two", &[2, 1]).unwrap(), [1.5, -2.0]);
        assert_eq!(file.f32("two", &[ANY, 1]).unwrap().len(), 2);
        assert_eq!(file.f16("half", [1, 2]).unwrap().to_f32(), [0.5, 4.0]);
        assert_eq!(file.u32("ids", &[ANY]).unwrap(), [7, 257]);
        assert_eq!(file.note("a").unwrap(), "b");
        assert_eq!(
            (file.shape("nan"), file.shape("no")),
            (Some(&[3][..]), None)
        );
        assert_eq!(file.names().len(), 4);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bytes = file();
        let file = Tensors::parse(&bytes).unwrap();
        let says = |error: crate::Error, kind: ErrorKind, want: &str| {
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, want));
        };
        let mismatch = |name: &str, shape: &[usize], want: &str| {
            says(
                file.f32(name, shape).unwrap_err(),
                ErrorKind::Mismatch,
                want,
            );
        };
        let want = "two: expected [any, 3] f32, found [2, 1] f32";
        mismatch("two", &[ANY, 3], want);
        mismatch("two", &[2], "two: expected [2] f32, found [2, 1] f32");
        mismatch("ids", &[2], "ids: expected [2] f32, found [2] u32");
        mismatch("no", &[2], "no: expected [2] f32, found no such tensor");
        let want = "nan: element 2: expected a finite number, found NaN";
        says(file.f32("nan", &[3]).unwrap_err(), ErrorKind::Numeric, want);
        let want = "expected b in the file's metadata, found none";
        says(file.note("b").unwrap_err(), ErrorKind::Format, want);
        for cut in [0, 7, 40, bytes.len() - 1] {
            let error = Tensors::parse(&bytes[..cut]).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Format);
        }
    }
}
