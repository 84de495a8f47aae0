//! Grids as Markdown, LaTeX and text for a terminal. Users choose the names, so each form escapes
//! them.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::grid::{Grid, GridCell};

/// LaTeX breaks tables of more rows over pages.
const ROWS_OF_A_PAGE: usize = 40;

/// A heading, a caption and the table.
pub(super) fn markdown(grid: &Grid) -> String {
    let mut text =
        format!("## {}\n\n{}\n\n", escape_markdown(&grid.title), escape_markdown(&grid.caption));
    let mut header: Vec<String> = grid.stubs.iter().map(|stub| escape_markdown(stub)).collect();
    for (group, columns) in &grid.groups {
        header.extend(columns.iter().map(|column| {
            let name = if group.is_empty() { column.clone() } else { format!("{group} {column}") };
            escape_markdown(&name)
        }));
    }
    let stubs = grid.stubs.len();
    let rule = (0..header.len()).map(|column| if column < stubs { "---" } else { "---:" });
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(&header));
    text.push_str(&format!("|{}|\n", rule.collect::<Vec<_>>().join("|")));
    for row in &grid.rows {
        let mut cells: Vec<String> = row.stubs.iter().map(|stub| escape_markdown(stub)).collect();
        cells.extend(row.cells.iter().map(|cell| {
            let mut text = escape_markdown(&cell.text);
            if cell.bold {
                text = format!("**{text}**");
            }
            if !cell.small.is_empty() {
                let _ = write!(text, " <sub>{}</sub>", escape_markdown(&cell.small));
            }
            text
        }));
        text.push_str(&line(&cells));
    }
    text.push('\n');
    text
}

/// A `table*`, or a `longtable` if it is long; both with rules of booktabs.
pub(super) fn latex(grid: &Grid) -> String {
    let columns: usize = grid.groups.iter().map(|(_, columns)| columns.len()).sum();
    let width = grid.stubs.len() + columns;
    let shape = format!("{}{}", "l".repeat(grid.stubs.len()), "r".repeat(columns));
    let caption = format!(
        "\\caption{{{}}}\n\\label{{tab:{}}}",
        escape_latex(&grid.caption),
        label(&grid.label)
    );
    let head = latex_head(grid);
    let mut body = String::new();
    for row in &grid.rows {
        let stubs = row.stubs.iter().map(|stub| escape_latex(stub));
        let cells: Vec<String> = stubs.chain(row.cells.iter().map(latex_cell)).collect();
        let _ = writeln!(body, "{} \\\\", cells.join(" & "));
    }
    if grid.rows.len() > ROWS_OF_A_PAGE {
        format!(
            "{{\\scriptsize\n\\begin{{longtable}}{{{shape}}}\n{caption} \\\\\n\\toprule\n{head}\
             \\midrule\n\\endfirsthead\n\\toprule\n{head}\\midrule\n\\endhead\n\\midrule\n\
             \\multicolumn{{{width}}}{{r}}{{continued}} \\\\\n\\endfoot\n\\bottomrule\n\\endlastfoot\n\
             {body}\\end{{longtable}}\n}}\n"
        )
    } else {
        format!(
            "\\begin{{table*}}[t]\n\\centering\n{caption}\n\\resizebox{{\\linewidth}}{{!}}{{%\n\
             \\begin{{tabular}}{{{shape}}}\n\\toprule\n{head}\\midrule\n{body}\\bottomrule\n\
             \\end{{tabular}}}}\n\\end{{table*}}\n"
        )
    }
}

/// The names of groups over the names of columns.
fn latex_head(grid: &Grid) -> String {
    let mut head = String::new();
    if grid.groups.iter().any(|(name, _)| !name.is_empty()) {
        let groups = grid.groups.iter().map(|(name, columns)| {
            format!("\\multicolumn{{{}}}{{c}}{{{}}}", columns.len(), escape_latex(name))
        });
        let empty = grid.stubs.iter().map(|_| String::new());
        let _ = writeln!(head, "{} \\\\", empty.chain(groups).collect::<Vec<_>>().join(" & "));
        let mut first = grid.stubs.len() + 1;
        for (_, columns) in &grid.groups {
            let _ = write!(head, "\\cmidrule(lr){{{first}-{}}}", first + columns.len() - 1);
            first += columns.len();
        }
        head.push('\n');
    }
    let names = grid.stubs.iter().chain(grid.groups.iter().flat_map(|(_, columns)| columns));
    let names: Vec<String> = names.map(|name| escape_latex(name)).collect();
    let _ = writeln!(head, "{} \\\\", names.join(" & "));
    head
}

