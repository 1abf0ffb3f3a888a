//! Tables of text for a terminal.

use std::fmt::Write as _;

/// One under the other, with an empty line between; those without rows are left out.
pub fn render_all<const N: usize>(tables: [Table; N]) -> String {
    let texts: Vec<String> =
        tables.iter().filter(|table| !table.rows.is_empty()).map(Table::render).collect();
    texts.join("\n")
}

/// A cell of what is not known.
pub fn none() -> String {
    "-".to_owned()
}

/// Columns as wide as their widest cell. A head that begins with `>` stands, as its cells do, to the right.
pub struct Table {
    heads: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heads: &[&str]) -> Table {
        let heads = heads.iter().map(|head| match head.strip_prefix('>') {
            Some(head) => (head.to_owned(), true),
            None => ((*head).to_owned(), false),
        });
        Table { heads: heads.collect(), rows: Vec::new() }
    }

    /// Names come from the other side of a socket: what would steer a terminal is replaced.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let printable = |cell: String| cell.replace(char::is_control, "?");
        self.rows.push(cells.into_iter().map(printable).collect());
    }

    fn render(&self) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| head.clone()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, (_, right))) in row.iter().zip(&self.heads).enumerate() {
                let cells = self.rows.iter().chain([&heads]).filter_map(|row| row.get(column));
                let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
                let gap = if column == 0 { "" } else { "  " };
                // Writing to a string cannot fail.
                let _ = match right {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}
