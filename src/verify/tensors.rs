//! The tensors of a parity bundle in memory: read with their types, written in their order.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::error::{Result, bail};
use crate::weights::{ANY, Tensors, to_safetensors};

/// Tensors by name.
#[derive(Clone, Debug, Default)]
pub(super) struct ParityTensors {
    map: BTreeMap<String, ParityTensor>,
}

#[derive(Clone, Debug)]
pub(super) struct ParityTensor {
    pub(super) shape: Vec<usize>,
    pub(super) values: ParityValues,
}

#[derive(Clone, Debug)]
pub(super) enum ParityValues {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
}

impl ParityValues {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I32(values) => values.len(),
        }
    }

    /// As f64, in which every type fits exactly.
    pub(super) fn wide(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|value| f64::from(*value)).collect(),
            Self::F64(values) => values.clone(),
            Self::I32(values) => values.iter().map(|value| f64::from(*value)).collect(),
        }
    }
}

impl ParityTensors {
    /// The tensors of a safetensors file.
    ///
    /// Errors: it is malformed; a type is not f32, f64 or int32; a number is not finite.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let file = Tensors::parse(bytes)?;
        let mut map = BTreeMap::new();
        for name in file.names() {
            let shape = file.shape(&name).unwrap_or_default().to_vec();
            let any = vec![ANY; shape.len()];
            let values = match file.dtype(&name) {
                Some(Dtype::F32) => ParityValues::F32(file.f32(&name, &any)?),
                Some(Dtype::F64) => ParityValues::F64(file.numbers(&name, Dtype::F64, &any)?),
                Some(Dtype::I32) => ParityValues::I32(file.numbers(&name, Dtype::I32, &any)?),
                other => bail!(
                    Unsupported,
                    "{name}: expected f32, f64 or int32, found {other:?}"
                ),
            };
            if let ParityValues::F64(values) = &values
                && let Some(at) = values.iter().position(|value| !value.is_finite())
            {
                bail!(
                    Numeric,
                    "{name}: element {at}: expected a finite number, found {}",
                    values[at]
                );
            }
            map.insert(name, ParityTensor { shape, values });
        }
        Ok(Self { map })
    }

    pub(super) fn write(&self, file: &str) -> Result<Vec<u8>> {
        let tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = self
            .map
            .iter()
            .map(|(name, tensor)| {
                let (dtype, bytes) = match &tensor.values {
                    ParityValues::F32(values) => {
                        (Dtype::F32, bytemuck::cast_slice(values).to_vec())
                    }
                    ParityValues::F64(values) => {
                        (Dtype::F64, bytemuck::cast_slice(values).to_vec())
                    }
                    ParityValues::I32(values) => {
                        (Dtype::I32, bytemuck::cast_slice(values).to_vec())
                    }
                };
                (name.as_str(), dtype, tensor.shape.clone(), bytes)
            })
            .collect();
        to_safetensors(file, &tensors, None)
    }

    pub(super) fn get(&self, name: &str) -> Option<&ParityTensor> {
        self.map.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn put(&mut self, name: impl Into<String>, shape: &[usize], values: ParityValues) {
        let name = name.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let shape = shape.to_vec();
        self.map.insert(name, ParityTensor { shape, values });
    }

    pub(super) fn put_f32(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.put(name, shape, ParityValues::F32(values));
    }

    pub(super) fn put_ids(&mut self, name: impl Into<String>, shape: &[usize], ids: &[u32]) {
        let ids = ids.iter().map(|id| i32::try_from(*id).unwrap_or(i32::MAX));
        self.put(name, shape, ParityValues::I32(ids.collect()));
    }

    fn find(&self, name: &str, shape: &[usize], kind: &str) -> Result<&ParityTensor> {
        let Some(tensor) = self.map.get(name) else {
            bail!(Mismatch, "{name}: expected {kind}, found no such tensor");
        };
        let mut sizes = tensor.shape.iter().zip(shape);
        let fits = sizes.all(|(is, want)| [*is, ANY].contains(want));
        if tensor.shape.len() != shape.len() || !fits {
            let wanted = shape.iter().map(|size| match *size {
                ANY => "any".to_owned(),
                size => size.to_string(),
            });
            bail!(
                Mismatch,
                "{name}: expected [{}] {kind}, found {:?}",
                wanted.collect::<Vec<_>>().join(", "),
                tensor.shape
            );
        }
        Ok(tensor)
    }

    /// Errors: no such tensor of f32 with this shape; [`ANY`] matches every size.
    pub(super) fn f32(&self, name: &str, shape: &[usize]) -> Result<&[f32]> {
        match &self.find(name, shape, "f32")?.values {
            ParityValues::F32(values) => Ok(values),
            _ => bail!(Mismatch, "{name}: expected f32, found another type"),
        }
    }

    /// Errors: no such tensor of int32 with this shape, or a negative number.
    pub(super) fn ids(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        let ParityValues::I32(values) = &self.find(name, shape, "int32")?.values else {
            bail!(Mismatch, "{name}: expected int32, found another type");
        };
        let id = |value: &i32| match u32::try_from(*value) {
            Ok(id) => Ok(id),
            Err(_) => bail!(Format, "{name}: expected numbers from 0, found {value}"),
        };
        values.iter().map(id).collect()
    }

    /// Rows of the matrix `name`.
    ///
    /// Errors: no such tensor of f32 with `columns` columns.
    pub(super) fn rows(&self, name: &str, columns: usize) -> Result<usize> {
        Ok(self.find(name, &[ANY, columns], "f32")?.shape[0])
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tensors_come_back_as_they_were_written() {
        let mut tensors = ParityTensors::default();
        tensors.put_f32("a", &[2, 1], vec![1.5, -2.0]);
        tensors.put_ids("b", &[3], &[7, 0, 9]);
        tensors.put("c", &[1], ParityValues::F64(vec![0.1]));
        let back = ParityTensors::read(&tensors.write("a file").unwrap()).unwrap();
        assert_eq!(back.f32("a", &[2, ANY]).unwrap(), [1.5, -2.0]);
        assert_eq!(back.ids("b", &[3]).unwrap(), [7, 0, 9]);
        assert_eq!(back.get("c").unwrap().values.wide(), [0.1]);
        for (name, shape, want) in [
            ("a", &[1, 2][..], "a: expected [1, 2] f32, found [2, 1]"),
            ("d", &[1], "d: expected f32, found no such tensor"),
            ("b", &[3], "b: expected f32, found another type"),
        ] {
            assert_eq!(back.f32(name, shape).unwrap_err().to_string(), want);
        }
        let mut bad = ParityTensors::default();
        bad.put("x", &[1], ParityValues::F64(vec![f64::NAN]));
        let error = ParityTensors::read(&bad.write("bad").unwrap()).unwrap_err();
        assert!(error.to_string().contains("found NaN"), "{error}");
        bad.put("x", &[1], ParityValues::I32(vec![-1]));
        assert!(bad.ids("x", &[1]).is_err());
    }
}
