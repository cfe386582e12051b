//! Figures of accuracy and forgetting. All are readable in grey. Their numbers are in `matrix.csv`,
//! `summary.csv` and `poster.csv`.

use super::labels::{around, columns};
use super::number;
use super::poster;
use super::svg::{Anchor, Scale, Svg};
use crate::cmrbench::{AccuracyMatrix, Group, MethodOutcome, Metric, Quantity, Results};

/// Width in pixels: that of a phone, so that no figure is scaled down.
pub(super) const WIDTH: f64 = 360.0;

/// The method whose value is drawn as a dashed line.
const FLOOR: &str = "centroid";

/// Style of a text that lies over lines and marks.
pub(super) const HALO: &str = "stroke=\"#fff\" stroke-width=\"3\" paint-order=\"stroke\"";

/// Colours of methods. In grey the letters beside them tell them apart.
const COLOURS: [&str; 8] = [
    "#0b5394", "#b45309", "#166534", "#9d174d", "#5b21b6", "#0f766e", "#7f1d1d", "#374151",
];

/// A figure.
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) kind: FigureKind,
    pub(super) svg: String,
}

/// The section of the page that a figure belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FigureKind {
    /// With the main table.
    Summary,
    /// A matrix of domain accuracy.
    Heat,
    /// A matrix of model or family accuracy.
    OtherHeat,
    /// With the table of costs.
    Cost,
    /// Confusion between domains.
    Confusion,
    /// Coverage against risk.
    Risk,
    /// The map of the registry.
    Map,
}

pub(super) fn all(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    if results.methods.is_empty() {
        return figures;
    }
    let mut add = |name: &str, metric: Metric, title: String, svg: String| {
        figures.push(Figure {
            name: format!("{name}-{}", metric.letter()),
            title,
            kind: FigureKind::Summary,
            svg,
        });
    };
    for metric in [Metric::Domain, Metric::Model] {
        let of = metric.name();
        let title = format!("Acc of the {of}, percent; dashed: continual floor");
        let svg = bars(results, (metric, Quantity::Accuracy), &title);
        add("acc", metric, title, svg);
        let title = format!("Forgetting of the {of}, points; dashed: continual floor");
        let svg = bars(results, (metric, Quantity::Forgetting), &title);
        add("fgt", metric, title, svg);
        let title = format!("Acc against forgetting of the {of}; top left is best");
        let svg = scatter(results, metric, &title);
        add("scatter", metric, title, svg);
    }
    for metric in [Metric::Domain, Metric::Model] {
        let title = format!(
            "Accuracy of the {} on each experience over the steps",
            metric.name()
        );
        let svg = curves(results, metric, &title);
        add("curves", metric, title, svg);
    }
    for metric in [Metric::Domain, Metric::Family, Metric::Model] {
        let measured = results.methods.iter().filter(|m| m.measures(metric));
        for method in measured {
            let title = format!("{}: {} accuracy", method.info.label, metric.name());
            figures.push(Figure {
                name: format!("heat-{}-{}", method.info.name, metric.letter()),
                kind: if metric == Metric::Domain {
                    FigureKind::Heat
                } else {
                    FigureKind::OtherHeat
                },
                svg: heat(results, method, metric, &title),
                title,
            });
        }
    }
    figures
}

/// White at 0, dark at 100, in one hue.
pub(super) fn shade(percent: f64) -> String {
    let part = (percent / 100.0).clamp(0.0, 1.0);
    let mix = |light: f64, dark: f64| light + (dark - light) * part;
    format!(
        "rgb({:.0},{:.0},{:.0})",
        mix(247.0, 8.0),
        mix(251.0, 48.0),
        mix(255.0, 107.0)
    )
}

/// Steps down, tests across.
fn heat(results: &Results, method: &MethodOutcome, metric: Metric, title: &str) -> String {
    let labels: Vec<&str> = results
        .plan
        .data
        .experiences
        .iter()
        .map(|e| e.label.as_str())
        .collect();
    let (cell, left, top) = (44.0, 62.0, 22.0);
    let size = cell * labels.len() as f64;
    let mut svg = Svg::new(left + size + 2.0, top + size + 2.0, title);
    for (place, label) in labels.iter().enumerate() {
        let middle = (place as f64 + 0.5) * cell;
        svg.text((left + middle, top - 7.0), Anchor::Middle, "", label);
        svg.text(
            (left - 6.0, top + middle + 4.0),
            Anchor::End,
            "",
            &format!("after {label}"),
        );
        for test in 0..=place {
            let corner = (
                left + test as f64 * cell + 1.0,
                top + place as f64 * cell + 1.0,
            );
            let Some((percent, _)) = method.cell(metric, place, test) else {
                svg.text((corner.0 + 21.0, corner.1 + 25.0), Anchor::Middle, "", "–");
                continue;
            };
            svg.rect(corner, (cell - 2.0, cell - 2.0), &shade(percent));
            let ink = if percent > 45.0 { "fill=\"#fff\"" } else { "" };
            svg.text(
                (corner.0 + 21.0, corner.1 + 25.0),
                Anchor::Middle,
                ink,
                &number(percent),
            );
        }
    }
    svg.finish()
}

