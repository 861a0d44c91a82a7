//! The engine against figures from transformers: the cases under `goldens/` (see its README), the 260 K story model, and
//! the demo model.

// Steps index several sequences at once.
#![allow(clippy::needless_range_loop)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sparrow::engine::{Finish, Request};
use sparrow::internals::spec::{Rope, RopeScaling};
use sparrow::{DType, KvOptions, Load, Model, Selector, Session, SessionOptions, Tokenizer};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

/// Relative to the largest logit of a row: both sides compute in f32 from the same stored weights.
const F32_TOLERANCE: f64 = 2e-4;

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

struct Case {
    name: String,
    model: Arc<Model>,
    /// `[2][seq]`.
    ids: Vec<Vec<u32>>,
    /// `[2][seq][vocab]`.
    logits: Vec<Vec<Vec<f32>>>,
    native: Option<Vec<Vec<Vec<f32>>>>,
    greedy: Vec<u32>,
}

impl Case {
    fn dtype(&self) -> DType {
        self.model.weights.embedding.dtype()
    }

    /// The length up to which logits are the same however the tokens are divided into calls. Dynamic RoPE takes its
    /// frequencies from the length that a call reaches, and cached keys keep the rotation they got (transformers does the
    /// same), so beyond the trained length the division into calls is part of the result. LongRoPE has one set of frequencies
    /// up to its original length and another beyond.
    fn comparable(&self) -> usize {
        let spec = &self.model.spec;
        let limit = |rope: &Rope| match rope.scaling {
            RopeScaling::Dynamic { .. } => spec.max_position_embeddings,
            RopeScaling::LongRope { original_max_position_embeddings, .. } => original_max_position_embeddings,
            _ => usize::MAX,
        };
        spec.ropes().map(limit).fold(self.ids[0].len(), usize::min)
    }
}

fn cases() -> Vec<Case> {
    let mut dirs: Vec<_> = std::fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    dirs.sort();
    let cases: Vec<Case> = dirs.iter().map(|dir| read_case(dir)).collect();
    assert_eq!(cases.len(), 32, "golden cases");
    cases
}

fn read_case(dir: &Path) -> Case {
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let tensor = golden.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::I64);
        tensor.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b).try_into().unwrap()).collect()
    };
    let logits = |name: &str| -> Option<Vec<Vec<Vec<f32>>>> {
        let tensor = golden.tensor(name).ok()?;
        let &[batch, seq, vocab] = tensor.shape() else { panic!("{name} has shape {:?}", tensor.shape()) };
        assert_eq!((tensor.dtype(), batch), (Dtype::F32, 2));
        let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let rows: Vec<Vec<f32>> = values.chunks_exact(vocab).map(<[f32]>::to_vec).collect();
        Some(rows.chunks_exact(seq).map(<[Vec<f32>]>::to_vec).collect())
    };
    let seq = golden.tensor("input_ids").unwrap().shape()[1];
    Case {
        name: dir.file_name().unwrap().to_string_lossy().into_owned(),
        model: Arc::new(load(dir)),
        ids: ids("input_ids").chunks_exact(seq).map(<[u32]>::to_vec).collect(),
        logits: logits("logits").unwrap(),
        native: logits("logits_native"),
        greedy: ids("greedy"),
    }
}

fn dense(model: &Arc<Model>, sequences: usize) -> Session {
    session(&exact(), model, Selector::dense(), sequences, Some(DType::F32))
}

#[test]
fn logits_are_those_of_transformers() {
    for case in cases() {
        for cpu in tiers() {
            let (dtype, layers) = (case.dtype(), case.model.spec.num_layers);
            let bound = if rounds(cpu, dtype) { rounded_tolerance(layers) } else { F32_TOLERANCE };
            let mut session = session(cpu, &case.model, Selector::dense(), 2, Some(DType::F32));
            for row in 0..2 {
                let found = prefill_in(&mut session, row, &case.ids[row], &[case.ids[row].len()]);
                let worst = worst_difference(&found, &case.logits[row]);
                println!("{}, row {row}, {dtype:?}, {}: {worst:.1e}", case.name, cpu.compute.isa());
                assert!(worst < bound, "{}, row {row}, {cpu:?}: {worst:.1e} off, bound {bound:.1e}", case.name);
            }
        }
    }
}

