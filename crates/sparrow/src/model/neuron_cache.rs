//! MLPs whose neurons are mostly not in memory: active ones from the pools of the weight cache, all of them as a stream.

use sparrow_kernels::{LinearPart, Matrix, Packed, SparseMlp, SparseMlpInputs, Stored};

use super::Model;
use super::spec::ModelSpec;
use super::weights::MlpWeights;
use crate::backend::Cpu;
use crate::checkpoint::{Memory, NeuronStore, Places, Reading, Weight};
use crate::error::{Error, Result};
use crate::sparsity::{CacheSpec, Load, Selection, Selector, WeightCache, ones};

/// Weights of one chunk of a stream. While it is computed with, the next one is read: twice this in memory.
const CHUNK_BYTES: usize = 8 << 20;

/// The pools of all layers, what fills them, and working memory of a fixed size. Belongs to a session.
#[derive(Debug)]
pub(crate) struct NeuronCache {
    store: NeuronStore,
    pools: Vec<WeightCache>,
    /// Reads begun for each layer before its neurons are wanted.
    ahead: Vec<Option<Reading>>,
    /// Neurons come with their gate rows. Not if the selector computes every gate anyway: the gate is in memory then.
    gate: bool,
    row_bytes: usize,
    /// Where gate, up and down are in a slot.
    offsets: Vec<usize>,
    stream: Stream,
}

/// Working memory for neurons in order, chunk by chunk.
#[derive(Debug)]
struct Stream {
    /// Neurons of a chunk, a multiple of 64: masks are cut between words.
    chunk: usize,
    /// Gate rows of a chunk, then up rows, then down rows.
    weights: Memory,
    offsets: Vec<usize>,
    loads: Vec<Load>,
    masks: Vec<u64>,
    gate: Vec<f32>,
    up: Vec<f32>,
    neurons: Vec<f32>,
    out: Vec<f32>,
}

/// What an MLP computes with beside its weights.
pub(crate) struct Inputs<'a> {
    pub spec: &'a ModelSpec,
    pub cpu: &'a Cpu,
    pub layer: usize,
    pub w: &'a MlpWeights,
    /// `[m, hidden]`.
    pub h: &'a [f32],
    pub m: usize,
    /// `[m, intermediate]`, where selecting has computed them.
    pub gate_values: Option<&'a [f32]>,
}

impl NeuronCache {
    /// Empty pools for running `model` with `selector`.
    ///
    /// # Errors
    /// If memory cannot be had or a file cannot be opened.
    pub(crate) fn new(model: &Model, selector: &Selector, cache: CacheSpec) -> Result<Self> {
        let neurons = model.spec.intermediate_size;
        let gate = model.spec.gated && !selector.computes_gate();
        let parts = |w: &MlpWeights| {
            let gate = w.gate.as_ref().filter(|_| gate).map(|gate| &gate.weight);
            let whole = |weight: &Weight| weight.dense().cloned().ok_or_else(needs_dense);
            gate.into_iter().chain([&w.up.weight, &w.down.weight]).map(whole).collect()
        };
        let mlps = || model.weights.layers.iter().map(|layer| &layer.mlp);
        let store = NeuronStore::new(mlps().map(parts).collect::<Result<_>>()?, !cache.mapped)?;
        let up = &model.weights.layers[0].mlp.up.weight;
        let row_bytes = up.dtype().row_bytes(up.cols());
        let parts = if gate { 3 } else { 2 };
        let pool = |_| WeightCache::new(neurons, parts * row_bytes, cache.slots(neurons), cache.policy);
        let pools = (0..model.spec.num_layers).map(pool).collect::<Result<_>>()?;
        let chunk = (CHUNK_BYTES / (parts * row_bytes) / 64 * 64).clamp(64, neurons.next_multiple_of(64));
        let stream = Stream {
            chunk,
            weights: Memory::zeroed(chunk * parts * row_bytes)?,
            offsets: (0..parts).map(|part| part * chunk * row_bytes).collect(),
            loads: Vec::new(),
            masks: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            neurons: Vec::new(),
            out: Vec::new(),
        };
        let offsets = (0..parts).map(|part| part * row_bytes).collect();
        let ahead = mlps().map(|_| None).collect();
        Ok(NeuronCache { store, pools, ahead, gate, row_bytes, offsets, stream })
    }

    /// Begins to read what is missing of the neurons that `selection` has for `layer`: between selecting and
    /// [`gather`](Self::gather), other work hides the disk.
    pub(crate) fn prefetch(&mut self, layer: usize, selection: &Selection) {
        let pool = &self.pools[layer];
        let missing = ones(&selection.union).filter(|&neuron| !pool.contains(neuron)).take(pool.slots());
        self.ahead[layer] = self.store.read_ahead(layer, missing);
    }

