//! An op that is set up with inputs and knows its results in f64. Unit tests, `doctor` and the
//! kernel bench run the same cases, each at its own shapes.

use crate::device::{Device, Pass, Place, Plan, Read, Tensor};
use crate::error::Result;
#[cfg(feature = "cli")]
use crate::ops::reference;

/// Bound of an f32 op against f64, per element: `BOUND * (1 + |want|)`.
pub(crate) const BOUND: f64 = 1e-5;

/// Fills the frame of a [`framed`] matrix. An op must neither read nor write it.
const AROUND: f32 = f32::NAN;

/// Bytes that a case uploads in its passes at most: lists of candidates.
pub(crate) const UPLOADS: usize = 1 << 20;

/// Where ids stand among the numbers of an output.
#[derive(Clone, Copy)]
struct IdColumns {
    output: usize,
    /// Elements of a row.
    width: usize,
    /// The first of them, which are ids; the others are numbers by their bits.
    ids: usize,
}

/// Runs the op; reads the outputs afterwards where asked.
type RunOp = Box<dyn FnMut(&mut Pass<'_>, bool) -> Vec<Read> + Send>;

/// The outputs in f64.
type ReferenceOutputs = Box<dyn Fn() -> Vec<Vec<f64>> + Send>;

/// One use of an op.
pub(crate) struct Case {
    pub(crate) op: &'static str,
    /// The op's name and which of its uses this is.
    pub(crate) label: String,
    /// Operations of one run, a multiply-add as two.
    #[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "the bench reads it"))]
    pub(crate) flops: f64,
    /// Bytes that one run must read and write at least.
    #[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "the bench reads it"))]
    pub(crate) bytes: f64,
    /// Bound of each output over 1 + |want|.
    pub(crate) bound: f64,
    /// Where each output is in its tensor, if it is [`framed`].
    places: Vec<Option<Place>>,
    /// The output that holds ids, if one does.
    ids: Option<IdColumns>,
    run: RunOp,
    want: ReferenceOutputs,
}

/// One output of a case and its reference.
pub(crate) struct Checked {
    pub(crate) got: Vec<f32>,
    pub(crate) want: Vec<f64>,
    /// False when something around the output was written.
    pub(crate) intact: bool,
}

impl Checked {
    /// The largest error over 1 + |want|; infinite when something else was written.
    #[cfg(feature = "cli")]
    pub(crate) fn error(&self) -> f64 {
        match self.intact {
            true => reference::worst(&self.got, &self.want),
            false => f64::INFINITY,
        }
    }
}

impl Case {
    /// A case of `op`: `run` writes `outputs`, and `want` computes them in f64.
    pub(crate) fn new<const N: usize>(
        op: &'static str,
        mut outputs: [Tensor; N],
        mut run: impl FnMut(&mut Pass<'_>, &mut [Tensor; N]) + Send + 'static,
        want: impl Fn() -> [Vec<f64>; N] + Send + 'static,
    ) -> Self {
        Self {
            op,
            label: op.to_owned(),
            flops: 0.0,
            bytes: 0.0,
            bound: BOUND,
            places: vec![None; N],
            ids: None,
            run: Box::new(move |pass, read| {
                run(pass, &mut outputs);
                let outputs = outputs.iter().filter(|_| read);
                outputs.map(|output| pass.read(output)).collect()
            }),
            want: Box::new(move || want().into()),
        }
    }

    /// Names the use.
    pub(crate) fn of(mut self, label: &str) -> Self {
        if !label.is_empty() {
            self.label = format!("{} {label}", self.op);
        }
        self
    }

    /// Operations and bytes of one run.
    pub(crate) fn work(self, flops: f64, bytes: f64) -> Self {
        Self {
            flops,
            bytes,
            ..self
        }
    }

    /// Replaces [`BOUND`].
    pub(crate) fn within(self, bound: f64) -> Self {
        Self { bound, ..self }
    }

    /// Output `index` was made by [`framed`], which gave `place`.
    pub(crate) fn at(mut self, index: usize, place: Place) -> Self {
        self.places[index] = Some(place);
        self
    }

    /// In each row of `width` of output `output` the first `ids` are ids.
    pub(crate) fn ids(self, output: usize, width: usize, ids: usize) -> Self {
        let columns = IdColumns { output, width, ids };
        Self {
            ids: Some(columns),
            ..self
        }
    }

    /// Runs the op once.
    #[cfg(feature = "cli")]
    pub(crate) fn run(&mut self, pass: &mut Pass<'_>) {
        (self.run)(pass, false);
    }

    /// Runs the op once and reads its outputs.
    pub(crate) fn check(&mut self, device: &Device) -> Result<Vec<Checked>> {
        let mut plan = Plan::new(device, (), UPLOADS, 1 << 22)?;
        let run = &mut self.run;
        let (reads, outputs) = device.run(&mut plan, |pass, ()| run(pass, true))?;
        let each = reads.into_iter().zip(&self.places).zip((self.want)());
        let checked = each.enumerate().map(|(index, ((read, place), want))| {
            let whole = match self.ids.filter(|columns| columns.output == index) {
                Some(columns) => columns.numbers(outputs.u32(read)),
                None => outputs.f32(read).to_vec(),
            };
            let (got, intact) = match place {
                Some(place) => unframe(whole, *place),
                None => (whole, true),
            };
            Checked { got, want, intact }
        });
        Ok(checked.collect())
    }
}

impl IdColumns {
    /// Ids as numbers among the other numbers.
    fn numbers(self, all: &[u32]) -> Vec<f32> {
        let number = |(place, bits): (usize, &u32)| match place % self.width < self.ids {
            true => *bits as f32,
            false => f32::from_bits(*bits),
        };
        all.iter().enumerate().map(number).collect()
    }
}

/// The cases of all `sizes`.
pub(crate) fn each<S: Copy, const N: usize>(
    sizes: &[S],
    cases: impl Fn(S) -> Result<[Case; N]>,
) -> Result<Vec<Case>> {
    let mut all = Vec::with_capacity(sizes.len() * N);
    for size in sizes {
        all.extend(cases(*size)?);
    }
    Ok(all)
}

/// A flat tensor [1, n] that holds `values` as rows of `columns`, and where they are in it: `gap.0`
/// elements stand before the matrix, `gap.1` between its rows, and `gap.0` behind it.
pub(crate) fn framed(
    device: &Device,
    label: &'static str,
    columns: usize,
    values: &[f32],
    gap: (usize, usize),
) -> Result<(Tensor, Place)> {
    let place = Place {
        offset: gap.0,
        stride: columns + gap.1,
        rows: values.len() / columns,
        columns,
    };
    let mut all = vec![AROUND; place.end() + gap.0];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        all[place.offset + row * place.stride..][..columns].copy_from_slice(values);
    }
    Ok((device.upload(label, all.len(), &all)?, place))
}

/// The matrix inside, and whether its frame is as [`framed`] made it.
fn unframe(mut all: Vec<f32>, place: Place) -> (Vec<f32>, bool) {
    let mut inside = Vec::with_capacity(place.rows * place.columns);
    for row in 0..place.rows {
        let row = &mut all[place.offset + row * place.stride..][..place.columns];
        inside.extend_from_slice(row);
        row.fill(AROUND);
    }
    let intact = all.iter().all(|v| v.to_bits() == AROUND.to_bits());
    (inside, intact)
}
