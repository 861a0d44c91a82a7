//! How commands print: tables for people, JSON for programs, progress on stderr.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// `println!` that returns an error where stdout cannot be written (a closed pipe) instead of panicking.
macro_rules! outln {
    ($($args:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($args)*)?
    }};
}

/// Form of the figures on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For reading
    #[default]
    Table,
    /// For programs
    Json,
}

/// Prints `value` as indented JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Prints a table: first column to the left, the others to the right.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> anyhow::Result<()> {
    let mut table = Table::new();
    let style = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(style).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.to_string().lines().map(|l| l.trim_end().to_owned()).collect();
    writeln!(std::io::stdout().lock(), "{}", lines.join("\n"))?;
    Ok(())
}

/// Writes a file under a temporary name first, so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| temporary.display().to_string())?;
    std::fs::rename(temporary, path).with_context(|| path.display().to_string())
}

/// A progress bar on stderr; silent where stderr is no terminal.
pub fn progress(what: impl Into<String>, total: u64, bytes: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let count = if bytes { "{bytes}/{total_bytes}" } else { "{human_pos}/{human_len}" };
    let template = format!("{{msg:<24}} {{wide_bar}} {count} {{elapsed}}, {{eta}} left");
    bar.set_style(ProgressStyle::with_template(&template).expect("the template is constant"));
    bar.set_message(what.into());
    bar
}

/// Progress bars of work in stages, one at a time.
pub struct Bars<S> {
    name: fn(S) -> &'static str,
    /// Stages that count bytes.
    bytes: fn(S) -> bool,
    current: Option<(S, ProgressBar)>,
}

impl<S: Copy + PartialEq> Bars<S> {
    /// None yet.
    pub fn new(name: fn(S) -> &'static str, bytes: fn(S) -> bool) -> Self {
        Bars { name, bytes, current: None }
    }

    /// So much is done of a stage.
    pub fn show(&mut self, stage: S, done: u64, total: u64) {
        if self.current.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.clear();
            self.current = Some((stage, progress((self.name)(stage), total, (self.bytes)(stage))));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done);
        }
    }

    /// Takes the last bar away.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

/// `1.5 GB`: decimal units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let unit = (n.max(1).ilog10() / 3).min(4) as usize;
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.2} {}", n as f64 / 1000f64.powi(unit as i32), UNITS[unit]),
    }
}

/// `12.3 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}
