//! How far a router's confidence can be trusted: the error among the prompts that it is surest of,
//! against their share.

use super::figures::{Figure, FigureKind, WIDTH, axis, legend, lettered, letters_at_ends};
use super::svg::{Anchor, Scale, Svg};
use super::{CsvText, fields, number};
use crate::cmrbench::{Group, MethodOutcome, Metric, Results, SeedOutcome, mean_and_deviation};
use crate::error::Result;

/// Coverages in percent at which the risk is noted: every fifth.
const STEP: usize = 5;
const POINTS: usize = 100 / STEP;

const METRICS: [Metric; 2] = [Metric::Domain, Metric::Model];

/// One run's risk by coverage.
#[derive(Clone, Debug, PartialEq)]
struct Curve {
    /// Percent of errors at coverages of 5, 10, ..., 100 %.
    risk: [f64; POINTS],
    /// Area under the risk over the coverage, percent.
    area: f64,
}

/// A row as the curve sees it.
#[derive(Clone, Copy, Debug)]
struct Answered {
    /// Higher is surer.
    score: f64,
    /// 1 or 0.
    error: f64,
    /// The row's share of all.
    weight: f64,
}

/// Rows of equal scores are one block, in which the errors are spread evenly.
fn curve(mut rows: Vec<Answered>) -> Option<Curve> {
    let all: f64 = rows.iter().map(|row| row.weight).sum();
    if all <= 0.0 {
        return None;
    }
    rows.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut curve = Curve {
        risk: [0.0; POINTS],
        area: 0.0,
    };
    let (mut covered, mut wrong, mut next) = (0.0, 0.0, 0);
    for block in rows.chunk_by(|a, b| a.score.total_cmp(&b.score).is_eq()) {
        let weight: f64 = block.iter().map(|row| row.weight).sum();
        let errors: f64 = block.iter().map(|row| row.weight * row.error).sum();
        for row in block {
            covered += row.weight / all;
            wrong += row.weight / all * errors / weight;
            let risk = (100.0 * wrong / covered).min(100.0);
            curve.area += row.weight / all * risk;
            while next < POINTS && covered > ((next + 1) * STEP) as f64 / 100.0 - 1e-9 {
                curve.risk[next] = risk;
                next += 1;
            }
        }
    }
    Some(curve)
}

/// All experiences have the same weight, so that the error of all rows is 100 - Acc.
fn of_run(results: &Results, run: &SeedOutcome, metric: Metric) -> Option<Curve> {
    let steps = results.plan.steps();
    let mut rows = Vec::new();
    for test in 0..steps {
        let ones = run.ones(metric, steps.checked_sub(1)?, test)?;
        let weight = 1.0 / (steps * ones.len()).max(1) as f64;
        let answers = ones.iter().zip(run.answers(test));
        rows.extend(answers.map(|(hit, answer)| Answered {
            score: answer.score,
            error: 1.0 - hit,
            weight,
        }));
    }
    curve(rows)
}

/// Each seed's curve, and the mean over the seeds.
pub(super) struct Risk<'r> {
    method: &'r MethodOutcome,
    metric: Metric,
    runs: Vec<(u64, Curve)>,
}

impl Risk<'_> {
    fn mean(&self, of: impl Fn(&Curve) -> f64) -> f64 {
        let values: Vec<f64> = self.runs.iter().map(|(_, curve)| of(curve)).collect();
        mean_and_deviation(&values).map_or(f64::NAN, |(mean, _)| mean)
    }

    fn at(&self, coverage: usize) -> f64 {
        self.mean(|curve| curve.risk[coverage / STEP - 1])
    }
}

pub(super) fn all(results: &Results) -> Vec<Risk<'_>> {
    let of = |method, metric| {
        let method: &MethodOutcome = method;
        let run = |run: &SeedOutcome| Some((run.seed, of_run(results, run, metric)?));
        let runs: Vec<(u64, Curve)> = method.runs.iter().filter_map(run).collect();
        (!runs.is_empty()).then_some(Risk {
            method,
            metric,
            runs,
        })
    };
    let of_metric = |metric| {
        let main = results.methods.iter();
        main.filter(|method| method.info.group != Group::Ablation)
            .filter_map(move |method| of(method, metric))
    };
    METRICS.into_iter().flat_map(of_metric).collect()
}

/// The curves of one metric.
fn of<'a, 'r>(risks: &'a [Risk<'r>], metric: Metric) -> Vec<&'a Risk<'r>> {
    risks.iter().filter(|risk| risk.metric == metric).collect()
}

