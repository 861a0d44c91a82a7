//! What the integration tests share: seeded random models, sessions over them, and comparisons.

pub mod gguf;
mod models;
pub mod reference;
pub mod reference_backend;
pub mod tiny;

pub use models::real_model;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sparrow::engine::{EngineOptions, Event, Finish, Request};
use sparrow::internals::backend::{ActiveNeurons, Observer};
use sparrow::internals::checkpoint::config::GenerationConfig;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::{
    Biases, BlockNorms, Fused, Norm, NormKind, Positions, QkNorm, Rope, RopeScaling, names,
};
use sparrow::internals::tensor::{Tensor, Weight};
use sparrow::internals::weights::{Source, Weights};
use sparrow::{
    Backend, Cpu, DType, KvOptions, Load, Loaded, Model, Placement, Result, Selector, SelectorSpec, Session,
    SessionOptions, Tokenizer, WeightsFormat,
};
use sparrow_kernels::{Activation, Compute, Isa, encode};
use sparrow_tools::calibrate::InputMoments;

/// SplitMix64 (Steele et al. 2014): small, seeded, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0, variance 1 (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    pub fn ids(&mut self, vocab: usize, len: usize) -> Vec<u32> {
        (0..len).map(|_| (self.next_u64() % vocab as u64) as u32).collect()
    }
}

/// Weights that follow from a seed and each tensor's name.
pub struct RandomSource {
    pub dtype: DType,
    pub seed: u64,
}

impl RandomSource {
    fn random(&self, name: &str) -> Random {
        Random::new(name.bytes().fold(self.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }
}

impl Source for RandomSource {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let mut random = self.random(name);
        // Of a size that keeps activations near 1 while every part of the model matters to the logits.
        let scale = if name.contains("embed") { 1.0 } else { 1.5 / (cols as f64).sqrt() };
        let values: Vec<f32> = (0..rows * cols).map(|_| (scale * random.normal()) as f32).collect();
        Tensor::in_memory(self.dtype, rows, cols, |out| encode(self.dtype, &values, out))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let mut random = self.random(name);
        let center = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        Ok((0..len).map(|_| (center + 0.3 * random.normal()) as f32).collect())
    }

    fn contains(&self, _: &str) -> bool {
        false
    }
}

/// A model of that specification with random weights.
pub fn random_model(spec: &ModelSpec, dtype: DType, seed: u64) -> Model {
    let weights = Weights::load(spec, &mut RandomSource { dtype, seed }).unwrap();
    Model {
        spec: spec.clone(),
        weights: Arc::new(weights),
        generation: GenerationConfig::default(),
        sidecar: None,
        dir: None,
        placement: Placement::default(),
        decoded: None,
    }
}

/// Rotary embeddings, the same in every layer.
pub fn rope(theta: f64, rotary_dim: usize, scaling: RopeScaling) -> Positions {
    Positions::Rope { full: Rope { theta, rotary_dim, scaling, attention_factor: 1.0 }, windowed: None }
}

/// A Llama with no round size: the others are variations of it.
pub fn odd_spec() -> ModelSpec {
    let (num_layers, head_dim) = (2, 12);
    ModelSpec {
        architecture: "LlamaForCausalLM".into(),
        names: names::LLAMA,
        vocab_size: 101,
        hidden_size: 72,
        intermediate_size: 172,
        num_layers,
        num_heads: 6,
        num_kv_heads: 3,
        head_dim,
        max_position_embeddings: 64,
        norm: Norm { kind: NormKind::Rms { offset: 0.0 }, eps: 1e-5 },
        block_norms: BlockNorms::Before,
        qk_norm: QkNorm::None,
        activation: Activation::Silu,
        gated: true,
        biases: Biases::default(),
        fused: Fused::default(),
        positions: rope(10_000.0, head_dim, RopeScaling::None),
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_soft_cap: None,
        logits_soft_cap: None,
        windows: vec![None; num_layers],
        embedding_scale: 1.0,
        tied: false,
    }
}

/// Every tier that this CPU has (up to `SPARROW_ISA`), best first, with workers even on a machine of one core.
pub fn tiers() -> &'static [Arc<Cpu>] {
    static TIERS: OnceLock<Vec<Arc<Cpu>>> = OnceLock::new();
    TIERS.get_or_init(|| {
        let tiers = Isa::ALL.into_iter().rev().filter(|&isa| isa <= Isa::best());
        tiers.filter_map(|isa| Some(Arc::new(Cpu { compute: Compute::with_isa(isa, Some(3)).ok()? }))).collect()
    })
}

/// The best tier.
pub fn cpu() -> Arc<Cpu> {
    tiers()[0].clone()
}

/// The best tier that computes with activations as they are.
pub fn exact() -> Arc<Cpu> {
    tiers().iter().find(|cpu| !rounds(cpu, DType::BF16)).unwrap().clone()
}