/// transformers in bf16 rounds every activation to 8 bits; the engine rounds cached keys and values only, and on AMX the
/// operands of a prompt's products. So it may be as far from that result as that many roundings can take it, and must be
/// nearer to the exact one; on AMX, where errors are of the same kind, not much further.
#[test]
fn logits_with_the_checkpoints_own_dtype() {
    for case in cases() {
        let epsilon = match case.dtype() {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            quantized => panic!("no golden is {quantized}"),
        };
        // A dozen roundings a layer, independent of each other; the largest of a few thousand errors is four deviations.
        let roundings = 12.0 * case.model.spec.num_layers as f64;
        let bound = (4.0 * epsilon * roundings.sqrt()).max(F32_TOLERANCE);
        let mut session = session(&cpu(), &case.model, Selector::dense(), 1, None);
        for row in 0..2 {
            session.truncate(0, 0).unwrap();
            let found = prefill_in(&mut session, 0, &case.ids[row], &[case.ids[row].len()]);
            let exact = worst_difference(&found, &case.logits[row]);
            assert!(exact < bound, "{}: {exact:.1e} from the f32 result, bound {bound:.1e}", case.name);
            if let Some(native) = &case.native {
                let distance = worst_difference(&found, &native[row]);
                let of_native = worst_difference(&native[row], &case.logits[row]);
                println!(
                    "{}: {distance:.1e} from native, bound {bound:.1e}; exact: {exact:.1e}, native {of_native:.1e}",
                    case.name
                );
                assert!(distance < bound, "{}: {distance:.1e} from the native result, bound {bound:.1e}", case.name);
                let slack = if rounds(&cpu(), case.dtype()) { 1.25 } else { 1.0 };
                assert!(
                    exact < slack * of_native,
                    "{}: {exact:.1e} off, bf16 throughout is {of_native:.1e}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for case in cases() {
        // Scaled RoPE stretches the context by its factor, and `rope-dynamic` goes on beyond that: the first ids fit.
        let mut session = dense(&case.model, 1);
        let fit = case.greedy.len().min(session.capacity(0) + 1 - case.ids[0].len());
        assert!(fit == case.greedy.len() || case.name == "rope-dynamic", "{}: {fit} ids fit", case.name);
        let found = greedy(&mut session, 0, &case.ids[0], fit);
        assert_eq!(found, case.greedy[..fit], "{}", case.name);
    }
}

#[test]
fn decoding_a_batch_is_decoding_each_sequence() {
    for case in cases() {
        // Of different lengths, so that positions differ within the batch.
        let (a, b) = (&case.ids[0], &case.ids[1]);
        let (a, b) = ((&a[..5], &a[5..]), (&b[..9], &b[9..]));
        let steps = a.1.len().min(b.1.len());
        let alone = |prompt: &[u32], rest: &[u32]| {
            let mut session = dense(&case.model, 1);
            prefill_in(&mut session, 0, prompt, &[prompt.len()]);
            decode_each(&mut session, 0, &rest[..steps])
        };
        let expected = [alone(a.0, a.1), alone(b.0, b.1)];

        let mut both = dense(&case.model, 2);
        prefill_in(&mut both, 0, a.0, &[5]);
        prefill_in(&mut both, 1, b.0, &[9]);
        let vocab = case.model.spec.vocab_size;
        for step in 0..steps {
            // The order within a batch is free.
            let (first, second) = ((0, a.1[step]), (1, b.1[step]));
            let logits = both.decode(&if step % 2 == 0 { [first, second] } else { [second, first] }).unwrap();
            for (i, logits) in logits.chunks_exact(vocab).enumerate() {
                let sequence = (i + step) % 2;
                let worst = difference(logits, &expected[sequence][step]);
                assert!(worst < SAME, "{}, sequence {sequence}, step {step}: {worst:.1e} off", case.name);
                let position = [5, 9][sequence] + step;
                if position < case.comparable() {
                    let worst = difference(logits, &case.logits[sequence][position]);
                    // A prompt beyond the trained length was computed with other frequencies as a whole.
                    let whole_is_comparable = case.comparable() == case.ids[0].len();
                    assert!(!whole_is_comparable || worst < F32_TOLERANCE, "{}: {worst:.1e} off", case.name);
                }
            }
        }
    }
}

#[test]
fn chunked_prefill_is_whole_prefill() {
    for case in cases() {
        let mut session = dense(&case.model, 1);
        let ids = &case.ids[0][..case.comparable()];
        let whole = prefill_in(&mut session, 0, ids, &[ids.len()]);
        for size in [1, 2, 3, 7, 8, 9, 13] {
            session.truncate(0, 0).unwrap();
            let found = prefill_in(&mut session, 0, ids, &calls_of(size, ids.len()));
            let worst = worst_difference(&found, &whole);
            assert!(worst < SAME, "{}, chunks of {size}: {worst:.1e} off", case.name);
        }
        // Going back and on again is as if nothing had been there.
        session.truncate(0, 4).unwrap();
        let found = prefill_in(&mut session, 0, &ids[4..], &[ids.len() - 4]);
        let worst = worst_difference(&found, &whole[4..]);
        assert!(worst < SAME, "{}, after truncation: {worst:.1e} off", case.name);
        assert!(difference(session_last(&mut session, ids), &whole[ids.len() - 1]) < SAME, "{}: prefill", case.name);
    }
}

fn session_last<'a>(session: &'a mut Session, ids: &[u32]) -> &'a [f32] {
    session.truncate(0, 0).unwrap();
    session.prefill(0, ids).unwrap()
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = &cases()[0];
    let vocab = case.model.spec.vocab_size as u32;
    let mut session = dense(&case.model, 1);
    let capacity = session.capacity(0);
    assert!(session.prefill(0, &[]).unwrap_err().to_string().contains("no tokens"));
    assert!(session.prefill(0, &[1, vocab]).unwrap_err().to_string().contains(&vocab.to_string()));
    let message = session.prefill(0, &vec![1; capacity + 1]).unwrap_err().to_string();
    assert!(message.contains(&(capacity + 1).to_string()) && message.contains(&capacity.to_string()), "{message}");
    assert_eq!(session.len(0), 0, "a refused call leaves nothing behind");
    session.prefill(0, &vec![1; capacity]).unwrap();
    assert!(session.decode(&[(0, 1)]).is_err());
    let options = SessionOptions { sequences: 1, capacity: 1 << 20, kv: KvOptions::default() };
    assert!(Session::new(case.model.clone(), cpu(), Selector::dense(), options).is_err());
}

#[test]
fn stories260k() {
    let Some(dir) = shared_data("models/stories260k") else { return };
    let loaded = Load::new(&dir).cpu(cpu()).format(dense_format()).open(|_, _, _| ()).unwrap();
    let mut session = session(&cpu(), &loaded.model, Selector::dense(), 1, None);
    let logits = session.prefill(0, &[1, 403, 407, 261, 378]).unwrap();
    for (id, expected) in [(432, 17.7994), (383, 14.2813), (322, 9.7096), (353, 9.5873)] {
        assert!((logits[id] - expected).abs() < 1e-3, "logit of {id}: {}, expected {expected}", logits[id]);
    }
    let prompt = loaded.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
    let (text, _, finish) = generate_text(&loaded, Request { prompt, max_new_tokens: 60, ..Request::default() });
    assert_eq!(finish, Finish::MaxNewTokens);
    let expected = ", there was a little girl named Lily. She loved to play outside in the park.";
    assert!(text.starts_with(expected), "{text:?}");
}

/// `goldens/demo.json`, as `generate.py --demo` writes it.
#[derive(Deserialize)]
struct DemoFigures {
    prompt: String,
    prompt_ids: Vec<u32>,
    top5: Vec<(u32, f64)>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    greedy_least_lead: f64,
    sample_txt_window: usize,
    sample_txt_tokens: usize,
    sample_txt_predicted_tokens: usize,
    sample_txt_perplexity: f64,
    sample_txt_active_per_layer: Vec<f64>,
    sample_txt_active: f64,
}

#[test]
fn demo_model() {
    let path = goldens_dir().join("demo.json");
    let text = std::fs::read_to_string(&path)
        .expect("tests/goldens/demo.json is missing: python tests/goldens/generate.py --demo ../../assets/demo");
    let figures: DemoFigures = serde_json::from_str(&text).unwrap();
    let tokenizer = Tokenizer::load(&demo_dir()).unwrap();
    assert_eq!(tokenizer.encode(&figures.prompt, true).unwrap(), figures.prompt_ids);

    let (model, gate) = prepare(demo(), parse("gate"));
    let mut plain = dense(&model, 1);
    let logits = plain.prefill(0, &figures.prompt_ids).unwrap();
    let found: BTreeMap<u32, f32> = figures.top5.iter().map(|&(id, _)| (id, logits[id as usize])).collect();
    let largest = logits.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for &(id, expected) in &figures.top5 {
        let difference = (f64::from(found[&id]) - expected).abs();
        assert!(difference < F32_TOLERANCE * f64::from(largest), "logit of {id}: {}, expected {expected}", found[&id]);
    }
    let mut best: Vec<u32> = (0..logits.len() as u32).collect();
    best.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    let expected: Vec<u32> = figures.top5.iter().map(|t| t.0).collect();
    assert_eq!(best[..5], expected[..], "the five most likely tokens");

    plain.truncate(0, 0).unwrap();
    let found = greedy(&mut plain, 0, &figures.prompt_ids, figures.greedy_ids.len());
    let lead = figures.greedy_least_lead;
    assert_eq!(found, figures.greedy_ids, "greedy ids; the choice of least lead has {lead}");
    assert_eq!(tokenizer.decode(&found).unwrap().trim_start(), figures.greedy_text.trim_start());

    let sample = std::fs::read_to_string(demo_dir().join("sample.txt")).unwrap();
    let ids = tokenizer.encode(&sample, false).unwrap();
    assert_eq!(ids.len(), figures.sample_txt_tokens);
    let mut plain = session(&cpu(), &model, Selector::dense(), 1, Some(DType::F32));
    let mut sparse = session(&cpu(), &model, gate, 1, Some(DType::F32));
    let evaluation = evaluate(&mut plain, &mut sparse, &ids, figures.sample_txt_window, &mut (), |_| ()).unwrap();
    assert_eq!(evaluation.tokens, figures.sample_txt_predicted_tokens);
    for perplexity in [evaluation.dense_perplexity, evaluation.perplexity] {
        let expected = figures.sample_txt_perplexity;
        assert!((perplexity / expected - 1.0).abs() < 1e-3, "perplexity {perplexity}, expected {expected}");
    }
    // A gate within rounding of zero may be on either side.
    let near = |found: f64, expected: f64| (found - expected).abs() < 1e-3;
    let per_layer = &evaluation.active_fraction_per_layer;
    assert_eq!(per_layer.len(), figures.sample_txt_active_per_layer.len());
    for (layer, (&found, &expected)) in per_layer.iter().zip(&figures.sample_txt_active_per_layer).enumerate() {
        assert!(near(found, expected), "layer {layer}: {found} active, expected {expected}");
    }
    assert!(near(evaluation.active_fraction, figures.sample_txt_active), "{} active", evaluation.active_fraction);
}
