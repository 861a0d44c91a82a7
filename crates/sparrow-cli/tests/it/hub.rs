//! Models by the hub's ids, from its cache, without network.

use std::time::{Duration, Instant};

use crate::command::{PROMPT, demo, refused, sparrow, stdout, succeed};

#[test]
fn hub_ids_fail_at_once_offline_and_say_where_to_put_the_model() {
    let home = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let run = |args: &[&str]| sparrow(args).env("HF_HOME", home.path()).output().unwrap();
    let place = home.path().join("hub/models--org--name/snapshots/main");
    let says = ["org/name", "HF_HUB_OFFLINE", "pass its directory", place.to_str().unwrap()];
    refused(&run(&["generate", "--model", "org/name", "--prompt", "a"]), 1, &says);
    refused(&run(&["inspect", "org/name"]), 1, &says);
    refused(&run(&["inspect", "org/name@v2"]), 1, &["org/name@v2", "snapshots/v2"]);
    refused(&run(&["inspect", "org/name@../../.."]), 1, &["branch, a tag or a commit"]);
    refused(&run(&["inspect", "org/name@"]), 1, &["branch, a tag or a commit"]);
    // Nothing listens there: what a machine without a route to the hub sees.
    let mut unreachable = sparrow(&["inspect", "org/name"]);
    unreachable.env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", "http://127.0.0.1:9");
    refused(
        &unreachable.output().unwrap(),
        1,
        &["asking the hub failed", "pass its directory", place.to_str().unwrap()],
    );
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn a_hub_that_never_answers_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let start = Instant::now();
    let mut command = sparrow(&["inspect", "org/name"]);
    command.env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", endpoint);
    refused(&command.output().unwrap(), 1, &["did not answer within", "pass its directory"]);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn hub_ids_load_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--demo");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let run = |model: &str| {
        let args = ["generate", "--model", model, "--prompt", PROMPT, "-n", "4"];
        sparrow(&args).env("HF_HOME", home.path()).output().unwrap()
    };
    std::fs::copy(demo().join("config.json"), snapshot.join("config.json")).unwrap();
    refused(&run("org/demo"), 1, &["only a part of it", commit]);
    for name in ["model.safetensors", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(demo().join(name), snapshot.join(name)).unwrap();
    }
    let expected = succeed(&["generate", "--prompt", PROMPT, "-n", "4"]);
    assert_eq!(stdout(&run("org/demo")), expected);
    assert_eq!(stdout(&run("org/demo@main")), expected);
    assert_eq!(stdout(&run(&format!("org/demo@{commit}"))), expected);
    refused(&run("org/demo@other"), 1, &["org/demo@other", "not in the cache"]);
}

#[test]
fn gguf_files_by_the_ids_of_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--name");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(snapshot.join("q4")).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let run = |model: &str| sparrow(&["inspect", model]).env("HF_HOME", home.path()).output().unwrap();
    refused(
        &run("org/name/q4/tiny.gguf"),
        1,
        &["is no file here", "not in the cache", "pass its path", "main/q4/tiny.gguf"],
    );
    // What is found is read, and found wanting.
    std::fs::write(snapshot.join("q4/tiny.gguf"), "GGUF").unwrap();
    refused(&run("org/name/q4/tiny.gguf"), 1, &["q4/tiny.gguf", "the version"]);
    refused(&run("org/name/q4/tiny.gguf@main"), 1, &["q4/tiny.gguf", "the version"]);
    std::fs::write(snapshot.join("big-00001-of-00002.gguf"), "GGUF").unwrap();
    refused(&run("org/name/big-00001-of-00002.gguf"), 1, &["only a part of it"]);
    for name in ["org/name/../tiny.gguf", "org/name/none.txt", "org//tiny.gguf"] {
        refused(&run(name), 1, &[name]);
    }
}
