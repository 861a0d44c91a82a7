//! `sparrow experiments run`.

use std::path::PathBuf;

use anyhow::Context;

use super::column::{COLUMNS, Role};
use super::compare::Comparison;
use super::experiment::Experiment;
use super::results::Results;
use super::{measure, report, sheet};
use crate::output::{self, progress};

/// Run the rows of experiments.csv.
#[derive(clap::Args)]
pub struct Args {
    /// The rows to run, as `generate` writes them
    #[arg(default_value = "experiments.csv")]
    sheet: PathBuf,
    /// Directory that gets a directory per run, named by the time it began: results.csv and report.html
    #[arg(long, short, default_value = "experiment_results", value_name = "DIR")]
    output: PathBuf,
    /// Begin anew, although an unfinished run of this very file is there to go on with
    #[arg(long)]
    new: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = std::fs::read(&args.sheet).with_context(|| args.sheet.display().to_string())?;
    let experiments = sheet::parse(&args.sheet, &bytes)?;
    let header = measure::header();
    let unfinished = match args.new {
        true => None,
        false => Results::find_unfinished(&args.output, &bytes, &header, experiments.len())?,
    };
    let mut results = match unfinished {
        Some(results) => results,
        None => Results::create(&args.output, &bytes, header)?,
    };
    let done = results.finished();
    match done.len() {
        0 => note!("{}: {} rows to run", results.dir().display(), experiments.len()),
        n => note!("{}: {n} of {} rows are done, going on", results.dir().display(), experiments.len()),
    }
    let bar = progress("running", experiments.len() as u64, false);
    bar.set_position(done.len() as u64);
    for number in in_turn(&experiments).into_iter().filter(|number| !done.contains(number)) {
        let experiment = &experiments[number - 1];
        bar.set_message(format!("row {number}: {} {}", experiment.model, experiment.mode));
        results.append(measure::record(number, experiment))?;
        // After every row, so that there is something to look at meanwhile.
        report::write(&Comparison::new(results.header(), results.records()), results.dir())?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let comparison = Comparison::new(results.header(), results.records());
    let (header, rows) = comparison.table();
    output::table(&header.iter().map(String::as_str).collect::<Vec<_>>(), rows)?;
    match comparison.failed() {
        0 => {}
        n => note!("{n} of {} rows failed: see the column error of results.csv", experiments.len()),
    }
    note!("wrote results.csv and report.html to {}", results.dir().display());
    Ok(())
}

/// Numbers of the rows, from 1, those of one setting one after another, repeats in turns: speed drifts on many machines, and what is
/// compared should be measured close together.
fn in_turn(experiments: &[Experiment]) -> Vec<usize> {
    let setting = |e: &Experiment| -> Vec<String> {
        COLUMNS.iter().filter(|column| column.role == Role::Setting).map(|column| (column.write)(e)).collect()
    };
    let settings: Vec<Vec<String>> = experiments.iter().map(setting).collect();
    let mut numbers: Vec<usize> = (1..=experiments.len()).collect();
    numbers.sort_by_key(|number| {
        let first = settings.iter().position(|setting| *setting == settings[number - 1]);
        (first, experiments[number - 1].repeat)
    });
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::grid;

    #[test]
    fn rows_of_one_setting_run_one_after_another() {
        let row = |batch, mode: &str| Experiment { batch, mode: mode.parse().unwrap(), ..Experiment::default() };
        let rows = [row(1, "dense"), row(4, "dense"), row(1, "int8"), row(4, "int8"), row(1, "dense")];
        assert_eq!(in_turn(&rows), [1, 3, 5, 2, 4]);
    }

    #[test]
    fn repeats_of_one_setting_take_turns() {
        let grid = "mode = ['dense', 'int8']\nrepeat = [1, 2, 3]\nbatch = [1, 4]";
        let rows = grid::experiments("grid.toml".as_ref(), grid).unwrap();
        let order = in_turn(&rows);
        let measured = order.iter().map(|number| &rows[number - 1]);
        let measured: Vec<_> = measured.map(|row| (row.batch, row.repeat, row.mode.to_string())).collect();
        let expected = [1, 4].into_iter().flat_map(|batch| {
            (1..=3).flat_map(move |repeat| ["dense", "int8"].map(|mode| (batch, repeat, mode.to_owned())))
        });
        assert_eq!(measured, expected.collect::<Vec<_>>());
    }
}
