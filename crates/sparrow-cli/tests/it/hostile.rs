//! Every command where the world is against it: nothing to read from or to write to, no memory, no files, no place. Each ends with
//! status 0, 1 or 2, and none dies of it.
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::{PROMPT, demo, fail, sparrow, text};

/// Every command, small; `OUT` is a directory to write.
fn commands(out: &Path) -> Vec<Vec<String>> {
    let (demo, text, prompt) =
        (demo().display().to_string(), text().display().to_string(), PROMPT.replace(' ', "\u{a0}"));
    let lines = format!(
        "--help
         --version
         generate --help
         nonsense
         generate -p {prompt} -n 4
         generate -f - -n 4
         generate -p {prompt} -n 4 -t 64
         generate -p {prompt} -n 4 --weights ram
         generate -p {prompt} -n 4 --dtype int8
         eval --max-tokens 64
         eval --max-tokens 64 --format json
         inspect
         inspect --format json
         doctor
         profile --prompt-tokens 8 --gen-tokens 2
         bench --prompt-tokens 8 --gen-tokens 2 --runs 1
         sparsify {demo} -o OUT/sparse --selector gate --text {text} --window 64 --max-tokens 2000
         tune -m {demo} -o OUT/tuned --target-kl 0.01 --text {text} --window 64 --max-tokens 1500 --runs 1
         prune -m {demo} -o OUT/pruned --method magnitude --sparsity 0.5 --text {text} --max-tokens 2000
         quantize -m {demo} -o OUT/quantized --method rtn --text {text} --max-tokens 2000
         pack -m {demo} -o OUT/packed
         synth --shape llama-3.2-1b -o /proc/none/synth
         experiments generate --example
         experiments run OUT/none.csv -o OUT/results"
    );
    let out = out.display().to_string();
    let argument = |text: &str| text.replace("OUT", &out).replace('\u{a0}', " ");
    lines.lines().map(|line| line.split(' ').filter(|word| !word.is_empty()).map(argument).collect()).collect()
}

#[track_caller]
fn survive(how: &str) {
    survive_with(how, None);
}

/// Runs every command through a shell that does `how` first, writing to `streams` if there is one, and finds that none crashes.
#[track_caller]
fn survive_with(how: &str, streams: Option<&std::io::PipeWriter>) {
    let mut wrong = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    for args in commands(dir.path()) {
        let (program, said) = (sparrow(&[]), dir.path().join("stderr"));
        let mut command = Command::new("sh");
        command.arg("-c").arg(how).arg("sh").arg(program.get_program()).args(&args);
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null());
        match streams {
            Some(writer) => command.stdout(writer.try_clone().unwrap()).stderr(writer.try_clone().unwrap()),
            None => command.stdout(Stdio::null()).stderr(std::fs::File::create(&said).unwrap()),
        };
        let status = command.status().unwrap();
        let message = std::fs::read_to_string(said).unwrap_or_default();
        let crashed =
            !matches!(status.code(), Some(0..=2)) || message.contains("panicked") || message.contains("a bug");
        if crashed {
            wrong.push(format!("{args:?}: {status}: {message}"));
        }
        for name in ["sparse", "pruned", "quantized", "packed"] {
            let path = dir.path().join(name);
            if path.exists() && !path.join("config.json").exists() {
                wrong.push(format!("{args:?}: half a model was left"));
            }
            let _ = std::fs::remove_dir_all(path);
        }
    }
    assert!(wrong.is_empty(), "{how}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn closed_streams() {
    survive(r#"exec "$@" <&-"#);
    survive(r#"exec "$@" >&-"#);
    survive(r#"exec "$@" 2>&-"#);
    survive(r#"exec "$@" <&- >&- 2>&-"#);
}

#[test]
#[cfg(target_os = "linux")]
fn streams_that_nobody_takes_from() {
    survive(r#"exec "$@" >/dev/full"#);
    survive(r#"exec "$@" 2>/dev/full"#);
    // A reader that is gone before anything is written.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    survive_with(r#"exec "$@""#, Some(&writer));
}

#[test]
#[cfg(target_os = "linux")]
fn little_memory() {
    for megabytes in [64, 160, 1000] {
        survive(&format!(r#"ulimit -v {}; exec "$@""#, megabytes * 1024));
    }
}

#[test]
fn few_files() {
    survive(r#"ulimit -n 6; exec "$@""#);
}

#[test]
#[cfg(target_os = "linux")]
fn places_that_cannot_be_written() {
    let (demo, text) = (demo().display().to_string(), text().display().to_string());
    for out in ["/proc/none/out", "/dev/null/out", "/proc/out"] {
        fail(
            1,
            &["sparsify", &demo, "-o", out, "--selector", "gate", "--text", &text],
            &[out.rsplit_once('/').unwrap().0],
        );
        fail(
            1,
            &["prune", "-m", &demo, "-o", out, "--method", "magnitude", "--sparsity", "0.5", "--text", &text],
            &[out.rsplit_once('/').unwrap().0],
        );
        fail(
            1,
            &["quantize", "-m", &demo, "-o", out, "--method", "rtn", "--text", &text],
            &[out.rsplit_once('/').unwrap().0],
        );
        fail(1, &["pack", "-m", &demo, "-o", out], &[out.rsplit_once('/').unwrap().0]);
    }
}

#[test]
fn names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"/tmp/\xff\xfe");
    for args in [
        &["generate", "-p"][..],
        &["generate", "-f"],
        &["inspect"],
        &["eval", "--text"],
        &["generate", "-p", "a", "-m"],
    ] {
        let output = sparrow(args).arg(name).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {}: {message}", output.status);
        assert!(!message.contains("panicked"), "{message}");
    }
    for variable in ["HOME", "HF_HOME", "SPARROW_ISA", "COLUMNS", "TERM"] {
        let status = sparrow(&["inspect", "org/none"]).env("HF_HUB_OFFLINE", "1").env(variable, name).status().unwrap();
        assert_eq!(status.code(), Some(1), "{variable}");
    }
}

#[test]
fn numbers_at_their_ends() {
    let (most, text) = (u64::MAX.to_string(), text().display().to_string());
    for args in [
        &["generate", "-p", PROMPT, "-n", &most][..],
        &["generate", "-p", PROMPT, "-n", "2", "--seed", &most, "--temperature", "1"],
        &["generate", "-p", PROMPT, "-n", "2", "--top-k", &most, "--temperature", "1e-45"],
        &["generate", "-p", PROMPT, "-n", "200", "--kv-sparsity", "1", "--kv-sinks", &most, "--kv-dense-tail", &most],
        &["generate", "-p", PROMPT, "-n", "200", "--kv-sparsity", "1", "--kv-sinks", "0", "--kv-dense-tail", "0"],
        &["eval", "--max-tokens", "0"],
        &["eval", "--max-tokens", "1"],
        &["eval", "--max-tokens", "64", "--window", "4294967295"],
        &["bench", "--prompt-tokens", &most, "--gen-tokens", &most, "--runs", "1"],
        &["bench", "--prompt-tokens", "8", "--gen-tokens", "2", "--runs", "1", "--batch", &most],
        &["profile", "--prompt-tokens", &most, "--gen-tokens", "2"],
        &["sparsify", "assets/demo", "-o", "/proc/none/x", "--selector", "lowrank", "--rank", &most, "--text", &text],
    ] {
        let output = sparrow(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0..=2)), "{args:?}: {}: {message}", output.status);
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
}
