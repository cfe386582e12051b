//! The report as one page: tables, and figures as SVG. It has no scripts and fetches nothing.

use super::measure::{DayOfLog, FeedbackReport, Reliability};
use super::sections::{ReportSection, example, sums};
use crate::cli::labelled::Share;
use crate::cmrbench::page::{Anchor, Scale, Svg, document, escaped, scroll};

/// Width in pixels: that of a phone, so that no figure is scaled down.
const WIDTH: f64 = 360.0;

/// Bars of a figure.
const MOST_BARS: usize = 12;

/// Characters of a bar's name.
const NAME: usize = 44;

const BLUE: &str = "#0b5394";
const BROWN: &str = "#b45309";
const GREEN: &str = "#166534";

/// A bar: its name, its length, and the number beside it.
type Bar = (String, f64, String);

/// The page; `summary` is its first line.
pub(super) fn page(summary: &str, sections: &[ReportSection], report: &FeedbackReport) -> String {
    let title = "Feedback report";
    let mut body = format!(
        "<header>\n<h1>{title}</h1>\n<p>{}</p>\n</header>\n",
        escaped(summary)
    );
    for section in sections {
        body += &format!("<h2>{}</h2>\n", escaped(section.title));
        body += &paragraphs(&section.intro);
        body += &figure(section.title, report);
        body += &table(section);
        body += &paragraphs(&section.notes);
    }
    document(title, &body)
}

fn paragraphs(lines: &[String]) -> String {
    let lines = lines.iter();
    lines
        .map(|line| format!("<p>{}</p>\n", escaped(line)))
        .collect()
}

