//! What is wrong with a file is said, and nothing that it says of sizes is believed: none of this panics or allocates.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use sparrow::internals::checkpoint::Gguf;
use sparrow::internals::checkpoint::config::parse_config;
use sparrow::{KvOptions, Load, SessionOptions, Tokenizer};
use sparrow_testing::gguf::{GgufFile, GgufTensor, Value};

use super::super::fuzz::{config, damage};
use super::tokenizers::byte_level;
use super::written;

/// A model of one layer with a tokenizer.
fn good() -> GgufFile {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let spec = parse_config(Path::new("config.json"), &config).unwrap();
    let (mut file, _) = GgufFile::of_random("llama", &config, &spec, 1);
    file.metadata.extend(byte_level("smollm").metadata);
    file
}

/// Loads a file and runs a token; the error, if there is one.
fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let loaded = Load::new(&path).threads(1).open(|_, _, _| ()).map_err(|e| e.to_string())?;
    let mut session = loaded.session(SessionOptions { sequences: 1, capacity: 2, kv: KvOptions::default() });
    session.as_mut().map_err(|e| e.to_string())?.prefill(0, &[0]).map_err(|e| e.to_string())?;
    Ok(())
}

fn fails(file: &GgufFile, what: &str) {
    let error = run(&file.bytes()).expect_err(what);
    assert!(error.contains(what) && error.contains("model.gguf"), "{error:?} says nothing of {what:?}");
}

