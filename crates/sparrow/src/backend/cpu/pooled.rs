//! MLPs whose neurons are mostly not in memory: active ones from the pools of the weight cache, all of them as a stream.

use std::ops::Range;

use sparrow_kernels::{Matrix, Pooled, SparseMlp, SparseMlpInputs, Stored};

use super::buffers::Mlp;
use super::inputs::ActiveInputs;
use super::neurons::{Inputs, Known, Part, all};
use super::select::{Preferred, Selection};
use crate::backend::{Component, Step};
use crate::error::{Error, Result};
use crate::residency::{CacheSpec, Load, NeuronStore, Places, Reading, WeightCache, ones};
use crate::spec::ModelSpec;
use crate::tensor::{Memory, Weight};
use crate::weights::{LinearView, MlpWeights, Weights};

/// Weights of one chunk of a stream. While it is computed with, the next one is read: twice this in memory.
const CHUNK_BYTES: usize = 8 << 20;

/// The pools of all layers, what fills them, and working memory of a fixed size. Belongs to a session.
#[derive(Debug)]
pub struct NeuronPools {
    store: NeuronStore,
    pools: Vec<WeightCache>,
    /// Reads begun for each layer before its neurons are wanted.
    ahead: Vec<Option<Reading>>,
    /// Neurons come with their gate rows. Not if the selector computes every gate anyway: the gate is in memory then.
    gate: bool,
    row_bytes: usize,
    /// See [`CacheSpec::prefer`].
    prefer: f32,
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
    mlp: Mlp,
    /// Nothing is left out here.
    inputs: ActiveInputs,
    out: Vec<f32>,
}

impl NeuronPools {
    /// Empty pools for the MLPs of `weights`; where selecting makes every gate known, neurons come without.
    ///
    /// # Errors
    /// If memory cannot be had, a file cannot be opened, or a layer's matrices are not all of one type.
    pub fn new(spec: &ModelSpec, weights: &Weights, cache: CacheSpec, gate_known: bool) -> Result<Self> {
        let neurons = spec.intermediate_size;
        let gate = spec.gated && !gate_known;
        let parts = |w: &MlpWeights| {
            let gate = w.gate.as_ref().filter(|_| gate).map(|gate| &gate.weight);
            let whole = |weight: &Weight| weight.dense().cloned().ok_or_else(needs_dense);
            gate.into_iter().chain([&w.up.weight, &w.down.weight]).map(whole).collect()
        };
        let mlps = || weights.layers.iter().map(|layer| &layer.mlp);
        let store = NeuronStore::new(mlps().map(parts).collect::<Result<_>>()?, !cache.mapped)?;
        let up = &weights.layers[0].mlp.up.weight;
        let mut all = mlps().flat_map(|mlp| mlp.gate.iter().chain([&mlp.up, &mlp.down]));
        if let Some(other) = all.find(|linear| linear.weight.dtype() != up.dtype()) {
            let [up, other] = [up, &other.weight].map(Weight::dtype);
            let message = format!("a cache keeps neurons of one type, and those of this model have {up} and {other}");
            return Err(Error::option("weights", message));
        }
        let row_bytes = up.dtype().row_bytes(up.cols());
        let parts = if gate { 3 } else { 2 };
        let pool = |_| WeightCache::new(neurons, parts * row_bytes, cache.slots(neurons), cache.policy);
        let pools = (0..spec.num_layers).map(pool).collect::<Result<_>>()?;
        let chunk = (CHUNK_BYTES / (parts * row_bytes) / 64 * 64).clamp(64, neurons.next_multiple_of(64));
        let stream = Stream {
            chunk,
            weights: Memory::zeroed(chunk * parts * row_bytes)?,
            offsets: (0..parts).map(|part| part * chunk * row_bytes).collect(),
            loads: Vec::new(),
            masks: Vec::new(),
            mlp: Mlp::default(),
            inputs: ActiveInputs::default(),
            out: Vec::new(),
        };
        let offsets = (0..parts).map(|part| part * row_bytes).collect();
        let ahead = mlps().map(|_| None).collect();
        Ok(NeuronPools { store, pools, ahead, gate, row_bytes, prefer: cache.prefer, offsets, stream })
    }

    /// Begins to read what is missing of the neurons that `selection` has for `layer`: between selecting and
    /// [`gather`](Self::gather), other work hides the disk.
    pub fn prefetch(&mut self, layer: usize, selection: &Selection) {
        let pool = &self.pools[layer];
        let missing = ones(&selection.union).filter(|&neuron| !pool.contains(neuron)).take(pool.slots());
        self.ahead[layer] = self.store.read_ahead(layer, missing);
    }

