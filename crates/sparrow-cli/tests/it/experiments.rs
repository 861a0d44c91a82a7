//! `sparrow experiments` as a user runs it, interruptions and failures included.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command::{sparrow, stderr, stdout};

/// The command in `dir`.
fn experiments(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = sparrow(&["experiments"]);
    command.args(args).current_dir(dir.path());
    command
}

/// Runs to success and gives stdout and stderr.
#[track_caller]
fn succeed(dir: &TempDir, args: &[&str]) -> (String, String) {
    let output = experiments(dir, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, stderr(&output));
    (stdout(&output), stderr(&output))
}

/// Runs to an error whose message says all of `says`, without a panic.
#[track_caller]
fn fail(dir: &TempDir, args: &[&str], says: &[&str]) {
    let output = experiments(dir, args).output().unwrap();
    let message = stderr(&output);
    assert!(!output.status.success() && !message.contains("panicked"), "{message}");
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// A directory with that `experiments.csv`.
fn sheet(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("experiments.csv"), text).unwrap();
    dir
}

/// The directories of runs, oldest first.
fn runs(dir: &TempDir) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.path().join("experiment_results")) else { return Vec::new() };
    let mut runs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    runs.sort();
    runs
}

/// The records of a run, by column.
fn records(run: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(run.join("results.csv")).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

/// Waits until `condition` holds.
#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(300), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn number(record: &BTreeMap<String, String>, column: &str) -> f64 {
    record[column].parse().unwrap_or_else(|_| panic!("{column} is {:?} in {record:?}", record[column]))
}

#[test]
fn generate_writes_a_sheet_that_run_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let (example, _) = succeed(&dir, &["generate", "--example"]);
    assert!(example.starts_with('#') && runs(&dir).is_empty());
    fs::write(dir.path().join("grid.toml"), &example).unwrap();
    let (_, said) = succeed(&dir, &["generate", "grid.toml", "-o", "from_file.csv"]);
    assert!(said.contains("from_file.csv") && said.contains("rows"), "{said}");
    succeed(&dir, &["generate"]);
    let made = fs::read(dir.path().join("experiments.csv")).unwrap();
    assert_eq!(made, fs::read(dir.path().join("from_file.csv")).unwrap());
    fail(&dir, &["generate"], &["experiments.csv exists", "--force"]);
    succeed(&dir, &["generate", "--force"]);

    fs::write(dir.path().join("grid.toml"), "batch = 0").unwrap();
    fail(&dir, &["generate", "grid.toml", "-o", "no.csv"], &["grid.toml", "key batch", "from 1 to 1024", "\"0\""]);
    fail(&dir, &["generate", "missing.toml", "-o", "no.csv"], &["missing.toml"]);
    assert!(!dir.path().join("no.csv").exists());
}

#[test]
fn run_refuses_a_bad_sheet_before_it_measures_anything() {
    let dir = sheet("batch,mode\n1,dense\n2,int9\n");
    fail(&dir, &["run"], &["experiments.csv: line 3, column mode", "sparse-int8", "\"int9\""]);
    fail(&dir, &["run", "missing.csv"], &["missing.csv"]);
    assert!(runs(&dir).is_empty());
}

