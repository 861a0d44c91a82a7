//! Random damage to the files of a model directory never makes loading panic, and what still loads runs one token.
//! `SPARROW_FUZZ=100 cargo test -p sparrow --test it fuzz` tries a hundred times as many cases.

mod configs;
mod selectors;
mod sidecars;
mod weights;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use sparrow_testing::tiny;

/// One act of damage to a file.
#[derive(Debug, Clone)]
pub enum Damage {
    /// Flips bits of the byte at this place.
    Flip(Index, u8),
    /// Cuts the file here.
    Truncate(Index),
    /// Inserts bytes.
    Insert(Index, Vec<u8>),
    /// Removes up to this many bytes.
    Remove(Index, u8),
}

impl Damage {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            Damage::Flip(at, bits) if len > 0 => bytes[at.index(len)] ^= bits,
            Damage::Truncate(at) => bytes.truncate(at.index(len + 1)),
            Damage::Insert(at, new) => {
                let at = at.index(len + 1);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) if len > 0 => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + usize::from(*count)));
            }
            _ => {}
        }
    }
}

pub fn damage() -> impl Strategy<Value = Damage> {
    // Digits and punctuation keep JSON alive more often than any byte does.
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(b"0123456789-+.eE,:[]{}\" ntf\\".as_slice())];
    prop_oneof![
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        3 => (any::<Index>(), prop::collection::vec(byte, 1..6)).prop_map(|(at, new)| Damage::Insert(at, new)),
        2 => (any::<Index>(), 1..16u8).prop_map(|(at, count)| Damage::Remove(at, count)),
    ]
}

/// JSON that a field should not have, or should within limits.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..40).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..4.0f64).prop_map(Value::from),
        "[a-z0-9_./\\\\-]{0,12}".prop_map(Value::from),
        proptest::sample::select(
            [
                "relu",
                "silu",
                "gelu",
                "linear",
                "dynamic",
                "llama3",
                "yarn",
                "longrope",
                "default",
                "sliding_attention",
                "F16",
                "BF16",
                "gate",
                "dense",
            ]
            .as_slice()
        )
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let key = proptest::sample::select(
            ["factor", "rope_type", "type", "rope_theta", "fixed", "top-k", "quantile", "mean-std", "x"].as_slice(),
        );
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..3)
                .prop_map(|list| Value::Object(list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Replaces the value at a random place inside `value`.
fn replace(value: &mut Value, path: &[Index], new: Value) {
    match (path.split_first(), value) {
        (Some((at, rest)), Value::Object(map)) if !map.is_empty() => {
            let at = at.index(map.len());
            let child = map.values_mut().nth(at).expect("inside");
            replace(child, rest, new);
        }
        (Some((at, rest)), Value::Array(list)) if !list.is_empty() => {
            let at = at.index(list.len());
            replace(&mut list[at], rest, new);
        }
        (_, value) => *value = new,
    }
}

/// Places and values to put there.
fn replacements() -> impl Strategy<Value = Vec<(Vec<Index>, Value)>> {
    prop::collection::vec((prop::collection::vec(any::<Index>(), 1..4), json_value()), 1..4)
}

/// A good directory, made once and copied for each case.
fn good(shards: bool, sidecar: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    if shards {
        tiny::write_shards(dir.path());
    }
    if sidecar {
        tiny::write_sidecar(dir.path());
    }
    tiny::load_and_step(dir.path()).unwrap();
    dir
}

pub fn config(cases: u32) -> ProptestConfig {
    let times = std::env::var("SPARROW_FUZZ").map_or(1, |times| times.parse().expect("SPARROW_FUZZ is a number"));
    ProptestConfig { cases: cases * times, failure_persistence: None, ..ProptestConfig::default() }
}

/// Damages `file` of a good directory `cases` times; nothing may panic.
fn survive<S: Strategy>(dir: &Path, file: &str, cases: u32, strategy: S, damage: impl Fn(&[u8], S::Value) -> Vec<u8>) {
    let path = dir.join(file);
    let original = fs::read(&path).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(config(cases));
    let result = runner.run(&strategy, |value| {
        // A new file each time: the old one may still be mapped.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damage(&original, value)).unwrap();
        if let Err(error) = tiny::load_and_step(dir) {
            let message = error.to_string();
            prop_assert!(!message.is_empty() && message.len() < 2000, "message of {} bytes", message.len());
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{file}: {error}");
    }
}

fn bytes_of(dir: &Path, file: &str, cases: u32) {
    let strategy = prop::collection::vec(damage(), 1..4);
    survive(dir, file, cases, strategy, |original, list| {
        let mut bytes = original.to_vec();
        list.iter().for_each(|damage| damage.apply(&mut bytes));
        bytes
    });
}

fn values_of(dir: &Path, file: &str, cases: u32) {
    survive(dir, file, cases, replacements(), |original, list| {
        let mut value: Value = serde_json::from_slice(original).unwrap();
        for (path, new) in list {
            replace(&mut value, &path, new);
        }
        value.to_string().into_bytes()
    });
}
