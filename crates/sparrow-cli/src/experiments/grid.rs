//! A grid in TOML → the rows of all combinations of its values.

use std::path::Path;

use anyhow::{anyhow, bail};
use toml::Value;

use super::column::{COLUMNS, names};
use super::experiment::Experiment;

/// Every combination of the values in `text`, the last columns changing fastest; `path` is used in messages. What says nothing
/// beside the other columns (a sparsity to a dense mode) is left out, and so are rows that are then the same as another.
///
/// # Errors
/// Names the file, the key, what was expected and what was found.
pub fn experiments(path: &Path, text: &str) -> anyhow::Result<Vec<Experiment>> {
    let file = path.display();
    let grid: toml::Table = text.parse().map_err(|error| anyhow!("{file}: {error}"))?;
    if let Some(key) = grid.keys().find(|key| COLUMNS.iter().all(|column| column.name != *key)) {
        bail!("{file}: there is no key {key:?}; keys are {}", names());
    }
    let mut rows = vec![Experiment::default()];
    for column in &COLUMNS {
        let Some(value) = grid.get(column.name) else { continue };
        let wrong = |message: String| anyhow!("{file}: key {}: {message}", column.name);
        let values = texts(value).map_err(wrong)?;
        let mut combined = Vec::with_capacity(rows.len() * values.len());
        for row in &rows {
            for value in &values {
                let mut row = row.clone();
                column.put(&mut row, value).map_err(wrong)?;
                combined.push(row);
            }
        }
        rows = combined;
    }
    let mut distinct: Vec<Experiment> = Vec::new();
    for row in rows.into_iter().map(Experiment::without_idle_columns) {
        row.check().map_err(|(key, message)| anyhow!("{file}: key {key}: {message}"))?;
        if !distinct.contains(&row) {
            distinct.push(row);
        }
    }
    Ok(distinct)
}

/// One value, or each of a list, as the text of a cell.
fn texts(value: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => Err(format!("expected text, a number, or a list of them, found {}", other.type_str())),
    };
    match value {
        Value::Array(list) if list.is_empty() => Err("is an empty list: leave the key out for its default".into()),
        Value::Array(list) => list.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::sheet;

    fn grid(text: &str) -> Vec<Experiment> {
        experiments(Path::new("test"), text).unwrap()
    }

    #[test]
    fn rows_to_compare_follow_each_other() {
        let rows = grid("mode = ['dense', 'int8']\nbatch = [1, 4]\nprompt_tokens = 64");
        let made: Vec<_> = rows.iter().map(|row| (row.batch, row.mode.to_string())).collect();
        assert_eq!(made, [(1, "dense".into()), (1, "int8".into()), (4, "dense".into()), (4, "int8".into())]);
        assert!(rows.iter().all(|row| row.prompt_tokens == 64));
    }

    #[test]
    fn sparsity_multiplies_sparse_rows_only() {
        let rows = grid("model = 'shape:smollm2-135m'\nmode = ['dense', 'sparse', 'int8']\nsparsity = [0.5, 0.7]");
        let made: Vec<_> = rows.iter().map(|row| (row.mode.to_string(), row.sparsity)).collect();
        let row = |mode: &str, sparsity| (mode.to_owned(), sparsity);
        assert_eq!(made, [row("dense", None), row("sparse", Some(0.5)), row("sparse", Some(0.7)), row("int8", None)]);
    }

    #[test]
    fn a_dense_tail_multiplies_sparse_caches_only() {
        let rows = grid("k_sparsity = ['', 0.3]\nkv_dense_tail = [64, 128]\nkv_sinks = 4");
        let made: Vec<_> = rows.iter().map(|row| (row.k_sparsity, row.kv_dense_tail, row.kv_sinks)).collect();
        assert_eq!(made, [(None, None, None), (Some(0.3), Some(64), Some(4)), (Some(0.3), Some(128), Some(4))]);
    }

    #[test]
    fn the_example_is_a_grid_of_distinct_rows() {
        let rows = grid(crate::experiments::EXAMPLE);
        assert!(rows.len() > 4);
        assert_eq!(sheet::parse(Path::new("test"), &sheet::text(&rows).unwrap()).unwrap(), rows);
    }

    #[test]
    fn bad_grids_are_refused_by_name() {
        for (text, says) in [
            ("batches = 1", &["\"batches\"", "prompt_tokens"][..]),
            ("batch = 'x'", &["key batch", "from 1 to 1024", "\"x\""]),
            ("batch = [[1]]", &["key batch", "a list of them"]),
            ("batch = []", &["key batch", "empty"]),
            ("batch = 1\nbatch = 2", &["duplicate"]),
            ("batch =", &["TOML"]),
            ("model = 'shape:smollm2-135m'\nmode = 'sparse'", &["key sparsity", "is empty"]),
        ] {
            let message = format!("{:#}", experiments(Path::new("grid.toml"), text).unwrap_err());
            for part in ["grid.toml"].iter().chain(says) {
                assert!(message.contains(part), "{text:?}: {message:?} does not say {part:?}");
            }
        }
    }
}
