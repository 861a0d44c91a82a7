//! How commands print: tables for people, JSON for programs, notes and progress on stderr.

mod layers;
mod progress;
mod quiet;
mod units;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
pub use layers::{LayersArg, by_layer};
pub use progress::{Bars, progress};
pub use quiet::{be_quiet, is_quiet};
use serde::Serialize;
pub use units::{bytes, percent};

/// `println!` that returns an error where stdout cannot be written (a closed pipe) instead of panicking.
macro_rules! outln {
    ($($args:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($args)*)?
    }};
}

/// `eprintln!` that does without where stderr cannot be written instead of panicking; in this crate it takes the other's place.
macro_rules! eprintln {
    ($($args:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($args)*);
    }};
}

/// `eprintln!` of what is neither a result nor an error: nothing with `--quiet`.
macro_rules! note {
    ($($args:tt)*) => {
        if !$crate::output::is_quiet() {
            eprintln!($($args)*);
        }
    };
}

/// Prints on stderr what somebody asked for or did wrong, where a command goes on: `--quiet` does not silence it.
pub fn reply(text: impl std::fmt::Display) {
    eprintln!("{text}");
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
