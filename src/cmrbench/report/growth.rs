//! The two parts of forgetting: lost, and taken by newer models.

use super::number;
use crate::cmrbench::{Metric, Results, mean_and_deviation};

/// A table of all methods that learn one experience after the other.
pub(super) fn section(results: &Results) -> String {
    let mut text = "\n## Forgotten, or outgrown\n\nA row of an earlier experience can be lost in \
     two ways: among the models that were there when it was learned, or to models that came \
     later. Only the first is forgetting proper. It is measured by the best of the row's ten \
     predictions that the hub had then. Both columns together are the Fgt of the table \
     above.\n\n| method | M lost | M to newer models | D lost | D to newer models \
     |\n|---|---|---|---|---|\n"
        .to_owned();
    let mut any = false;
    for method in &results.methods {
        let cell = |metric: Metric| {
            let runs = method.runs.iter().map(|run| run.lost_and_outgrown(metric));
            let (lost, outgrown): (Vec<f64>, Vec<f64>) = runs.collect::<Option<_>>()?;
            let mean = |values: &[f64]| mean_and_deviation(values).map(|(mean, _)| mean);
            Some((mean(&lost)?, mean(&outgrown)?))
        };
        let (Some(model), Some(domain)) = (cell(Metric::Model), cell(Metric::Domain)) else {
            continue;
        };
        any = true;
        let cells = [model.0, model.1, domain.0, domain.1].map(number);
        text += &format!("| {} | {} |\n", method.info.label, cells.join(" | "));
    }
    if any { text } else { String::new() }
}