/// Whether activations are rounded to bf16 where there are more than 8 of them (see `Compute::linear`).
pub fn rounds(cpu: &Cpu, dtype: DType) -> bool {
    cpu.compute.isa() >= Isa::Avx512Bf16 && dtype == DType::BF16
}

/// How far rounded activations may take the logits of a model of so many layers, relative to the largest: the inputs of
/// five products a layer and the head's are off by 2⁻⁹ at most, independently of each other, and the largest of a
/// few thousand errors is four deviations. A model may amplify what enters a layer; twofold is allowed for.
pub fn rounded_tolerance(layers: usize) -> f64 {
    2.0 * 4.0 * 2f64.powi(-9) * ((5 * layers + 1) as f64).sqrt()
}

/// A session with room for the model's whole context, up to 512 tokens.
pub fn session(
    cpu: &Arc<Cpu>,
    model: &Arc<Model>,
    selector: Selector,
    sequences: usize,
    kv_dtype: Option<DType>,
) -> Session {
    session_with(cpu, model, selector, sequences, KvOptions { dtype: kv_dtype, ..KvOptions::default() })
}

/// [`session`] with any cache.
pub fn session_with(
    cpu: &Arc<Cpu>,
    model: &Arc<Model>,
    selector: Selector,
    sequences: usize,
    kv: KvOptions,
) -> Session {
    let options = SessionOptions { sequences, capacity: model.spec.context_length().min(512), kv };
    Session::new(model.clone(), cpu.clone(), selector, options).unwrap()
}

/// The model with a selector ready for it, its matrices whole.
pub fn prepare(model: Model, selector: SelectorSpec) -> (Arc<Model>, Selector) {
    let Loaded { model, selector, .. } = loading(model, selector).open(|_, _, _| ()).unwrap();
    (model, selector)
}

/// How [`prepare`] opens a model.
pub fn loading(model: Model, selector: SelectorSpec) -> Load {
    Load::made(model).cpu(cpu()).selector(selector).format(dense_format())
}

/// Every element of every matrix, zeros too.
pub fn dense_format() -> WeightsFormat {
    "dense".parse().unwrap()
}

/// Text, tokens and end of one request that is served alone.
pub fn generate_text(loaded: &Loaded, request: Request) -> (String, Vec<u32>, Finish) {
    let mut engine = loaded.engine(KvOptions::default(), EngineOptions::default()).unwrap();
    engine.submit(request).unwrap();
    let (mut all, mut tokens) = (String::new(), Vec::new());
    for event in engine.events() {
        match event.unwrap() {
            Event::Token { token, text, .. } => {
                tokens.push(token);
                all.push_str(&text);
            }
            Event::Finished { text, finish, .. } => return (all + &text, tokens, finish),
        }
    }
    panic!("the request did not end");
}

/// The identity matrix, `[n, n]`.
pub fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| f64::from(i % (n + 1) == 0)).collect()
}

/// Moments of a predictor that reads the MLP's own input, with this covariance.
pub fn moments(covariance: &[f64]) -> InputMoments {
    InputMoments { predictor: covariance.to_vec(), cross: None }
}

/// Selector by name.
pub fn parse(selector: &str) -> SelectorSpec {
    selector.parse().unwrap()
}

/// Logits after each of `tokens`, appended to `sequence` in calls of these sizes.
pub fn prefill_in<B: Backend>(
    session: &mut Session<B>,
    sequence: usize,
    tokens: &[u32],
    calls: &[usize],
) -> Vec<Vec<f32>> {
    prefill_observed(session, sequence, tokens, calls, &mut ())
}

/// [`prefill_in`], with an observer.
pub fn prefill_observed<B: Backend>(
    session: &mut Session<B>,
    sequence: usize,
    tokens: &[u32],
    calls: &[usize],
    observer: &mut dyn Observer,
) -> Vec<Vec<f32>> {
    let (mut out, mut rest) = (Vec::new(), tokens);
    for &call in calls {
        let (now, later) = rest.split_at(call);
        let collect = |_: usize, logits: &[f32]| {
            out.push(logits.to_vec());
            Ok(())
        };
        session.prefill_each(sequence, now, observer, collect).unwrap();
        rest = later;
    }
    assert!(rest.is_empty(), "calls add up to the tokens");
    out
}

/// `total` as calls of `size`, the last one shorter.
pub fn calls_of(size: usize, total: usize) -> Vec<usize> {
    (0..total).step_by(size).map(|start| size.min(total - start)).collect()
}

/// Logits of token by token decoding.
pub fn decode_each<B: Backend>(session: &mut Session<B>, sequence: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    tokens.iter().map(|&token| session.decode(&[(sequence, token)]).unwrap().to_vec()).collect()
}

