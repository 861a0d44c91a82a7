use std::path::Path;

use serde_json::{Value, json};
use sparrow::{DType, KvOptions, Load, SessionOptions};
use sparrow_testing::tiny::{self, TensorFile, write};

use super::{UP, case, check};

const PACKED: &str = "model.layers.1.mlp.up_proj";

/// Edits a good file of bitmaps, of elements as they are or quantised.
fn packed(dtype: Option<DType>, edit: impl Fn(&mut TensorFile) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut file = tiny::write_packed(dir, dtype);
        edit(&mut file);
        write(&dir.join("model.safetensors"), file.bytes());
    }
}

/// Changes bytes of one part of [`PACKED`], from `at` on.
fn packed_bytes(part: &'static str, at: usize, bytes: &'static [u8]) -> impl Fn(&Path) {
    packed(None, move |file| file.tensor(&format!("{PACKED}.{part}"))[at..at + bytes.len()].copy_from_slice(bytes))
}

/// Changes the header of one part of [`PACKED`].
fn packed_header(dtype: Option<DType>, part: &'static str, key: &'static str, value: Value) -> impl Fn(&Path) {
    packed(dtype, move |file| file.header[&format!("{PACKED}.{part}")][key] = value.clone())
}

#[test]
fn bitmaps() {
    let inconsistent = "consistent bitmap";
    let without = |part: &'static str| {
        packed(Some(DType::I8), move |file| {
            // Another name: it stays in the file.
            let info = file.header.remove(&format!("{PACKED}.{part}")).unwrap();
            file.header.insert("spare".into(), info);
        })
    };
    check(vec![
        case("no shape", without("shape"), &[PACKED, "shape", "no such tensor"]),
        case("no bitmask", without("bitmask"), &[PACKED, "no such tensor"]),
        case("no elements", without("compressed"), &[PACKED, "compressed", "no such tensor"]),
        case("no offsets", without("row_offsets"), &[PACKED, "row_offsets", "no such tensor"]),
        case("no scales", without("weight_scale"), &[PACKED, "weight_scale", "no such tensor"]),
        case("another shape", packed_bytes("shape", 0, &[9]), &[PACKED, "shape", "[12, 8]", "[9, 8]"]),
        case(
            "bits past the last column",
            packed(None, |file| file.tensor("model.layers.1.mlp.down_proj.bitmask")[1] |= 0xf0),
            &["down_proj", inconsistent, "past the last column"],
        ),
        case("a bit too few", packed_bytes("bitmask", 3, &[0]), &[PACKED, inconsistent, "offset"]),
        case("an offset too large", packed_bytes("row_offsets", 8, &[200]), &[PACKED, inconsistent, "offset"]),
        case("a negative offset", packed_bytes("row_offsets", 8, &[0xff; 8]), &[PACKED, inconsistent, "offset"]),
        case("a first offset", packed_bytes("row_offsets", 0, &[1]), &[PACKED, inconsistent, "offset"]),
        case(
            "elements of no type",
            packed_header(None, "compressed", "dtype", json!("I32")),
            &[PACKED, "compressed", "F32, F16, BF16, I8 or U8", "I32"],
        ),
        case(
            "another mask",
            packed_header(None, "bitmask", "shape", json!([6, 2])),
            &[PACKED, "bitmask", "shape [12, 1]", "[6, 2]"],
        ),
        case(
            "offsets of columns",
            packed_header(None, "row_offsets", "shape", json!([2, 6])),
            &[PACKED, "row_offsets", "shape [12]", "[2, 6]"],
        ),
        case(
            "scales of columns",
            packed_header(Some(DType::I8), "weight_scale", "shape", json!([1, 12])),
            &[PACKED, "weight_scale", "shape [12, 1]", "[1, 12]"],
        ),
        case(
            "too many groups",
            packed_header(Some(DType::I4G32), "weight_scale", "shape", json!([6, 2])),
            &[PACKED, "weight_scale", "[6, 2]"],
        ),
        case(
            "whole and packed",
            packed(None, |file| {
                let info = file.header["model.norm.weight"].clone();
                let start = file.data.len();
                file.data.extend([0; 4 * 12 * 8]);
                let mut whole = info;
                whole["shape"] = json!([12, 8]);
                whole["data_offsets"] = json!([start, file.data.len()]);
                file.header.insert(UP.into(), whole);
            }),
            &[PACKED, "this one too"],
        ),
    ]);
}

/// Bits are bounds: those of loading count, whatever becomes of the file.
#[test]
fn a_mask_that_changes_after_loading_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    let mut file = tiny::write_packed(dir.path(), None);
    let path = dir.path().join("model.safetensors");
    write(&path, file.bytes());
    let loaded = Load::new(dir.path()).threads(1).open(|_, _, _| ()).unwrap();
    let options = SessionOptions { sequences: 1, capacity: 8, kv: KvOptions::default() };
    let mut session = loaded.session(options).unwrap();
    let before = session.prefill(0, &[3, 5, 7]).unwrap().to_vec();
    let masks: Vec<String> = file.header.keys().filter(|name| name.ends_with(".bitmask")).cloned().collect();
    assert!(!masks.is_empty());
    masks.iter().for_each(|name| file.tensor(name).fill(0xff));
    // Written into the same file: a map sees it.
    let mut written = std::fs::File::options().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut written, &file.bytes()).unwrap();
    session.truncate(0, 0).unwrap();
    assert_eq!(session.prefill(0, &[3, 5, 7]).unwrap(), before);
}