/// One bar a method, with its deviation, and a ring where the poster's value is.
fn bars(results: &Results, (metric, quantity): (Metric, Quantity), title: &str) -> String {
    let of = match quantity {
        Quantity::Accuracy => AccuracyMatrix::acc,
        Quantity::Forgetting => AccuracyMatrix::forgetting,
    };
    let value = |method: &MethodOutcome| method.over_seeds(metric, of);
    let poster =
        |method: &MethodOutcome| poster::beside(results, method.info.name, metric, quantity);
    let shown = results
        .methods
        .iter()
        .filter_map(|method| Some((method, value(method)?)));
    let shown: Vec<_> = shown.collect();
    let ends = shown.iter().flat_map(|(method, (mean, sd))| {
        let sd = sd.unwrap_or(0.0);
        [mean - sd, mean + sd, poster(method).unwrap_or(*mean)]
    });
    let (low, high) = ends.fold((0.0, 1.0), |(low, high): (f64, f64), x| {
        (low.min(x), high.max(x))
    });
    let rings = shown.iter().any(|(method, _)| poster(method).is_some());
    let (row, bottom) = (34.0, if rings { 42.0 } else { 24.0 });
    let height = row * shown.len() as f64 + bottom;
    let scale = Scale::new((low, high), (12.0, WIDTH - 52.0));
    let mut svg = Svg::new(WIDTH, height, title);
    for mark in scale.marks() {
        let x = scale.at(mark);
        svg.line(&[(x, 0.0), (x, height - bottom)], "#ddd", "");
        svg.text(
            (x, height - bottom + 16.0),
            Anchor::Middle,
            "",
            &format!("{mark:.0}"),
        );
    }
    if rings {
        svg.ring((20.0, height - 9.0), 4.5);
        let words = "poster, other data";
        svg.text((30.0, height - 5.0), Anchor::Start, "", words);
    }
    for (place, (method, (mean, sd))) in shown.iter().enumerate() {
        let top = place as f64 * row;
        let (from, to) = (
            scale.at(0.0).min(scale.at(*mean)),
            scale.at(0.0).max(scale.at(*mean)),
        );
        let fill = match method.info.group {
            Group::Retrieval => "#9ca3af",
            Group::Continual => "#2563a8",
            Group::Bound => "#374151",
            Group::Ablation => "#7ba7d0",
        };
        svg.rect((from, top + 17.0), (to - from, 12.0), fill);
        if let Some(sd) = sd {
            let (a, b) = (scale.at(mean - sd), scale.at(mean + sd));
            svg.line(
                &[(a, top + 23.0), (b, top + 23.0)],
                "#000",
                "stroke-width=\"2\"",
            );
        }
        if let Some(value) = poster(method) {
            svg.ring((scale.at(value), top + 23.0), 4.5);
        }
        // In a column of their own: beside a ring a number would be read as the ring's.
        let at = (WIDTH - 2.0, top + 27.0);
        svg.text(at, Anchor::End, "", &number(*mean));
    }
    if let Some((floor, _)) = results.method(FLOOR).and_then(value) {
        let x = scale.at(floor);
        let dashes = "stroke-width=\"1.5\" stroke-dasharray=\"5 4\"";
        svg.line(&[(x, 0.0), (x, height - bottom)], "#000", dashes);
    }
    // Over lines.
    for (place, (method, _)) in shown.iter().enumerate() {
        let at = (14.0, place as f64 * row + 13.0);
        svg.text(at, Anchor::Start, HALO, method.info.label);
    }
    svg.finish()
}

/// A method with its letter and colour.
pub(super) type Lettered<'r> = (&'r MethodOutcome, String, &'static str);

/// The methods that figures mark with letters: all but ablations. Each has its own letter and
/// colour, the same in every figure.
pub(super) fn lettered(results: &Results) -> Vec<Lettered<'_>> {
    let shown = results
        .methods
        .iter()
        .filter(|method| method.info.group != Group::Ablation);
    shown
        .enumerate()
        .map(|(place, method)| (method, letters(place), COLOURS[place % COLOURS.len()]))
        .collect()
}

/// `a` to `z`, then `aa`, `ab`: lower case alone, so that no two differ in case only.
fn letters(place: usize) -> String {
    let letter = ('a'..='z').nth(place % 26).unwrap_or('a');
    match place / 26 {
        0 => letter.to_string(),
        before => letters(before - 1) + &letter.to_string(),
    }
}