/// Logits after a prompt and single tokens, each in a step, and then of three sequences side by side.
pub fn logits_of_all_kinds(cpu: &Arc<Cpu>, (model, selector): (Arc<Model>, Selector), ids: &[u32]) -> Vec<Vec<f32>> {
    let mut session = session(cpu, &model, selector, 3, Some(DType::F32));
    let (prompt, rest) = ids.split_at(ids.len() / 2);
    let mut out = prefill_in(&mut session, 0, prompt, &[prompt.len()]);
    out.extend(decode_each(&mut session, 0, rest));
    for sequence in 1..3 {
        out.extend(prefill_in(&mut session, sequence, &ids[..3 * sequence], &[3 * sequence]));
    }
    let step = session.decode(&[(0, 1), (1, 2), (2, 3)]).unwrap();
    out.extend(step.chunks_exact(model.spec.vocab_size).map(<[f32]>::to_vec));
    out
}

/// Whether zeros are left out.
pub fn is_bitmap(weight: &Weight) -> bool {
    weight.dense().is_none()
}

/// `count` ids, each the most likely after those before it.
pub fn greedy<B: Backend>(session: &mut Session<B>, sequence: usize, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = vec![argmax(session.prefill(sequence, prompt).unwrap())];
    while ids.len() < count {
        ids.push(argmax(session.decode(&[(sequence, ids[ids.len() - 1])]).unwrap()));
    }
    ids
}

pub fn argmax(x: &[f32]) -> u32 {
    (1..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best }) as u32
}

/// Largest difference of two rows of logits, relative to the largest magnitude of the expected one.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let expected: Vec<f64> = expected.iter().map(|&v| f64::from(v)).collect();
    difference_f64(found, &expected)
}

/// [`difference`] from f64.
pub fn difference_f64(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!(largest > 0.0 && largest.is_finite(), "expected logits are {largest}");
    let worst = found.iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).abs());
    // NaN must not vanish in a max.
    worst.fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m }) / largest
}

/// Largest [`difference`] over rows.
pub fn worst_difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let rows = found.iter().zip(expected).map(|(f, e)| difference(f, e));
    rows.fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// What each layer's MLP was given and which neurons counted, row by row in the order they came.
#[derive(Default)]
pub struct Recorder {
    /// Per layer and row: the MLP's input.
    pub inputs: Vec<Vec<Vec<f32>>>,
    /// Per layer and row: the words of the mask; none if every neuron counted.
    pub masks: Vec<Vec<Option<Vec<u64>>>>,
}

impl Observer for Recorder {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, active: Option<ActiveNeurons>) {
        if self.inputs.len() <= layer {
            self.inputs.resize(layer + 1, Vec::new());
            self.masks.resize(layer + 1, Vec::new());
        }
        self.inputs[layer].extend(h.chunks_exact(h.len() / m).map(<[f32]>::to_vec));
        for row in 0..m {
            let mask = active.map(|a| {
                let words = a.masks.len() / m;
                a.masks[row * words..(row + 1) * words].to_vec()
            });
            self.masks[layer].push(mask);
        }
    }
}

impl Recorder {
    /// Whether neuron `i` counted for a row.
    pub fn keeps(&self, layer: usize, row: usize, i: usize) -> bool {
        self.masks[layer][row].as_ref().is_none_or(|mask| bit(mask, i))
    }

    /// Active neurons ÷ all, averaged over rows and layers, of layers with `n` neurons.
    pub fn active_fraction(&self, n: usize) -> f64 {
        let rows = self.masks.iter().flatten();
        let (mut active, mut all) = (0u64, 0u64);
        for mask in rows {
            active += mask.as_ref().map_or(n as u64, |m| m.iter().map(|w| u64::from(w.count_ones())).sum());
            all += n as u64;
        }
        active as f64 / all as f64
    }
}

pub fn bit(mask: &[u64], i: usize) -> bool {
    mask[i / 64] >> (i % 64) & 1 == 1
}

/// The bundled demo model.
pub fn demo_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")
}

/// The model in a directory, mapped.
pub fn load(dir: &Path) -> Model {
    Model::load(dir, Placement::Mapped).unwrap()
}

/// The bundled demo model.
pub fn demo() -> Model {
    load(&demo_dir())
}

/// Its sample text, tokenised.
pub fn sample_ids() -> Vec<u32> {
    let text = std::fs::read_to_string(demo_dir().join("sample.txt")).unwrap();
    Tokenizer::load(&demo_dir()).unwrap().encode(&text, false).unwrap()
}

/// KL(softmax p ‖ softmax q), in f64.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
    let (lp, lq) = (log_sum(p), log_sum(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - lp, f64::from(q) - lq);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

/// The committed golden cases.
pub fn goldens_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sparrow/tests/goldens")
}

/// A directory under the data shared between checkouts; a note and none where it is absent.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if dir.exists() {
        return Some(dir);
    }
    eprintln!("skipped: needs shared/data");
    None
}
