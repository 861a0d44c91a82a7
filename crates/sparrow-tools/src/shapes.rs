//! Models of known shapes with random weights: for measuring speed, and for giving other engines the same bytes.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sparrow::internals::backend::Predictor;
use sparrow::internals::checkpoint::config::{GenerationConfig, parse_config};
use sparrow::internals::select::predictor_tensors;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::tensor::{Tensor, Weight};
use sparrow::internals::weights::{NEURON_MAJOR, Source, Weights};
use sparrow::{Cpu, Error, Model, Placement, Result, WeightsFormat};
use sparrow_kernels::{DType, Pool, decode, default_threads, encode};

/// One published shape; the figures are those of the model's `config.json`.
struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    positions: usize,
    theta: f64,
    tied: bool,
    /// `factor` of the llama3 rule.
    rope_factor: Option<f64>,
}

#[rustfmt::skip]
const SHAPES: [Shape; 6] = [
    Shape { name: "llama-3.2-1b", hidden: 2048, intermediate: 8192, layers: 16, heads: 32, kv_heads: 8, head_dim: 64, vocab: 128_256, positions: 131_072, theta: 5e5, tied: true, rope_factor: Some(32.0) },
    Shape { name: "llama-3.2-3b", hidden: 3072, intermediate: 8192, layers: 28, heads: 24, kv_heads: 8, head_dim: 128, vocab: 128_256, positions: 131_072, theta: 5e5, tied: true, rope_factor: Some(32.0) },
    Shape { name: "llama-3.1-8b", hidden: 4096, intermediate: 14_336, layers: 32, heads: 32, kv_heads: 8, head_dim: 128, vocab: 128_256, positions: 131_072, theta: 5e5, tied: false, rope_factor: Some(8.0) },
    Shape { name: "llama-2-7b", hidden: 4096, intermediate: 11_008, layers: 32, heads: 32, kv_heads: 32, head_dim: 128, vocab: 32_000, positions: 4096, theta: 1e4, tied: false, rope_factor: None },
    Shape { name: "tinyllama-1.1b", hidden: 2048, intermediate: 5632, layers: 22, heads: 32, kv_heads: 4, head_dim: 64, vocab: 32_000, positions: 2048, theta: 1e4, tied: false, rope_factor: None },
    Shape { name: "smollm2-135m", hidden: 576, intermediate: 1536, layers: 30, heads: 9, kv_heads: 3, head_dim: 64, vocab: 49_152, positions: 8192, theta: 1e5, tied: true, rope_factor: None },
];

/// Names that [`config`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|s| s.name)
}

/// The `config.json` of a named shape.
///
/// # Errors
/// If the name is not one of [`names`], or `dtype` is not one that checkpoints are written in.
pub fn config(name: &str, dtype: DType) -> Result<Value> {
    let Some(s) = SHAPES.iter().find(|s| s.name == name) else {
        let known: Vec<_> = names().collect();
        return Err(Error::option("shape", format!("{name:?} is not known; known shapes: {}", known.join(", "))));
    };
    let scaling = s.rope_factor.map(|factor| {
        json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192 })
    });
    let dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        quantized => {
            let message =
                format!("checkpoints are written in f32, f16 or bf16, and quantised to {quantized} when loaded");
            return Err(Error::option("dtype", message));
        }
    };
    Ok(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": s.hidden, "intermediate_size": s.intermediate, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "vocab_size": s.vocab, "max_position_embeddings": s.positions, "rms_norm_eps": 1e-5,
        "rope_theta": s.theta, "rope_scaling": scaling, "tie_word_embeddings": s.tied,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": dtype,
    }))
}

/// The specification of a named shape.
///
/// # Errors
/// As [`config`].
pub fn spec(name: &str) -> Result<ModelSpec> {
    parse_config(Path::new(name), &config(name, DType::BF16)?)
}

/// A model of that specification with random weights in memory. With `neuron_major`, down projections are made in that layout at
/// once. Of each matrix of the layers and of the head (and so of an embedding that is tied to it) the fraction `zeros` is 0, anywhere,
/// as if it were pruned; these matrices are stored as `format` asks.
///
/// # Errors
/// If memory runs out.
pub fn random_model(
    spec: ModelSpec,
    dtype: DType,
    neuron_major: bool,
    zeros: f64,
    format: &WeightsFormat,
    cpu: &Cpu,
) -> Result<Model> {
    let mut source = RandomWeights { spec: &spec, dtype, neuron_major, zeros, format, cpu };
    let weights = Weights::load(&spec, &mut source)?;
    Ok(Model {
        spec,
        weights: Arc::new(weights),
        generation: GenerationConfig::default(),
        sidecar: None,
        dir: None,
        decoded: None,
        placement: Placement::default(),
    })
}

/// Weights that are a function of the tensor's name and shape.
struct RandomWeights<'a> {
    spec: &'a ModelSpec,
    dtype: DType,
    neuron_major: bool,
    zeros: f64,
    format: &'a WeightsFormat,
    cpu: &'a Cpu,
}

