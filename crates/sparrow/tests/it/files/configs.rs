//! Published `config.json` files are read as what their models are.

use std::path::Path;

use serde_json::{Value, json};
use sparrow::Result;
use sparrow::internals::checkpoint::config::{parse_config, read_config};
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::{Biases, BlockNorms, Fused, Positions, QkNorm, Rope, RopeScaling};
use sparrow_kernels::Activation;
use sparrow_testing::shared_data;

/// File, parameters as its model card counts them, and context length.
const PUBLISHED: [(&str, u64, usize); 11] = [
    ("gemma2_2b", 2_614_341_888, 8192),
    ("llama2_7b", 6_738_415_616, 2048),
    ("llama3_1_8b", 8_030_261_248, 131_072),
    ("llama3_2_1b", 1_235_814_400, 131_072),
    ("llama3_2_3b", 3_212_749_824, 131_072),
    ("mistral_7b_v03", 7_248_023_552, 32_768),
    ("phi-3_5", 3_821_079_552, 131_072),
    ("qwen2.5_3b", 3_085_938_688, 32_768),
    ("qwen3_0.6b", 596_049_920, 40_960),
    ("smollm2_135m", 134_515_008, 8192),
    ("tinyllama_1b_chat_v1.0", 1_100_048_384, 2048),
];

fn read(name: &str) -> Option<ModelSpec> {
    let dir = shared_data("configs")?;
    Some(read_config(&dir.join(format!("{name}.config.json"))).unwrap())
}

