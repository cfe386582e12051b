//! Confusion between domains after the last step, by the tables of that step.

use std::collections::{BTreeMap, HashMap};

use super::figures::{Figure, FigureKind, WIDTH, shade};
use super::labels::fitted;
use super::svg::{Anchor, Svg};
use super::{CsvText, chosen, fields, number, short};
use crate::cmrbench::{MethodOutcome, Results, Tables};
use crate::error::Result;

/// Domains of the heat map.
const LARGEST: usize = 20;

/// Rows of a table of confusions.
const SHOWN: usize = 12;

/// Pairs of domains that mean the same (cmrbench.md section 11.1).
const SYNONYMS: [[&str; 2]; 7] = [
    ["Computer Vision Text-to-Image", "Multimodal Text-to-Image"],
    ["Computer Vision Image-to-Text", "Multimodal Image-to-Text"],
    ["Computer Vision Text-to-Video", "Multimodal Text-to-Video"],
    [
        "Computer Vision Zero-Shot Image Classification",
        "Multimodal Zero-Shot Image Classification",
    ],
    [
        "Multimodal Document Question Answer",
        "Multimodal Document Question Answering",
    ],
    ["Audio Audio Classification", "Audio Classification"],
    [
        "Reinforcement Learning",
        "Reinforcement Learning Reinforcement Learning",
    ],
];

/// Stands for the domain of an answer that has none.
const NONE: &str = "none";

fn same_meaning(a: &str, b: &str) -> bool {
    SYNONYMS
        .iter()
        .any(|pair| a != b && pair.contains(&a) && pair.contains(&b))
}

/// The confusions of one method, summed over its seeds.
pub(super) struct Confusion<'r> {
    method: &'r MethodOutcome,
    /// Rows by gold domain and named domain.
    counts: BTreeMap<(String, String), usize>,
    /// Rows by gold domain.
    golds: HashMap<String, usize>,
}

impl<'r> Confusion<'r> {
    fn new(results: &Results, tables: &Tables, method: &'r MethodOutcome) -> Self {
        let mut pairs = Vec::new();
        for run in &method.runs {
            for (test, experience) in results.plan.data.experiences.iter().enumerate() {
                for (row, answer) in experience.eval.iter().zip(run.answers(test)) {
                    let named = tables.domain(&answer.model).unwrap_or(NONE);
                    pairs.push((row.domain.as_str(), named));
                }
            }
        }
        let (counts, golds) = count(&pairs);
        Self {
            method,
            counts,
            golds,
        }
    }

    /// Mean over the seeds.
    fn mean(&self, rows: usize) -> f64 {
        rows as f64 / self.method.runs.len().max(1) as f64
    }

    fn get(&self, gold: &str, named: &str) -> usize {
        let pair = (gold.to_owned(), named.to_owned());
        self.counts.get(&pair).copied().unwrap_or(0)
    }

    /// Percent of the rows of `gold`.
    fn share(&self, gold: &str, rows: usize) -> f64 {
        let all = self.golds.get(gold).copied().unwrap_or(0);
        100.0 * rows as f64 / all.max(1) as f64
    }

    /// The domains with most rows; ties go by name.
    fn largest(&self) -> Vec<&str> {
        let mut names: Vec<(&str, usize)> = self
            .golds
            .iter()
            .map(|(name, rows)| (name.as_str(), *rows))
            .collect();
        names.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        names
            .into_iter()
            .take(LARGEST)
            .map(|(name, _)| name)
            .collect()
    }

    /// Pairs of a gold and another domain, the most frequent first.
    fn confused(&self) -> Vec<(&str, &str, usize)> {
        let mut all: Vec<(&str, &str, usize)> = self
            .counts
            .iter()
            .filter(|((gold, named), _)| gold != named)
            .map(|((gold, named), rows)| (gold.as_str(), named.as_str(), *rows))
            .collect();
        all.sort_by(|a, b| b.2.cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1))));
        all
    }
}

/// A mean of counts, with a decimal only where it has one.
fn count_of(mean: f64) -> String {
    if mean.fract() == 0.0 {
        format!("{mean:.0}")
    } else {
        number(mean)
    }
}

/// Rows by pair, rows by gold.
fn count(pairs: &[(&str, &str)]) -> (BTreeMap<(String, String), usize>, HashMap<String, usize>) {
    let (mut counts, mut golds) = (BTreeMap::new(), HashMap::new());
    for (gold, named) in pairs {
        *counts
            .entry(((*gold).to_owned(), (*named).to_owned()))
            .or_insert(0) += 1;
        *golds.entry((*gold).to_owned()).or_insert(0) += 1;
    }
    (counts, golds)
}

pub(super) fn all(results: &Results) -> Vec<Confusion<'_>> {
    let tables = Tables::new(&results.plan.data, results.plan.steps());
    chosen(results)
        .into_iter()
        .map(|method| Confusion::new(results, &tables, method))
        .collect()
}

