use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sparrow_testing::tiny::{TensorFile, tensors, write, write_json, write_shards};

use super::{UP, case, check};

/// Breaks the index of a model in two shards.
fn index(edit: impl Fn(&mut Value) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut index = write_shards(dir);
        edit(&mut index);
        write_json(&dir.join("model.safetensors.index.json"), &index);
    }
}

/// Points one tensor elsewhere.
fn placed(value: Value) -> impl Fn(&Path) {
    index(move |index| index["weight_map"][UP] = value.clone())
}

#[test]
fn shards_and_their_index() {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let text = |text: &'static str| {
        move |dir: &Path| {
            write_shards(dir);
            write(&dir.join(INDEX), text);
        }
    };
    let shard = |edit: fn(&Path)| {
        move |dir: &Path| {
            write_shards(dir);
            edit(&dir.join(SECOND));
        }
    };
    check(vec![
        case("missing shard", shard(|p| fs::remove_file(p).unwrap()), &[INDEX, SECOND, "missing"]),
        case("truncated shard", shard(|p| write(p, &fs::read(p).unwrap()[..300])), &[SECOND, "not a valid"]),
        case("empty shard", shard(|p| write(p, "")), &[SECOND, "is empty"]),
        case(
            "a tensor in both shards",
            shard(|p| {
                let all = tensors();
                write(p, TensorFile::new(&[&all[..1], &all[all.len().div_ceil(2)..]].concat()).bytes());
            }),
            &[SECOND, "model.embed_tokens.weight", "is also in", FIRST],
        ),
        case("index not JSON", text("{"), &[INDEX, "not valid JSON"]),
        case("index an array", text("[]"), &[INDEX, "expected a JSON object", "an array"]),
        case("index without weight_map", text("{}"), &[INDEX, "weight_map is missing"]),
        case("weight_map a list", text(r#"{"weight_map": []}"#), &[INDEX, "weight_map", "not an object"]),
        case("empty weight_map", text(r#"{"weight_map": {}}"#), &[INDEX, "names no tensor"]),
        case("a number as shard", placed(json!(7)), &[INDEX, UP, "found 7"]),
        case("null as shard", placed(Value::Null), &[INDEX, UP, "found null"]),
        case("path traversal", placed(json!("../model/model-00002-of-00002.safetensors")), &[INDEX, UP, "file name"]),
        case("absolute path", placed(json!("/etc/passwd")), &[INDEX, UP, "/etc/passwd"]),
        case("backslashes", placed(json!("..\\x.safetensors")), &[INDEX, UP, "file name"]),
        case("parent as shard", placed(json!("..")), &[INDEX, UP, "file name"]),
        case("itself as shard", placed(json!(".")), &[INDEX, UP, "file name"]),
        case("no name as shard", placed(json!("")), &[INDEX, UP, "file name"]),
        case("a zero byte in the name", placed(json!("a\0b")), &[INDEX, "missing"]),
        case("tensor in the wrong shard", placed(json!(FIRST)), &[INDEX, UP, FIRST, "does not hold it"]),
        case("config as shard", placed(json!("config.json")), &["config.json", "not a valid safetensors file"]),
        case(
            "a tensor that is nowhere",
            index(|i| i["weight_map"]["model.extra.weight"] = json!(SECOND)),
            &[INDEX, "model.extra.weight", SECOND, "does not hold it"],
        ),
        case(
            "shards without their index",
            |d| {
                write_shards(d);
                fs::remove_file(d.join(INDEX)).unwrap();
            },
            &["neither", INDEX, FIRST, "download the others"],
        ),
    ]);
}