fn only_rope(spec: &ModelSpec) -> &Rope {
    match &spec.positions {
        Positions::Rope { full, windowed: None } => full,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_published_configuration_has_the_size_of_its_model() {
    let Some(dir) = shared_data("configs") else { return };
    let files = std::fs::read_dir(&dir).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
    assert_eq!(files, PUBLISHED.len(), "files in {}", dir.display());
    for (name, parameters, context) in PUBLISHED {
        let spec = read(name).unwrap();
        assert_eq!(spec.parameters(), parameters, "{name}");
        assert_eq!(spec.context_length(), context, "{name}");
    }
}

#[test]
fn gemma_2() {
    let Some(spec) = read("gemma2_2b") else { return };
    assert_eq!((spec.activation, spec.tied), (Activation::GeluTanh, true));
    assert_eq!((spec.attention_soft_cap, spec.logits_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((spec.block_norms, spec.qk_norm), (BlockNorms::BeforeAndAfter, QkNorm::None));
    assert_eq!((spec.head_dim, spec.attention_scale, spec.embedding_scale), (256, 1.0 / 16.0, 48.0));
    assert_eq!(spec.windows[..3], [Some(4096), None, Some(4096)]);
}

#[test]
fn qwen() {
    let Some(spec) = read("qwen2.5_3b") else { return };
    assert_eq!(spec.biases, Biases { qkv: true, output: false, mlp: false });
    assert!(spec.tied && spec.windows.iter().all(Option::is_none), "use_sliding_window is false");
    let spec = read("qwen3_0.6b").unwrap();
    assert_eq!((spec.biases, spec.qk_norm), (Biases::default(), QkNorm::Head));
    assert_eq!((spec.head_dim, spec.q_size()), (128, 2048));
}

#[test]
fn phi_3() {
    let Some(spec) = read("phi-3_5") else { return };
    assert_eq!(spec.fused, Fused { qkv: true, gate_up: true });
    assert_eq!(spec.windows, [Some(262_144); 32]);
    let rope = only_rope(&spec);
    // √(1 + ln 32 / ln 4096)
    assert!((rope.attention_factor - 1.190_238).abs() < 1e-6, "{}", rope.attention_factor);
    let RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings } = &rope.scaling else {
        panic!("{rope:?}")
    };
    assert_eq!((short_factor.len(), long_factor.len(), *original_max_position_embeddings), (48, 48, 4096));
    let mut frequencies = [[0.0; 48]; 2];
    rope.frequencies(4096, 131_072, &mut frequencies[0]);
    rope.frequencies(4097, 131_072, &mut frequencies[1]);
    assert_eq!(frequencies.map(|f| f[0]), [1.0, 1.0 / 1.08], "short factors up to the original length");
    assert!(spec.rotates_anew(4096, 4097) && !spec.rotates_anew(4097, 9000) && !spec.rotates_anew(1, 4096));
}

/// A small configuration of that architecture, with these fields.
fn parse(architecture: &str, changes: Value) -> Result<ModelSpec> {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "vocab_size": 50,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    parse_config(Path::new("config.json"), &config)
}

/// What a configuration leaves out has its family's default.
#[test]
fn defaults() {
    let mistral = parse("MistralForCausalLM", json!({})).unwrap();
    assert_eq!(mistral.windows, [Some(4096); 6]);
    assert_eq!(parse("MistralForCausalLM", json!({ "sliding_window": null })).unwrap().windows, [None; 6]);
    let gemma = parse("GemmaForCausalLM", json!({ "hidden_act": "gelu" })).unwrap();
    assert_eq!((gemma.activation, gemma.tied, gemma.head_dim), (Activation::GeluTanh, true, 256));
    let gemma2 = parse("Gemma2ForCausalLM", json!({ "final_logit_softcapping": null })).unwrap();
    assert_eq!((gemma2.attention_soft_cap, gemma2.logits_soft_cap), (Some(50.0), None));
    let opt = parse("OPTForCausalLM", json!({ "ffn_dim": 64 })).unwrap();
    assert_eq!((opt.activation, opt.tied, opt.gated), (Activation::Relu, true, false));
    let qwen = parse("Qwen2ForCausalLM", json!({ "use_sliding_window": true, "max_window_layers": 4 })).unwrap();
    assert_eq!(qwen.windows, [None, None, None, None, Some(4096), Some(4096)]);
    assert!(!qwen.tied);
}

/// Models whose zeros were trained: the threshold, and the activation of both gate and up.
#[test]
fn sparse_by_training() {
    let sparse = |changes| parse("SparseLlamaForCausalLM", changes);
    let fat = sparse(json!({ "hidden_act": "fatrelu", "hidden_act_param": 0.01 })).unwrap();
    assert_eq!(fat.activation, Activation::FatRelu(0.01));
    assert_eq!(sparse(json!({ "hidden_act": "fatrelu" })).unwrap().activation, Activation::FatRelu(0.0));
    let error = sparse(json!({ "hidden_act": "fatrelu", "hidden_act_param": -1.0 })).unwrap_err().to_string();
    assert!(error.contains("hidden_act_param") && error.contains("-1"), "{error}");
    let bamboo = parse("BambooForCausalLM", json!({ "hidden_act": "relu" })).unwrap();
    assert_eq!((bamboo.activation, bamboo.windows[0]), (Activation::DoubleRelu, Some(4096)));
    let error = parse("BambooForCausalLM", json!({ "hidden_act": "silu" })).unwrap_err().to_string();
    assert!(error.contains("hidden_act") && error.contains("must be relu"), "{error}");
}

/// Both spellings of two rotary embeddings; the layers' windows say which has which.
#[test]
fn gemma_3() {
    let old = json!({
        "rope_theta": 2e6, "rope_local_base_freq": 5e3, "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        "sliding_window": 512, "sliding_window_pattern": 3,
    });
    let new = json!({
        "rope_parameters": {
            "full_attention": { "rope_theta": 2e6, "rope_type": "linear", "factor": 8.0 },
            "sliding_attention": { "rope_theta": 5e3, "rope_type": "default" },
        },
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention",
                        "sliding_attention", "full_attention"],
    });
    let [old, new] = [old, new].map(|changes| parse("Gemma3ForCausalLM", changes).unwrap());
    assert_eq!(old, new);
    let window = Some(512);
    assert_eq!(old.windows, [window, window, None, window, window, None]);
    assert_eq!([0, 2].map(|layer| old.rope_of(layer)), [Some(1), Some(0)]);
    let scaling: Vec<_> = old.ropes().map(|rope| (rope.theta, &rope.scaling)).collect();
    assert_eq!(scaling, [(2e6, &RopeScaling::Linear { factor: 8.0 }), (5e3, &RopeScaling::None)]);
    assert_eq!(old.context_length(), 131_072, "the layers with a window are not stretched");
}

#[test]
fn yarn() {
    let read = |rules: Value| {
        let spec =
            parse("Qwen2ForCausalLM", json!({ "max_position_embeddings": 32_768, "rope_scaling": rules })).unwrap();
        (spec.context_length(), only_rope(&spec).attention_factor)
    };
    let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-6;
    // As the documentation of Qwen 2.5 has it: four times the context.
    let (context, factor) = read(json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768 }));
    assert!(context == 131_072 && near(factor, 0.1 * 4f64.ln() + 1.0), "{context} tokens, factor {factor}");
    let (_, factor) = read(json!({ "type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5 }));
    assert!(near(factor, (0.1 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0)), "factor {factor}");
    let (_, factor) = read(json!({ "type": "yarn", "factor": 4.0, "attention_factor": 1.5 }));
    assert!(near(factor, 1.5), "factor {factor}");
}