pub(super) fn csv(all: &[Confusion<'_>]) -> Result<String> {
    let mut csv = CsvText::new("method,seeds,gold,named,rows,percent_of_gold,same_meaning")?;
    for confusion in all {
        for ((gold, named), rows) in &confusion.counts {
            csv.row(fields![
                confusion.method.info.name,
                confusion.method.runs.len(),
                gold,
                named,
                confusion.mean(*rows),
                confusion.share(gold, *rows),
                gold == named || same_meaning(gold, named)
            ])?;
        }
    }
    csv.finish()
}

pub(super) fn section(all: &[Confusion<'_>]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n## Confusion between domains\n\nThe domain of each eval row beside the domain of the \
         model that was named for it, after the last step; rows are means over seeds. \"Same\" \
         marks two names of one domain: they cap D and look like forgetting, and no table counts \
         them as hits. The figures have the {LARGEST} largest domains; confusion.csv has all.\n"
    );
    for confusion in all {
        let confused = confusion.confused();
        let (mut missed, mut alike) = (0, 0);
        for (gold, named, rows) in &confused {
            missed += rows;
            alike += if same_meaning(gold, named) { *rows } else { 0 };
        }
        text += &format!(
            "\n{}: {} of {} rows got a model of another domain, {} of them one that means the \
             same.\n\n| domain of the row → domain that was named | rows | % of its rows | \
             |\n|---|---|---|---|\n",
            confusion.method.info.label,
            count_of(confusion.mean(missed)),
            count_of(confusion.mean(confusion.golds.values().sum())),
            count_of(confusion.mean(alike)),
        );
        for (gold, named, rows) in confused.into_iter().take(SHOWN) {
            text += &format!(
                "| {} → {} | {} | {:.0} | {} |\n",
                short(gold),
                short(named),
                count_of(confusion.mean(rows)),
                confusion.share(gold, rows),
                if same_meaning(gold, named) {
                    "same"
                } else {
                    ""
                }
            );
        }
    }
    text
}

pub(super) fn figures(all: &[Confusion<'_>]) -> Vec<Figure> {
    all.iter()
        .map(|confusion| {
            let title = format!(
                "{}: percent of the rows of each domain (down) by the domain that was named \
                 (across); last column: all others",
                confusion.method.info.label
            );
            Figure {
                name: format!("confusion-{}", confusion.method.info.name),
                kind: FigureKind::Confusion,
                svg: heat(confusion, &title),
                title,
            }
        })
        .collect()
}

/// Gold down, named across, both numbered; the names of the numbers are below.
fn heat(confusion: &Confusion<'_>, title: &str) -> String {
    let names = confusion.largest();
    let (cell, left, top) = (15.6, 22.0, 18.0);
    let size = cell * names.len() as f64;
    let mut svg = Svg::new(WIDTH, top + size + 12.0 + 15.0 * names.len() as f64, title);
    let small = "font-size=\"9\"";
    svg.text(
        (left + size + cell / 2.0, top - 5.0),
        Anchor::Middle,
        small,
        "…",
    );
    for (place, gold) in names.iter().enumerate() {
        let label = (place + 1).to_string();
        let middle = (place as f64 + 0.5) * cell;
        svg.text((left + middle, top - 5.0), Anchor::Middle, small, &label);
        svg.text((left - 4.0, top + middle + 3.5), Anchor::End, small, &label);
        let mut elsewhere = confusion.golds.get(*gold).copied().unwrap_or(0);
        let shown: Vec<usize> = names
            .iter()
            .map(|named| confusion.get(gold, named))
            .collect();
        elsewhere -= shown.iter().sum::<usize>();
        for (column, rows) in shown.into_iter().chain([elsewhere]).enumerate() {
            let percent = confusion.share(gold, rows);
            let corner = (left + column as f64 * cell, top + place as f64 * cell);
            let inside = (cell - 1.0, cell - 1.0);
            svg.rect((corner.0 + 0.5, corner.1 + 0.5), inside, &shade(percent));
            let shown = format!("{percent:.0}");
            if shown != "0" {
                let ink = if percent > 45.0 { " fill=\"#fff\"" } else { "" };
                let size = if shown.len() > 2 { 8 } else { 9 };
                let style = format!("font-size=\"{size}\"{ink}");
                let at = (corner.0 + cell / 2.0, corner.1 + cell / 2.0 + 3.2);
                svg.text(at, Anchor::Middle, &style, &shown);
            }
        }
        let y = top + size + 22.0 + 15.0 * place as f64;
        svg.text((left - 4.0, y), Anchor::End, "", &label);
        let name = fitted(&short(gold), WIDTH - left - 80.0);
        svg.text((left + 2.0, y), Anchor::Start, "", &name);
        let rows = confusion.golds.get(*gold).copied().unwrap_or(0);
        svg.text(
            (WIDTH - 2.0, y),
            Anchor::End,
            "",
            &format!("{} rows", count_of(confusion.mean(rows))),
        );
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted() {
        let pairs = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "a"), ("c", "c")];
        let (counts, golds) = count(&pairs);
        let of = |gold: &str, named: &str| counts.get(&(gold.to_owned(), named.to_owned()));
        assert_eq!((of("a", "a"), of("a", "b")), (Some(&1), Some(&2)));
        assert_eq!(
            (of("b", "a"), of("b", "b"), of("c", "c")),
            (Some(&1), None, Some(&1))
        );
        assert_eq!((golds["a"], golds["b"], golds["c"]), (3, 1, 1));
    }

    #[test]
    fn synonyms_are_pairs_of_two() {
        assert!(same_meaning(
            "Audio Classification",
            "Audio Audio Classification"
        ));
        assert!(!same_meaning(
            "Audio Classification",
            "Audio Classification"
        ));
        assert!(!same_meaning(
            "Computer Vision Text-to-Image",
            "Multimodal Text-to-Video"
        ));
    }
}