/// A line for each letter with its method.
pub(super) fn legend(svg: &mut Svg, top: f64, entries: &[Lettered<'_>]) {
    for (place, (method, letter, colour)) in entries.iter().enumerate() {
        let y = top + 16.0 * place as f64;
        svg.circle((18.0, y - 4.0), 3.5, colour);
        let style = format!("font-weight=\"bold\" fill=\"{colour}\"");
        svg.text((28.0, y), Anchor::Start, &style, letter);
        svg.text((48.0, y), Anchor::Start, "", method.info.label);
    }
}

/// Letters behind the ends of lines, from `x` on and between the heights of `range`; in a second
/// column where one is too short.
pub(super) fn letters_at_ends(
    svg: &mut Svg,
    x: f64,
    ends: &[(&Lettered<'_>, f64)],
    range: (f64, f64),
) {
    let wanted: Vec<f64> = ends.iter().map(|(_, y)| *y).collect();
    for (((_, letter, colour), _), (column, y)) in ends.iter().zip(columns(&wanted, range)) {
        let at = (x + 15.0 * column as f64, y + 4.0);
        let style = format!("font-weight=\"bold\" fill=\"{colour}\"");
        svg.text(at, Anchor::Start, &style, letter);
    }
}

/// Horizontal grid lines with their values.
pub(super) fn axis(svg: &mut Svg, scale: &Scale, (left, right): (f64, f64)) {
    for mark in scale.marks() {
        let y = scale.at(mark);
        svg.line(&[(left, y), (right, y)], "#ddd", "");
        svg.text(
            (left - 5.0, y + 4.0),
            Anchor::End,
            "",
            &format!("{mark:.0}"),
        );
    }
}

fn scatter(results: &Results, metric: Metric, title: &str) -> String {
    let entries: Vec<_> = lettered(results)
        .into_iter()
        .filter_map(|entry| {
            let acc = entry.0.over_seeds(metric, AccuracyMatrix::acc)?.0;
            let forgotten = entry.0.over_seeds(metric, AccuracyMatrix::forgetting)?.0;
            Some((entry, (forgotten, acc)))
        })
        .collect();
    let labels = Labels {
        title,
        across: "Fgt, points",
        up: "Acc",
    };
    points(&entries, &labels)
}

/// The words of a figure of [`points`].
pub(super) struct Labels<'t> {
    pub(super) title: &'t str,
    pub(super) across: &'t str,
    pub(super) up: &'t str,
}

/// Radius of a method's point.
const RADIUS: f64 = 4.5;

/// A point with its letter for each method.
pub(super) fn points(entries: &[(Lettered<'_>, (f64, f64))], labels: &Labels<'_>) -> String {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = entries.iter().map(|(_, point)| of(point));
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
            (low.min(x), high.max(x))
        })
    };
    let (left, right, bottom) = (38.0, WIDTH - 24.0, 280.0);
    let height = bottom + 50.0 + 16.0 * entries.len() as f64;
    let mut svg = Svg::new(WIDTH, height, labels.title);
    if entries.is_empty() {
        return svg.finish();
    }
    let across = Scale::new(range(|p| p.0), (left, right));
    let up = Scale::new(range(|p| p.1), (bottom, 20.0));
    axis(&mut svg, &up, (left, right));
    for mark in across.marks() {
        let x = across.at(mark);
        svg.line(&[(x, 20.0), (x, bottom)], "#eee", "");
        svg.text(
            (x, bottom + 16.0),
            Anchor::Middle,
            "",
            &format!("{mark:.0}"),
        );
    }
    svg.text((left, 12.0), Anchor::Start, "", labels.up);
    svg.text((right, bottom + 32.0), Anchor::End, "", labels.across);
    let marks: Vec<(f64, f64)> = entries
        .iter()
        .map(|(_, (x, y))| (across.at(*x), up.at(*y)))
        .collect();
    let texts: Vec<String> = entries.iter().map(|((_, l, _), _)| l.clone()).collect();
    let places = around(&marks, &texts, RADIUS, ((left, 14.0), (WIDTH, bottom)));
    for (((_, _, colour), _), (mark, place)) in entries.iter().zip(marks.iter().zip(&places)) {
        if (place.0 - mark.0).hypot(place.1 - mark.1) > RADIUS + 9.0 {
            svg.line(&[*mark, *place], colour, "stroke-width=\"0.8\"");
        }
    }
    for (((_, letter, colour), _), (mark, place)) in entries.iter().zip(marks.iter().zip(&places)) {
        svg.circle(*mark, RADIUS, colour);
        let style = format!("font-weight=\"bold\" fill=\"{colour}\" {HALO}");
        svg.text((place.0, place.1 + 4.0), Anchor::Middle, &style, letter);
    }
    let entries: Vec<Lettered<'_>> = entries.iter().map(|(entry, _)| entry.clone()).collect();
    legend(&mut svg, bottom + 52.0, &entries);
    svg.finish()
}

/// Height of one panel of [`curves`].
const PANEL: f64 = 230.0;

/// One panel for each experience; in it a line for each method, with a band of one deviation.
fn curves(results: &Results, metric: Metric, title: &str) -> String {
    let steps = results.plan.steps();
    let entries: Vec<Lettered<'_>> = lettered(results)
        .into_iter()
        .filter(|(method, ..)| method.info.group != Group::Retrieval)
        .collect();
    let places = (0..steps).flat_map(|step| (0..=step).map(move |test| (step, test)));
    let cells = places.flat_map(|(step, test)| {
        let cell = move |entry: &Lettered<'_>| entry.0.cell(metric, step, test);
        entries.iter().filter_map(cell)
    });
    let range = cells.fold((100.0, 0.0), |(low, high): (f64, f64), (mean, _)| {
        (low.min(mean), high.max(mean))
    });
    let height = PANEL * steps as f64 + 26.0 + 16.0 * entries.len() as f64;
    let mut svg = Svg::new(WIDTH, height, title);
    for test in 0..steps {
        panel(&mut svg, results, (metric, test), &entries, range);
    }
    legend(&mut svg, PANEL * steps as f64 + 22.0, &entries);
    svg.finish()
}

/// The panel of the experience `test`, from 0; `range`: the accuracies of all panels.
fn panel(
    svg: &mut Svg,
    results: &Results,
    (metric, test): (Metric, usize),
    entries: &[Lettered<'_>],
    range: (f64, f64),
) {
    let steps = results.plan.steps();
    let (left, right) = (38.0, WIDTH - 40.0);
    let top = PANEL * test as f64 + 24.0;
    let bottom = top + PANEL - 54.0;
    let scale = Scale::new(range, (bottom, top));
    let x = |step: usize| {
        let span = (steps - 1).max(1) as f64;
        left + 14.0 + (right - left - 28.0) * step as f64 / span
    };
    let label = |step: usize| results.plan.data.experiences[step].label.as_str();
    let title = format!("on {}", label(test));
    svg.text(
        (left, top - 9.0),
        Anchor::Start,
        "font-weight=\"bold\"",
        &title,
    );
    axis(svg, &scale, (left, right));
    // The last step has a mark whichever are left out.
    let every = steps.div_ceil(8);
    for step in (test..steps).filter(|step| (steps - 1 - step).is_multiple_of(every)) {
        let after = if steps > 5 { "" } else { "after " };
        let text = format!("{after}{}", label(step));
        svg.text((x(step), bottom + 20.0), Anchor::Middle, "", &text);
    }
    let mut ends = Vec::new();
    for entry in entries {
        let (method, _, colour) = entry;
        let cells: Vec<(f64, f64, f64)> = (test..steps)
            .filter_map(|step| {
                let (mean, sd) = method.cell(metric, step, test)?;
                Some((x(step), mean, sd.unwrap_or(0.0)))
            })
            .collect();
        // The scale has the means: a wide band is cut off at its ends.
        let at = |value: f64| scale.at(value.clamp(scale.low, scale.high));
        let up = cells.iter().map(|(x, mean, sd)| (*x, at(mean + sd)));
        let down = cells.iter().map(|(x, mean, sd)| (*x, at(mean - sd)));
        if cells.iter().any(|(_, _, sd)| *sd > 0.0) {
            svg.band(&up.chain(down.rev()).collect::<Vec<_>>(), colour);
        }
        let points = cells.iter().map(|(x, mean, _)| (*x, scale.at(*mean)));
        let points: Vec<(f64, f64)> = points.collect();
        let dashes = match method.info.name {
            FLOOR => "stroke-width=\"2\" stroke-dasharray=\"5 4\"",
            _ => "stroke-width=\"2\"",
        };
        svg.line(&points, colour, dashes);
        for point in &points {
            svg.circle(*point, 2.5, colour);
        }
        ends.extend(points.last().map(|(_, y)| (entry, *y)));
    }
    letters_at_ends(svg, right + 4.0, &ends, (top, bottom));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_methods_share_a_letter() {
        let all: Vec<String> = (0..800).map(letters).collect();
        assert_eq!(
            [&all[0], &all[25], &all[26], &all[702]],
            ["a", "z", "aa", "aaa"]
        );
        let different: std::collections::BTreeSet<String> =
            all.iter().map(|text| text.to_uppercase()).collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn shades_darken() {
        assert_eq!(
            (shade(0.0), shade(100.0)),
            ("rgb(247,251,255)".into(), "rgb(8,48,107)".into())
        );
    }
}
