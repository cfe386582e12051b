//! Accuracy over steps and tests, and the quantities derived from it (cmrbench.md section 3).

use serde::{Deserialize, Serialize};

/// Accuracy in percent: entry (i, j) is that on the eval rows of experience j <= i after learning
/// experience i, both from 0. Entries that were not measured are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccuracyMatrix(Vec<Vec<Option<f64>>>);

impl AccuracyMatrix {
    /// Sets entry (step, test).
    ///
    /// # Panics
    /// When `test > step`: there is no such entry.
    pub fn set(&mut self, step: usize, test: usize, percent: f64) {
        assert!(
            test <= step,
            "matrix: expected a test up to {step}, found {test}"
        );
        while self.0.len() <= step {
            self.0.push(vec![None; self.0.len() + 1]);
        }
        self.0[step][test] = Some(percent);
    }

    /// Entry (step, test).
    pub fn get(&self, step: usize, test: usize) -> Option<f64> {
        self.0.get(step)?.get(test).copied().flatten()
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.0.len()
    }

    /// The plain mean of row `step`, each experience with weight 1.
    pub fn step_mean(&self, step: usize) -> Option<f64> {
        let row: Option<Vec<f64>> = self.0.get(step)?.iter().copied().collect();
        mean(&row?)
    }

    /// Acc: the mean of the last row.
    pub fn acc(&self) -> Option<f64> {
        self.step_mean(self.steps().checked_sub(1)?)
    }

    /// Backward transfer of row `step`, in points: the mean gain on earlier tests since each was
    /// learned. `None` for the first row.
    pub fn backward_transfer(&self, step: usize) -> Option<f64> {
        self.mean_change(step, |matrix, test| matrix.get(test, test))
    }

    /// Fgt: minus the backward transfer of the last row. It is measured from the accuracy right
    /// after learning and may be negative.
    pub fn forgetting(&self) -> Option<f64> {
        self.backward_transfer(self.steps().checked_sub(1)?)
            .map(|points| 0.0 - points)
    }

    /// The same as [`AccuracyMatrix::forgetting`], measured from the best accuracy before the last
    /// step.
    pub fn forgetting_from_best(&self) -> Option<f64> {
        let last = self.steps().checked_sub(1)?;
        let best = |matrix: &Self, test: usize| {
            let before: Option<Vec<f64>> =
                (test..last).map(|step| matrix.get(step, test)).collect();
            before?.into_iter().reduce(f64::max)
        };
        self.mean_change(last, best).map(|points| 0.0 - points)
    }

    /// The mean of minus the backward transfers of rows 1, 2, ...
    pub fn mean_forgetting(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = (1..self.steps())
            .map(|step| self.backward_transfer(step).map(|points| 0.0 - points))
            .collect();
        mean(&all?)
    }

    fn mean_change(&self, step: usize, from: impl Fn(&Self, usize) -> Option<f64>) -> Option<f64> {
        let changes: Option<Vec<f64>> = (0..step)
            .map(|test| Some(self.get(step, test)? - from(self, test)?))
            .collect();
        mean(&changes?)
    }
}

/// Mean and sample standard deviation (n - 1), which is `None` for a single value.
pub fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let middle = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    let more = values.len() > 1;
    Some((
        middle,
        more.then(|| (squares / (values.len() - 1) as f64).sqrt()),
    ))
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The aggregation of cmrbench.md section 4.
    #[test]
    fn averages_of_a_matrix() {
        let mut matrix = AccuracyMatrix::default();
        for (step, row) in [vec![60.0], vec![70.0, 50.0], vec![40.0, 45.0, 30.0]]
            .iter()
            .enumerate()
        {
            for (test, value) in row.iter().enumerate() {
                matrix.set(step, test, *value);
            }
        }
        let close =
            |got: Option<f64>, want: f64| assert!((got.unwrap() - want).abs() < 1e-3, "{got:?}");
        close(matrix.acc(), 38.3333);
        close(matrix.backward_transfer(1), 10.0);
        close(matrix.forgetting(), 12.5);
        close(matrix.forgetting_from_best(), 17.5);
        close(matrix.mean_forgetting(), 1.25);
        assert_eq!(matrix.backward_transfer(0), None);
        let mut still = AccuracyMatrix::default();
        for (step, test) in [(0, 0), (1, 0), (1, 1)] {
            still.set(step, test, 40.0);
        }
        assert_eq!(
            still.forgetting().map(f64::to_bits),
            Some(0.0f64.to_bits()),
            "no minus"
        );
        let (middle, deviation) = mean_and_deviation(&[80.0, 81.0, 82.5]).unwrap();
        close(Some(middle), 81.1667);
        close(deviation, 1.2583);
        assert_eq!(mean_and_deviation(&[80.0]), Some((80.0, None)));
    }

    /// Joint training has a last row alone.
    #[test]
    fn what_was_not_measured_is_absent() {
        let mut matrix = AccuracyMatrix::default();
        matrix.set(1, 0, 50.0);
        assert_eq!(matrix.acc(), None);
        matrix.set(1, 1, 70.0);
        assert_eq!((matrix.acc(), matrix.forgetting()), (Some(60.0), None));
        assert_eq!(
            serde_json::to_string(&matrix).unwrap(),
            "[[null],[50.0,70.0]]"
        );
    }
}