    /// What is in the pool of `layer`, if that is preferred.
    pub fn preferred(&self, layer: usize) -> Option<Preferred<'_>> {
        (self.prefer > 1.0).then(|| Preferred { resident: self.pools[layer].resident(), times: self.prefer })
    }

    /// `out`, `[m, hidden]`, from the selected neurons alone: from the pool, after those that are missing were read into it; in
    /// passes if they are more than the pool holds. `gate` has the gate's values where these are known.
    ///
    /// # Errors
    /// If a file cannot be read, or ends early.
    pub fn gather(
        &mut self,
        x: &Inputs,
        step: &mut Step,
        selection: &Selection,
        gate: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let NeuronPools { store, pools, ahead, offsets, stream, .. } = self;
        let (w, m, layer, spec) = (x.weights(), step.rows.len(), x.layer.index, x.layer.spec);
        let pool = &mut pools[layer];
        let left_out = selection.left_out(layer);
        let (slot_bytes, before) = (pool.slot_bytes(), pool.traffic().loaded);
        let weight = &w.up.weight;
        let gate = x.gate_known().then_some(gate);
        // One row's mask is the union itself.
        let masks = (m > 1).then_some(selection.masks.as_slice());
        let rest = left_out.map(|neurons| neurons.rest.as_slice()).or(w.down.bias.as_deref());
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
                down_bias: rest.filter(|_| first),
                left_out: left_out.map(|neurons| neurons.left_out.as_slice()),
                activation: spec.activation,
                pooled: Some(Pooled { neurons: spec.intermediate_size, rows: pass.slots }),
            };
            let compute = &x.cpu.compute;
            let inputs = SparseMlpInputs { x: x.h, rows: m, neurons: pass.neurons, masks, gate };
            if std::mem::take(&mut first) {
                compute.sparse_mlp(&mlp, &inputs, out);
            } else {
                stream.out.resize(out.len(), 0.0);
                compute.sparse_mlp(&mlp, &inputs, &mut stream.out);
                compute.add_assign(out, &stream.out);
            }
        }
        let read = (pool.traffic().loaded - before) * (offsets.len() * self.row_bytes) as u64;
        let neuron = w.neuron_bytes() - if gate.is_some() { w.gate_row_bytes() } else { 0 };
        step.meter.stored(read);
        step.meter.read(neuron * selection.ids.len() as u64);
        step.meter.lap(Component::SparseMlp);
        Ok(())
    }

    /// `out`, `[m, hidden]`, from all neurons, without those that `selection` leaves out of a row: chunk by chunk through working
    /// memory, past the pool. `gate` has the gate's values where these are known.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn stream(
        &mut self,
        x: &Inputs,
        step: &mut Step,
        selection: Option<&Selection>,
        gate: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let NeuronPools { store, ahead, stream: s, row_bytes, .. } = self;
        let (w, m, layer) = (x.weights(), step.rows.len(), x.layer.index);
        let (neurons, chunk) = (x.layer.spec.intermediate_size, s.chunk);
        let words = neurons.div_ceil(64);
        let range = |start: usize| start as u32..neurons.min(start + chunk) as u32;
        let gate_known = x.gate_known();
        // Of an ungated MLP up is read with the rest, though it was computed to select by.
        let known = if gate_known { Known::Deciding } else { Known::Nothing };
        let x = &Inputs { known, ..*x };
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
            s.mlp.resize(m * n);
            if gate_known {
                for (to, from) in s.mlp.gate.chunks_exact_mut(n).zip(gate.chunks_exact(neurons)) {
                    to.copy_from_slice(&from[start..start + n]);
                }
            }
            let masks = selection.and_then(Selection::masks).map(|masks| {
                s.masks.clear();
                masks.chunks_exact(words).for_each(|m| s.masks.extend(&m[start / 64..(start + n).div_ceil(64)]));
                s.masks.as_slice()
            });
            let left_out = selection.and_then(|selection| selection.left_out(layer));
            let left_out = left_out.map(|neurons| &neurons.left_out[start..start + n]);
            let part = Part { masks, left_out, ..part(w, start..start + n, (&s.weights, &s.offsets, *row_bytes)) };
            if start == 0 {
                all(x, step, &part, &mut s.mlp, &mut s.inputs, out);
            } else {
                s.out.resize(out.len(), 0.0);
                all(x, step, &part, &mut s.mlp, &mut s.inputs, &mut s.out);
                x.cpu.compute.add_assign(out, &s.out);
            }
        }
        step.meter.stored((neurons * s.offsets.len() * *row_bytes) as u64);
        Ok(())
    }
}

/// The neurons `range` of an MLP, whose rows are in `bytes` from `offsets` on: of gate (or not), up and down.
fn part<'a>(
    w: &'a MlpWeights,
    range: Range<usize>,
    (bytes, offsets, row_bytes): (&'a [u8], &[usize], usize),
) -> Part<'a> {
    let stored = &w.up.weight;
    let view = |place: usize, bias: Option<&'a [f32]>, input_major: bool| {
        let bytes = &bytes[offsets[place]..][..range.len() * row_bytes];
        let matrix = Matrix::new(stored.dtype(), range.len(), stored.cols(), bytes);
        LinearView { weight: Stored::from(matrix), bias, input_major }
    };
    let of_range = |bias: &'a Option<Vec<f32>>| bias.as_ref().map(|bias| &bias[range.clone()]);
    // Where the gate is known its rows are not read.
    let gate = w.gate.as_ref().map(|gate| view(0, of_range(&gate.bias), false));
    let [up, down] = [2, 1].map(|from_end| offsets.len() - from_end);
    // The bias of down is added once.
    let down_bias = w.down.bias.as_deref().filter(|_| range.start == 0);
    Part {
        gate,
        up: view(up, of_range(&w.up.bias), false),
        down: view(down, down_bias, true),
        masks: None,
        left_out: None,
    }
}

fn needs_dense() -> Error {
    let message = "reads rows of one length, but the MLPs' weights are stored as bitmaps: use --weights ram or mmap";
    Error::option("weights", message)
}