impl Source for RandomWeights<'_> {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        // The head, and with it the embedding, as `Weights::quantize` has them.
        let in_layer = self.spec.names.is_of_layer(name);
        let dtype = if self.dtype.is_quantized() && !in_layer { DType::I8 } else { self.dtype };
        let zeros = if self.spec.is_of_layer_or_head(name) { self.zeros } else { 0.0 };
        Tensor::in_memory(dtype, rows, cols, |out| fill_random(name, dtype, cols, zeros, out))
    }

    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let dense = self.matrix(name, rows, cols)?.into();
        if !self.spec.is_of_layer_or_head(name) {
            return Ok(dense);
        }
        Ok(self.format.of(name).apply(&dense, &self.cpu.compute)?.unwrap_or(dense))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; len])
    }

    fn contains(&self, name: &str) -> bool {
        self.neuron_major && name.ends_with(NEURON_MAJOR)
    }
}

/// Predictors of that rank with random weights: they cost what real ones cost, and with a rule such as `quantile` select as
/// many neurons.
///
/// # Errors
/// If memory runs out.
pub fn random_predictors(spec: &ModelSpec, rank: usize) -> Result<Vec<Predictor>> {
    let tensor = |name: &str, rows, cols| {
        Tensor::in_memory(DType::F16, rows, cols, |out| fill_random(name, DType::F16, cols, 0.0, out))
    };
    let predictor = |layer| {
        let [a, b, _] = predictor_tensors(layer);
        let (a, b) = (tensor(&a, rank, spec.hidden_size)?, tensor(&b, spec.intermediate_size, rank)?);
        Ok(Predictor { a, b, bias: vec![0.0; spec.intermediate_size], logits: true })
    };
    (0..spec.num_layers).map(predictor).collect()
}

/// Names and shapes of every tensor of `spec`, in checkpoint order; one dimension for vectors. With `neuron_major`, down
/// projections are in that layout.
///
/// # Errors
/// Never in practice: no memory is taken.
pub fn parameters(spec: &ModelSpec, neuron_major: bool) -> Result<Vec<(String, Vec<usize>)>> {
    struct Recorder {
        seen: Vec<(String, Vec<usize>)>,
        neuron_major: bool,
    }
    impl Source for Recorder {
        fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
            self.seen.push((name.to_owned(), vec![rows, cols]));
            // Untouched pages: costs address space only.
            Tensor::in_memory(DType::BF16, rows, cols, |_| {})
        }
        fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
            self.seen.push((name.to_owned(), vec![len]));
            Ok(vec![0.0; len])
        }
        fn contains(&self, name: &str) -> bool {
            self.neuron_major && name.ends_with(NEURON_MAJOR)
        }
    }
    let mut recorder = Recorder { seen: Vec::new(), neuron_major };
    Weights::load(spec, &mut recorder)?;
    Ok(recorder.seen)
}

/// Fills a tensor with values of random sign and mantissa, of magnitude about `1 / √cols`: activations stay in range,
/// and no value is special (zero, denormal, infinite) to any kernel; but the fraction `zeros` of them is 0. Speed matters: models
/// of many GB are made.
pub fn fill_random(name: &str, dtype: DType, cols: usize, zeros: f64, out: &mut [u8]) {
    const BLOCK: usize = 1 << 22;
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let row = dtype.row_bytes(cols).max(1);
    Pool::new(default_threads()).for_chunks(out, (BLOCK / row).max(1) * row, &|i, block| {
        let mut state = seed ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if dtype.is_quantized() {
            let mut values = vec![0.0; cols];
            let mut bytes = vec![0; DType::F32.row_bytes(cols)];
            for row in block.chunks_exact_mut(row) {
                random_bits(&mut state, DType::F32, cols, &mut bytes);
                random_zeros(&mut state, DType::F32, zeros, &mut bytes);
                decode(DType::F32, &bytes, &mut values);
                encode(dtype, &values, row);
            }
        } else {
            random_bits(&mut state, dtype, cols, block);
            random_zeros(&mut state, dtype, zeros, block);
        }
    });
}

/// Fills `out` with floats as [`fill_random`] describes them, and moves the generator on.
fn random_bits(state: &mut u64, dtype: DType, cols: usize, out: &mut [u8]) {
    // Exponent so that the magnitudes, uniform in [2^e, 2^(e+1)), have a root mean square near 1/√cols.
    let exponent = (-(cols as f64).log2() / 2.0 - 0.6).floor() as i32;
    let (keep, set) = match dtype {
        DType::BF16 => (0x807f_807f_807f_807f, 0x0001_0001_0001_0001 * (((127 + exponent) as u64) << 7)),
        DType::F16 => (0x83ff_83ff_83ff_83ff, 0x0001_0001_0001_0001 * (((15 + exponent.max(-14)) as u64) << 10)),
        _ => (0x807f_ffff_807f_ffff, 0x0000_0001_0000_0001 * (((127 + exponent) as u64) << 23)),
    };
    for chunk in out.chunks_mut(8) {
        let bits = next(state) & keep | set;
        chunk.copy_from_slice(&bits.to_le_bytes()[..chunk.len()]);
    }
}

/// Zeroes the fraction `zeros` of the floats in `out`, and moves the generator on.
fn random_zeros(state: &mut u64, dtype: DType, zeros: f64, out: &mut [u8]) {
    if zeros == 0.0 {
        return;
    }
    let limit = (zeros * 65536.0) as u32;
    let size = dtype.row_bytes(1);
    for elements in out.chunks_mut(4 * size) {
        let bits = next(state);
        for (i, element) in elements.chunks_exact_mut(size).enumerate() {
            if u32::from((bits >> (16 * i)) as u16) < limit {
                element.fill(0);
            }
        }
    }
}

/// xorshift64* (Vigna, arXiv 1402.6246).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}
