//! A paired bootstrap: whether a difference between two methods is more than the choice of eval
//! rows (cmrbench.md section 3.3).

use crate::cmrbench::results::{MethodOutcome, Metric};
use crate::learn::{Draws, Stream};

/// Draws of a bootstrap.
pub const DRAWS: usize = 1000;

/// The quantity that two methods are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Acc.
    Accuracy,
    /// Fgt.
    Forgetting,
}

/// The difference between two methods.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// The first's value minus the second's, in points.
    pub difference: f64,
    /// The lower end of the central 95 % of the draws.
    pub low: f64,
    /// The upper end of that interval.
    pub high: f64,
    /// Share of the draws with a difference above 0.
    pub positive: f64,
}

/// Compares `a` with `b` on the same rows. The rows of each experience are drawn [`DRAWS`] times
/// with replacement; hits are means over each method's seeds. `None` where a part of one matrix is
/// missing.
pub fn compare(
    a: &MethodOutcome,
    b: &MethodOutcome,
    metric: Metric,
    quantity: Quantity,
    steps: usize,
) -> Option<Comparison> {
    let values = |method: &MethodOutcome| contributions(method, metric, quantity, steps);
    let differences: Vec<Vec<f64>> = values(a)?
        .iter()
        .zip(values(b)?)
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect())
        .collect();
    bootstrap(&differences)
}

/// The share of every row in the quantity, by experience. The mean over rows, then over
/// experiences, is the quantity.
fn contributions(
    method: &MethodOutcome,
    metric: Metric,
    quantity: Quantity,
    steps: usize,
) -> Option<Vec<Vec<f64>>> {
    let last = steps.checked_sub(1)?;
    let mean = |step: usize, test: usize| -> Option<Vec<f64>> {
        let runs: Option<Vec<Vec<f64>>> = method
            .runs
            .iter()
            .map(|run| run.ones(metric, step, test))
            .collect();
        let runs = runs?;
        let rows = runs.first()?.len();
        let of_row = |row: usize| runs.iter().map(|run| run[row]).sum::<f64>() / runs.len() as f64;
        Some((0..rows).map(of_row).collect())
    };
    match quantity {
        Quantity::Accuracy => (0..steps).map(|test| mean(last, test)).collect(),
        Quantity::Forgetting => (0..last)
            .map(|test| {
                let (then, now) = (mean(test, test)?, mean(last, test)?);
                Some(then.iter().zip(now).map(|(then, now)| then - now).collect())
            })
            .collect(),
    }
}

fn bootstrap(strata: &[Vec<f64>]) -> Option<Comparison> {
    if strata.is_empty() || strata.iter().any(Vec::is_empty) {
        return None;
    }
    let mean = |of: &mut dyn FnMut(&Vec<f64>) -> f64| {
        100.0
            * strata
                .iter()
                .map(|rows| of(rows) / rows.len() as f64)
                .sum::<f64>()
            / strata.len() as f64
    };
    let difference = mean(&mut |rows| rows.iter().sum());
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|draw| {
            let mut draws = Draws::new(0, Stream::Bootstrap, &[draw as u64]);
            mean(&mut |rows| (0..rows.len()).map(|_| rows[draws.below(rows.len())]).sum())
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let positive = drawn.iter().filter(|value| **value > 0.0).count();
    Some(Comparison {
        difference,
        low: drawn[DRAWS / 40],
        high: drawn[DRAWS - 1 - DRAWS / 40],
        positive: positive as f64 / DRAWS as f64,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A hundred rows, of which one method has 60 right and the other 50, in two experiences: the
    /// binomial interval of a paired difference, and no difference where there is none.
    #[test]
    fn intervals() {
        let rows =
            |more: usize| -> Vec<f64> { (0..100).map(|i| f64::from(u8::from(i < more))).collect() };
        let found = bootstrap(&[rows(10), rows(10)]).unwrap();
        assert!((found.difference - 10.0).abs() < 1e-9);
        // Standard error: sqrt(0.1 * 0.9 / 200) = 2.1 points.
        assert!(
            (found.low - 5.9).abs() < 1.2 && (found.high - 14.1).abs() < 1.2,
            "{found:?}"
        );
        assert_eq!(found.positive, 1.0);
        let split: Vec<f64> = (0..100)
            .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let found = bootstrap(&[split]).unwrap();
        assert!(
            found.low < -10.0 && found.high > 10.0 && (0.3..0.7).contains(&found.positive),
            "{found:?}"
        );
        assert_eq!(
            found,
            bootstrap(&[(0..100)
                .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
                .collect()])
            .unwrap()
        );
        assert!(bootstrap(&[vec![], vec![1.0]]).is_none());
        // Experiences weigh the same, whatever their size.
        assert!(
            (bootstrap(&[vec![1.0; 10], vec![0.0; 90]])
                .unwrap()
                .difference
                - 50.0)
                .abs()
                < 1e-9
        );
    }
}
