//! Results against the dense row of the same setting.

use super::column::{COLUMNS, Role};
use super::experiment::Experiment;
use crate::output;

/// The records of a `results.csv`, with what they are compared with.
pub struct Comparison<'a> {
    rows: Vec<Compared<'a>>,
}

/// A record and its speed against the dense row of its setting: above 1 is faster.
pub struct Compared<'a> {
    header: &'a [String],
    record: &'a [String],
    pub speedup: Option<Speedup>,
}

/// How much faster a row is than the dense one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speedup {
    pub prefill: f64,
    pub decode: f64,
    pub total: f64,
}

impl<'a> Compared<'a> {
    /// The text of a cell; empty if there is no such column.
    pub fn cell(&self, name: &str) -> &'a str {
        let at = self.header.iter().position(|column| column == name);
        at.and_then(|at| self.record.get(at)).map_or("", String::as_str)
    }

    /// A cell as a number, if it holds one.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.cell(name).parse().ok()
    }

    pub fn is_ok(&self) -> bool {
        self.cell("status") == "ok"
    }

    /// The cells of the columns in that role, but for `except`.
    pub fn cells(&self, role: Role, except: &str) -> Vec<(&'static str, &'a str)> {
        let columns = COLUMNS.iter().filter(|column| column.role == role && column.name != except);
        columns.map(|column| (column.name, self.cell(column.name))).collect()
    }

    /// Whether every column of the method has its default: what the others are compared with.
    fn is_baseline(&self) -> bool {
        let default = Experiment::default();
        let methods = COLUMNS.iter().filter(|column| column.role == Role::Method);
        methods.into_iter().all(|column| self.cell(column.name) == (column.write)(&default))
    }

    fn against(&self, baseline: &Compared) -> Option<Speedup> {
        let ratio = |name: &str| Some(self.number(name)? / baseline.number(name)?);
        Some(Speedup {
            prefill: ratio("prefill_tokens_per_s")?,
            decode: ratio("decode_tokens_per_s")?,
            total: ratio("total_s")?.recip(),
        })
    }
}

impl<'a> Comparison<'a> {
    pub fn new(header: &'a [String], records: &'a [Vec<String>]) -> Self {
        let row = |record: &'a Vec<String>| Compared { header, record, speedup: None };
        let mut rows: Vec<Compared> = records.iter().map(row).collect();
        let speedups: Vec<_> = (0..rows.len()).map(|at| speedup(&rows, at)).collect();
        rows.iter_mut().zip(speedups).for_each(|(row, speedup)| row.speedup = speedup);
        Comparison { rows }
    }

    pub fn rows(&self) -> &[Compared<'a>] {
        &self.rows
    }

    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.is_ok()).count()
    }

    /// Names of the columns of `experiments.csv` in which rows differ.
    pub fn varying(&self) -> Vec<&'static str> {
        let varies = |name: &str| self.rows.windows(2).any(|pair| pair[0].cell(name) != pair[1].cell(name));
        COLUMNS.iter().map(|column| column.name).filter(|name| varies(name)).collect()
    }

    /// Names and cells of the columns in which they do not.
    pub fn constant(&self) -> Vec<(&'static str, &'a str)> {
        let varying = self.varying();
        let Some(first) = self.rows.first() else { return Vec::new() };
        let names = COLUMNS.iter().map(|column| column.name).filter(|name| !varying.contains(name));
        names.map(|name| (name, first.cell(name))).filter(|(_, cell)| !cell.is_empty()).collect()
    }

    /// Header and rows for reading: what differs, and the figures that matter most.
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        const FIGURES: [&str; 10] = [
            "prefill tok/s",
            "× dense",
            "decode tok/s",
            "× dense",
            "total s",
            "× dense",
            "GB/s (of read)",
            "weights, caches, peak memory",
            "perplexity",
            "KL mean",
        ];
        let varying = self.varying();
        let quality = self.rows.iter().any(|row| !row.cell("perplexity").is_empty());
        let figures = &FIGURES[..if quality { 10 } else { 8 }];
        let header = std::iter::once("row").chain(varying.iter().copied()).chain(figures.iter().copied());
        let line = |row: &Compared| {
            let asked = std::iter::once("row").chain(varying.iter().copied()).map(|name| row.cell(name).to_owned());
            asked.chain(row.figures().into_iter().take(figures.len())).collect()
        };
        (header.map(str::to_owned).collect(), self.rows.iter().map(line).collect())
    }
}

