//! Where the inverse of what an input's weights were multiplied with goes: into the norm before it, or into the rows that make it.

use sparrow::internals::checkpoint::{Checkpoint, file_dtype};
use sparrow::internals::spec::{ModelSpec, NormKind};
use sparrow_kernels::{DType, decode, encode};

use crate::layerwise::{Input, LayerMatrix, NewTensor, Replaced, layer_matrices};

/// What an input comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Origin {
    /// A norm, by its name.
    Norm(String),
    /// Rows of a matrix, by its name: from this one on.
    Rows(String, usize),
}

/// What `input` of a layer comes from, if its values can be scaled there: everything that reads it, and the rows that make it, are
/// `chosen` to be quantised.
pub(super) fn origin(
    spec: &ModelSpec,
    source: &Checkpoint,
    layer: usize,
    input: Input,
    chosen: &[LayerMatrix],
) -> Option<Origin> {
    let names = &spec.names;
    let name = |part: &str| names.layer(layer, part);
    let is_chosen = |wanted: &str| chosen.iter().any(|matrix| matrix.name == wanted);
    if !layer_matrices(names, source, layer).iter().filter(|m| m.input == input).all(|m| is_chosen(&m.name)) {
        return None;
    }
    let rows = |part: &str, first| {
        let name = format!("{}.weight", name(part));
        is_chosen(&name).then_some(Origin::Rows(name, first))
    };
    match input {
        Input::Attention => spec.block_norms.before().then(|| Origin::Norm(name(names.attention_norm))),
        Input::Mlp => spec.block_norms.before().then(|| Origin::Norm(name(names.mlp_norm))),
        Input::Output if spec.fused.qkv => rows(names.fused_qkv, spec.q_size() + spec.kv_size()),
        Input::Output => rows(names.qkv[2], 0),
        // Behind the activation of an ungated MLP a factor is none before it.
        Input::Down if !spec.gated => None,
        Input::Down if spec.fused.gate_up => rows(names.fused_gate_up, spec.intermediate_size),
        Input::Down => rows(names.up, 0),
    }
}

/// Has query heads that share values share what these are scaled with: `values` of attention's output become those of their group's
/// mean. All others are independent.
pub(super) fn share(spec: &ModelSpec, input: Input, values: &mut [f32]) {
    if input != Input::Output {
        return;
    }
    let shared = spec.num_heads / spec.num_kv_heads;
    for group in values.chunks_exact_mut(shared * spec.head_dim) {
        for d in 0..spec.head_dim {
            let mean = group.iter().skip(d).step_by(spec.head_dim).sum::<f32>() / shared as f32;
            group.iter_mut().skip(d).step_by(spec.head_dim).for_each(|value| *value = mean);
        }
    }
}

/// Of factors for the values of an input, those for the rows that make it.
pub(super) fn of_rows(spec: &ModelSpec, input: Input, factors: &[f32]) -> Vec<f32> {
    if input != Input::Output {
        return factors.to_vec();
    }
    let shared = spec.num_heads / spec.num_kv_heads;
    let groups = factors.chunks_exact(shared * spec.head_dim);
    groups.flat_map(|group| &group[..spec.head_dim]).copied().collect()
}

/// Divides what the norm `name` gives by `factors`, in `replaced`; `factors` become what they are after the norm's weights were rounded
/// to their type.
pub(super) fn into_norm(
    spec: &ModelSpec,
    source: &Checkpoint,
    name: &str,
    factors: &mut [f32],
    replaced: &mut Replaced,
) {
    let offset = match spec.norm.kind {
        NormKind::Rms { offset } => offset,
        NormKind::Layer => 0.0,
    };
    let Some(mut weight) = Vector::read(source, &format!("{name}.weight")) else {
        factors.fill(1.0);
        return;
    };
    for (w, factor) in weight.values.iter_mut().zip(factors.iter_mut()) {
        let before = offset + *w;
        let stored = rounded(weight.dtype, before / *factor - offset);
        let exact = before / (offset + stored);
        // A weight of zero stays, whatever it is divided by.
        if exact.is_finite() && exact > 0.0 {
            (*w, *factor) = (stored, exact);
        } else {
            *factor = 1.0;
        }
    }
    weight.replace(replaced);
    divide_bias(source, name, 0, factors, replaced);
}

/// Divides the bias of the layer `name`, where it has one, by `factors`, from the value `first` on, in `replaced`.
pub(super) fn divide_bias(source: &Checkpoint, name: &str, first: usize, factors: &[f32], replaced: &mut Replaced) {
    if let Some(mut bias) = Vector::read(source, &format!("{name}.bias")) {
        bias.values[first..].iter_mut().zip(factors).for_each(|(value, factor)| *value /= factor);
        bias.replace(replaced);
    }
}

/// The nearest value of a type.
fn rounded(dtype: DType, value: f32) -> f32 {
    let (mut bytes, mut values) = (vec![0; dtype.row_bytes(1)], [0.0]);
    encode(dtype, &[value], &mut bytes);
    decode(dtype, &bytes, &mut values);
    values[0]
}

/// A vector of the checkpoint.
struct Vector {
    name: String,
    dtype: DType,
    values: Vec<f32>,
}

impl Vector {
    fn read(source: &Checkpoint, name: &str) -> Option<Self> {
        let dtype = source.info(name)?.float()?;
        let bytes = source.bytes(name)?;
        let mut values = vec![0.0; bytes.len() / dtype.row_bytes(1)];
        decode(dtype, &bytes, &mut values);
        Some(Vector { name: name.to_owned(), dtype, values })
    }

    fn replace(self, replaced: &mut Replaced) {
        let Vector { name, dtype, values } = self;
        let mut bytes = vec![0; dtype.row_bytes(values.len())];
        encode(dtype, &values, &mut bytes);
        let new = NewTensor { name: name.clone(), dtype: file_dtype(dtype), shape: vec![values.len()], bytes };
        replaced.insert(name, vec![new]);
    }
}
