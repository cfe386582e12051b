//! One page with everything in it: tables, figures as SVG; no scripts, nothing fetched.

use super::figures::{Figure, FigureKind};
use super::svg::escaped;

const STYLE: &str = "body{font:16px/1.45 sans-serif;color:#222;background:#fff;margin:0 auto;max-width:1240px;padding:0 16px 48px}\
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.2em}\
.scroll{overflow-x:auto;margin:1em 0}table{border-collapse:collapse;font-size:.9rem;white-space:nowrap}\
th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff;white-space:normal;min-width:8em}\
.figures{display:flex;flex-wrap:wrap;gap:28px;align-items:flex-start}figure{margin:0;max-width:100%}\
figcaption{font-size:.85rem;max-width:360px;min-height:2.9em;margin-bottom:.4em}.heat figcaption{max-width:240px}\
svg{max-width:100%;height:auto;display:block}summary{cursor:pointer;margin:1em 0;color:#0b5394}";

/// `markdown`: all sections; a figure stands in the section of its kind.
pub(super) fn page(markdown: &str, figures: &[Figure]) -> String {
    let mut body = String::new();
    for section in markdown.split("\n## ") {
        let (title, rest) = section.split_once('\n').unwrap_or((section, ""));
        body += &match title.strip_prefix("# ") {
            Some(title) => format!("<h1>{}</h1>\n", inline(title)),
            None => format!("<h2>{}</h2>\n", inline(title)),
        };
        body += &match title {
            "Methods" => blocks(rest) + &shown(figures, FigureKind::Summary),
            "Cost" => blocks(rest) + &shown(figures, FigureKind::Cost),
            "Confusion between domains" => {
                behind_intro(rest, &shown(figures, FigureKind::Confusion))
            }
            "Coverage against risk" => behind_intro(rest, &shown(figures, FigureKind::Risk)),
            "Map of the registry" => blocks(rest) + &shown(figures, FigureKind::Map),
            "Matrices" => format!(
                "{}<details><summary>The same for families and models, and all numbers</summary>\n{}{}</details>\n",
                shown(figures, FigureKind::Heat),
                shown(figures, FigureKind::OtherHeat),
                blocks(rest)
            ),
            _ => blocks(rest),
        };
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>CMRBench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// The first paragraph, the figures, the rest.
fn behind_intro(markdown: &str, figures: &str) -> String {
    let markdown = markdown.trim_start_matches('\n');
    let (intro, rest) = markdown.split_once("\n\n").unwrap_or((markdown, ""));
    [&blocks(intro), figures, &blocks(rest)].concat()
}

fn shown(figures: &[Figure], kind: FigureKind) -> String {
    let class = match kind {
        FigureKind::Heat | FigureKind::OtherHeat => "figures heat",
        _ => "figures",
    };
    let mut text = format!("<div class=\"{class}\">\n");
    for figure in figures.iter().filter(|figure| figure.kind == kind) {
        text += &format!(
            "<figure><figcaption>{}</figcaption>\n{}</figure>\n",
            escaped(&figure.title),
            figure.svg
        );
    }
    text + "</div>\n"
}

/// Paragraphs, lists and tables of our own Markdown.
fn blocks(markdown: &str) -> String {
    let mut text = String::new();
    for block in markdown
        .split("\n\n")
        .map(|block| block.trim_matches('\n'))
        .filter(|block| !block.is_empty())
    {
        if block.starts_with('|') {
            text += &table(block);
        } else if block.starts_with("- ") {
            let items = block
                .lines()
                .map(|line| format!("<li>{}</li>\n", inline(line.trim_start_matches("- "))));
            text += &format!("<ul>\n{}</ul>\n", items.collect::<String>());
        } else {
            text += &format!("<p>{}</p>\n", inline(block));
        }
    }
    text
}

fn table(block: &str) -> String {
    let mut text = String::from("<div class=\"scroll\"><table>\n");
    for (place, line) in block.lines().enumerate() {
        if line.starts_with("|---") {
            continue;
        }
        let tag = if place == 0 { "th" } else { "td" };
        let cells = line
            .trim_matches('|')
            .split('|')
            .map(|cell| format!("<{tag}>{}</{tag}>", inline(cell.trim())));
        text += &format!("<tr>{}</tr>\n", cells.collect::<String>());
    }
    text + "</table></div>\n"
}

/// Bold, emphasis, underline.
fn inline(text: &str) -> String {
    let mut text = escaped(text)
        .replace("&lt;u&gt;", "<u>")
        .replace("&lt;/u&gt;", "</u>");
    for (mark, tag) in [("**", "b"), ("*", "i")] {
        let mut out = String::new();
        for (place, part) in text.split(mark).enumerate() {
            match place % 2 {
                _ if place == 0 => {}
                1 => out += &format!("<{tag}>"),
                _ => out += &format!("</{tag}>"),
            }
            out += part;
        }
        text = out;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_markdown_becomes_html() {
        let html = blocks(
            "- a < b\n\n| | x |\n|---|---|\n| *g* | **1.0** |\n| m | <u>2</u> |\n\nWords.\n",
        );
        for part in [
            "<ul>\n<li>a &lt; b</li>\n</ul>",
            "<th></th><th>x</th>",
            "<td><i>g</i></td><td><b>1.0</b></td>",
            "<td>m</td><td><u>2</u></td>",
            "<p>Words.</p>",
        ] {
            assert!(html.contains(part), "{part:?} is not in {html}");
        }
        assert!(!html.contains("---"));
    }
}
