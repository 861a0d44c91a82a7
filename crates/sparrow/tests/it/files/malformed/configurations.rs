use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sparrow_testing::tiny::{self, write, write_json};

use super::{case, check, pipe};

/// Changes one field of `config.json`.
fn field(name: &'static str, value: Value) -> impl Fn(&Path) {
    fields(json!({ name: value }))
}

/// Changes fields of `config.json`.
pub fn fields(changes: Value) -> impl Fn(&Path) {
    move |dir| {
        let mut config = tiny::config();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        write_json(&dir.join("config.json"), &config);
    }
}

/// Replaces one value in the text of `config.json`, by text that need not be JSON.
fn literal(name: &'static str, text: &'static str) -> impl Fn(&Path) {
    move |dir| {
        let mut config = tiny::config();
        config[name] = json!("HERE");
        write(&dir.join("config.json"), config.to_string().replace("\"HERE\"", text));
    }
}

/// Changes the rope rules.
fn rope(changes: Value) -> impl Fn(&Path) {
    let mut rules = tiny::config()["rope_scaling"].clone();
    rules.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    field("rope_scaling", rules)
}

#[test]
fn configurations() {
    const FILE: &str = "config.json";
    let text = |text: &'static str| move |dir: &Path| write(&dir.join(FILE), text);
    let mut cases = vec![
        case("missing", |d| fs::remove_file(d.join(FILE)).unwrap(), &["model", "has no config.json"]),
        case(
            "a directory instead",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                fs::create_dir(d.join(FILE)).unwrap();
            },
            &["has no config.json"],
        ),
        case("empty", text(""), &[FILE, "is empty"]),
        case("not JSON", text("hidden_size: 8"), &[FILE, "not valid JSON"]),
        case("not UTF-8", |d| write(&d.join(FILE), b"{\"a\": \"\xff\"}"), &[FILE, "not valid JSON"]),
        case("nested deep", |d| write(&d.join(FILE), "[".repeat(1 << 20)), &[FILE, "not valid JSON"]),
        case("an array", text("[]"), &[FILE, "expected a JSON object", "an array"]),
        case("null", text("null"), &[FILE, "expected a JSON object", "null"]),
        case("no fields", text("{}"), &[FILE, "architectures"]),
        case(
            "longer than any config",
            |d| fs::File::options().write(true).open(d.join(FILE)).unwrap().set_len(1 << 40).unwrap(),
            &[FILE, "bytes long"],
        ),
        case("NaN literal", literal("rms_norm_eps", "NaN"), &[FILE, "rms_norm_eps", "finite", "NaN"]),
        case("Infinity literal", literal("rope_theta", "Infinity"), &[FILE, "rope_theta", "finite", "Infinity"]),
        case("-Infinity literal", literal("eos_token_id", "-Infinity"), &[FILE, "eos_token_id", "-Infinity"]),
        case(
            "a message instead",
            text("Entry not found"),
            &[FILE, "not valid JSON", "begins with \"Entry not found\""],
        ),
        case("eps beyond any number", literal("rms_norm_eps", "1e400"), &[FILE, "not valid JSON"]),
        case("eps beyond f32", literal("rms_norm_eps", "1e300"), &[FILE, "rms_norm_eps", "finite"]),
        case("eps below f32", literal("rms_norm_eps", "1e-300"), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps 0", field("rms_norm_eps", json!(0.0)), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps negative", field("rms_norm_eps", json!(-1e-5)), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps a string", field("rms_norm_eps", json!("NaN")), &[FILE, "rms_norm_eps", "NaN"]),
        case("theta 0", field("rope_theta", json!(0)), &[FILE, "rope_theta", "above 0"]),
        case(
            "heads do not divide",
            fields(json!({ "num_attention_heads": 3, "num_key_value_heads": 2 })),
            &[FILE, "num_key_value_heads", "divide num_attention_heads (3)"],
        ),
        case(
            "more key heads than heads",
            fields(json!({ "num_attention_heads": 2, "num_key_value_heads": 4 })),
            &[FILE, "num_key_value_heads", "found 4"],
        ),
        case("odd head_dim", field("head_dim", json!(5)), &[FILE, "head_dim", "even", "found 5"]),
        case(
            "hidden size not a multiple of heads",
            fields(json!({ "head_dim": null, "num_attention_heads": 3, "num_key_value_heads": 3 })),
            &[FILE, "hidden_size", "multiple of num_attention_heads (3)"],
        ),
        case(
            "heads whose width overflows",
            fields(json!({ "num_attention_heads": 1 << 24, "num_key_value_heads": 1 << 24, "head_dim": 1 << 16 })),
            &[FILE, "head_dim", "num_attention_heads"],
        ),
        case("other head_dim than the weights", field("head_dim", json!(8)), &["q_proj", "[16, 8]", "[8, 8]"]),
        case(
            "more layers than the weights",
            field("num_hidden_layers", json!(3)),
            &["model.layers.2.", "no such tensor"],
        ),
        case("fewer layers than the weights", field("num_hidden_layers", json!(1)), &["model.layers.1."]),
        case(
            "untied, without a head",
            field("tie_word_embeddings", json!(false)),
            &["lm_head.weight", "no such tensor", "\"tie_word_embeddings\": true"],
        ),
        case("biases that are not there", field("mlp_bias", json!(true)), &["mlp.gate_proj.bias", "no such tensor"]),
        case("unknown activation", field("hidden_act", json!("swoosh")), &[FILE, "hidden_act", "swoosh", "silu"]),
        case("activation a number", field("hidden_act", json!(1)), &[FILE, "hidden_act", "a string"]),
        case(
            "unknown architecture",
            fields(json!({ "architectures": ["MambaForCausalLM"], "model_type": "mamba" })),
            &[FILE, "architectures", "MambaForCausalLM", "LlamaForCausalLM"],
        ),
        case(
            "two unknown architectures",
            fields(json!({ "architectures": ["A", "B"], "model_type": null })),
            &[FILE, "architectures", "names A, B"],
        ),
        case("architecture a number", field("architectures", json!([1])), &[FILE, "architectures"]),
        case("architectures a string", field("architectures", json!("Llama")), &[FILE, "architectures", "Llama"]),
        case(
            "only an unknown model_type",
            fields(json!({ "architectures": null, "model_type": "t5" })),
            &[FILE, "architectures", "t5"],
        ),
        case(
            "unknown rope type",
            rope(json!({ "rope_type": "proportional" })),
            &[FILE, "rope_scaling.rope_type", "proportional", "linear", "longrope"],
        ),
        case("rope type a number", rope(json!({ "rope_type": 3 })), &[FILE, "rope_scaling.rope_type", "a string"]),
        case("rope factor below 1", rope(json!({ "factor": 0.5 })), &[FILE, "rope_scaling.factor", "0.5"]),
        case("rope factor a string", rope(json!({ "factor": "NaN" })), &[FILE, "rope_scaling.factor", "NaN"]),
        case("rope factor huge", rope(json!({ "factor": 1e30 })), &[FILE, "rope_scaling.factor", "1..=1024"]),
        case("rope factor missing", rope(json!({ "factor": null })), &[FILE, "rope_scaling.factor is missing"]),
        case(
            "linear rope factor negative",
            rope(json!({ "rope_type": "linear", "factor": -2.0 })),
            &[FILE, "rope_scaling.factor", "-2"],
        ),
        case("low frequency above high", rope(json!({ "low_freq_factor": 4.5 })), &[FILE, "high_freq_factor", "4.5"]),
        case(
            "equal frequencies",
            rope(json!({ "low_freq_factor": 4.0 })),
            &[FILE, "high_freq_factor", "low_freq_factor"],
        ),
        case("frequency 0", rope(json!({ "low_freq_factor": 0 })), &[FILE, "rope_scaling.low_freq_factor", "above 0"]),
        case(
            "no original length",
            rope(json!({ "original_max_position_embeddings": null })),
            &[FILE, "rope_scaling.original_max_position_embeddings is missing"],
        ),
        case("rope rules a list", field("rope_scaling", json!([1])), &[FILE, "rope_scaling", "an object"]),
        case(
            "rope parameters with a bad theta",
            field("rope_parameters", json!({ "rope_theta": -1.0, "rope_type": "default" })),
            &[FILE, "rope_parameters.rope_theta", "-1"],
        ),
        case(
            "a theta that rope_scaling would lose",
            fields(json!({ "rope_theta": null, "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } })),
            &[FILE, "rope_parameters.rope_theta", "500000", "rope_scaling counts", "10000", "remove rope_scaling"],
        ),
        case("bool as string", field("attention_bias", json!("false")), &[FILE, "attention_bias", "true or false"]),
        case("bool as number", field("tie_word_embeddings", json!(1)), &[FILE, "tie_word_embeddings", "true or false"]),
        case("eos a string", field("eos_token_id", json!("</s>")), &[FILE, "eos_token_id", "</s>"]),
        case("eos negative", field("eos_token_id", json!(-1)), &[FILE, "eos_token_id", "-1"]),
        case("eos a fraction", field("eos_token_id", json!([1, 2.5])), &[FILE, "eos_token_id", "2.5"]),
        case("eos lists in a list", field("eos_token_id", json!([[1]])), &[FILE, "eos_token_id", "[[1]]"]),
        case("eos beyond 32 bits", field("eos_token_id", json!(1u64 << 32)), &[FILE, "eos_token_id", "4294967296"]),
        case(
            "eos in generation_config.json",
            |d| write(&d.join("generation_config.json"), r#"{"eos_token_id": "x"}"#),
            &["generation_config.json", "eos_token_id"],
        ),
        case(
            "generation_config.json not JSON",
            |d| write(&d.join("generation_config.json"), "{,}"),
            &["generation_config.json", "not valid JSON"],
        ),
        #[cfg(target_os = "linux")]
        case(
            "generation_config.json a pipe",
            |d| {
                fs::remove_file(d.join("generation_config.json")).unwrap();
                pipe(&d.join("generation_config.json"));
            },
            &["generation_config.json", "not a regular file"],
        ),
    ];
    const SIZES: [&str; 8] = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for name in SIZES {
        for value in
            [json!(0), json!(-1), json!(8.5), json!(1e18), json!(u64::MAX), json!("8"), json!([8]), json!(true)]
        {
            cases.push(case(name, field(name, value), &[FILE, name, "an integer in 1..="]));
        }
        if !["num_key_value_heads", "head_dim", "max_position_embeddings"].contains(&name) {
            cases.push(case(name, field(name, Value::Null), &[FILE, name, "is missing"]));
        }
    }
    // Sizes at the limit are no error of the configuration: the weights are what does not fit, and nothing is allocated.
    for name in ["hidden_size", "intermediate_size", "vocab_size"] {
        cases.push(case(name, field(name, json!(1 << 24)), &["model.safetensors", "16777216"]));
    }
    check(cases);
}