impl Compared<'_> {
    /// Texts for the columns of [`Comparison::table`].
    fn figures(&self) -> Vec<String> {
        if !self.is_ok() {
            return std::iter::once("failed".to_owned()).chain((1..10).map(|_| String::new())).collect();
        }
        let digits = |name: &str, digits| self.number(name).map_or(String::new(), |v| format!("{v:.digits$}"));
        let times = |of: fn(Speedup) -> f64| self.speedup.map_or(String::new(), |s| format!("{:.2}", of(s)));
        let bytes = |name: &str| self.number(name).map_or(String::new(), |v| output::bytes(v as u64));
        let fraction = self.number("bandwidth_fraction").map_or(String::new(), output::percent);
        vec![
            digits("prefill_tokens_per_s", 1),
            times(|s| s.prefill),
            digits("decode_tokens_per_s", 2),
            times(|s| s.decode),
            digits("total_s", 3),
            times(|s| s.total),
            format!("{} ({fraction})", digits("decode_gb_s", 1)),
            format!("{}, {}, {}", bytes("weight_bytes"), bytes("kv_bytes"), bytes("peak_rss_bytes")),
            digits("perplexity", 4),
            self.number("kl_mean").map_or(String::new(), |v| format!("{v:.1e}")),
        ]
    }
}

/// Row `at` against the dense row of its setting that was measured closest to it.
fn speedup(rows: &[Compared], at: usize) -> Option<Speedup> {
    let row = &rows[at];
    let setting = row.cells(Role::Setting, "");
    let same = |other: &&(usize, &Compared)| {
        other.1.is_ok() && other.1.is_baseline() && other.1.cells(Role::Setting, "") == setting
    };
    let numbered: Vec<(usize, &Compared)> = rows.iter().enumerate().collect();
    let (_, baseline) = numbered.iter().filter(same).min_by_key(|(i, _)| i.abs_diff(at))?;
    row.against(baseline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::measure;

    /// A record with these cells and the defaults.
    fn record(cells: &[(&str, &str)]) -> Vec<String> {
        let default = Experiment::default();
        let cell = |name: &String| {
            let given = cells.iter().find_map(|(n, value)| (n == name).then(|| value.to_string()));
            let column = COLUMNS.iter().find(|column| column.name == name);
            given.or(column.map(|column| (column.write)(&default))).unwrap_or_default()
        };
        measure::header().iter().map(cell).collect()
    }

    #[test]
    fn a_row_is_compared_with_the_nearest_dense_row_of_its_setting() {
        let row = |batch: &str, mode: &str, rate: &str, status: &str| {
            record(&[
                ("batch", batch),
                ("mode", mode),
                ("status", status),
                ("prefill_tokens_per_s", rate),
                ("decode_tokens_per_s", rate),
                ("total_s", "2"),
            ])
        };
        let header = measure::header();
        let records = [
            row("1", "dense", "10", "ok"),
            row("1", "int8", "30", "ok"),
            row("4", "int8", "80", "ok"),
            row("4", "dense", "40", "failed"),
            row("1", "int8", "30", "ok"),
            row("1", "dense", "20", "ok"),
        ];
        let comparison = Comparison::new(&header, &records);
        let decode: Vec<_> = comparison.rows().iter().map(|row| row.speedup.map(|s| s.decode)).collect();
        assert_eq!(decode, [Some(1.0), Some(3.0), None, None, Some(1.5), Some(1.0)]);
        assert_eq!(comparison.varying(), ["batch", "mode"]);
        assert!(comparison.constant().contains(&("prompt_tokens", "128")));
        assert_eq!(comparison.failed(), 1);
    }
}
