//! Quantising whole models: what is written, against an independent calculation, interrupted, and refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, DType, KvOptions, Model, Result, Selector, Session, SessionOptions, Tokenizer};
use sparrow_testing::reference::{ATTENTION, DOWN, MLP, OUTPUT};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;
use sparrow_tools::quantize::{Along, Method, QuantizationRecord, QuantizeOptions, quantize};
use sparrow_tools::text::windows;

use crate::interrupted::{files, interrupted};

const WINDOW: usize = 32;

fn options(method: Method, bits: u32) -> QuantizeOptions {
    QuantizeOptions { window: WINDOW, max_tokens: 330, ..QuantizeOptions::new(method, bits) }
}

fn text() -> PathBuf {
    demo_dir().join("sample.txt")
}

fn quantize_demo(out: &Path, options: &QuantizeOptions) -> Result<QuantizationRecord> {
    quantize(&demo_dir(), out, &text(), options, &cpu(), |_, _, _| ())
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// The matrices of a layer, `[out, in]` in f64, the width of their inputs, and which these are.
fn matrices(layer: &LayerWeights) -> [(Vec<f64>, usize, usize); 7] {
    let mlp = &layer.mlp;
    [
        (&layer.q, ATTENTION),
        (&layer.k, ATTENTION),
        (&layer.v, ATTENTION),
        (&layer.o, OUTPUT),
        (mlp.gate.as_ref().unwrap(), MLP),
        (&mlp.up, MLP),
        (&mlp.down, DOWN),
    ]
    .map(|(linear, input)| {
        let tensor = linear.weight.dense().unwrap();
        let (values, cols) = (reference::values(tensor), tensor.cols());
        let n = linear.inputs();
        match linear.input_major {
            true => ((0..values.len()).map(|i| values[i % n * cols + i / n]).collect(), n, input),
            false => (values, n, input),
        }
    })
}

#[test]
fn weights_come_back_as_near_as_their_bits_allow() {
    let dir = tempfile::tempdir().unwrap();
    let original = demo();
    // How far a weight is off, as root mean square ÷ that of the weights.
    for (bits, group, along, zero_points, dtype, bound) in [
        (4, Some(32), Along::Input, false, DType::I4G32, 0.085),
        (4, Some(32), Along::Input, true, DType::I4G32Z, 0.085),
        (4, Some(64), Along::Input, false, DType::I4G32, 0.095),
        (4, Some(64), Along::Input, true, DType::I4G32Z, 0.095),
        (4, Some(128), Along::Input, false, DType::I4G128, 0.11),
        (4, Some(128), Along::Input, true, DType::I4G128Z, 0.11),
        (4, Some(32), Along::Output, false, DType::I4G32, 0.085),
        (4, Some(64), Along::Output, true, DType::I4G32Z, 0.095),
        (8, None, Along::Input, false, DType::I8, 0.02),
    ] {
        let what = format!("{bits} bits, {group:?}, {along}, {zero_points}");
        let out = dir.path().join("out");
        let options = QuantizeOptions { group, along, zero_points, ..options(Method::Rtn, bits) };
        let record = quantize_demo(&out, &options).unwrap();
        let model = load(&out);
        assert_eq!(model.weights.dtype(), dtype, "{what}");
        assert_eq!(model.weights.is_input_major(), along == Along::Output, "{what}");
        for (before, after) in original.weights.layers.iter().zip(&model.weights.layers) {
            for ((before, ..), (after, ..)) in matrices(before).into_iter().zip(matrices(after)) {
                let off: f64 = before.iter().zip(&after).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f64 = before.iter().map(|w| w.powi(2)).sum();
                assert!((off / size).sqrt() < bound, "{what}: {}", (off / size).sqrt());
            }
        }
        // 16 bits of scale and 4 of a zero point for each group.
        let expected = group.map_or(8.0, |g| 4.0 + if zero_points { 20.0 } else { 16.0 } / g as f64);
        let rows = if bits == 8 { 16.0 / 256.0 } else { 1e-9 };
        assert!((expected..=expected + rows).contains(&record.bits_per_weight), "{what}: {}", record.bits_per_weight);
        assert_eq!(record.matrices, 35);
        let bytes: usize = Checkpoint::open(&out).unwrap().tensors().map(|info| info.bytes).sum();
        let of_model = bytes as f64 * 8.0 / original.spec.parameters() as f64;
        assert!((record.bits_per_weight_of_model / of_model - 1.0).abs() < 1e-12, "{what}");
        let embedding = |model: &Model| model.weights.embedding.dense().unwrap().bytes().to_vec();
        assert!(embedding(&original) == embedding(&model), "{what}");
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn the_configuration_says_what_compressed_tensors_reads() {
    let dir = tempfile::tempdir().unwrap();
    let [int4, int8] = ["int4", "int8"].map(|name| dir.path().join(name));
    let some = QuantizeOptions {
        group: Some(64),
        zero_points: true,
        exclude: vec!["*.k_proj.*".into(), "*layers.[1234].*".into()],
        ..options(Method::Rtn, 4)
    };
    quantize_demo(&int4, &some).unwrap();
    quantize_demo(&int8, &options(Method::Rtn, 8)).unwrap();
    let [mut int4, mut int8] = [int4, int8].map(|dir| config(&dir));
    let original = config(&demo_dir());
    let [int4, int8] = [&mut int4, &mut int8].map(|config| {
        let described = config.as_object_mut().unwrap().remove("quantization_config").unwrap();
        assert_eq!(*config, original);
        described
    });
    for described in [&int4, &int8] {
        assert_eq!(described["quant_method"], "compressed-tensors");
        assert_eq!(described["format"], "pack-quantized");
        assert_eq!(described["quantization_status"], "compressed");
        assert_eq!(described["config_groups"]["group_0"]["targets"], json!(["Linear"]));
    }
    let weights = |described: &Value| described["config_groups"]["group_0"]["weights"].clone();
    let common = |more: Value| {
        let mut all = json!({ "type": "int", "dynamic": false });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let expected = json!({ "num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 64 });
    assert_eq!(weights(&int4), common(expected));
    assert_eq!(weights(&int8), common(json!({ "num_bits": 8, "symmetric": true, "strategy": "channel" })));
    assert_eq!(int8["ignore"], json!(["lm_head"]));
    let ignored: Vec<&str> = int4["ignore"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(ignored.len(), 1 + 1 + 4 * 7, "{ignored:?}");
    assert!(ignored.contains(&"model.layers.0.self_attn.k_proj") && ignored.contains(&"model.layers.4.mlp.up_proj"));
}

#[test]
fn eight_bits_go_where_four_cost_most_as_far_as_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let run = |name: &str, method, average_bits, exclude: &[&str]| {
        let exclude = exclude.iter().map(|&name| name.into()).collect();
        let options = QuantizeOptions { average_bits, exclude, max_tokens: 900, ..options(method, 4) };
        quantize_demo(&out(name), &options).unwrap()
    };
    let all_narrow = run("narrow", Method::Gptq, None, &[]);
    for (name, method, average, exclude) in [
        ("gptq", Method::Gptq, 5.5, &[][..]),
        ("awq", Method::Awq, 5.5, &[]),
        ("some", Method::Rtn, 6.0, &["*.k_proj.*", "*layers.3.mlp.gate*"]),
    ] {
        let record = run(name, method, Some(average), exclude);
        // A matrix more does not fit, and the smallest is a fiftieth of the model.
        assert!((average - 0.1..=average).contains(&record.bits_per_weight), "{record:?}");
        let wide = record.matrices_of_8_bits;
        assert!(0 < wide && wide < record.matrices, "{record:?}");
        if name == "gptq" {
            assert!(record.quality.evaluation.kl_mean < 0.8 * all_narrow.quality.evaluation.kl_mean, "{record:?}");
        }

        // Names say which is which, and agree with what is stored.
        let described = config(&out(name))["quantization_config"]["config_groups"].clone();
        let names =
            |group: &str| -> Vec<String> { serde_json::from_value(described[group]["targets"].clone()).unwrap() };
        let bits = ["group_0", "group_1"].map(|group| described[group]["weights"]["num_bits"].clone());
        assert_eq!(bits, [json!(4), json!(8)]);
        assert_eq!((names("group_0").len(), names("group_1").len()), (record.matrices - wide, wide));
        let stored = Checkpoint::open(&out(name)).unwrap();
        for (group, bits) in [("group_0", 4), ("group_1", 8)] {
            for module in names(group) {
                let packed = stored.info(&format!("{module}.weight_packed")).unwrap();
                let original = Checkpoint::open(&demo_dir()).unwrap().info(&format!("{module}.weight")).unwrap();
                assert_eq!(packed.bytes * 8, original.shape.iter().product::<usize>() * bits, "{module}");
            }
        }
        // What reads the same input has the same width.
        for [one, other] in [["q_proj", "v_proj"], ["gate_proj", "up_proj"]] {
            for module in names("group_1").iter().filter(|name| name.ends_with(one) && exclude.is_empty()) {
                assert!(names("group_1").contains(&module.replace(one, other)), "{module}");
            }
        }
        // The head goes with what has four bits.
        let mut model = load(&out(name));
        let to_int8 = model.weights_mut().quantize(DType::I8, &cpu().compute, |_, _| ());
        assert!(to_int8.unwrap_err().to_string().contains("the weights are int4"));
        model.weights_mut().quantize(DType::I4G32, &cpu().compute, |_, _| ()).unwrap();
        assert_eq!(model.weights.head.dtype(), DType::I8);
    }
}

/// What the first layer errs over a text, summed over its matrices.
fn output_error(out: &Path, ids: &[u32]) -> f64 {
    let (original, quantized) = (demo(), load(out));
    let layers = [&original, &quantized].map(|model| matrices(&model.weights.layers[0]));
    let [before, after] = layers;
    let differences: Vec<_> = before
        .into_iter()
        .zip(after)
        .map(|((a, n, input), (b, ..))| (a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<f64>>(), n, input))
        .collect();
    let mut error = 0.0;
    for window in ids.chunks(WINDOW) {
        reference::inputs(&original, window, &mut |layer, which, x| {
            for (difference, n, _) in differences.iter().filter(|(.., input)| layer == 0 && *input == which) {
                error += difference.chunks(*n).map(|row| reference::dot(row, x).powi(2)).sum::<f64>();
            }
        });
    }
    error
}

#[test]
fn gptq_errs_less_in_the_outputs_than_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::load(&demo_dir()).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(text()).unwrap(), false).unwrap();
    let seen = windows(&ids[..99], &tokenizer.beginning().unwrap(), WINDOW).unwrap();
    for along in [Along::Input, Along::Output] {
        let [rtn, gptq] = [Method::Rtn, Method::Gptq].map(|method| {
            let out = dir.path().join(format!("{method}-{along}"));
            quantize_demo(&out, &QuantizeOptions { max_tokens: 110, along, ..options(method, 4) }).unwrap();
            output_error(&out, &seen)
        });
        assert!(gptq < 0.5 * rtn, "along {along}: {gptq} against {rtn}");
    }
}

#[test]
fn methods_that_calibrate_cost_less_on_text_that_they_have_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let run = |method, bits| {
        let options = QuantizeOptions { max_tokens: 900, ..options(method, bits) };
        let record = quantize_demo(&dir.path().join(format!("{method}-{bits}")), &options).unwrap();
        assert_eq!(record.calibration.tokens == 0, method == Method::Rtn);
        record.quality.evaluation
    };
    let [rtn, gptq, awq] = [Method::Rtn, Method::Gptq, Method::Awq].map(|method| run(method, 4));
    assert!(rtn.kl_mean < 0.01, "{rtn:?}");
    assert!(gptq.kl_mean < 0.6 * rtn.kl_mean && awq.kl_mean < 1.2 * rtn.kl_mean, "{rtn:?} {gptq:?} {awq:?}");
    assert!(gptq.perplexity < 1.01 * gptq.dense_perplexity, "{gptq:?}");
    // What AWQ scales up here is scaled down there.
    for method in [Method::Gptq, Method::Awq] {
        let eight = run(method, 8);
        assert!(eight.kl_mean < 5e-4 && (eight.perplexity / eight.dense_perplexity - 1.0).abs() < 0.005, "{eight:?}");
    }
}

#[test]
fn the_written_quality_is_what_evaluation_finds() {
    for (along, include) in [
        (Along::Input, vec![]),
        (Along::Output, vec![]),
        // Projections of one input in both layouts.
        (Along::Output, vec!["*.q_proj.*".into(), "*.up_proj.*".into()]),
    ] {
        the_written_quality_is_found(&QuantizeOptions { along, include, ..options(Method::Gptq, 4) });
    }
}

fn the_written_quality_is_found(options: &QuantizeOptions) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let record = quantize(&demo_dir(), &out, &text(), options, &exact(), |_, _, _| ()).unwrap();
    let tokenizer = Tokenizer::load(&out).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(text()).unwrap(), false).unwrap();
    let options = SessionOptions { sequences: 1, capacity: WINDOW, kv: KvOptions::default() };
    let session = |model| Session::new(Arc::new(model), exact(), Selector::dense(), options).unwrap();
    let (mut before, mut after) = (session(demo()), session(load(&out)));
    let held_out = windows(&ids[297..330], &tokenizer.beginning().unwrap(), WINDOW).unwrap();
    let expected = evaluate(&mut before, &mut after, &held_out, WINDOW, &mut (), |_| ()).unwrap();
    let found = &record.quality.evaluation;
    assert_eq!(found.tokens, expected.tokens);
    // Kernels round activations to 16 bits.
    for (a, b, bound) in [
        (found.perplexity, expected.perplexity, 1e-4),
        (found.dense_perplexity, expected.dense_perplexity, 1e-4),
        (found.kl_mean, expected.kl_mean, 1e-2),
    ] {
        assert!((a / b - 1.0).abs() < bound, "{a} {b}");
    }
    // Reading JSON may change the last digit of a number.
    let written: QuantizationRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(QuantizationRecord::read(&out).unwrap(), Some(written));
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_files_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for (method, along, average_bits) in [Method::Rtn, Method::Gptq, Method::Awq]
        .map(|method| (method, Along::Input))
        .into_iter()
        .map(|(method, along)| (method, along, None))
        .chain([(Method::Gptq, Along::Output, None), (Method::Gptq, Along::Input, Some(5.5))])
    {
        let options = QuantizeOptions { max_tokens: 110, along, average_bits, ..options(method, 4) };
        let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
        quantize_demo(&whole, &options).unwrap();
        let expected = files(&whole);
        let one = Arc::new(Cpu::new(Some(1)));
        let interrupted = interrupted(&[3, 8, 14, 20, 30, usize::MAX], &parts, |report| {
            quantize(&demo_dir(), &parts, &text(), &options, &one, |_, _, _| report())
        });
        assert!(interrupted > 1, "{method}");
        let found = files(&parts);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        found.iter().for_each(|(name, bytes)| assert!(bytes == &expected[name], "{method}: {name}"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        [whole, parts].iter().for_each(|dir| std::fs::remove_dir_all(dir).unwrap());
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    #[track_caller]
    fn refused(result: Result<QuantizationRecord>, says: &str) {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    let with = |change: &dyn Fn(&mut QuantizeOptions)| {
        let mut options = options(Method::Rtn, 4);
        change(&mut options);
        quantize_demo(&out, &options)
    };
    refused(with(&|o| o.bits = 3), "bits: must be 4 or 8, found 3");
    refused(with(&|o| o.group = Some(16)), "group: must be 32, 64 or 128, found 16");
    refused(with(&|o| o.group = None), "group: is missing: 4 bits take groups of 32, 64 or 128");
    refused(with(&|o| o.bits = 8), "group: is for 4 bits: weights of 8 bits have one scale per row");
    refused(
        with(&|o| (o.bits, o.group, o.zero_points) = (8, None, true)),
        "zero-points: are for 4 bits: weights of 8 bits are symmetric",
    );
    refused(with(&|o| (o.bits, o.group, o.along) = (8, None, Along::Output)), "along: output is for 4 bits");
    refused(
        with(&|o| o.average_bits = Some(4.4)),
        "average-bits: must be from 4.50 to 8.05 here, scales included, found 4.4",
    );
    refused(with(&|o| o.average_bits = Some(f64::NAN)), "average-bits: must be from 4.50");
    let eight = with(&|o| (o.bits, o.group, o.average_bits) = (8, None, Some(6.0)));
    refused(eight, "average-bits: is for 4 bits, of which some become 8");
    let rows = with(&|o| (o.along, o.average_bits) = (Along::Output, Some(6.0)));
    refused(rows, "average-bits: is for weights along the input");
    refused(
        with(&|o| (o.method, o.along) = (Method::Awq, Along::Output)),
        "along: output leaves nothing to gain by scaling inputs: use gptq or rtn",
    );
    refused(
        with(&|o| o.include = vec!["*lm_head*".into()]),
        "include: \"*lm_head*\" fits no matrix of the decoder layers; one is called model.layers.0.self_attn.q_proj.weight",
    );
    refused(with(&|o| o.exclude = vec!["*".into()]), "exclude: leaves nothing to quantise");
    refused(with(&|o| o.max_tokens = 20), "text: has 20 tokens: too few");

    let tiny = dir.path().join("tiny");
    std::fs::create_dir(&tiny).unwrap();
    tiny::write_model(&tiny);
    let of_tiny = || quantize(&tiny, &out, &text(), &options(Method::Rtn, 4), &cpu(), |_, _, _| ());
    let q = "model.layers.0.self_attn.q_proj.weight";
    refused(of_tiny(), &format!("group: 32 does not divide the 8 inputs of {q}: exclude it or use another"));
    let rows = QuantizeOptions { along: Along::Output, ..options(Method::Rtn, 4) };
    let along_outputs = quantize(&tiny, &out, &text(), &rows, &cpu(), |_, _, _| ());
    refused(along_outputs, &format!("outputs of {q}: exclude it or use another"));
    tiny::write_sidecar(&tiny);
    refused(of_tiny(), "is laid out for sparse execution, whose rows of single neurons");
    std::fs::remove_dir_all(&tiny).unwrap();

    with(&|_| ()).unwrap();
    refused(with(&|_| ()), "already exists: choose another, or remove it first");
    let again = dir.path().join("again");
    let message = quantize(&out, &again, &text(), &options(Method::Rtn, 8), &cpu(), |_, _, _| ());
    refused(message, "is quantised or packed already: quantise the original");
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");

    let interrupt = || quantize(&demo_dir(), &out, &text(), &options(Method::Rtn, 4), &cpu(), |_, _, _| panic!());
    assert!(catch_unwind(AssertUnwindSafe(interrupt)).is_err());
    refused(
        with(&|o| o.zero_points = true),
        "out.quantizing holds interrupted quantising of another model or text or with other options: remove it",
    );
    with(&|_| ()).unwrap();
}