/// The bytes with a number of the header replaced where `at` finds its place.
fn patched(file: &GgufFile, at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = file.bytes();
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

#[test]
fn headers() {
    run(&good().bytes()).unwrap();
    let error = |at, number: &[u8], what: &str| {
        let error = run(&patched(&good(), at, number)).expect_err(what);
        assert!(error.contains(what), "{error:?} says nothing of {what:?}");
    };
    error(0, b"GGML", "does not begin with \"GGUF\"");
    error(4, &1u32.to_le_bytes(), "version 1");
    error(4, &9u32.to_le_bytes(), "version 9");
    error(4, &3u32.to_be_bytes(), "big-endian");
    for huge in [u64::MAX, 1 << 63, 1 << 60] {
        error(8, &huge.to_le_bytes(), "the number of tensors");
        error(16, &huge.to_le_bytes(), "the number of keys");
        // The length of the first key.
        error(24, &huge.to_le_bytes(), "key 0");
    }
    let whole = good().bytes();
    for cut in [0, 3, 7, 12, 23, 40, whole.len() / 2, whole.len() - 1] {
        run(&whole[..cut]).expect_err("cut off");
    }
}

#[test]
fn metadata() {
    let with = |key: &str, value| {
        let mut file = good();
        file.set(key, value);
        file
    };
    let list = |kind: u32, count: u64| Value::Raw(9, [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    for count in [u64::MAX, 1 << 63, 1 << 40] {
        for kind in [0, 6, 7, 8, 12] {
            fails(&with("x", list(kind, count)), "x: says");
        }
        fails(&with("x", Value::Raw(8, count.to_le_bytes().to_vec())), "x at byte");
    }
    fails(&with("x", list(9, 1)), "array of arrays");
    fails(&with("x", list(77, 1)), "unknown type 77");
    fails(&with("x", Value::Raw(77, vec![])), "unknown type 77");
    fails(&with("x", Value::Raw(7, vec![2])), "must be 0 or 1");
    fails(&with("x", Value::Raw(8, [&3u64.to_le_bytes()[..], &[0xff; 3]].concat())), "is not UTF-8");
    let mut twice = good();
    twice.metadata.push(("general.architecture".into(), Value::Text("llama".into())));
    fails(&twice, "general.architecture is there twice");
    for alignment in [0, 3, 33] {
        fails(&with("general.alignment", Value::U32(alignment)), "general.alignment");
    }
    fails(
        &with("general.architecture", Value::Text("mamba".into())),
        "\"mamba\", which is not supported; supported: llama",
    );
    fails(&with("general.architecture", Value::U32(1)), "must be a string");
    fails(&with("llama.embedding_length", Value::U32(0)), "llama.embedding_length must be an integer");
    fails(&with("llama.embedding_length", Value::Text("8".into())), "llama.embedding_length must be an integer");
    fails(&with("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)), "must be a finite number above 0");
    fails(&with("llama.attention.value_length", Value::U32(6)), "differs from attention.key_length");
    fails(&with("llama.block_count", Value::U32(2)), "no such tensor");
    fails(&with("llama.rope.scaling.type", Value::Text("su".into())), "rope.scaling.type");
    fails(&with("split.count", Value::U32(3)), "rename the files");
    let mut missing = good();
    missing.metadata.retain(|(key, _)| key != "llama.context_length");
    fails(&missing, "llama.context_length is missing");
}

#[test]
fn tensors() {
    let with = |change: &dyn Fn(&mut GgufTensor)| {
        let mut file = good();
        let tensor = file.tensors.iter_mut().find(|tensor| tensor.name == "blk.0.attn_v.weight").unwrap();
        change(tensor);
        file
    };
    fails(&with(&|t| t.shape = vec![]), "has 0 dimensions");
    fails(&with(&|t| t.shape = vec![1; 5]), "has 5 dimensions");
    fails(&with(&|t| t.shape[0] = 0), "has a dimension of 0");
    fails(&with(&|t| t.shape = vec![1 << 40, 1 << 40]), "more bytes than there can be");
    fails(&with(&|t| t.shape = vec![u64::MAX, 8]), "more bytes than there can be");
    fails(&with(&|t| t.shape = vec![1 << 61, 8]), "more bytes than there can be");
    fails(&with(&|t| t.shape = vec![1 << 30, 8]), "download is not complete");
    fails(&with(&|t| t.shape = vec![8, 4]), "v_proj.weight: expected shape [4, 8], found shape [8, 4]");
    fails(&with(&|t| t.kind = 2), "are not whole blocks of 32");
    fails(&with(&|t| t.kind = 16), "is of type IQ2_XXS: F32, F16, Q4_0");
    fails(&with(&|t| t.kind = 999), "is of type number 999");
    fails(&with(&|t| t.name = "blk.0.ffn_gate_inp.weight".into()), "blk.0.ffn_gate_inp.weight is not part of a model");
    fails(&with(&|t| t.name = "token_embd.weight".into()), "token_embd.weight is there twice");
    // An offset between two multiples of the alignment, and one beyond everything.
    let file = good();
    let name = b"blk.0.attn_v.weight";
    let at = file.bytes().windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16 + 4;
    for (offset, what) in
        [(1, "is not a multiple of 32"), (u64::MAX - 31, "the file ends at"), (1 << 63, "the file ends at")]
    {
        let error = run(&patched(&file, at, &u64::to_le_bytes(offset))).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn tokenizers() {
    let with = |key: &str, value| {
        let mut file = good();
        file.set(key, value);
        file
    };
    fails(&with("tokenizer.ggml.pre", Value::Text("unheard-of".into())), "\"unheard-of\", a way to split text");
    fails(&with("tokenizer.ggml.model", Value::Text("bert".into())), "\"bert\", which is not supported");
    fails(&with("tokenizer.ggml.token_type", Value::I32s(vec![1])), "has 1 entries for");
    fails(&with("tokenizer.ggml.bos_token_id", Value::U32(70_000)), "is 70000, but there are");
    fails(&with("tokenizer.ggml.merges", Value::Texts(vec!["ab".into()])), "\"ab\", which is no pair");
    fails(&with("tokenizer.ggml.model", Value::Text("llama".into())), "tokenizer.ggml.scores is missing");
}

#[test]
fn what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = Gguf::open(&dir.path().join("none.gguf")).unwrap_err().to_string();
    assert!(error.contains("none.gguf") && error.contains("No such file"), "{error}");
    let (_dir, path) = written(&byte_level("smollm"));
    Tokenizer::load(&path).unwrap();
    let error = Load::new(path).open(|_, _, _| ()).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
}

proptest! {
    #![proptest_config(config(400))]

    /// Any damage to the header, where most of what matters is.
    #[test]
    fn damaged_headers(damage in prop::collection::vec(damage(), 1..4), head in any::<bool>()) {
        let whole = good().bytes();
        let header = whole.len() - 4096.min(whole.len() / 2);
        let (mut front, back) = if head { (whole[..header].to_vec(), &whole[header..]) } else { (whole.clone(), &[][..]) };
        damage.iter().for_each(|damage| damage.apply(&mut front));
        front.extend(back);
        let _ = run(&front);
    }

    /// Numbers of the header become extreme ones.
    #[test]
    fn extreme_numbers(at in any::<prop::sample::Index>(), number in prop_oneof![
        Just(0), Just(1), Just(u64::MAX), Just(1 << 63), Just(1 << 32), Just((1 << 31) - 1), Just(u64::MAX - 31), Just(255),
    ], wide in any::<bool>()) {
        let file = good();
        let mut bytes = file.bytes();
        let header = bytes.len() - 4096.min(bytes.len() / 2);
        let at = at.index(header);
        let number = &number.to_le_bytes()[..if wide { 8 } else { 4 }];
        bytes[at..at + number.len()].copy_from_slice(number);
        let _ = run(&bytes);
    }
}
