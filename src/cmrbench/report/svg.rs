//! A small writer of SVG: shapes and text on white, without scripts or fonts.

use std::fmt::Write as _;

/// A picture under construction. Lengths are in pixels, the origin is at the top left.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Which part of a text lies at the given place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        let mut svg = Self {
            width,
            height,
            body: format!("<title>{}</title>", escaped(title)),
        };
        svg.rect((0.0, 0.0), (width, height), "#fff");
        svg
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    pub(crate) fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let width = width.max(0.0);
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
        ));
    }

    /// `style`: further attributes.
    pub(crate) fn line(&mut self, points: &[(f64, f64)], colour: &str, style: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        self.add(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{colour}" {style}/>"#
        ));
    }

    pub(crate) fn band(&mut self, points: &[(f64, f64)], fill: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        self.add(format_args!(
            r#"<polygon points="{points}" fill="{fill}" fill-opacity="0.15"/>"#
        ));
    }

    pub(crate) fn circle(&mut self, (x, y): (f64, f64), radius: f64, fill: &str) {
        self.add(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="{fill}"/>"#
        ));
    }

    /// A hollow mark that shows on light and on dark.
    pub(crate) fn ring(&mut self, (x, y): (f64, f64), radius: f64) {
        self.add(format_args!(
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="none" stroke="#fff" stroke-width="4"/><circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="none" stroke="#b91c1c" stroke-width="2"/>"##
        ));
    }

    /// A translucent path; `outline` is in the syntax of SVG's `d`.
    pub(crate) fn path(&mut self, outline: &str, fill: &str) {
        self.add(format_args!(
            r#"<path d="{outline}" fill="{fill}" fill-opacity="0.8"/>"#
        ));
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, style: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" {style}>{text}</text>"#
        ));
    }

    pub(crate) fn finish(self) -> String {
        let Self {
            width,
            height,
            body,
        } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" \
             fill=\"#222\">\n{body}</svg>\n"
        )
    }
}

/// `text` as the content of an element or an attribute.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A linear scale with round marks.
pub(crate) struct Scale {
    pub(crate) low: f64,
    pub(crate) high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Scale {
    /// From the values `low..=high`, widened to round numbers, to the pixels `from..to`.
    pub(crate) fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        let span = (high - low).max(1.0);
        let mut step = 1.0;
        for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
            if span / step <= 6.0 {
                break;
            }
            step *= factor;
        }
        let low = (low / step).floor() * step;
        let high = ((high / step).ceil() * step).max(low + step);
        Self {
            low,
            high,
            from,
            to,
            step,
        }
    }

    pub(crate) fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    pub(crate) fn marks(&self) -> Vec<f64> {
        let mut marks = Vec::new();
        let mut mark = self.low;
        while mark <= self.high + 1e-9 {
            marks.push(mark);
            mark += self.step;
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_marks_around_the_values() {
        let scale = Scale::new((3.2, 41.0), (100.0, 0.0));
        assert_eq!(scale.marks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(
            (scale.at(0.0), scale.at(50.0), scale.at(25.0)),
            (100.0, 0.0, 50.0)
        );
        let scale = Scale::new((-3.0, -3.0), (0.0, 10.0));
        assert!(scale.low <= -3.0 && scale.high > scale.low);
        for (high, step) in [(6.5, 2.0), (13.0, 5.0), (1500.0, 500.0), (7100.0, 2000.0)] {
            let marks = Scale::new((0.0, high), (0.0, 1.0)).marks();
            assert_eq!((marks[1], marks.len() <= 8), (step, true), "{high}");
        }
    }

    #[test]
    fn texts_are_escaped() {
        let mut svg = Svg::new(10.0, 10.0, "a < b");
        svg.text((1.0, 2.0), Anchor::End, "", "\"x\" & y");
        let text = svg.finish();
        assert!(
            text.contains("a &lt; b") && text.contains("&quot;x&quot; &amp; y"),
            "{text}"
        );
    }
}
