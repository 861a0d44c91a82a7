//! The active neurons of an MLP, gated and not, with and without masks, known gates and a pool of rows, against `f64`.

use crate::support::*;
use sparrow_kernels::*;

struct Mlp {
    gate: Option<Sample>,
    up: Sample,
    down: Sample,
    biases: Option<[Vec<f32>; 3]>,
    left_out: Option<Vec<f32>>,
    activation: Activation,
}

impl Mlp {
    fn random(dtype: DType, neurons: usize, hidden: usize, gated: bool, a: Activation, random: &mut Random) -> Self {
        Self {
            gate: gated.then(|| Sample::random(dtype, neurons, hidden, random)),
            up: Sample::random(dtype, neurons, hidden, random),
            down: Sample::random(dtype, neurons, hidden, random),
            biases: (neurons % 2 == 1).then(|| [random.values(neurons), random.values(neurons), random.values(hidden)]),
            left_out: (neurons % 4 == 1).then(|| random.values(neurons)),
            activation: a,
        }
    }

    fn borrow(&self) -> SparseMlp<'_> {
        let bias = |i: usize| self.biases.as_ref().map(|b| &b[i][..]);
        SparseMlp {
            gate: self.gate.as_ref().map(|gate| gate.matrix().into()),
            up: self.up.matrix().into(),
            down: self.down.matrix().into(),
            gate_bias: bias(0),
            up_bias: bias(1),
            down_bias: bias(2),
            left_out: self.left_out.as_deref(),
            activation: self.activation,
            pooled: None,
        }
    }

    /// The masked dense reference for one row, with the sum of absolute values, and how much the rounding of down's inputs
    /// times its scales may change: where down is quantised, by half a step of 16 bits, the largest being any of them.
    fn reference(&self, x: &[f32], active: &dyn Fn(usize) -> bool) -> (Vec<(f64, f64)>, f64) {
        let bias = |which: usize, i: usize| self.biases.as_ref().map_or(0.0, |b| f64::from(b[which][i]));
        let seen = if self.up.dtype.is_quantized() { quantized(x) } else { x.to_vec() };
        let project = |w: &Sample, which: usize, i: usize| {
            let (mut sum, mut size) = (bias(which, i), bias(which, i).abs());
            for (c, &v) in seen.iter().enumerate() {
                sum += w.at(i, c) * f64::from(v);
                size += w.size(i, c) * f64::from(v).abs();
            }
            (sum, size)
        };
        let mut out: Vec<(f64, f64)> = (0..x.len()).map(|c| (bias(2, c), bias(2, c).abs())).collect();
        let mut largest = 0.0f64;
        for i in (0..self.up.rows).filter(|&i| active(i)) {
            let (up, up_size) = project(&self.up, 1, i);
            let (h, size) = match &self.gate {
                Some(gate) => {
                    let (gate, gate_size) = project(gate, 0, i);
                    let up = if self.activation == Activation::DoubleRelu { up.max(0.0) } else { up };
                    (activation(self.activation, gate) * up, (gate_size + gate_size * gate_size) * up_size)
                }
                None => (activation(self.activation, up), up_size + up_size * up_size),
            };
            let left_out = self.left_out.as_ref().map_or(0.0, |values| f64::from(values[i]));
            let (h, size) = (h - left_out, size + left_out.abs());
            largest = largest.max(h.abs() * self.down.largest_size(i));
            for (c, (sum, sizes)) in out.iter_mut().enumerate() {
                *sum += h * self.down.at(i, c);
                *sizes += size * self.down.size(i, c);
            }
        }
        (out, if self.down.dtype.is_quantized() { self.up.rows as f64 * largest / 65024.0 } else { 0.0 })
    }
}

/// The rows of some neurons of an [`Mlp`], in records of gate, up and down whose order is not that of the neurons.
struct PoolOfNeurons {
    bytes: Vec<u8>,
    stride: usize,
    rows: Vec<u32>,
}