#[test]
fn rows_are_measured_and_failures_recorded_beside_them() {
    let dir = sheet(
        "model,prompt_tokens,gen_tokens,batch,isa,mode,runs,eval_tokens,timeout_s\n\
         demo,32,4,1,,dense,2,300,\n\
         demo,32,4,1,,int8,2,300,\n\
         demo,16000000,4,1,,dense,1,0,\n\
         no/such/directory,32,4,1,,dense,1,0,\n\
         demo,32,4,1,,dense,1000,0,1\n\
         demo,32,4,2,,dense,1,0,\n\
         demo,32,4,2,scalar,int8,1,0,\n",
    );
    let (table, said) = succeed(&dir, &["run"]);
    assert!(said.contains("7 rows to run") && said.contains("3 of 7 rows failed"), "{said}");
    assert!(table.contains("int8") && table.contains("failed"), "{table}");
    let [run] = &runs(&dir)[..] else { panic!("{:?}", runs(&dir)) };
    let records = records(run);
    let row = |n: usize| records.iter().find(|record| record["row"] == n.to_string()).unwrap();
    assert_eq!(records.len(), 7);

    for n in [1, 2, 6, 7] {
        let row = row(n);
        assert_eq!((row["status"].as_str(), row["error"].as_str()), ("ok", ""), "{row:?}");
        for column in
            ["prefill_s", "decode_s", "layer_prefill_s", "layer_decode_s", "weight_bytes", "kv_bytes", "read_gb_s"]
        {
            assert!(number(row, column) > 0.0, "{column}: {row:?}");
        }
        for phase in ["prefill", "decode"] {
            let [layer, attention, mlp] =
                ["", "_attention", "_mlp"].map(|of| number(row, &format!("layer_{phase}{of}_s")));
            assert!(attention > 0.0 && mlp > 0.0 && attention + mlp < layer, "norms are in neither: {row:?}");
        }
        // Medians of sums and sums of medians are not the same, but close for one or two runs.
        let total = number(row, "prefill_s") + number(row, "decode_s");
        assert!((number(row, "total_s") - total).abs() < 1e-4 * total, "{row:?}");
        assert!(number(row, "peak_rss_bytes") > number(row, "weight_bytes") / 4.0, "{row:?}");
        assert!(row["date"].ends_with('Z') && !row["cpu"].is_empty(), "{row:?}");
    }
    let (dense, int8) = (row(1), row(2));
    assert_eq!((dense["weights_dtype"].as_str(), int8["weights_dtype"].as_str()), ("bf16", "int8"));
    assert!(number(int8, "weight_bytes") < 0.8 * number(dense, "weight_bytes"));
    // Two sequences have twice the keys and values of one; the first row's quality is the model's own.
    assert_eq!(number(row(6), "kv_bytes"), 2.0 * number(dense, "kv_bytes"));
    assert_eq!((number(dense, "kl_mean"), number(dense, "perplexity")), (0.0, number(dense, "dense_perplexity")));
    assert!(number(int8, "kl_mean") > 0.0 && number(int8, "quality_tokens") > 200.0, "{int8:?}");
    assert_eq!((row(6)["perplexity"].as_str(), row(7)["isa_used"].as_str()), ("", "scalar"));

    for (n, says) in [(3, "do not fit"), (4, "no/such/directory"), (5, "longer than 1 s")] {
        assert_eq!(row(n)["status"], "failed");
        assert!(row(n)["error"].contains(says), "{:?}", row(n));
        assert_eq!(row(n)["decode_s"], "");
    }

    let page = fs::read_to_string(run.join("report.html")).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let parsed = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let cells = parsed.descendants().filter(|node| node.has_tag_name("tr")).count();
    assert_eq!(cells, 8, "a row each and the header");
    for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("longer than 1 s"), "errors are in the table");
}

#[test]
fn speed_up_is_plotted_against_what_varies() {
    let dir = sheet(
        "prompt_tokens,gen_tokens,batch,mode,runs,eval_tokens\n\
         16,3,1,dense,1,0\n16,3,1,int8,1,0\n16,3,2,dense,1,0\n16,3,2,int8,1,0\n",
    );
    succeed(&dir, &["run"]);
    let page = fs::read_to_string(runs(&dir)[0].join("report.html")).unwrap();
    // Decode and prefill against batch; prompt tokens and threads are the same in all rows.
    assert_eq!(page.matches("<svg").count(), 2, "{page}");
    assert!(page.contains(">batch</text>") && page.contains(">int8</text>") && !page.contains(">threads</text>"));
}

#[test]
fn sparse_rows_store_no_zeros() {
    let dir = sheet(
        "model,prompt_tokens,gen_tokens,mode,sparsity,runs\n\
         shape:smollm2-135m,4,2,dense,,1\nshape:smollm2-135m,4,2,sparse,0.5,1\nshape:smollm2-135m,4,2,sparse,0.75,1\n",
    );
    succeed(&dir, &["run"]);
    let records = records(&runs(&dir)[0]);
    let bytes: Vec<f64> = records.iter().map(|record| number(record, "weight_bytes_per_token")).collect();
    // Two bytes of what is not zero and a bit of all, the head included, against two bytes a weight.
    assert!(bytes[1] < 0.58 * bytes[0] && bytes[2] < 0.58 * bytes[1], "{bytes:?}");
    assert!(records.iter().all(|record| record["perplexity"].is_empty()), "random weights have no quality");
    let page = fs::read_to_string(runs(&dir)[0].join("report.html")).unwrap();
    assert!(page.contains(">weight sparsity</text>") && page.contains("they have no quality"), "{page}");
}

