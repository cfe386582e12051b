//! Differences between pairs of methods, each with its interval.

use super::{CsvText, fields, number};
use crate::cmrbench::{Comparison, DRAWS, MethodOutcome, Metric, Quantity, Results, compare};
use crate::error::Result;

/// The method that all others are compared with.
pub(super) const OURS: &str = "carve-10";

/// Pairs with the same budget of replay, the one expected to be better first. A pair is left out
/// where one of its methods was not run.
const PAIRS: [(&str, &str); 14] = [
    ("first-session", OURS),
    ("first-session", "replay-10"),
    ("memory", OURS),
    ("memory", "replay-10"),
    ("carve-memory", OURS),
    ("carve-memory", "first-session"),
    (OURS, "replay-10"),
    ("carve-5", "replay-5"),
    ("carve-20", "replay-20"),
    ("carve-100", "cumulative"),
    (OURS, "carve-ewc"),
    ("ewc", "sequential"),
    ("lwf", "sequential"),
    (OURS, "centroid"),
];

const CLAIMS: [(Metric, Quantity, &str); 4] = [
    (Metric::Domain, Quantity::Accuracy, "D-Acc"),
    (Metric::Model, Quantity::Accuracy, "M-Acc"),
    (Metric::Domain, Quantity::Forgetting, "D-Fgt"),
    (Metric::Model, Quantity::Forgetting, "M-Fgt"),
];

type Compared<'r> = (
    &'r MethodOutcome,
    &'r MethodOutcome,
    [Option<Comparison>; 4],
);

/// The pairs, then ours with all methods that no pair has it with.
pub(super) struct Claims<'r> {
    pairs: Vec<Compared<'r>>,
    others: Vec<Compared<'r>>,
}

impl<'r> Claims<'r> {
    pub(super) fn new(results: &'r Results) -> Self {
        let steps = results.plan.steps();
        let with = |first: &'r MethodOutcome, second: &'r MethodOutcome| {
            let of = |(metric, quantity, _)| compare(first, second, metric, quantity, steps);
            (first, second, CLAIMS.map(of))
        };
        let pairs = PAIRS.iter().filter_map(|(first, second)| {
            Some(with(results.method(first)?, results.method(second)?))
        });
        let paired = |name: &str| PAIRS.contains(&(OURS, name)) || PAIRS.contains(&(name, OURS));
        let ours = results.method(OURS);
        let others = results.methods.iter().filter_map(|other| {
            let name = other.info.name;
            (name != OURS && !paired(name)).then_some(with(ours?, other))
        });
        Self {
            pairs: pairs.collect(),
            others: others.collect(),
        }
    }

    pub(super) fn csv(&self) -> Result<String> {
        let mut csv = CsvText::new("first,second,quantity,difference,low,high,share_above_0")?;
        for (first, second, comparisons) in self.pairs.iter().chain(&self.others) {
            let named = CLAIMS.iter().zip(comparisons);
            for ((_, _, name), c) in named.filter_map(|(claim, c)| Some((claim, (*c)?))) {
                let (first, second) = (first.info.name, second.info.name);
                csv.row(fields![
                    first,
                    second,
                    name,
                    c.difference,
                    c.low,
                    c.high,
                    c.positive
                ])?;
            }
        }
        csv.finish()
    }

    pub(super) fn section(&self) -> String {
        if self.pairs.is_empty() && self.others.is_empty() {
            return String::new();
        }
        let heads = CLAIMS.map(|(_, _, name)| name).join(" | ");
        let mut text = format!(
            "\n## Differences between methods\n\nThe first's value minus the second's, in points, \
             with 95 % intervals of a paired bootstrap over eval rows ({DRAWS} draws, stratified \
             by experience; hits are means over seeds). Bold: the interval does not contain 0. \
             More Acc is better, and less Fgt.\n"
        );
        for (what, compared) in [
            ("first, second", &self.pairs),
            ("CARvE (10 %) against", &self.others),
        ] {
            if compared.is_empty() {
                continue;
            }
            text += &format!("\n| {what} | {heads} |\n|---|---|---|---|---|\n");
            for (first, second, comparisons) in compared {
                let pair = if what.starts_with("first") {
                    format!("{} – {}", first.info.label, second.info.label)
                } else {
                    second.info.label.to_owned()
                };
                text += &format!("| {pair} | {} |\n", comparisons.map(interval).join(" | "));
            }
        }
        text
    }
}

/// `+3.2 [1.0, 5.4]`; bold where the interval does not contain 0.
fn interval(comparison: Option<Comparison>) -> String {
    comparison.map_or("–".to_owned(), |c| {
        let text = format!(
            "{:+.1} [{}, {}]",
            c.difference,
            number(c.low),
            number(c.high)
        );
        if c.low > 0.0 || c.high < 0.0 {
            format!("**{text}**")
        } else {
            text
        }
    })
}
