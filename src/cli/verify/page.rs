//! The report as one page: tables, and figures as SVG. It has no scripts and fetches nothing.

use super::row;
use crate::cmrbench::page::{Anchor, Svg, document, escaped, scroll};
use crate::verify::{CurvePoint, ParityVerdict, StageReport, VerifyReport};

/// Width in pixels: that of a phone, so that no figure is scaled down.
const WIDTH: f64 = 360.0;

const BLUE: &str = "#0b5394";
const RED: &str = "#b91c1c";

/// Powers of ten below the bound that a bar shows.
const DECADES: f64 = 6.0;

/// The page of `report`.
pub(super) fn page(report: &VerifyReport) -> String {
    let title = "Verification";
    let verdict = match report.verdict {
        ParityVerdict::Pass => "Pass",
        ParityVerdict::Fail => "Fail",
    };
    let device = report.device.as_ref();
    let device = device.map_or(String::new(), |device| format!(" on {device}"));
    let mut body = format!(
        "<header>\n<h1>{title}</h1>\n<p>{verdict}: {} with {}{}, in {}.</p>\n</header>\n",
        escaped(&report.compared),
        escaped(&report.with),
        escaped(&device),
        escaped(&report.mode)
    );
    if let Some(found) = &report.first_divergence {
        let (stage, place) = (escaped(&found.stage), escaped(&found.place));
        body += &format!("<p><strong>They part at {stage}: {place}.</strong></p>\n");
    }
    body += "<h2>Error by stage</h2>\n<p>The bar is the largest error over its bound, on a \
             logarithmic scale: at the right end it is the bound, at the left end a millionth of \
             it.</p>\n";
    body += &figure("Largest error over its bound", &bars(&report.stages));
    body += &table(&report.stages);
    if !report.loss_curve.is_empty() {
        body += "<h2>Losses by step</h2>\n";
        let title = "Relative error of the loss, powers of ten";
        body += &figure(title, &curve(&report.loss_curve, title));
    }
    body += "<h2>Bounds</h2>\n";
    let mut last = "";
    for stage in &report.stages {
        if stage.why != last {
            let (name, why) = (escaped(&stage.stage), escaped(&stage.why));
            body += &format!("<p>From {name} on: {why}.</p>\n");
            last = &stage.why;
        }
    }
    for what in &report.not_compared {
        body += &format!("<p>Not compared: {}.</p>\n", escaped(what));
    }
    document(title, &body)
}

fn figure(title: &str, svg: &str) -> String {
    let title = escaped(title);
    format!(
        "<div class=\"figures\">\n<figure><figcaption>{title}</figcaption>\n{svg}</figure>\n\
         </div>\n"
    )
}

/// Where an error lies between a millionth of its bound, 0, and the bound, 1; of what is equal or
/// not: 0 or 1.
fn share(stage: &StageReport) -> f64 {
    let over = stage.max_rel_error / stage.tolerance;
    match (stage.ok, stage.tolerance > 0.0) {
        (false, _) => 1.0,
        (true, false) => 0.0,
        (true, true) => (1.0 + over.max(1e-12).log10() / DECADES).clamp(0.0, 1.0),
    }
}

fn bars(stages: &[StageReport]) -> String {
    let (name, room) = (118.0, WIDTH - 118.0 - 8.0);
    let mut svg = Svg::new(WIDTH, 18.0 * stages.len() as f64 + 8.0, "Error by stage");
    for (place, stage) in stages.iter().enumerate() {
        let top = 18.0 * place as f64 + 4.0;
        svg.text((name - 6.0, top + 11.0), Anchor::End, "", &stage.stage);
        svg.rect((name, top + 1.0), (room, 12.0), "#eee");
        let colour = if stage.ok { BLUE } else { RED };
        svg.rect((name, top + 1.0), (room * share(stage), 12.0), colour);
    }
    svg.finish()
}

fn table(stages: &[StageReport]) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells = cells.iter();
        let cells: String = cells
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let heads = [
        "stage", "numbers", "max abs", "error", "bound", "cosine", "result",
    ];
    let mut text = line(&heads.map(str::to_owned), "th");
    for stage in stages {
        text += &line(&row(stage), "td");
    }
    format!("{}<table>\n{text}</table>\n</div>\n", scroll(60))
}

/// The relative error of each step's loss.
fn curve(points: &[CurvePoint], title: &str) -> String {
    let (left, right, bottom) = (34.0, WIDTH - 12.0, 200.0);
    let mut svg = Svg::new(WIDTH, bottom + 24.0, title);
    let height = |power: f64| 10.0 + (bottom - 10.0) * (-power / 10.0).clamp(0.0, 1.0);
    for power in (-10..=0).step_by(2) {
        let y = height(f64::from(power));
        svg.line(&[(left, y), (right, y)], "#ddd", "");
        svg.text((left - 6.0, y + 4.0), Anchor::End, "", &power.to_string());
    }
    let step = (right - left) / points.len().saturating_sub(1).max(1) as f64;
    let at = |(place, point): (usize, &CurvePoint)| {
        let error = (point.found - point.expected).abs() / point.expected.abs().max(1e-12);
        (left + step * place as f64, height(error.max(1e-12).log10()))
    };
    let places: Vec<(f64, f64)> = points.iter().enumerate().map(at).collect();
    svg.line(&places, BLUE, "stroke-width=\"1.6\"");
    for pair in points.windows(2).enumerate() {
        if let (place, [a, b]) = pair
            && a.experience != b.experience
        {
            let x = left + step * (place as f64 + 0.5);
            svg.line(
                &[(x, 10.0), (x, bottom)],
                "#999",
                "stroke-dasharray=\"4 4\"",
            );
        }
    }
    svg.text((left, bottom + 16.0), Anchor::Start, "", "step 0");
    let last = format!("step {}", points.len().saturating_sub(1));
    svg.text((right, bottom + 16.0), Anchor::End, "", &last);
    svg.finish()
}