pub(super) fn csv(all: &[Risk<'_>]) -> Result<String> {
    let points = (1..=POINTS).map(|point| format!(",risk_{}", point * STEP));
    let heads = "method,seed,metric,aurc".to_owned() + &points.collect::<String>();
    let mut csv = CsvText::new(&heads)?;
    for risk in all {
        for (seed, curve) in &risk.runs {
            let head = fields![
                risk.method.info.name,
                seed,
                risk.metric.letter(),
                curve.area
            ];
            csv.row(
                head.into_iter()
                    .chain(curve.risk.map(|risk| risk.to_string())),
            )?;
        }
    }
    csv.finish()
}

pub(super) fn section(risks: &[Risk<'_>]) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let all = of(risks, metric);
        if all.is_empty() {
            continue;
        }
        if text.is_empty() {
            text += "\n## Coverage against risk\n\nAfter the last step, prompts are answered in \
             the order of the score of the named model, the highest first. The score is the \
             method's own (a cosine, a similarity of words, a sum of both) and is not calibrated \
             for this. Risk is the error among the answered prompts in percent, the mean over \
             seeds with the same weight for each experience, so at 100 % it is 100 minus Acc. \
             AURC is the area under it; lower is better.\n";
        }
        text += &format!(
            "\n| error of the {} | AURC | at 20 % | at 50 % | at 80 % | at 100 % \
             |\n|---|---|---|---|---|---|\n",
            metric.name()
        );
        for risk in all {
            let at = [20, 50, 80, 100].map(|coverage| number(risk.at(coverage)));
            text += &format!(
                "| {} | {} | {} |\n",
                risk.method.info.label,
                number(risk.mean(|curve| curve.area)),
                at.join(" | ")
            );
        }
    }
    text
}

pub(super) fn figures(results: &Results, risks: &[Risk<'_>]) -> Vec<Figure> {
    let figure = |metric: Metric| {
        let all = of(risks, metric);
        let title = format!(
            "Error of the {}, percent, among the prompts with the highest scores; lower is better",
            metric.name()
        );
        (!all.is_empty()).then(|| Figure {
            name: format!("coverage-{}", metric.letter()),
            kind: FigureKind::Risk,
            svg: lines(results, &all, &title),
            title,
        })
    };
    METRICS.into_iter().filter_map(figure).collect()
}

fn lines(results: &Results, all: &[&Risk<'_>], title: &str) -> String {
    let of = |name: &str| all.iter().find(|risk| risk.method.info.name == name);
    let entries: Vec<_> = lettered(results)
        .into_iter()
        .filter(|(method, ..)| of(method.info.name).is_some())
        .collect();
    let coverages = (1..=POINTS).map(|point| point * STEP);
    let risks: Vec<Vec<f64>> = entries
        .iter()
        .filter_map(|(method, ..)| of(method.info.name))
        .map(|risk| {
            coverages
                .clone()
                .map(|coverage| risk.at(coverage))
                .collect()
        })
        .collect();
    let range = risks.iter().flatten().fold((100.0, 0.0), |(low, high), x| {
        (f64::min(low, *x), f64::max(high, *x))
    });
    let (left, right, top, bottom) = (38.0, WIDTH - 40.0, 22.0, 300.0);
    let height = bottom + 54.0 + 16.0 * entries.len() as f64;
    let mut svg = Svg::new(WIDTH, height, title);
    let up = Scale::new(range, (bottom, top));
    let across = Scale::new((0.0, 100.0), (left, right));
    axis(&mut svg, &up, (left, right));
    for mark in across.marks() {
        let x = across.at(mark);
        svg.line(&[(x, top), (x, bottom)], "#eee", "");
        svg.text(
            (x, bottom + 16.0),
            Anchor::Middle,
            "",
            &format!("{mark:.0}"),
        );
    }
    svg.text((left, top - 10.0), Anchor::Start, "", "error, %");
    svg.text((right, bottom + 32.0), Anchor::End, "", "coverage, %");
    for ((_, _, colour), risks) in entries.iter().zip(&risks) {
        let points = coverages.clone().zip(risks);
        let points: Vec<(f64, f64)> = points
            .map(|(coverage, risk)| (across.at(coverage as f64), up.at(*risk)))
            .collect();
        svg.line(&points, colour, "stroke-width=\"1.6\"");
    }
    let heights = risks
        .iter()
        .map(|risks| risks.last().map_or(bottom, |risk| up.at(*risk)));
    let ends: Vec<_> = entries.iter().zip(heights).collect();
    letters_at_ends(&mut svg, right + 5.0, &ends, (top, bottom));
    legend(&mut svg, bottom + 54.0, &entries);
    svg.finish()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rows(of: &[(f64, f64, f64)]) -> Vec<Answered> {
        of.iter()
            .map(|(score, error, weight)| Answered {
                score: *score,
                error: *error,
                weight: *weight,
            })
            .collect()
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "expected {want}, found {got}");
    }

    /// Errors 0, 1, 0, 1 from the surest on: risks 0, 1/2, 1/3, 1/2.
    #[test]
    fn a_curve_by_hand() {
        let curve = curve(rows(&[
            (0.6, 1.0, 1.0),
            (0.9, 0.0, 1.0),
            (0.7, 0.0, 1.0),
            (0.8, 1.0, 1.0),
        ]))
        .unwrap();
        close(curve.area, 100.0 * (0.0 + 0.5 + 1.0 / 3.0 + 0.5) / 4.0);
        for (coverage, want) in [
            (5, 0.0),
            (25, 0.0),
            (30, 50.0),
            (50, 50.0),
            (55, 100.0 / 3.0),
            (75, 100.0 / 3.0),
            (80, 50.0),
            (100, 50.0),
        ] {
            close(curve.risk[coverage / STEP - 1], want);
        }
    }

    /// Equal scores: whichever comes first, half of the pair is wrong from the first row on.
    #[test]
    fn equal_scores_have_no_order() {
        let one = curve(rows(&[(1.0, 0.0, 1.0), (1.0, 1.0, 1.0)])).unwrap();
        let other = curve(rows(&[(1.0, 1.0, 1.0), (1.0, 0.0, 1.0)])).unwrap();
        assert_eq!(one, other);
        close(one.area, 50.0);
        assert!(one.risk.iter().all(|risk| (risk - 50.0).abs() < 1e-9));
    }

    /// A row of three times the weight covers three quarters.
    #[test]
    fn rows_have_weights() {
        let curve = curve(rows(&[(2.0, 1.0, 3.0), (1.0, 0.0, 1.0)])).unwrap();
        close(curve.risk[100 / STEP - 1], 75.0);
        close(curve.area, 0.75 * 100.0 + 0.25 * 75.0);
        assert!(super::curve(Vec::new()).is_none());
    }
}
