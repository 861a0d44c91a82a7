//! `experiments.csv`: a header, then one experiment per line. Columns may be missing, in any order, and cells empty: they have
//! their defaults then.

use std::path::Path;

use anyhow::{Context, anyhow, bail};

use super::column::{COLUMNS, Column, names};
use super::experiment::Experiment;

/// The rows of the file `path`, whose content is `bytes`.
///
/// # Errors
/// Names the file, the line, the column, what was expected and what was found.
pub fn parse(path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<Experiment>> {
    let file = path.display();
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let mut columns: Vec<&Column> = Vec::new();
    for name in reader.headers().with_context(|| file.to_string())? {
        let Some(column) = COLUMNS.iter().find(|column| column.name == name) else {
            bail!("{file}: line 1: there is no column {name:?}; columns are {}", names());
        };
        if columns.iter().any(|seen| seen.name == name) {
            bail!("{file}: line 1: column {name} is there twice");
        }
        columns.push(column);
    }
    let mut experiments = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| file.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let wrong = |column: &str, message: String| anyhow!("{file}: line {line}, column {column}: {message}");
        let mut experiment = Experiment::default();
        for (column, text) in columns.iter().zip(&record) {
            column.put(&mut experiment, text).map_err(|message| wrong(column.name, message))?;
        }
        experiment.check().map_err(|(column, message)| wrong(column, message))?;
        experiments.push(experiment);
    }
    if experiments.is_empty() {
        bail!("{file}: has no rows");
    }
    Ok(experiments)
}

/// The file's content for these rows.
pub fn text(experiments: &[Experiment]) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS.each_ref().map(|column| column.name))?;
    for experiment in experiments {
        writer.write_record(COLUMNS.each_ref().map(|column| (column.write)(experiment)))?;
    }
    writer.into_inner().context("the sheet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Valid texts of every column, in the table's order.
    const VALUES: [&[&str]; 19] = [
        &["demo", "shape:llama-3.2-1b", "org/name@main", "a dir, with \"quotes\""],
        &["", "text.txt"],
        &["1", "128", "16384"],
        &["2", "500"],
        &["1", "1024"],
        &["", "1", "64"],
        &["", "scalar", "avx2", "avx512", "avx512bf16", "amx"],
        &["dense", "sparse", "int8", "sparse-int8", "int4", "sparse-int4"],
        &["", "0", "0.5", "0.75"],
        &["", "f32", "f16", "bf16", "int8"],
        &["", "0.3"],
        &["", "0.5"],
        &["", "0", "128"],
        &["", "4"],
        &["dense", "gate", "lowrank:quantile=0.9", "skip:attention=1,mlp=2", "forced:active=0.1,overlap=0.8"],
        &["1", "1000"],
        &["1", "2"],
        &["0", "2048"],
        &["", "1", "600"],
    ];

    proptest! {
        #[test]
        fn what_is_written_is_read_again(picks in prop::collection::vec(prop::collection::vec(0usize..100, 19), 1..5)) {
            let row = |picks: &Vec<usize>| {
                let mut experiment = Experiment::default();
                for ((column, values), pick) in COLUMNS.iter().zip(VALUES).zip(picks) {
                    column.put(&mut experiment, values[pick % values.len()]).unwrap();
                }
                experiment
            };
            let experiments: Vec<_> = picks.iter().map(row).filter(|e| e.check().is_ok()).collect();
            prop_assume!(!experiments.is_empty());
            let bytes = text(&experiments).unwrap();
            prop_assert_eq!(&parse(Path::new("test"), &bytes).unwrap(), &experiments);
            let cells = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(cells.lines().count(), 1 + experiments.len());
        }
    }

    #[test]
    fn missing_columns_and_empty_cells_have_defaults() {
        let rows = parse(Path::new("test"), b"batch, mode\n 4 ,\n,int8\n").unwrap();
        assert_eq!(rows[0], Experiment { batch: 4, ..Experiment::default() });
        assert_eq!(rows[1], Experiment { mode: "int8".parse().unwrap(), ..Experiment::default() });
    }

    #[test]
    fn bad_cells_are_refused_by_name() {
        for (sheet, says) in [
            ("batches\n1\n", &["line 1", "\"batches\"", "prompt_tokens"][..]),
            ("batch,batch\n1,1\n", &["line 1", "batch", "twice"]),
            ("batch\n1\n0\n", &["line 3", "column batch", "from 1 to 1024", "\"0\""]),
            ("batch\n1.5\n", &["line 2", "column batch", "\"1.5\""]),
            ("model,mode\ndemo,sparse-int9\n", &["column mode", "sparse-int8", "\"sparse-int9\""]),
            ("model\nshape:llama-9\n", &["column model", "shape:NAME"]),
            ("isa\nsse9\n", &["column isa", "avx512"]),
            ("kv_dtype\nint4\n", &["column kv_dtype", "bf16"]),
            ("selector\ngates\n", &["column selector", "gate[:RULE]"]),
            ("k_sparsity\n1\n", &["column k_sparsity", "below 1"]),
            ("v_sparsity\nNaN\n", &["column v_sparsity"]),
            ("gen_tokens\n1\n", &["column gen_tokens", "from 2"]),
            ("timeout_s\n-1\n", &["column timeout_s"]),
            ("mode,sparsity\nsparse,0.5\n", &["column sparsity", "must be empty", "demo"]),
            ("model,mode\nshape:llama-3.2-1b,sparse\n", &["column sparsity", "is empty"]),
            ("kv_sinks\n4\n", &["column kv_sinks", "must be empty", "k_sparsity"]),
            ("repeat\n0\n", &["column repeat", "from 1"]),
            ("batch,mode\n1\n", &["line: 2", "field"]),
            ("batch\n", &["no rows"]),
            ("", &["no rows"]),
        ] {
            let message = format!("{:#}", parse(Path::new("sheet.csv"), sheet.as_bytes()).unwrap_err());
            for part in ["sheet.csv"].iter().chain(says) {
                assert!(message.contains(part), "{sheet:?}: {message:?} does not say {part:?}");
            }
        }
    }
}
