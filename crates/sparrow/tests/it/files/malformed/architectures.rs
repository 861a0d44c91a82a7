use std::path::Path;

use serde_json::{Value, json};

use super::configurations::fields;
use super::{case, check};

/// Makes it another architecture, with these fields.
fn architecture(name: &'static str, changes: Value) -> impl Fn(&Path) {
    let mut all = json!({ "architectures": [name], "rope_scaling": null });
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fields(all)
}

/// Phi-3 with these long factors, and those rules changed.
fn long_rope(long_factor: Value, changes: Value) -> impl Fn(&Path) {
    let mut rules = json!({ "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": long_factor });
    rules.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    architecture("Phi3ForCausalLM", json!({ "rope_scaling": rules, "original_max_position_embeddings": 16 }))
}

#[test]
fn architectures() {
    const FILE: &str = "config.json";
    let opt = |changes: Value| {
        let mut all = json!({ "ffn_dim": 12, "num_key_value_heads": null });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        architecture("OPTForCausalLM", all)
    };
    let qwen = |changes: Value| architecture("Qwen2ForCausalLM", changes);
    check(vec![
        case(
            "long factors of another length",
            long_rope(json!([1.0, 2.0, 3.0]), json!({})),
            &[FILE, "rope_scaling.long_factor", "2 entries", "found 3"],
        ),
        case("no long factors", long_rope(Value::Null, json!({})), &[FILE, "rope_scaling.long_factor is missing"]),
        case("a long factor of 0", long_rope(json!([1.0, 0]), json!({})), &[FILE, "long_factor", "above 0"]),
        case("long factors a number", long_rope(json!(4), json!({})), &[FILE, "long_factor", "a list", "found 4"]),
        case(
            "short factors of strings",
            long_rope(json!([1.0, 2.0]), json!({ "short_factor": ["1", "2"] })),
            &[FILE, "short_factor", "a list of finite numbers"],
        ),
        case(
            "an attention factor of 0",
            long_rope(json!([1.0, 2.0]), json!({ "attention_factor": 0 })),
            &[FILE, "rope_scaling.attention_factor", "above 0"],
        ),
        case(
            "an odd part of a head rotated",
            architecture("Phi3ForCausalLM", json!({ "partial_rotary_factor": 0.3 })),
            &[FILE, "partial_rotary_factor", "0.3", "1 of 4 dimensions", "even"],
        ),
        case(
            "more than a head rotated",
            architecture("Phi3ForCausalLM", json!({ "partial_rotary_factor": 1.5 })),
            &[FILE, "partial_rotary_factor", "1.5"],
        ),
        case(
            "yarn without a factor",
            qwen(json!({ "rope_scaling": { "type": "yarn" } })),
            &[FILE, "rope_scaling.factor is missing"],
        ),
        case(
            "a factor of one type of layer",
            architecture(
                "Gemma3ForCausalLM",
                json!({ "rope_parameters": { "full_attention": { "rope_type": "linear", "factor": 0.5 } } }),
            ),
            &[FILE, "rope_parameters.full_attention.factor", "0.5"],
        ),
        case(
            "an unknown type of layer",
            qwen(json!({ "layer_types": ["full_attention", "linear_attention"] })),
            &[FILE, "layer_types", "entry 1", "linear_attention", "sliding_attention"],
        ),
        case(
            "types of more layers",
            qwen(json!({ "layer_types": ["full_attention", "full_attention", "full_attention"] })),
            &[FILE, "layer_types", "3 entries", "num_hidden_layers = 2"],
        ),
        case("types a string", qwen(json!({ "layer_types": "full_attention" })), &[FILE, "layer_types", "a list"]),
        case("types of numbers", qwen(json!({ "layer_types": [0, 1] })), &[FILE, "layer_types", "a list of strings"]),
        case(
            "a window that is switched off but used",
            qwen(json!({ "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4 })),
            &[FILE, "sliding_window", "switched off", "layer_types"],
        ),
        case(
            "a window of 0",
            architecture("MistralForCausalLM", json!({ "sliding_window": 0 })),
            &[FILE, "sliding_window", "an integer in 1..="],
        ),
        case(
            "a soft cap below 0",
            architecture("Gemma2ForCausalLM", json!({ "attn_logit_softcapping": -50.0 })),
            &[FILE, "attn_logit_softcapping", "above 0"],
        ),
        case(
            "a query scale of 0",
            architecture("Gemma2ForCausalLM", json!({ "query_pre_attn_scalar": 0 })),
            &[FILE, "query_pre_attn_scalar", "above 0"],
        ),
        case(
            "attention in both directions",
            architecture("Gemma3ForCausalLM", json!({ "use_bidirectional_attention": true })),
            &[FILE, "use_bidirectional_attention", "causal"],
        ),
        case(
            "a model that sees images",
            architecture("Gemma3ForConditionalGeneration", json!({ "model_type": "gemma3" })),
            &[FILE, "Gemma3ForConditionalGeneration", "not supported", "Gemma3ForCausalLM"],
        ),
        case(
            "norms after OPT's blocks",
            opt(json!({ "do_layer_norm_before": false })),
            &[FILE, "do_layer_norm_before", "must be true", "350M"],
        ),
        case(
            "OPT without its last norm",
            opt(json!({ "_remove_final_layer_norm": true })),
            &[FILE, "_remove_final_layer_norm", "must be false"],
        ),
        case(
            "narrower embeddings",
            opt(json!({ "word_embed_proj_dim": 4 })),
            &[FILE, "word_embed_proj_dim", "hidden_size (8)", "found 4"],
        ),
        case("OPT without neurons", opt(json!({ "ffn_dim": null })), &[FILE, "ffn_dim is missing"]),
        case(
            "OPT's activation",
            opt(json!({ "activation_function": "swoosh" })),
            &[FILE, "activation_function", "swoosh"],
        ),
        case(
            "another architecture's weights",
            opt(json!({})),
            &["model.decoder.embed_tokens.weight", "no such tensor"],
        ),
        case(
            "norms that are not there",
            architecture("Qwen3ForCausalLM", json!({})),
            &["model.layers.0.self_attn.q_norm.weight", "no such tensor"],
        ),
    ]);
}