impl PoolOfNeurons {
    fn new(mlp: &Mlp, ids: &[u32]) -> Self {
        let row = mlp.up.matrix().row_bytes();
        let (count, stride) = (ids.len(), (3 * row).next_multiple_of(64));
        // Some record between those in use: the pool's matrices have more rows than there are ids.
        let rows: Vec<u32> = (0..count).map(|j| (count - j) as u32).collect();
        let mut bytes = vec![0xff; (count + 1) * stride];
        for (&id, &at) in ids.iter().zip(&rows) {
            let parts = [mlp.gate.as_ref().unwrap_or(&mlp.up), &mlp.up, &mlp.down];
            for (p, part) in parts.into_iter().enumerate() {
                bytes[at as usize * stride + p * row..][..row].copy_from_slice(part.matrix().row(id as usize));
            }
        }
        PoolOfNeurons { bytes, stride, rows }
    }

    fn borrow<'a>(&'a self, mlp: &'a Mlp, gate_read: bool) -> SparseMlp<'a> {
        let stored = mlp.up.matrix();
        let part = |p: usize| {
            let (count, bytes) = (self.rows.len() + 1, &self.bytes[p * stored.row_bytes()..]);
            Matrix::strided(stored.dtype(), count, stored.cols(), self.stride, bytes).into()
        };
        let whole = mlp.borrow();
        // A gate that is not read may be of any shape.
        let gate = whole.gate.map(|gate| if gate_read { part(0) } else { gate });
        let pooled = Some(Pooled { neurons: stored.rows(), rows: &self.rows });
        SparseMlp { gate, up: part(1), down: part(2), pooled, ..whole }
    }
}

fn set_bit(mask: &mut [u64], i: usize) {
    mask[i / 64] |= 1 << (i % 64);
}

fn check_sparse_mlp(compute: &Compute, mlp: &Mlp, m: usize, every: usize, random: &mut Random) {
    let (neurons, hidden) = (mlp.up.rows, mlp.up.cols);
    let words = mask_words(neurons);
    let x = random.values(m * hidden);
    let mut masks = vec![0u64; m * words];
    for t in 0..m {
        for i in 0..neurons {
            if random.below(every) == 0 {
                set_bit(&mut masks[t * words..(t + 1) * words], i);
            }
        }
    }
    let mut union = vec![0; words];
    union_masks(&masks, words, &mut union);
    let mut ids = Vec::new();
    compute.mask_to_ids(&union, &mut ids);
    let gate_values = mlp.borrow().gate.map(|weights| {
        let mut values = vec![0.0; m * neurons];
        compute.linear(&x, m, &mut [LinearPart { weights, bias: mlp.borrow().gate_bias, out: &mut values }]);
        values
    });
    for masked in [false, true] {
        for gate_values in [None, gate_values.as_deref()] {
            let mut out = vec![f32::NAN; m * hidden];
            let masks = masked.then_some(&masks[..]);
            compute.sparse_mlp(
                &mlp.borrow(),
                &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks, gate: gate_values },
                &mut out,
            );
            let pool = PoolOfNeurons::new(mlp, &ids);
            let mut from_pool = vec![f32::NAN; m * hidden];
            let gate_read = gate_values.is_none();
            compute.sparse_mlp(
                &pool.borrow(mlp, gate_read),
                &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks, gate: gate_values },
                &mut from_pool,
            );
            assert_eq!(bits(&from_pool), bits(&out), "pooled {} m={m} {}", mlp.up.dtype, describe(compute));
            for t in 0..m {
                let bits = masks.map_or(&union[..], |v| &v[t * words..(t + 1) * words]);
                let (want, rounded) =
                    mlp.reference(&x[t * hidden..(t + 1) * hidden], &|i| bits[i / 64] >> (i % 64) & 1 == 1);
                for c in 0..hidden {
                    let tolerance = (hidden as f64 / 8.0 + ids.len() as f64 + 80.0) * 4.0 * U * want[c].1 + rounded;
                    assert_close(out[t * hidden + c], want[c].0, tolerance, &|| {
                        format!(
                            "sparse_mlp {} m={m} I={neurons} H={hidden} [{t}, {c}] {}",
                            mlp.up.dtype,
                            describe(compute)
                        )
                    });
                }
            }
        }
    }
}

