use std::fs;
use std::path::Path;

use sparrow_testing::tiny::{write, write_shards};

use super::{case, check};

const FILES: [&str; 4] = ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"];

/// Removes the weights, and puts another file there.
fn instead(name: &'static str) -> impl Fn(&Path) {
    move |dir| {
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        write(&dir.join(name), "x");
    }
}

#[test]
fn files_that_are_something_else() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1044992\n";
    for file in FILES {
        let is = |content: &'static str| move |dir: &Path| write(&dir.join(file), content);
        check(vec![
            case("a pointer", is(POINTER), &[file, "Git LFS pointer", "git lfs pull"]),
            case("a web page", is("\n<!DOCTYPE html><html><title>Sign in</title>"), &[file, "web page", "download"]),
            case("nothing", is(""), &[file, "is empty"]),
            case("a message", is("Entry not found"), &[file]),
        ]);
    }
    check(vec![case(
        "a message as weights",
        |d| write(&d.join(FILES[0]), "Entry not found"),
        &["begins with \"Entry"],
    )]);
}

#[test]
#[cfg(unix)]
fn links_that_lead_nowhere() {
    let link = |path: &Path| {
        let _ = fs::remove_file(path);
        std::os::unix::fs::symlink("../../blobs/0123abcd", path).unwrap();
    };
    for file in FILES {
        check(vec![case(
            "a blob that is gone",
            move |d| link(&d.join(file)),
            &[file, "a link to ../../blobs/0123abcd"],
        )]);
    }
    let shard = move |dir: &Path| {
        write_shards(dir);
        link(&dir.join("model-00002-of-00002.safetensors"));
    };
    let index = move |dir: &Path| {
        write_shards(dir);
        link(&dir.join("model.safetensors.index.json"));
    };
    let all = move |dir: &Path| {
        fs::remove_dir_all(dir).unwrap();
        link(dir);
    };
    check(vec![
        case("a shard", shard, &["model-00002-of-00002.safetensors", "a link to"]),
        case("the index", index, &["index.json", "a link to"]),
        case("the directory", all, &["model", "a link to"]),
    ]);
}

#[test]
fn what_is_there_instead_of_weights() {
    check(vec![
        case("pickled", instead("pytorch_model.bin"), &["pytorch_model.bin", "pickled", "save_pretrained"]),
        case("a GGUF file", instead("tiny-q4.gguf"), &["pass", "tiny-q4.gguf"]),
        case("an adapter", instead("adapter_model.safetensors"), &["adapter_model.safetensors", "LoRA", "merge"]),
        case(
            "a maker's format",
            instead("consolidated.safetensors"),
            &["consolidated.safetensors", "Hugging Face format"],
        ),
        case("another name", instead("weights.safetensors"), &["weights.safetensors", "rename"]),
        case("nothing", instead("notes.txt"), &["neither", "download the model's weights"]),
        case(
            "a directory of the hub's cache",
            |dir| {
                fs::remove_dir_all(dir).unwrap();
                fs::create_dir_all(dir.join("snapshots/0123")).unwrap();
            },
            &["has no config.json", "hub's cache", "org/name"],
        ),
    ]);
    // Advice that would not help is not given.
    let dir = tempfile::tempdir().unwrap();
    sparrow_testing::tiny::write_model(dir.path());
    instead("notes.txt")(dir.path());
    let message = sparrow_testing::tiny::load_and_step(dir.path()).unwrap_err().to_string();
    assert!(!message.contains("convert"), "{message}");
}
