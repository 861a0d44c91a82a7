//! The active neurons of an MLP, for a few tokens.

use std::ops::Range;

use super::add_rows::Coefficients;
use super::check::check_ids;
use super::products::{Activations, Products};
use super::select::mask_words;
use crate::compute::Compute;
use crate::dtype::Stored;
use crate::kernels::activation::Activation;
use crate::parallel::SharedMut;
use crate::rows::{Int16Activations, RowSet};

/// An MLP, gated or not, with its down projection stored neuron by neuron: I neurons, hidden size H. The matrices hold
/// the rows of all neurons, or, where `pooled`, of some in any order.
#[derive(Clone, Copy, Debug)]
pub struct SparseMlp<'a> {
    /// `[I, H]`, not read where gate values are given; `None` for an ungated MLP, h = a(up · x).
    pub gate: Option<Stored<'a>>,
    /// `[I, H]`.
    pub up: Stored<'a>,
    /// `[I, H]`: row i is column i of the checkpoint's down projection.
    pub down: Stored<'a>,
    /// `[I]`.
    pub gate_bias: Option<&'a [f32]>,
    /// `[I]`.
    pub up_bias: Option<&'a [f32]>,
    /// `[H]`.
    pub down_bias: Option<&'a [f32]>,
    /// `[I]`: what stands for neurons that are left out, which `down_bias` counts of all of them: it is taken off the active ones.
    pub left_out: Option<&'a [f32]>,
    /// Applied to the gate, or to up without a gate.
    pub activation: Activation,
    /// Where the rows of the neurons are, if not each at its own number.
    pub pooled: Option<Pooled<'a>>,
}

/// Which rows of the matrices belong to the neurons of one call: a pool of rows that holds only some neurons.
#[derive(Clone, Copy, Debug)]
pub struct Pooled<'a> {
    /// I: what neuron numbers are below, and the length of biases and masks.
    pub neurons: usize,
    /// The row of gate, up and down for each of the active neurons.
    pub rows: &'a [u32],
}

/// What [`Compute::sparse_mlp`] is computed for: some rows, and the neurons that are active in them.
#[derive(Clone, Copy, Debug)]
pub struct SparseMlpInputs<'a> {
    /// `[rows, H]`.
    pub x: &'a [f32],
    /// Rows of x.
    pub rows: usize,
    /// The union of the rows' active neurons, ascending; only their weights are read.
    pub neurons: &'a [u32],
    /// `[rows, ceil(I/64)]`: which neurons are active in each row; `None` makes every one of `neurons` count in every
    /// row.
    pub masks: Option<&'a [u64]>,
    /// `[rows, I]`: gate pre-activations with their bias, where they are known; the gate's weights and bias are not
    /// read then.
    pub gate: Option<&'a [f32]>,
}

impl<'a> SparseMlpInputs<'a> {
    /// Rows `range`, of an MLP of I neurons and hidden size H.
    fn part(&self, range: Range<usize>, neurons: usize, hidden: usize) -> SparseMlpInputs<'a> {
        let words = mask_words(neurons);
        SparseMlpInputs {
            x: &self.x[range.start * hidden..range.end * hidden],
            rows: range.len(),
            neurons: self.neurons,
            masks: self.masks.map(|masks| &masks[range.start * words..range.end * words]),
            gate: self.gate.map(|gate| &gate[range.start * neurons..range.end * neurons]),
        }
    }
}

impl SparseMlp<'_> {
    /// I.
    fn neurons(&self) -> usize {
        self.pooled.map_or(self.up.rows(), |pooled| pooled.neurons)
    }
}

/// Neurons whose gate, up and down rows are read one after another.
const CHUNK: usize = 32;
/// The most blocks of neurons, each with its own partial sum.
const MAX_BLOCKS: usize = 64;
/// Tokens that share one pass over the weights.
const TOKENS: usize = 16;