fn table(section: &ReportSection) -> String {
    if section.rows.is_empty() {
        return String::new();
    }
    let row = |cells: Vec<&str>, tag: &str| {
        let cells = cells.into_iter();
        let cells: String = cells
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let heads = section
        .heads
        .iter()
        .map(|head| head.trim_start_matches(['>', '~']));
    let mut text = row(heads.collect(), "th");
    let mut widest = 0;
    for cells in &section.rows {
        let behind: usize = cells
            .iter()
            .skip(1)
            .map(|cell| cell.chars().count() + 3)
            .sum();
        widest = widest.max(behind);
        text += &row(cells.iter().map(String::as_str).collect(), "td");
    }
    format!("{}<table>\n{text}</table>\n</div>\n", scroll(widest))
}

/// The figure of the section `name`, if there is something to draw.
fn figure(name: &str, report: &FeedbackReport) -> String {
    let (title, svg) = match name {
        "By the model that was used" => {
            let title = "Percent of the used model's prompts that it would get again";
            let bars = report.incumbents.iter().map(|of| bar(&of.model, of.agreed));
            (
                title,
                bars_of(title, &bars.collect::<Vec<_>>(), Some(100.0)),
            )
        }
        "By domain" => {
            let title = "Percent of the domain's prompts that stay in it";
            let bars = report
                .domains
                .iter()
                .map(|of| bar(&of.domain, of.same_domain));
            (
                title,
                bars_of(title, &bars.collect::<Vec<_>>(), Some(100.0)),
            )
        }
        "Cost" => {
            let title = "Cost of the compared lines";
            let bars = sums(&report.cost).into_iter();
            let bars = bars.map(|(name, sum)| (name, sum, format!("{sum:.4}")));
            (title, bars_of(title, &bars.collect::<Vec<_>>(), None))
        }
        "Calibration" => {
            let title = "Percent right by confidence; on the dashed line it is as it should be";
            (title, reliability(&report.calibration, title))
        }
        "Drift" => {
            let title = "Percent of the day's lines";
            (title, drift(report, title))
        }
        "What could not be routed" => {
            let title = "Prompts of the largest clusters";
            let bars = report.unrouted.clusters.iter().map(|cluster| {
                let prompts = cluster.prompts;
                (example(cluster), prompts as f64, prompts.to_string())
            });
            (title, bars_of(title, &bars.collect::<Vec<_>>(), None))
        }
        _ => return String::new(),
    };
    if svg.is_empty() {
        return svg;
    }
    format!(
        "<div class=\"figures\">\n<figure><figcaption>{}</figcaption>\n{svg}</figure>\n</div>\n",
        escaped(title)
    )
}

/// The share in percent; `None` without rows.
fn percent(share: Share) -> Option<f64> {
    (share.rows > 0).then(|| 100.0 * share.hits as f64 / share.rows as f64)
}

fn bar(name: &str, share: Share) -> Bar {
    let percent = percent(share).unwrap_or(0.0);
    (
        name.to_owned(),
        percent,
        format!("{percent:.0} % of {}", share.rows),
    )
}

/// Bars one below the other, their names above them; empty without bars.
fn bars_of(title: &str, bars: &[Bar], most: Option<f64>) -> String {
    let bars = &bars[..bars.len().min(MOST_BARS)];
    let most = most.unwrap_or_else(|| {
        bars.iter()
            .map(|(_, length, _)| *length)
            .fold(0.0, f64::max)
    });
    if bars.is_empty() || most <= 0.0 {
        return String::new();
    }
    let room = WIDTH - 112.0;
    let mut svg = Svg::new(WIDTH, 34.0 * bars.len() as f64 + 6.0, title);
    for (place, (name, length, number)) in bars.iter().enumerate() {
        let top = 34.0 * place as f64 + 4.0;
        let mut shown: String = name.chars().take(NAME).collect();
        if shown.len() < name.len() {
            shown.push('…');
        }
        svg.text((0.0, top + 11.0), Anchor::Start, "", &shown);
        svg.rect((0.0, top + 16.0), (room, 11.0), "#eee");
        let width = room * (length / most).clamp(0.0, 1.0);
        svg.rect((0.0, top + 16.0), (width, 11.0), BLUE);
        svg.text((room + 6.0, top + 26.0), Anchor::Start, "", number);
    }
    svg.finish()
}

/// A frame from 0 to 100 percent, and its two scales.
fn frame(svg: &mut Svg, bottom: f64) -> Scale {
    let (left, right) = (34.0, WIDTH - 12.0);
    let up = Scale::new((0.0, 100.0), (bottom, 14.0));
    for mark in up.marks() {
        let y = up.at(mark);
        svg.line(&[(left, y), (right, y)], "#ddd", "");
        svg.text(
            (left - 6.0, y + 4.0),
            Anchor::End,
            "",
            &format!("{mark:.0}"),
        );
    }
    up
}

fn reliability(found: &Reliability, title: &str) -> String {
    if found.lines == 0 {
        return String::new();
    }
    let bottom = 300.0;
    let mut svg = Svg::new(WIDTH, bottom + 40.0, title);
    let up = frame(&mut svg, bottom);
    let across = Scale::new((0.0, 100.0), (34.0, WIDTH - 12.0));
    for mark in across.marks() {
        let text = format!("{mark:.0}");
        svg.text((across.at(mark), bottom + 16.0), Anchor::Middle, "", &text);
    }
    let corner = |percent: f64| (across.at(percent), up.at(percent));
    svg.line(
        &[corner(0.0), corner(100.0)],
        "#666",
        "stroke-dasharray=\"5 4\"",
    );
    let mut points = Vec::new();
    for bin in &found.bins {
        if let (Some(mean), Some([right, low, high])) = (bin.confidence, bin.right.percent()) {
            let x = across.at(100.0 * mean);
            svg.line(
                &[(x, up.at(low)), (x, up.at(high))],
                BLUE,
                "stroke-opacity=\"0.5\"",
            );
            let share = bin.right.rows as f64 / found.lines as f64;
            svg.circle((x, up.at(right)), 3.0 + 9.0 * share.sqrt(), BLUE);
            points.push((x, up.at(right)));
        }
    }
    svg.line(&points, BLUE, "stroke-width=\"1.6\"");
    svg.text(
        (WIDTH - 12.0, bottom + 34.0),
        Anchor::End,
        "",
        "confidence, %; area: lines",
    );
    svg.finish()
}

fn drift(report: &FeedbackReport, title: &str) -> String {
    let days = &report.days;
    let (Some(first), Some(last)) = (days.first(), days.last()) else {
        return String::new();
    };
    let bottom = 240.0;
    let mut svg = Svg::new(WIDTH, bottom + 100.0, title);
    let up = frame(&mut svg, bottom);
    let (left, right) = (34.0, WIDTH - 12.0);
    let step = (right - left) / days.len().saturating_sub(1).max(1) as f64;
    let x = |place: usize| left + step * place as f64;
    svg.text((left, bottom + 16.0), Anchor::Start, "", &first.day);
    if days.len() > 1 {
        svg.text((right, bottom + 16.0), Anchor::End, "", &last.day);
    }
    type Percent = fn(&DayOfLog) -> Option<f64>;
    let lines: [(&str, &str, Percent); 5] = [
        ("mean confidence", "#9d174d", |day| {
            Some(100.0 * day.confidence?)
        }),
        ("agreed with what was used", GREEN, |day| {
            percent(day.agreed)
        }),
        ("no answer", "#374151", |day| percent(day.no_answer)),
        ("abstained", BROWN, |day| percent(day.abstained)),
        ("out of distribution", BLUE, |day| {
            percent(day.out_of_distribution)
        }),
    ];
    let mut y = bottom + 34.0;
    for (name, colour, of) in lines {
        let known = days.iter().enumerate();
        let points: Vec<(f64, f64)> = known
            .filter_map(|(place, day)| Some((x(place), up.at(of(day)?))))
            .collect();
        if points.is_empty() {
            continue;
        }
        svg.line(&points, colour, "stroke-width=\"1.8\"");
        for point in &points {
            svg.circle(*point, 2.5, colour);
        }
        svg.rect((left, y - 8.0), (14.0, 8.0), colour);
        svg.text((left + 20.0, y), Anchor::Start, "", name);
        y += 15.0;
    }
    svg.finish()
}