fn latex_cell(cell: &GridCell) -> String {
    let mut text = escape_latex(&cell.text);
    if cell.bold {
        text = format!("\\textbf{{{text}}}");
    }
    if !cell.small.is_empty() {
        let _ = write!(text, " {{\\tiny {}}}", escape_latex(&cell.small));
    }
    text
}

/// A table for a terminal, with a star for bold.
pub(super) fn terminal(grid: &Grid) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let columns = grid.groups.iter().flat_map(|(_, columns)| columns);
    table.set_header(grid.stubs.iter().chain(columns).map(|name| visible(name)));
    for row in &grid.rows {
        let cells = row.cells.iter().map(|cell| {
            let star = if cell.bold { "*" } else { " " };
            if cell.small.is_empty() {
                format!("{}{star}", cell.text)
            } else {
                format!("{}{star} [{}]", cell.text, cell.small)
            }
        });
        table.add_row(row.stubs.iter().map(|stub| visible(stub)).chain(cells));
    }
    for column in table.column_iter_mut().skip(grid.stubs.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> =
        table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n{}\n", visible(&grid.title), lines.join("\n"))
}

fn visible(text: &str) -> String {
    runkit::text::escape_for_terminal(text).into_owned()
}

/// Escapes Markdown, also inside a table.
pub(super) fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '$' => {
                escaped.push('\\');
                escaped.push(character);
            }
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Escapes LaTeX.
pub(super) fn escape_latex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '|' => escaped.push_str("\\textbar{}"),
            '"' => escaped.push_str("\\textquotedbl{}"),
            '–' => escaped.push_str("--"),
            '{' | '}' | '$' | '&' | '#' | '%' | '_' => {
                escaped.push('\\');
                escaped.push(character);
            }
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A label of letters, digits and hyphens.
fn label(text: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    text.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::grid::GridRow;

    fn grid(rows: usize) -> Grid {
        let cell = GridCell { text: "85.2".into(), small: "80.7–88.9".into(), bold: true };
        Grid {
            label: "win_rates|x".into(),
            title: "Win *rates*".into(),
            caption: "50 % & more".into(),
            stubs: vec!["Model".into()],
            groups: vec![("set|1".into(), vec!["clip_l".into()])],
            rows: vec![GridRow { stubs: vec!["a vs <b>".into()], cells: vec![cell] }; rows],
        }
    }

    #[test]
    fn names_are_escaped_in_markdown() {
        assert_eq!(
            markdown(&grid(1)),
            "## Win \\*rates\\*\n\n50 % &amp; more\n\n| Model | set\\|1 clip\\_l |\n|---|---:|\n\
             | a vs &lt;b&gt; | **85.2** <sub>80.7–88.9</sub> |\n\n"
        );
        assert_eq!(escape_markdown("a\nb`c`\\[d](e)"), "a b\\`c\\`\\\\\\[d\\](e)");
    }

    #[test]
    fn names_are_escaped_in_latex() {
        let text = latex(&grid(1));
        for part in [
            "\\caption{50 \\% \\& more}\n\\label{tab:win-rates-x}",
            "\\begin{tabular}{lr}\n\\toprule\n & \\multicolumn{1}{c}{set\\textbar{}1} \\\\\n",
            "\\cmidrule(lr){2-2}\nModel & clip\\_l \\\\\n\\midrule\n",
            "a vs \\textless{}b\\textgreater{} & \\textbf{85.2} {\\tiny 80.7--88.9} \\\\\n\\bottomrule",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(
            escape_latex("\\{~^%"),
            "\\textbackslash{}\\{\\textasciitilde{}\\textasciicircum{}\\%"
        );
        assert!(latex(&grid(41)).contains("\\begin{longtable}{lr}"));
    }

    #[test]
    fn a_terminal_gets_stars_and_no_control_characters() {
        let mut grid = grid(1);
        grid.rows[0].stubs[0] = "a\u{1b}[2J".into();
        let text = terminal(&grid);
        assert!(text.contains("85.2* [80.7–88.9]") && !text.contains('\u{1b}'), "{text}");
    }
}