impl Compute {
    /// out\[r, :\] = Σᵢ h\[r, i\] · down\[i, :\] + down_bias, with h\[r, i\] = a(gateᵢ·x\[r\] + bᵢ) · (upᵢ·x\[r\] + cᵢ)
    /// (without a gate: a(upᵢ·x\[r\] + cᵢ)), less its value of `left_out`, where neuron i is active in row r, and 0 elsewhere.
    /// Reads only the rows of the `neurons` of `inputs`. The idea is that of Deja Vu (arXiv 2310.17157).
    ///
    /// `out` is `[rows, H]`, overwritten. Where rows are `pooled` makes no difference to the result.
    ///
    /// Quantised gate and up see x in 16-bit integers, as in [`linear`](Self::linear). Tiers with vectors round h times the
    /// scales of a quantised down to 16-bit integers, the largest of eight neurons to 32512; of int8 those with AVX512-VNNI.
    ///
    /// Accumulates in `f32` in blocks that depend only on the number of `neurons`, so the result does not depend on the
    /// number of threads. Error at most (H/8 + neurons + 80) · 2⁻²² · Σᵢ Ĥᵢ·|downᵢ|, where Ĥᵢ evaluates h with absolute
    /// values throughout.
    ///
    /// # Panics
    /// If a length does not match these shapes, a neuron is not below I, a pooled row is not one of the matrices', or
    /// gate values are given for an ungated MLP.
    pub fn sparse_mlp(&self, mlp: &SparseMlp, inputs: &SparseMlpInputs, out: &mut [f32]) {
        check(mlp, inputs, out);
        let (neurons, hidden) = (mlp.neurons(), mlp.up.cols());
        let active = inputs.neurons.len();
        let blocks = active.div_ceil(CHUNK).clamp(1, MAX_BLOCKS);
        let block = active.div_ceil(blocks).next_multiple_of(8);
        let quantized = [mlp.gate.unwrap_or(mlp.up), mlp.up].iter().any(|w| w.dtype().is_quantized());
        for start in (0..inputs.rows).step_by(TOKENS) {
            let rows = start..inputs.rows.min(start + TOKENS);
            let inputs = inputs.part(rows.clone(), neurons, hidden);
            let int16 = quantized.then(|| self.quantize_activations(inputs.x, inputs.rows));
            let call = Call { compute: self, mlp, inputs, int16: int16.as_ref() };
            call.run(blocks, block, &mut out[rows.start * hidden..rows.end * hidden]);
        }
    }
}

/// One pass over the weights, for at most [`TOKENS`] rows.
struct Call<'a> {
    compute: &'a Compute,
    mlp: &'a SparseMlp<'a>,
    inputs: SparseMlpInputs<'a>,
    /// x in 16-bit integers, for quantised weights.
    int16: Option<&'a Int16Activations<'a>>,
}

