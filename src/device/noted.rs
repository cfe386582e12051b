//! The dispatches of this thread's passes, noted while somebody asks for them.

use std::cell::RefCell;

#[cfg(feature = "gpu")]
use crate::device::{Kernel, Tensor};

/// A dispatch as it was recorded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dispatched {
    /// `linear_skinny::normed`
    pub(crate) kernel: String,
    /// Its place in its pass, from 0.
    pub(crate) place: usize,
    pub(crate) groups: [u32; 3],
    /// Override constants, then the dims by their names in the shader.
    pub(crate) numbers: Vec<(String, f64)>,
    /// Rows and columns of each tensor by its binding.
    pub(crate) tensors: Vec<(&'static str, usize, usize)>,
}

impl Dispatched {
    /// The constant or the dim `name`; 0 where there is none.
    pub(crate) fn number(&self, name: &str) -> f64 {
        let mut numbers = self.numbers.iter();
        let found = numbers.find(|(known, _)| known == name);
        found.map_or(0.0, |(_, number)| *number)
    }

    /// Rows and columns of the tensor `name`; zeros where there is none.
    pub(crate) fn shape(&self, name: &str) -> [f64; 2] {
        let found = self.tensors.iter().find(|(known, ..)| *known == name);
        found.map_or([0.0; 2], |(_, rows, columns)| {
            [*rows as f64, *columns as f64]
        })
    }
}

thread_local! {
    static NOTED: RefCell<Option<Vec<Dispatched>>> = const { RefCell::new(None) };
}

/// What `calls` returns, and the dispatches that it recorded on this thread.
pub(crate) fn noting<R>(calls: impl FnOnce() -> R) -> (R, Vec<Dispatched>) {
    NOTED.set(Some(Vec::new()));
    let value = calls();
    (value, NOTED.take().unwrap_or_default())
}

/// Notes a dispatch, if somebody asks; `place`: its place in its pass.
#[cfg(feature = "gpu")]
pub(crate) fn note(
    kernel: &Kernel,
    place: usize,
    groups: [u32; 3],
    dims: &[u8],
    tensors: &[(&'static str, &Tensor)],
) {
    NOTED.with_borrow_mut(|noted| {
        let Some(noted) = noted else { return };
        let (name, source, constants) = kernel.parts();
        let constants = constants.iter().map(|(name, v)| ((*name).to_owned(), *v));
        let dims: Vec<u32> = bytemuck::pod_collect_to_vec(dims);
        let dims = dims_of(source).zip(&dims).map(|((name, number), bits)| {
            let value = match number {
                true => f64::from(f32::from_bits(*bits)),
                false => f64::from(*bits),
            };
            (name.to_owned(), value)
        });
        let shape =
            |(name, tensor): &(&'static str, &Tensor)| (*name, tensor.rows(), tensor.columns());
        noted.push(Dispatched {
            kernel: name,
            place,
            groups,
            numbers: constants.chain(dims).collect(),
            tensors: tensors.iter().map(shape).collect(),
        });
    });
}

/// Names of the members of `struct Dims`, and whether they are numbers of f32.
#[cfg(feature = "gpu")]
fn dims_of(source: &str) -> impl Iterator<Item = (&str, bool)> {
    let inside = source.split("struct Dims {").nth(1).unwrap_or_default();
    let inside = inside.split('}').next().unwrap_or_default();
    let code = inside.lines().flat_map(|line| line.split("//").next());
    let members = code.flat_map(|line| line.split(','));
    members.filter_map(|member| {
        let (name, kind) = member.split_once(':')?;
        Some((name.trim(), kind.trim() == "f32"))
    })
}
