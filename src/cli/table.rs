//! Tables that fit the terminal.

use super::output;
use super::terminal::{columns, cut, escaped, named_width, width, wrapped};
use crate::error::Result;

/// Between two columns.
const GAP: usize = 2;

/// Columns of text do not get narrower than this.
const NARROWEST: usize = 10;

/// Columns marked `~` shrink to this before the others shrink.
const GIVING_WAY: usize = 18;

/// Columns with heads. A head with a leading `>` marks a column of numbers, which is aligned to the
/// right and never cut. A leading `~` marks the column that is cut first.
pub(super) struct TextTable {
    heads: Vec<&'static str>,
    rows: Vec<TableRow>,
}

struct TableRow {
    cells: Vec<String>,
    /// A paragraph below the row.
    note: Option<String>,
}

impl TextTable {
    pub(super) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        let escape = |cell: String| match escaped(&cell) {
            std::borrow::Cow::Borrowed(_) => cell,
            std::borrow::Cow::Owned(shown) => shown,
        };
        let cells = cells.into_iter().map(escape).collect();
        self.rows.push(TableRow { cells, note: None });
    }

    /// A paragraph below the last row.
    pub(super) fn note(&mut self, text: String) {
        if let Some(row) = self.rows.last_mut() {
            row.note = Some(text);
        }
    }

    /// Prints the table, cut to the width of the terminal.
    pub(super) fn print(&self) -> Result<()> {
        self.lines(width()).into_iter().try_for_each(output::line)
    }

    /// As [`TextTable::print`] on a terminal. In a pipe nothing is cut unless `COLUMNS` is set, so
    /// that readers of the list find whole names.
    pub(super) fn print_list(&self) -> Result<()> {
        if output::stdout_is_terminal() || named_width().is_some() {
            return self.print();
        }
        let lines = self.lines(usize::MAX);
        lines.into_iter().try_for_each(output::line)
    }

    fn lines(&self, limit: usize) -> Vec<String> {
        let heads: Vec<&str> = self
            .heads
            .iter()
            .map(|head| head.trim_start_matches(['>', '~']))
            .collect();
        let widths = self.widths(&heads, limit);
        let mut lines = vec![self.line(&heads, &widths)];
        for row in &self.rows {
            let cells: Vec<&str> = row.cells.iter().map(String::as_str).collect();
            lines.push(self.line(&cells, &widths));
            let indent = widths.first().map_or(0, |first| first + GAP);
            let note = row.note.iter();
            let paragraph = note.flat_map(|note| wrapped(note, limit.saturating_sub(indent), 2));
            lines.extend(paragraph.map(|text| format!("{:indent$}{text}", "")));
        }
        lines
    }

    fn line(&self, cells: &[&str], widths: &[usize]) -> String {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let cell = cut(cell, widths[column]);
            let pad = " ".repeat(widths[column].saturating_sub(columns(&cell)));
            let gap = if column == 0 { 0 } else { GAP };
            text.push_str(&" ".repeat(gap));
            if self.heads[column].starts_with('>') {
                text.push_str(&pad);
                text.push_str(&cell);
            } else {
                text.push_str(&cell);
                text.push_str(&pad);
            }
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The width of each column. A line fits `limit` if that is possible.
    fn widths(&self, heads: &[&str], limit: usize) -> Vec<usize> {
        let natural = |column: usize| {
            let cells = self.rows.iter().map(|row| columns(&row.cells[column]));
            cells.chain([columns(heads[column])]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..heads.len()).map(natural).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
        for (first, least) in [(true, GIVING_WAY), (false, GIVING_WAY), (false, NARROWEST)] {
            let gives = |column: &usize| {
                let head = self.heads[*column];
                if first {
                    head.starts_with('~')
                } else {
                    !head.starts_with('>')
                }
            };
            while over > 0 {
                let elastic = (0..widths.len()).filter(gives);
                match elastic.max_by_key(|column| widths[*column]) {
                    Some(widest) if widths[widest] > least => widths[widest] -= 1,
                    _ => break,
                }
                over -= 1;
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TextTable {
        let mut table = TextTable::new(&[">#", "model", ">share", "~domain"]);
        let name = "someone/a-model-with-quite-a-long-name-v2";
        let cells = ["1", name, "90.8 %", "Audio Audio Classification"];
        table.row(cells.map(str::to_owned).to_vec());
        table.note("why this one is the first of all of them".to_owned());
        let cells = ["10", "漢字/模型", "1.0 %", "Text"];
        table.row(cells.map(str::to_owned).to_vec());
        table
    }

    #[test]
    fn a_wide_terminal_shows_all() {
        let lines = table().lines(200);
        assert_eq!(
            lines[0],
            " #  model                                       share  domain"
        );
        assert!(lines[1].ends_with("90.8 %  Audio Audio Classification"));
        assert_eq!(lines[2], "    why this one is the first of all of them");
        let at = |line: &str, part: &str| columns(&line[..line.find(part).unwrap_or(0)]);
        assert_eq!(at(&lines[3], "Text"), at(&lines[1], "Audio"), "by columns");
    }

    #[test]
    fn a_narrow_one_cuts_what_gives_way_first() {
        let lines = table().lines(75);
        assert!(
            lines[1].contains("long-name-v2  90.8 %  Audio Audio C"),
            "{lines:?}"
        );
        for limit in [80, 60, 40, 36] {
            let lines = table().lines(limit);
            let widest = lines.iter().map(|line| columns(line)).max();
            assert!(widest <= Some(limit), "{limit}: {lines:?}");
            assert!(lines[1].contains("90.8 %"), "numbers are never cut");
        }
    }

    #[test]
    fn a_cell_cannot_make_a_line_of_its_own() {
        let mut table = TextTable::new(&["model"]);
        table.row(vec!["a\n1  forged".to_owned()]);
        assert_eq!(table.lines(80), ["model", "a\\n1  forged"]);
    }
}