impl Call<'_> {
    fn run(&self, blocks: usize, block: usize, out: &mut [f32]) {
        let hidden = self.mlp.up.cols();
        let size = self.inputs.rows * hidden;
        let work = 3 * size * self.inputs.neurons.len();
        // Per block: the partial sum, then h and the other factor of a chunk.
        let stride = size + 2 * self.inputs.rows * CHUNK;
        let mut scratch = self.compute.workers.scratch.take(blocks * stride);
        let parts = SharedMut::new(&mut scratch);
        self.compute.workers.parallel(blocks, work, &|b| {
            // SAFETY: each block has its own stretch.
            let part = unsafe { parts.part(b * stride..(b + 1) * stride) };
            let (sum, values) = part.split_at_mut(size);
            sum.fill(0.0);
            let (start, end) =
                (self.inputs.neurons.len().min(b * block), self.inputs.neurons.len().min((b + 1) * block));
            for start in (start..end).step_by(CHUNK) {
                self.add_chunk(start..end.min(start + CHUNK), values, sum);
            }
        });
        let scratch = &*scratch;
        self.compute.workers.split_mut_indexed(out, blocks, &|start, out| {
            for (i, value) in out.iter_mut().enumerate() {
                *value = self.mlp.down_bias.map_or(0.0, |b| b[(start + i) % hidden]);
            }
            for b in 0..blocks {
                let part = &scratch[b * stride + start..][..out.len()];
                // SAFETY: the table holds only kernels that this CPU can run.
                unsafe { (self.compute.kernels.add_assign)(out, part) };
            }
        });
    }

    /// Adds the neurons of one chunk of ids to `sum` `[m, H]`.
    fn add_chunk(&self, chunk: Range<usize>, values: &mut [f32], sum: &mut [f32]) {
        let ids = &self.inputs.neurons[chunk.clone()];
        let rows = self.mlp.pooled.map_or(ids, |pooled| &pooled.rows[chunk]);
        let (m, mlp, n) = (self.inputs.rows, self.mlp, ids.len());
        let (gate, up) = values.split_at_mut(m * CHUNK);
        let (gate, up) = (&mut gate[..m * n], &mut up[..m * n]);
        self.project(mlp.up, mlp.up_bias, ids, rows, up);
        match (mlp.gate, self.inputs.gate) {
            (Some(_), Some(all)) => {
                for (all, row) in all.chunks_exact(mlp.neurons()).zip(gate.chunks_exact_mut(n)) {
                    for (value, &id) in row.iter_mut().zip(ids) {
                        *value = all[id as usize];
                    }
                }
            }
            (Some(weights), None) => self.project(weights, mlp.gate_bias, ids, rows, gate),
            (None, _) => {}
        }
        // SAFETY: the table holds only kernels that this CPU can run.
        let activate = |x: &mut [f32]| unsafe { (self.compute.kernels.activate)(mlp.activation, x) };
        if mlp.gate.is_none() || mlp.activation == Activation::DoubleRelu {
            activate(up);
        }
        if mlp.gate.is_some() {
            activate(gate);
            multiply(up, gate);
        }
        if let Some(left_out) = mlp.left_out {
            for row in up.chunks_exact_mut(n) {
                row.iter_mut().zip(ids).for_each(|(h, &id)| *h -= left_out[id as usize]);
            }
        }
        if let Some(masks) = self.inputs.masks {
            let words = mask_words(mlp.neurons());
            for (mask, row) in masks.chunks_exact(words).zip(up.chunks_exact_mut(n)) {
                for (h, &id) in row.iter_mut().zip(ids) {
                    if mask[id as usize / 64] >> (id % 64) & 1 == 0 {
                        *h = 0.0;
                    }
                }
            }
        }
        let by = Coefficients { a: up, stride: n, columns: None, exact: true };
        self.compute.add_rows(mlp.down, RowSet::Ids(rows), by, m, sum);
    }

    /// out `[m, ids]` = x · W\[rows\]ᵀ + bias\[ids\].
    fn project(&self, weights: Stored, bias: Option<&[f32]>, ids: &[u32], rows: &[u32], out: &mut [f32]) {
        let x = Activations { x: self.inputs.x, int16: self.int16, m: self.inputs.rows, exact: true };
        let to = Products { out: out.as_mut_ptr(), stride: ids.len() };
        // SAFETY: the rows are rows of the weights, x is [m, k], with int16 where a weight is quantised, and out is [m, ids].
        unsafe { self.compute.products(weights, RowSet::Ids(rows), x, to) };
        if let Some(bias) = bias {
            for row in out.chunks_exact_mut(ids.len()) {
                for (value, &id) in row.iter_mut().zip(ids) {
                    *value += bias[id as usize];
                }
            }
        }
    }
}

fn multiply(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

fn check(mlp: &SparseMlp, inputs: &SparseMlpInputs, out: &[f32]) {
    let &SparseMlpInputs { x, rows, neurons: active, masks, gate: gate_values } = inputs;
    let (neurons, stored, hidden) = (mlp.neurons(), mlp.up.rows(), mlp.up.cols());
    let shape = |name: &str, matrix: Stored| {
        assert!(
            (matrix.rows(), matrix.cols()) == (stored, hidden),
            "sparse_mlp: {name} is {matrix:?}, up is {:?}",
            mlp.up
        );
    };
    let length = |name: &str, got: usize, want: usize| {
        assert_eq!(got, want, "sparse_mlp: {name}.len() is {got}, not {want}");
    };
    shape("down", mlp.down);
    if let Some(gate) = mlp.gate.filter(|_| gate_values.is_none()) {
        shape("gate", gate);
    }
    length("x", x.len(), rows * hidden);
    length("out", out.len(), rows * hidden);
    for (name, bias, want) in [
        ("gate_bias", mlp.gate_bias, neurons),
        ("up_bias", mlp.up_bias, neurons),
        ("down_bias", mlp.down_bias, hidden),
        ("left_out", mlp.left_out, neurons),
    ] {
        length(name, bias.map_or(want, <[f32]>::len), want);
    }
    if let Some(masks) = masks {
        length("masks", masks.len(), rows * mask_words(neurons));
    }
    if let Some(values) = gate_values {
        assert!(mlp.gate.is_some(), "sparse_mlp: gate values for an ungated MLP");
        length("inputs.gate", values.len(), rows * neurons);
    }
    check_ids("sparse_mlp", "neurons", active, neurons);
    if let Some(pooled) = mlp.pooled {
        length("pooled.rows", pooled.rows.len(), active.len());
        check_ids("sparse_mlp", "pooled.rows", pooled.rows, stored);
    }
}