#[test]
fn sparse_mlp() {
    let mut random = Random(3);
    for compute in tiers_to_test() {
        // Types that are only read share their loops with these.
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_writable()) {
            for gated in [false, true] {
                for a in [Activation::Silu, Activation::Relu, Activation::DoubleRelu, Activation::ReluSquared] {
                    for (neurons, hidden) in
                        [(0, 8), (1, 1), (2, 15), (31, 16), (33, 17), (64, 33), (65, 64), (130, 65)]
                    {
                        let mlp = Mlp::random(dtype, neurons, hidden, gated, a, &mut random);
                        for m in [0, 1, 2, 8] {
                            check_sparse_mlp(&compute, &mlp, m, 2, &mut random);
                        }
                    }
                }
                let mlp = Mlp::random(dtype, 151, 40, gated, Activation::GeluTanh, &mut random);
                for m in [3, 16, 17, 35] {
                    check_sparse_mlp(&compute, &mlp, m, 5, &mut random);
                }
                let mlp = Mlp::random(dtype, 2501, 300, gated, Activation::Gelu, &mut random);
                check_sparse_mlp(&compute, &mlp, 1, 1, &mut random);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let mut random = Random(4);
    let mlp = Mlp::random(DType::BF16, 1001, 129, true, Activation::Silu, &mut random);
    let x = random.values(2 * 129);
    let ids: Vec<u32> = (0..1001).filter(|i| i % 3 != 0).collect();
    let w = Sample::random(DType::F16, 129, 1001, &mut random);
    for isa in Isa::ALL {
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for threads in [1, 2, 3, 5] {
            let Ok(compute) = Compute::with_isa(isa, Some(threads)) else { break };
            let (mut out, mut second) = (vec![0.0; 2 * 129], vec![0.0; 2 * 1001]);
            compute.sparse_mlp(
                &mlp.borrow(),
                &SparseMlpInputs { x: &x, rows: 2, neurons: &ids, masks: None, gate: None },
                &mut out,
            );
            compute.linear_in_out(
                &x,
                2,
                None,
                &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut second }],
            );
            let first = first.get_or_insert_with(|| (out.clone(), second.clone()));
            assert_eq!(*first, (out, second), "{isa} {threads}");
        }
    }
}

#[test]
#[should_panic(expected = "sparse_mlp: pooled.rows holds Some(4), of 4 rows")]
fn a_pooled_row_out_of_range_is_refused() {
    let mlp = Mlp::random(DType::F32, 4, 3, true, Activation::Silu, &mut Random(11));
    let pooled = Some(Pooled { neurons: 9, rows: &[1, 4] });
    let mlp = SparseMlp { pooled, ..mlp.borrow() };
    Compute::new(Some(1)).sparse_mlp(
        &mlp,
        &SparseMlpInputs { x: &[0.0; 3], rows: 1, neurons: &[2, 8], masks: None, gate: None },
        &mut [0.0; 3],
    );
}

#[test]
#[should_panic(expected = "sparse_mlp: neurons holds Some(4), of 4 rows")]
fn an_id_out_of_range_is_refused() {
    let mlp = Mlp::random(DType::F32, 4, 3, true, Activation::Silu, &mut Random(11));
    Compute::new(Some(1)).sparse_mlp(
        &mlp.borrow(),
        &SparseMlpInputs { x: &[0.0; 3], rows: 1, neurons: &[0, 4], masks: None, gate: None },
        &mut [0.0; 3],
    );
}
