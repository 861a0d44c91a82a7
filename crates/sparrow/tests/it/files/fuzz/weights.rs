//! Files of tensors.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use sparrow::DType;
use sparrow_testing::tiny::{self, TensorFile};

use super::{bytes_of, damage, good, replace, replacements, survive, values_of};

/// Configuration and header of quantised checkpoints, and any bits for codes, scales and zero points.
#[test]
fn compressed_checkpoints() {
    for case in ["int8-channel", "int4-group-32", "int4-group-128-zero"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compressed").join(case);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        tiny::load_and_step(dir.path()).unwrap();
        let config = fs::read(dir.path().join("config.json")).unwrap();
        values_of(dir.path(), "config.json", 100);
        fs::write(dir.path().join("config.json"), config).unwrap();
        let original = fs::read(dir.path().join("model.safetensors")).unwrap();
        let (header, data) = tiny::parts(&original);
        survive(dir.path(), "model.safetensors", 150, replacements(), |_, list| {
            let mut value = Value::Object(header.clone());
            for (path, new) in list {
                replace(&mut value, &path, new);
            }
            tiny::framed(value.to_string().as_bytes(), data)
        });
        survive(dir.path(), "model.safetensors", 50, prop::collection::vec(any::<u8>(), 64), |_, noise| {
            let data: Vec<u8> = (0..data.len()).map(|i| noise[(i * 31 + i / 64) % noise.len()]).collect();
            tiny::framed(Value::Object(header.clone()).to_string().as_bytes(), &data)
        });
    }
}

#[test]
fn safetensors_bytes() {
    let dir = good(false, false);
    bytes_of(dir.path(), "model.safetensors", 300);
}

/// Damage to the header alone, with a length that matches it: past the first check.
#[test]
fn safetensors_header() {
    let dir = good(false, false);
    let file = TensorFile::new(&tiny::tensors());
    let header = Value::Object(file.header.clone());
    survive(dir.path(), "model.safetensors", 300, prop::collection::vec(damage(), 1..3), |_, list| {
        let mut bytes = header.to_string().into_bytes();
        list.iter().for_each(|damage| damage.apply(&mut bytes));
        tiny::framed(&bytes, &file.data)
    });
    survive(dir.path(), "model.safetensors", 400, replacements(), |_, list| {
        let mut value = header.clone();
        for (path, new) in list {
            replace(&mut value, &path, new);
        }
        tiny::framed(value.to_string().as_bytes(), &file.data)
    });
}

#[test]
fn bitmaps() {
    for dtype in [None, Some(DType::I8), Some(DType::I4G32)] {
        let dir = good(false, false);
        let file = tiny::write_packed(dir.path(), dtype);
        bytes_of(dir.path(), "model.safetensors", 150);
        // The bytes of the tensors alone: past the checks of the header.
        survive(
            dir.path(),
            "model.safetensors",
            300,
            prop::collection::vec((any::<Index>(), 1..=255u8), 1..4),
            |_, list| {
                let mut damaged = file.clone();
                for (at, bits) in list {
                    let len = damaged.data.len();
                    damaged.data[at.index(len)] ^= bits;
                }
                damaged.bytes()
            },
        );
    }
}

/// Weights that are any bits at all (NaN, infinities, denormals) run.
#[test]
fn weights_of_any_bits() {
    let dir = good(false, true);
    fs::remove_file(dir.path().join("sparrow.json")).unwrap();
    let file = TensorFile::new(&tiny::tensors());
    survive(dir.path(), "model.safetensors", 100, prop::collection::vec(any::<u8>(), 64), |_, noise| {
        let data = (0..file.data.len()).map(|i| noise[(i * 31 + i / 64) % noise.len()]).collect();
        TensorFile { header: file.header.clone(), data }.bytes()
    });
}
