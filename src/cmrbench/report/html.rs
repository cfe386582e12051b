//! The page: tables, and figures as SVG. It has no scripts and fetches nothing.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

use super::figures::{Figure, FigureKind};
use super::svg::escaped;

const STYLE: &str = include_str!("page.css");

/// The first section has no heading of its own.
const GLOSSARY: &str = "Glossary";
const SETTINGS: &str = "Settings";

/// Characters behind the first column that a table has on a phone of 400 pixels.
const NARROW: usize = 30;

/// The page of all sections of `markdown`; a figure stands in the section of its kind.
pub(super) fn page(markdown: &str, figures: &[Figure]) -> String {
    let mut body = String::new();
    for section in markdown.split("\n## ") {
        let (title, rest) = section.split_once('\n').unwrap_or((section, ""));
        if let Some(title) = title.strip_prefix("# ") {
            let title = escaped(title);
            body += &format!("<header>\n<h1>{title}</h1>\n{}</header>\n", blocks(rest));
            continue;
        }
        if [GLOSSARY, SETTINGS].contains(&title) {
            body += &folded(title, &blocks(rest));
            continue;
        }
        body += &format!("<h2>{}</h2>\n", escaped(title));
        body += &match title {
            "Methods" => blocks(rest) + &shown(figures, FigureKind::Summary),
            "Cost" => blocks(rest) + &shown(figures, FigureKind::Cost),
            "Confusion between domains" => {
                behind_intro(rest, &shown(figures, FigureKind::Confusion))
            }
            "Coverage against risk" => behind_intro(rest, &shown(figures, FigureKind::Risk)),
            "Map of the registry" => blocks(rest) + &shown(figures, FigureKind::Map),
            "Matrices" => {
                let others = shown(figures, FigureKind::OtherHeat) + &blocks(rest);
                let title = "The same for families and models, and all numbers";
                shown(figures, FigureKind::Heat) + &folded(title, &others)
            }
            _ => blocks(rest),
        };
    }
    document("CMRBench", &body)
}

/// A whole page of `body`, in the style of all pages.
pub(crate) fn document(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A part of the page that opens on a click.
fn folded(title: &str, html: &str) -> String {
    let title = escaped(title);
    format!("<details>\n<summary>{title}</summary>\n{html}</details>\n")
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

/// Markdown as HTML. Names of models and domains are in it, so no HTML of theirs passes, no link
/// and no picture: only `<u>`, which the tables underline with.
fn blocks(markdown: &str) -> String {
    let events = Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter();
    let events = events.flat_map(|(event, place)| match event {
        Event::Start(Tag::Table(_)) => {
            vec![
                Event::Html(scroll(behind_first(&markdown[place])).into()),
                event,
            ]
        }
        Event::End(TagEnd::Table) => vec![event, Event::Html("</div>\n".into())],
        Event::Start(Tag::Link { .. } | Tag::Image { .. })
        | Event::End(TagEnd::Link | TagEnd::Image) => Vec::new(),
        Event::InlineHtml(text) | Event::Html(text) if !["<u>", "</u>"].contains(&&*text) => {
            vec![Event::Text(text)]
        }
        event => vec![event],
    });
    let mut text = String::new();
    html::push_html(&mut text, events);
    text
}

/// Characters of the widest row of a table, without its first column.
fn behind_first(table: &str) -> usize {
    let behind_first = |line: &str| {
        let cells = line.trim_start_matches('|').split_once('|');
        cells.map_or(0, |(_, rest)| rest.chars().count())
    };
    let rows = table.lines().filter(|line| !line.starts_with("|---"));
    rows.map(behind_first).max().unwrap_or(0)
}

/// The frame that a table scrolls in; of a wide one it says so on a phone. `width`: characters
/// behind its first column.
pub(crate) fn scroll(width: usize) -> &'static str {
    match width > NARROW {
        true => "<div class=\"scroll wide\" tabindex=\"0\">\n",
        false => "<div class=\"scroll\" tabindex=\"0\">\n",
    }
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
            "<td><em>g</em></td><td><strong>1.0</strong></td>",
            "<td>m</td><td><u>2</u></td>",
            "<p>Words.</p>",
            "<div class=\"scroll\" tabindex=\"0\">\n<table>",
            "</table>\n</div>",
        ] {
            assert!(html.contains(part), "{part:?} is not in {html}");
        }
        assert!(!html.contains("---"));
        let wide = blocks("| a | b |\n|---|---|\n| c | 0123456789 0123456789 0123456789 |\n");
        assert!(wide.contains("class=\"scroll wide\""), "{wide}");
    }

    /// A model may be called anything.
    #[test]
    fn names_bring_no_html_and_no_links() {
        let html = blocks(
            "a <script>x</script> [b](javascript:y) ![c](http://z/p.png)\n\n<img src=q>\n\n| \
             <b>d</b> |\n|---|\n",
        );
        for absent in [
            "<script",
            "<img",
            "<b>",
            "<a ",
            "href",
            "src=\"",
            "javascript",
        ] {
            assert!(!html.contains(absent), "{absent} in {html}");
        }
        assert!(
            html.contains("&lt;script&gt;") && html.contains("&lt;b&gt;d"),
            "{html}"
        );
    }
}