#[test]
fn repeats_take_turns_and_caches_have_a_tail() {
    let dir = sheet(
        "prompt_tokens,gen_tokens,k_sparsity,v_sparsity,kv_dense_tail,kv_sinks,runs,repeat,eval_tokens\n\
         500,2,,,,,1,1,0\n500,2,,,,,1,2,0\n500,2,0.5,0.5,64,,1,1,0\n500,2,0.5,0.5,64,,1,2,0\n500,2,0.5,0.5,128,8,1,1,0\n",
    );
    succeed(&dir, &["run"]);
    let records = records(&runs(&dir)[0]);
    let order: Vec<_> = records.iter().map(|record| record["row"].as_str()).collect();
    assert_eq!(order, ["1", "3", "5", "2", "4"]);
    let bytes: Vec<f64> = records.iter().map(|record| number(record, "kv_bytes")).collect();
    assert!(bytes[1] < bytes[2] && bytes[2] < bytes[0], "{bytes:?}");
    assert_eq!((bytes[3], bytes[4]), (bytes[0], bytes[1]));
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let dir = sheet(
        "prompt_tokens,gen_tokens,batch,mode,runs,eval_tokens\n\
         32,8,1,dense,2,0\n32,8,1,int8,2,0\n32,8,2,dense,2,0\n32,8,2,int8,2,0\n",
    );
    let mut first = experiments(&dir, &["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let lines = || {
        let path = runs(&dir).first().map(|run| run.join("results.csv"));
        path.and_then(|path| fs::read_to_string(path).ok()).map_or(0, |text| text.lines().count())
    };
    wait_for("a first row", || lines() >= 2);
    first.kill().unwrap();
    first.wait().unwrap();
    let before = records(&runs(&dir)[0]);
    assert!((1..4).contains(&before.len()), "{} rows before it was killed", before.len());

    let (_, said) = succeed(&dir, &["run"]);
    assert!(said.contains(&format!("{} of 4 rows are done, going on", before.len())), "{said}");
    assert_eq!(runs(&dir).len(), 1);
    let after = records(&runs(&dir)[0]);
    assert_eq!(after[..before.len()], before);
    let mut numbers: Vec<_> = after.iter().map(|record| record["row"].as_str()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    assert!(after.iter().all(|record| record["status"] == "ok"), "{after:?}");

    // Finished: called again it begins anew, and so does a sheet that was edited.
    fs::write(dir.path().join("experiments.csv"), "prompt_tokens,gen_tokens,runs,eval_tokens\n8,2,1,0\n").unwrap();
    succeed(&dir, &["run"]);
    succeed(&dir, &["run"]);
    assert_eq!(runs(&dir).len(), 3);
}

/// A worker that crashes, as one does that the system ends for want of memory, costs its own row.
#[test]
#[cfg(target_os = "linux")]
fn a_worker_that_is_killed_costs_its_row() {
    let dir = sheet("prompt_tokens,gen_tokens,batch,runs,eval_tokens\n32,8,1,1000,0\n32,8,1,1,0\n");
    let parent = experiments(&dir, &["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let id = parent.id();
    let worker = || -> Option<String> {
        let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?.flatten();
        let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        children.collect::<String>().split_whitespace().next().map(str::to_owned)
    };
    wait_for("a worker", || worker().is_some());
    let killed = Command::new("kill").args(["-9", &worker().unwrap()]).status().unwrap();
    assert!(killed.success());
    let output = parent.wait_with_output().unwrap();
    assert!(output.status.success());
    let records = records(&runs(&dir)[0]);
    assert_eq!(records.len(), 2);
    assert!(records[0]["status"] == "failed" && records[0]["error"].contains("signal: 9"), "{:?}", records[0]);
    assert_eq!(records[1]["status"], "ok", "{:?}", records[1]);
}