    /// `out`, `[m, hidden]`, from the selected neurons alone: from the pool, after those that are missing were read into it; in
    /// passes if they are more than the pool holds. Returns the bytes read into the pool.
    ///
    /// # Errors
    /// If a file cannot be read, or ends early.
    pub(crate) fn gather(&mut self, x: &Inputs, selection: &Selection, out: &mut [f32]) -> Result<u64> {
        let NeuronCache { store, pools, ahead, offsets, stream, .. } = self;
        let Inputs { w, m, layer, .. } = *x;
        let pool = &mut pools[layer];
        let (slot_bytes, before) = (pool.slot_bytes(), pool.traffic().loaded);
        let weight = &w.up.weight;
        // One row's mask is the union itself.
        let masks = (m > 1).then_some(selection.masks.as_slice());
        pool.begin(&selection.union);
        let mut ahead = ahead[layer].take();
        let mut first = true;
        while let Some(pass) = pool.next_pass(|loads, pool| {
            store.read(layer, loads, Places { offsets, stride: slot_bytes }, ahead.take(), pool)
        })? {
            let slots = pass.pool.len() / slot_bytes;
            let rows = |part: usize| {
                // An empty pool has no parts.
                let bytes = pass.pool.get(offsets[part]..).unwrap_or_default();
                Matrix::strided(weight.dtype(), slots, weight.cols(), slot_bytes, bytes)
            };
            let mlp = SparseMlp {
                gate: w.gate.as_ref().map(|gate| if self.gate { rows(0).into() } else { gate.weight.stored() }),
                up: rows(offsets.len() - 2).into(),
                down: rows(offsets.len() - 1).into(),
                gate_bias: w.gate.as_ref().and_then(|gate| gate.bias.as_deref()),
                up_bias: w.up.bias.as_deref(),
                down_bias: w.down.bias.as_deref().filter(|_| first),
                activation: x.spec.activation,
                packed: Some(Packed { neurons: x.spec.intermediate_size, rows: pass.slots }),
            };
            let inputs = SparseMlpInputs { x: x.h, rows: m, neurons: pass.neurons, masks, gate: x.gate_values };
            let compute = &x.cpu.compute;
            if std::mem::take(&mut first) {
                compute.sparse_mlp(&mlp, &inputs, out);
            } else {
                stream.out.resize(out.len(), 0.0);
                compute.sparse_mlp(&mlp, &inputs, &mut stream.out);
                compute.add_assign(out, &stream.out);
            }
        }
        Ok((pool.traffic().loaded - before) * (offsets.len() * self.row_bytes) as u64)
    }

    /// `out`, `[m, hidden]`, from all neurons, those that `selection` leaves out of a row zeroed: chunk by chunk through working
    /// memory, past the pool. Returns the bytes read.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub(crate) fn stream<'a>(&mut self, x: &Inputs<'a>, selection: Option<&Selection>, out: &mut [f32]) -> Result<u64> {
        let NeuronCache { store, ahead, stream: s, row_bytes, .. } = self;
        let Inputs { spec, w, m, layer, h, .. } = *x;
        let compute = &x.cpu.compute;
        let (neurons, chunk) = (spec.intermediate_size, s.chunk);
        let words = neurons.div_ceil(64);
        let range = |start: usize| start as u32..neurons.min(start + chunk) as u32;
        let mut reading = ahead[layer].take();
        for start in (0..neurons).step_by(chunk) {
            let here = range(start);
            let n = here.len();
            s.loads.clear();
            s.loads.extend(here.zip(0..).map(|(neuron, slot)| Load { neuron, slot }));
            let places = Places { offsets: &s.offsets, stride: *row_bytes };
            store.read(layer, &s.loads, places, reading.take(), &mut s.weights)?;
            // What comes next, in this layer or the one after it.
            if start + chunk < neurons {
                reading = store.read_ahead(layer, range(start + chunk));
            } else if let Some(next) = ahead.get_mut(layer + 1) {
                *next = store.read_ahead(layer + 1, range(0));
            }

            let rows = |part: usize| {
                let stored = &w.up.weight;
                Stored::from(Matrix::new(
                    stored.dtype(),
                    n,
                    stored.cols(),
                    &s.weights[s.offsets[part]..][..n * *row_bytes],
                ))
            };
            let [up, down] = [2, 1].map(|from_end| rows(s.offsets.len() - from_end));
            let part = |bias: &'a Option<Vec<f32>>| bias.as_ref().map(|bias| &bias[start..start + n]);
            for buffer in [&mut s.gate, &mut s.up, &mut s.neurons] {
                buffer.resize(m * n, 0.0);
            }
            let up = LinearPart { weights: up, bias: part(&w.up.bias), out: &mut s.up };
            match (&w.gate, x.gate_values) {
                (Some(_), Some(values)) => {
                    for (to, from) in s.gate.chunks_exact_mut(n).zip(values.chunks_exact(neurons)) {
                        to.copy_from_slice(&from[start..start + n]);
                    }
                    compute.linear(h, m, &mut [up]);
                }
                (Some(gate), None) => {
                    let gate = LinearPart { weights: rows(0), bias: part(&gate.bias), out: &mut s.gate };
                    compute.linear(h, m, &mut [gate, up]);
                }
                (None, _) => compute.linear(h, m, &mut [up]),
            }
            if w.gate.is_some() {
                compute.gated(spec.activation, &s.gate, &s.up, &mut s.neurons);
            } else {
                s.neurons.copy_from_slice(&s.up);
                compute.activate(spec.activation, &mut s.neurons);
            }
            if let Some(selection) = selection {
                s.masks.clear();
                for mask in selection.masks.chunks_exact(words) {
                    s.masks.extend(&mask[start / 64..(start + n).div_ceil(64)]);
                }
                compute.zero_unset(&mut s.neurons, n, &s.masks);
            }
            if start == 0 {
                compute.linear_in_out(&s.neurons, m, down, None, w.down.bias.as_deref(), out);
            } else {
                s.out.resize(out.len(), 0.0);
                compute.linear_in_out(&s.neurons, m, down, None, None, &mut s.out);
                compute.add_assign(out, &s.out);
            }
        }
        Ok((neurons * s.offsets.len() * *row_bytes) as u64)
    }
}

fn needs_dense() -> Error {
    let message = "reads rows of one length, but the MLPs' weights are stored as bitmaps: use --weights ram or mmap";
    Error::option("weights", message)
}
