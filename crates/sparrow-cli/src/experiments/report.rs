//! `report.html`: plots of speed-up against what varies, and the table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::column::Role;
use super::compare::{Compared, Comparison, Speedup};
use crate::html::{escape, page};
use crate::output::write_whole;
use crate::plot::{Line, Plot};

/// Columns that speed-up is plotted against, where they vary.
const AXES: [(&str, &str); 4] =
    [("sparsity", "weight sparsity"), ("prompt_tokens", "prompt tokens"), ("batch", "batch"), ("threads", "threads")];

type OfSpeedup = fn(Speedup) -> f64;

const MEASURES: [(&str, OfSpeedup); 2] = [("Decode", |s| s.decode), ("Prefill", |s| s.prefill)];

/// Names and cells that tell rows apart.
type Key<'a> = Vec<(&'static str, &'a str)>;

/// Writes the page into `dir`.
pub fn write(comparison: &Comparison, dir: &Path) -> anyhow::Result<()> {
    let title = format!("Experiments of {}", dir.file_name().unwrap_or_default().to_string_lossy());
    write_whole(&dir.join("report.html"), html(&title, comparison).as_bytes())
}

fn html(title: &str, comparison: &Comparison) -> String {
    let mut body = format!("<h1>{}</h1>", escape(title));
    let rows = comparison.rows();
    let cpus: Vec<&str> = distinct(rows.iter().map(|row| row.cell("cpu")));
    let _ = write!(body, "<p>{}", escape(&cpus.join("; ")));
    let read: Vec<f64> = rows.iter().filter_map(|row| row.number("read_gb_s")).collect();
    if let (Some(low), Some(high)) = (read.iter().copied().reduce(f64::min), read.iter().copied().reduce(f64::max)) {
        let _ = write!(body, ", which read {low:.1} to {high:.1} GB/s before its rows");
        if high > low * 1.2 {
            body += ": it drifted, so compare only what was measured close together";
        }
    }
    body += ".</p><p>";
    let constant: Vec<String> = comparison.constant().iter().map(|(name, cell)| format!("{name} {cell}")).collect();
    let _ = write!(
        body,
        "All rows: {}. Times and rates are medians over the runs; × dense compares with the row of the same setting in mode \
         dense that was measured closest to it.",
        escape(&constant.join(", "))
    );
    if rows.iter().any(|row| row.cell("model").starts_with("shape:")) {
        body += " Rows of random weights (shape:…) show speed only: they have no quality.";
    }
    body += "</p>";
    let varying = comparison.varying();
    for (axis, label) in AXES.into_iter().filter(|(axis, _)| varying.contains(axis)) {
        for (measure, of) in MEASURES {
            plots(&mut body, comparison, (axis, label), (measure, of));
        }
    }
    table(&mut body, comparison);
    page(title, &body)
}

/// One plot per setting, one line per method: only settings and methods that have at least two points.
fn plots(
    body: &mut String,
    comparison: &Comparison,
    (axis, label): (&'static str, &str),
    (measure, of): (&str, OfSpeedup),
) {
    let varying = comparison.varying();
    let key = |row: &Compared<'_>, role| -> String { name(&row.cells(role, axis), &varying) };
    let mut panels: BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>> = BTreeMap::new();
    for row in comparison.rows() {
        let (Some(x), Some(speedup)) = (row.number(axis), row.speedup) else { continue };
        let lines = panels.entry(key(row, Role::Setting)).or_default();
        lines.entry(key(row, Role::Method)).or_default().push((x, of(speedup)));
    }
    for (setting, mut lines) in panels {
        lines.retain(|_, points| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points.first().map(|p| p.0) != points.last().map(|p| p.0)
        });
        let title = format!("{measure} speed-up over dense");
        let label = format!("{label}{}{setting}", if setting.is_empty() { "" } else { "; " });
        let line = |(method, points): (String, Vec<_>)| Line::new(&method, averaged(&points));
        let lines: Vec<Line> = lines.into_iter().map(line).collect();
        if !lines.is_empty() {
            *body += &Plot { title: &title, x: &label, y: "times as fast", from_zero: true, lines }.svg();
        }
    }
}

/// Sorted points, the average in place of those at one x: repeats.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let average = |same: &[(f64, f64)]| (same[0].0, same.iter().map(|p| p.1).sum::<f64>() / same.len() as f64);
    points.chunk_by(|a, b| a.0 == b.0).map(average).collect()
}

/// What tells rows apart, in words.
fn name(key: &Key, varying: &[&str]) -> String {
    let differs = key.iter().filter(|(name, cell)| varying.contains(name) && !cell.is_empty());
    let words = differs.map(|(name, cell)| if *name == "mode" { (*cell).to_owned() } else { format!("{name} {cell}") });
    words.collect::<Vec<_>>().join(", ")
}

fn table(body: &mut String, comparison: &Comparison) {
    let (header, rows) = comparison.table();
    *body += "<div class=\"wide\"><table><tr>";
    header.iter().for_each(|cell| *body += &format!("<th>{}</th>", escape(cell)));
    *body += "</tr>";
    for (cells, row) in rows.iter().zip(comparison.rows()) {
        *body += "<tr>";
        match row.is_ok() {
            true => cells.iter().for_each(|cell| *body += &format!("<td>{}</td>", escape(cell))),
            false => {
                let asked = cells.iter().take_while(|cell| *cell != "failed");
                let asked: Vec<String> = asked.map(|cell| format!("<td>{}</td>", escape(cell))).collect();
                let rest = header.len() - asked.len();
                let _ = write!(body, "{}<td colspan=\"{rest}\">{}</td>", asked.concat(), escape(row.cell("error")));
            }
        }
        *body += "</tr>";
    }
    *body += "</table></div>";
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values.filter(|value| !value.is_empty()) {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}
